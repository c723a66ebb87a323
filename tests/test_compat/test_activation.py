"""When the replacements of mmcv's compiled ops are used.

Each case runs in a new process, and without mmvitattn's ``__init__``, which would install the
import hook and import torch.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREAMBLE = f"""
import logging, sys, types
logging.basicConfig(level=logging.INFO, format='%(name)s|%(message)s')
bare_package = types.ModuleType('mmvitattn')
bare_package.__path__ = [{str(ROOT / 'mmvitattn')!r}]
sys.modules['mmvitattn'] = bare_package
from mmvitattn import compat
"""


def mmcv_folder() -> Path | None:
    spec = importlib.util.find_spec('mmcv')
    return Path(spec.origin).parent if spec and spec.origin else None


needs_mmcv = pytest.mark.skipif(mmcv_folder() is None, reason='mmcv is not installed')
needs_plain_mmcv = pytest.mark.skipif(
    mmcv_folder() is None or any(mmcv_folder().glob('_ext*')),
    reason='needs an mmcv without compiled ops',
)


def run(code: str, mode: str | None = None, preamble: str = PREAMBLE) -> list[str]:
    """Run ``code`` with MMVITATTN_MMCV_OPS set to ``mode``; return what mmvitattn logged."""
    env = {k: v for k, v in os.environ.items() if k != 'MMVITATTN_MMCV_OPS'}
    env['PYTHONPATH'] = str(ROOT)
    if mode is not None:
        env['MMVITATTN_MMCV_OPS'] = mode
    command = [sys.executable, '-W', 'ignore', '-c', preamble + code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith('mmvitattn|')]


COUNT_FINDERS = """
compat.install()
compat.install()
count = sum(type(finder).__name__ == 'MMCVExtFinder' for finder in sys.meta_path)
assert count == {count}, sys.meta_path
assert not compat.is_active()
"""


@pytest.mark.parametrize('mode', [None, '', 'auto', ' AUTO '])
def test_install_adds_one_finder_at_the_end_and_says_nothing(mode):
    last = "assert type(sys.meta_path[-1]).__name__ == 'MMCVExtFinder'"
    assert run(COUNT_FINDERS.format(count=1) + last, mode) == []


@pytest.mark.parametrize('mode', ['off', 'OFF'])
def test_off_adds_no_finder(mode):
    assert run(COUNT_FINDERS.format(count=0), mode) == []


def test_unknown_value_warns_and_means_auto():
    log = run(COUNT_FINDERS.format(count=1), 'sometimes')
    assert len(log) == 1
    assert 'MMVITATTN_MMCV_OPS' in log[0] and 'sometimes' in log[0]


def test_install_imports_nothing_heavy():
    run("""
compat.install()
assert not {'torch', 'torchvision', 'mmcv', 'mmengine', 'numpy'} & set(sys.modules)
""")


def test_finder_answers_for_one_name_only():
    run("""
import importlib.util
compat.install()
finder = sys.meta_path[-1]
assert finder.find_spec('mmcv._ext', ['/somewhere']).name == 'mmcv._ext'
for name in ('mmcv', 'mmcv.ops', 'mmcv._ext2', 'mmcv._ext.sub', '_ext', 'mmdet._ext'):
    assert finder.find_spec(name) is None, name
assert importlib.util.find_spec('no_such_module') is None
""")


@needs_plain_mmcv
def test_off_leaves_mmcv_as_it_is():
    log = run(
        """
compat.install()
try:
    import mmcv.ops
except ModuleNotFoundError as error:
    assert error.name == 'mmcv._ext'
else:
    raise AssertionError('mmcv.ops was imported')
assert not compat.is_active()
""",
        'off',
    )
    assert log == []


@needs_plain_mmcv
def test_active_logs_once_even_after_a_failed_and_a_second_import():
    log = run("""
try:
    import mmcv.ops
except ModuleNotFoundError:
    compat.install()
assert not compat.is_active()
import mmcv.ops
assert compat.is_active()
del sys.modules['mmcv._ext']
import mmcv._ext
assert compat.is_active()
""")
    assert len(log) == 1
    assert 'without compiled ops' in log[0] and 'MMVITATTN_MMCV_OPS' in log[0]


@needs_plain_mmcv
def test_missing_op_fails_at_the_call_and_says_why():
    run("""
import torch
compat.install()
from mmcv.ops import nms_match
try:
    nms_match(torch.rand(2, 5), 0.5)
except NotImplementedError as error:
    message = str(error)
assert 'nms_match' in message and 'without compiled ops' in message and 'Install' in message

import mmcv._ext
assert mmcv._ext.no_op_of_this_name.__name__ == 'no_op_of_this_name'
assert not hasattr(mmcv._ext, '__wrapped__')
""")


@needs_plain_mmcv
def test_mmcv_and_mmengine_inspect_the_stand_in_without_error():
    run("""
compat.install()
from mmcv.utils import collect_env
from mmcv.utils.ext_loader import check_ops_exist
from mmengine.utils.dl_utils import mmcv_full_available
assert check_ops_exist() and mmcv_full_available()
env = collect_env()
assert env['MMCV Compiler'] == env['MMCV CUDA Compiler'] == 'n/a'
assert mmcv_full_available() and compat.is_active()
""")


FAKE_EXT = """
import mmcv
mmcv.__path__.insert(0, {folder!r})
compat.install()
"""


@needs_mmcv
def test_compiled_ops_win(tmp_path):
    (tmp_path / '_ext.py').write_text('COMPILED = True\n')
    log = run(
        FAKE_EXT.format(folder=str(tmp_path))
        + """
import mmcv._ext
assert mmcv._ext.COMPILED and not compat.is_active()
"""
    )
    assert log == []


@needs_mmcv
def test_broken_compiled_ops_are_not_hidden(tmp_path):
    (tmp_path / '_ext.py').write_text('raise ImportError("undefined symbol")\n')
    log = run(
        FAKE_EXT.format(folder=str(tmp_path))
        + """
try:
    import mmcv._ext
except ImportError as error:
    assert 'undefined symbol' in str(error)
else:
    raise AssertionError('the broken extension was hidden')
assert not compat.is_active()
"""
    )
    assert log == []


@needs_plain_mmcv
def test_importing_mmvitattn_is_enough():
    run('import mmvitattn, mmcv.ops\nassert mmvitattn.compat.is_active()', preamble='')
