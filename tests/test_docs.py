"""What the documentation names exists, and its commands work.

CONTRIBUTING.md explains the marks in the pages that this file reads.
"""

import importlib
import importlib.util
import inspect
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmvitattn.__main__ import find_tools
from mmvitattn.__main__ import main as run_tool_here
from mmvitattn.official import DATA, OFFICIAL

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / 'docs').rglob('*.md'))
PAGES = [*sorted(ROOT.glob('*.md')), *GUIDES]
BLOCK = re.compile(
    r'(?:^<!-- (?P<mark>runs|file)(?:: (?P<text>[^\n]*?))? -->\n)?'
    r'^```(?P<language>\w+)\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
TABLE = re.compile(
    r'^<!-- table: (?P<command>[^\n]*) -->\n(?P<text>.*?)^<!-- end of table -->$',
    re.MULTILINE | re.DOTALL,
)

OTHER_COMMANDS = {'cd', 'cp', 'git', 'ls', 'make', 'mim', 'mkdir', 'mmvitattn', 'pip', 'pre-commit'}
OTHER_COMMANDS |= {'done', 'for', 'python', 'torchrun', 'unzip'}
LAUNCHERS = {  # script: tool, words before the config, words between the config and the options
    'dist_train.sh': ('train', 0, 1),
    'dist_test.sh': ('test', 0, 2),
    'slurm_train.sh': ('train', 2, 0),
    'slurm_test.sh': ('test', 2, 1),
}
FOLDERS = ('configs', 'docs', 'mmvitattn', 'tests', 'tools')
PUBLIC = ('models', 'layers', 'ops')  # with the package itself


class Block(NamedTuple):
    """A fenced block: its language, its mark (or ``None``), the mark's text and the code."""

    language: str
    mark: str | None
    text: str
    code: str


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of one language, in order."""
    found = BLOCK.finditer(page.read_text(encoding='utf-8'))
    every = [Block(m['language'], m['mark'], m['text'] or '', m['code']) for m in found]
    return [block for block in every if block.language == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r'^```.*?^```$', '', page.read_text('utf-8'), flags=re.MULTILINE | re.DOTALL)


def commands(code: str) -> list[list[str]]:
    """Words of each command line, without comments and leading assignments."""
    lines = code.replace('\\\n', ' ').splitlines()
    found = []
    for line in lines:
        if re.fullmatch(r'\w+=\$\(.*\)', line):
            continue
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r'\w+=.*', words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


def script(page: Path) -> str:
    """All blocks of a page that run, as one shell script; a mark's text ends its last command."""
    parts = [b.code.rstrip() + ' ' + b.text for b in blocks(page, 'bash') if b.mark == 'runs']
    return '\n'.join(['set -eux', *parts, ''])


RUNNING = [page for page in PAGES if any(b.mark == 'runs' for b in blocks(page, 'bash'))]
SHARDS_ON_CPU = 'priority' in inspect.signature(torch.cpu.Stream.__init__).parameters
EXAMPLES = sorted((ROOT / 'docs/examples').glob('*.py'))


def each(pages):
    return [pytest.param(p, id=str(p.relative_to(ROOT).with_suffix(''))) for p in pages]


@pytest.mark.parametrize('page', each(PAGES))
def test_links_and_named_files_exist(page):
    text = prose(page)
    links = re.findall(r'\]\(([^)#\s]+)[^)]*\)', text)
    missing = [x for x in links if '://' not in x and not (page.parent / x).exists()]
    spans = re.findall(r'`([^`\s]+)`', text)
    paths = [s for s in spans if s.split('/')[0] in FOLDERS and '/' in s]
    # A name in capitals, or in braces, stands for several.
    paths = [re.sub(r'[A-Z]{3,}|<[^>]*>', '*', p).rstrip('/') for p in paths]
    missing += [p for p in paths if '{' not in p and not list(ROOT.glob(p))]
    assert missing == []


@pytest.fixture(scope='session')
def parse():
    """Lets a tool parse a command line."""
    modules = {}

    def run(tool, words):
        if tool not in modules:
            spec = importlib.util.spec_from_file_location(f'docs_{tool}', find_tools()[tool])
            modules[tool] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[tool])
        argv, sys.argv = sys.argv, [tool, *words]
        try:
            return modules[tool].parse_args()
        finally:
            sys.argv = argv

    return run


def tool_call(words):
    """Name of the tool and its own words, or ``None`` for another command."""
    if words[:3] == ['python', '-m', 'mmvitattn']:
        words = words[2:]
    if words[0] == 'mmvitattn':
        return (words[1], words[2:]) if words[1:] else None
    if words[0] == 'python' and words[1].startswith('tools/'):
        assert (ROOT / words[1]).is_file(), words[1]
        return words[1].rpartition('/')[2].removesuffix('.py'), words[2:]
    launcher = words[0].rpartition('/')[2]
    if launcher in LAUNCHERS:
        tool, before, behind = LAUNCHERS[launcher]
        assert (ROOT / words[0]).is_file(), words[0]
        config, *rest = words[1 + before :]
        checkpoint = rest[:1] if tool == 'test' else []
        return tool, [config, *checkpoint, *rest[behind:]]
    return None


@pytest.mark.parametrize('page', each(PAGES))
def test_commands_are_known_to_the_tools(page, parse, capsys):
    for block in blocks(page, 'bash'):
        for words in commands(block.code):
            configs = [word for word in words if re.match(r'configs/.*\.py$', word)]
            assert [c for c in configs if not (ROOT / c).is_file()] == []
            call = tool_call(words)
            if call is None:
                assert words[0] in OTHER_COMMANDS, ' '.join(words)
                continue
            try:
                parse(*call)
            except SystemExit as error:
                assert error.code == 0, f'{" ".join(words)}: {capsys.readouterr().err}'


def tables(page):
    """Command and text of each table that a command prints."""
    return TABLE.findall(page.read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', each(page for page in PAGES if tables(page)))
def test_tables_are_what_their_commands_print(page, monkeypatch, capsys):
    """In this process, which imports the toolboxes once: onedl's print a line when they are."""
    for toolbox in ('mmdet', 'mmpretrain', 'mmseg'):
        importlib.import_module(f'{toolbox}.datasets')
    for command, text in tables(page):
        monkeypatch.setattr(sys, 'argv', [])
        monkeypatch.setattr(logging.root.manager, 'disable', logging.NOTSET)
        capsys.readouterr()
        tool, words = tool_call(shlex.split(command))
        run_tool_here([tool, *words])
        assert text.strip() == capsys.readouterr().out.strip(), command


@pytest.fixture
def workplace(tmp_path, small_shapes, labelled, monkeypatch):
    """A folder in which a page's commands run: with the tools, the configs and some data."""
    for name in ('configs', 'docs', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(small_shapes)
    (tmp_path / 'photos').symlink_to(labelled)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page, folder):
    for block in [*blocks(page, 'python'), *blocks(page, 'yaml')]:
        if block.mark == 'file':
            (folder / block.text).write_text(block.code)


@pytest.mark.parametrize('page', each(PAGES))
def test_config_files_build(page, workplace, monkeypatch):
    """Model and data sets of every config that a page writes; the data need not be there."""
    write_files(page, workplace)
    for path in workplace.glob('*.py'):
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        MODELS.build(cfg.model)
        loaders = [cfg[name] for name in cfg if name.endswith('_dataloader')]
        assert loaders
        for loader in loaders:
            DATASETS.build(dict(loader.dataset, lazy_init=True))


def python_code(page):
    return '\n'.join(b.code for b in blocks(page, 'python') if b.mark is None)


@pytest.mark.parametrize('page', each(page for page in PAGES if page not in RUNNING))
def test_python_blocks_run(page, workplace):
    write_files(page, workplace)
    exec(compile(python_code(page), str(page), 'exec'), {'__name__': '__main__'})


@pytest.mark.slow
@pytest.mark.parametrize('page', each(RUNNING))
def test_commands_run(page, workplace):
    """Those that are marked, then the Python blocks, which may use what they wrote."""
    if page.stem == 'multi_node' and not SHARDS_ON_CPU:
        pytest.skip('this PyTorch shards only on GPUs')
    write_files(page, workplace)
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    env = {**os.environ, 'PATH': path, 'OMP_NUM_THREADS': '1', 'PORT': '29871'}
    for command in (['bash', '-c', script(page)], [sys.executable, '-c', python_code(page)]):
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-6000:]}'


def test_official_weights_are_listed():
    page = (ROOT / 'docs/convert_weights.md').read_text()
    rows = [
        f'| `{entry.backbone}` | {DATA[entry.data]} | {entry.readme or "-"} / {entry.paper} '
        f'| `configs/{entry.config}.py` | `{entry.original.name}` | `{entry.converted.name}` |'
        for entry in OFFICIAL
    ]
    assert re.findall(r'^\| `\w+` \| \S+ \| [-\d].*$', page, re.MULTILINE) == rows
    for release in {entry.release for entry in OFFICIAL}:
        assert f']({release.weights})' in page and f']({release.code})' in page


def test_every_page_is_in_the_index():
    index = (ROOT / 'docs/README.md').read_text()
    names = [str(page.relative_to(ROOT / 'docs')) for page in GUIDES]
    assert [n for n in names if n != 'README.md' and f']({n})' not in index] == []
    every = ''.join(page.read_text() for page in GUIDES)
    assert [example.name for example in EXAMPLES if example.name not in every] == []


@pytest.mark.parametrize('name', ['mmvitattn', *map('mmvitattn.{}'.format, PUBLIC)])
def test_every_public_name_is_in_the_reference(name):
    """``make docs`` fails for a name that does not exist."""
    page = (ROOT / f'docs/api/{name.removeprefix("mmvitattn.")}.md').read_text()
    listed = re.findall(r'^::: (\S+)$', page, re.MULTILINE)
    public = [f'{name}.{part}' for part in importlib.import_module(name).__all__]
    assert len(listed) == len(set(listed)) and set(public) - set(listed) == set()
