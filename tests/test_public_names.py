"""Public names are spelt as words: codespell reads them split at underscores and capitals."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def public_names():
    for path in sorted((ROOT / 'mmvitattn').rglob('*.py')) + sorted((ROOT / 'tools').rglob('*.py')):
        yield path.stem
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
                if isinstance(node, ast.FunctionDef):
                    arguments = node.args.args + node.args.kwonlyargs
                    yield from (argument.arg for argument in arguments)


def words(names):
    for name in names:
        for part in re.split(r'_+', name):
            yield from re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+', part)


def misspelt(found):
    text = '\n'.join(sorted({word.lower() for word in found if len(word) > 3}))
    command = [sys.executable, '-m', 'codespell_lib', '-']  # options: pyproject.toml
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    return [line for line in done.stdout.splitlines() if '==>' in line]


def test_names_are_found():
    assert {'KeyOnlyAttention', 'depthwise_conv2d', 'out_indices'} <= set(public_names())


def test_no_public_name_is_misspelt():
    assert misspelt(words(public_names())) == []


def test_a_misspelt_name_is_caught():
    assert misspelt(words(['KeyOnlyAttenion', 'recieve_image']))
