"""The report of a GPU: dry runs by Triton's interpreter, without what a bare machine lacks."""

import json
import math

import pytest
import torch

from mmvitattn.ops import triton_support

TOOL = 'analysis_tools/gpu_report.py'
BARE = """
import runpy, sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
HIDDEN = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'matplotlib', 'pytest')
def without(name, *args):
    return None if name.partition('.')[0] in HIDDEN else find_spec(name, *args)
PathFinder.find_spec = without
sys.argv = [{tool!r}, '--quick', '--out-dir', {folder!r}]
runpy.run_path({tool!r}, run_name='__main__')
"""
CHECKS = """
import json, torch
from mmvitattn.benchmark import gpu
{change}
checks = list(gpu.run_checks(torch.device('cpu'), quick=True))
print(json.dumps([[*check, check.passed] for check in checks]))
"""
WRONG = """
exact = gpu.key_only_attention
gpu.key_only_attention = lambda *a: exact(*a) * 1.1
def broken(*a):
    raise RuntimeError('no such kernel')
gpu.local_shift_attention = broken
"""


@pytest.fixture
def interpreter(monkeypatch):
    pytest.importorskip('triton')
    if not hasattr(torch.library, 'register_autograd'):
        pytest.skip('the kernels need PyTorch 2.4')
    monkeypatch.setenv('TRITON_INTERPRET', '1')


@pytest.mark.slow
@pytest.mark.parametrize('change', ['', WRONG], ids=['as it is', 'wrong'])
def test_wrong_kernels_are_found_and_the_others_still_checked(change, run_code, interpreter):
    found = json.loads(run_code(CHECKS.format(change=change)).splitlines()[-1])
    passed = {}
    for what, _, error, bound, message, ok in found:
        passed.setdefault(what.split(',')[0], []).append(ok)
        assert math.isnan(error) == bool(message) and ok == (error <= bound)
    assert {len(each) for each in passed.values()} == {12, 6}  # a third of each type
    correct = {name for name, each in passed.items() if all(each)}
    assert 'learned_query_attention' in correct
    assert len(correct) == (1 if change else 3)
    if change:
        assert not any(passed['key_only_attention'] + passed['local_shift_attention'])
        messages = [row[4] for row in found if row[0].startswith('local_shift')]
        assert set(messages) == {'RuntimeError: no such kernel'}


@pytest.mark.slow
def test_whole_report_on_a_bare_machine(run_code, root, tmp_path, interpreter):
    pytest.importorskip('timm', reason='extra [timm]')
    folder = tmp_path / 'gpu'
    printed = run_code(BARE.format(tool=str(root / 'tools' / TOOL), folder=str(folder)))
    page, content = (folder / 'gpu.md').read_text(), json.loads((folder / 'gpu.json').read_text())
    assert page in printed and f'{len(content["checks"])} of {len(content["checks"])} ' in page
    for dtype in ('float32', 'bfloat16'):
        assert f'\n## {dtype}\n' in page
        ran = [m for m in content[dtype]['measurements'] if m['seconds']]
        assert len(ran) > 30 and {'QnA', 'key-only', 'SAG', 'LinGlo-b0'} <= {m['name'] for m in ran}
        assert not [m for m in content[dtype]['measurements'] if m['left_out']]


@pytest.mark.skipif(triton_support.UNAVAILABLE is not None, reason='needs Triton')
def test_what_the_tool_refuses(run_tool, tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert 'torch finds no GPU' in run_tool(TOOL, status=2).stderr
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    (tmp_path / 'gpu.md').touch()
    assert 'name a new' in run_tool(TOOL, '--out-dir', tmp_path, status=2).stderr


def test_the_plan_for_a_gpu(root):
    """Every contestant is planned once as it is or once for the compiler, the latter at the end."""
    import runpy

    tool = runpy.run_path(str(root / 'tools' / TOOL), run_name='tool')
    groups = tool['plan'](quick=False)
    compiled = [group.key.endswith('_compiled') for group in groups]
    assert compiled == sorted(compiled) and len({group.key for group in groups}) == len(groups)
    expected = {
        (group.key, case.label, name)
        for group in tool['layers'].attention_groups(quick=False, on_gpu=True)
        for case in group.cases
        for name in case.names
    }
    planned = {
        (group.key.removesuffix('_compiled'), case.label, name)
        for group in groups
        for case in group.cases
        for name in case.names
        if not group.key.startswith('backbones')
    }
    assert planned == expected
