"""No part of the package imports a part above it, also not inside a function."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [  # from the lowest up: a part imports itself and parts of lower levels
    {'errors', 'extras', 'process', 'version'},
    {'compat'},
    {'datasets', 'hub', 'ops', 'registry'},
    {'layers'},
    {'models'},
    {'checkpoint'},
    {'converters', 'visualization'},
    {'official'},
    {'zoo'},
    {'huggingface', 'inference', 'timm', 'training'},
    {'cli'},
    {'__init__', '__main__'},
    {'benchmark'},
]
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
ONLY_TORCH = {'torch', 'triton', *sys.stdlib_module_names}  # torch brings triton


def part_of(path):
    """The part of the package that a file belongs to."""
    return path.relative_to(ROOT / 'mmvitattn').parts[0].removesuffix('.py')


def imported_modules(path, source=None):
    """Absolute names of all modules and objects that a file imports."""
    package = ('mmvitattn', *path.relative_to(ROOT / 'mmvitattn').parts[:-1])
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*above, *filter(None, [node.module])])
            yield from (f'{module}.{alias.name}' for alias in node.names)


def imported_parts(modules):
    for module in modules:
        package, *rest = module.split('.')
        if package == 'mmvitattn':
            yield rest[0] if rest and rest[0] in LEVEL_OF else '__init__'


def upward(path, source=None):
    """Parts that a file imports and must not."""
    part = part_of(path)
    parts = set(imported_parts(imported_modules(path, source))) - {part}
    return {other for other in parts if LEVEL_OF[other] >= LEVEL_OF[part]}


FILES = sorted((ROOT / 'mmvitattn').rglob('*.py'))
FILES = [path for path in FILES if '.mim' not in path.parts]


def test_every_part_has_a_level():
    assert {part_of(path) for path in FILES} == set(LEVEL_OF)


def test_no_import_leads_upwards():
    found = {str(path.relative_to(ROOT)): upward(path) for path in FILES}
    assert {path: parts for path, parts in found.items() if parts} == {}


def test_ops_and_layers_need_only_torch():
    files = [path for path in FILES if part_of(path) in ('ops', 'layers')]
    packages = {m.split('.')[0] for path in files for m in imported_modules(path)}
    assert 'torch' in packages and packages - ONLY_TORCH == {'mmvitattn'}


@pytest.mark.parametrize(
    ('source', 'parts'),
    [
        ('from ..errors import UsageError\nfrom .base import PyramidBackbone', set()),
        ('from ..training.checks import check_data', {'training'}),
        ('def f():\n    from .. import zoo', {'zoo'}),
        ('import mmvitattn.cli', {'cli'}),
        ('from mmvitattn import build_backbone', {'__init__'}),
        ('if True:\n    import mmvitattn', {'__init__'}),
    ],
)
def test_upward_imports_are_found(source, parts):
    assert upward(ROOT / 'mmvitattn/models/linglo.py', source) == parts
