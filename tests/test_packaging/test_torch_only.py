"""With torch, torchvision and numpy only: backbones, weights, ONNX; what the tools say."""

import re
from pathlib import Path

import pytest
import torch

from mmvitattn import build_backbone, extras

HIDE = """
import sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
HIDDEN = {hidden!r}
def without(name, *args):
    return None if name.partition('.')[0] in HIDDEN else find_spec(name, *args)
PathFinder.find_spec = without
"""
MM = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
TOOLS = ('cv2', 'matplotlib', 'pycocotools', 'tqdm', 'yaml', 'scipy', 'timm', 'huggingface_hub')
HIDDEN = (*MM, *TOOLS, 'addict', 'rich', 'yapf', 'onnxruntime')
CODE = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter('error')
    import mmvitattn
import torch
imported = {name.partition('.')[0] for name in sys.modules}
assert not imported & {*HIDDEN, 'torchvision', 'PIL'}, imported
for name in mmvitattn.list_backbones():
    with torch.device('meta'):
        backbone = mmvitattn.build_backbone(name)
        side = backbone.min_size
        maps = backbone.eval()(torch.empty(1, 3, side, side + 5))
    assert [y.shape[1] for y in maps] == backbone.feature_info.channels()
backbone = mmvitattn.build_backbone('linglo_b0', pretrained=PATH).eval()
image = torch.rand(1, 3, 64, 70)
expected = backbone(image)
backbone.init_weights()  # of MMEngine's modules, which does nothing here
backbone.switch_to_deploy()
torch.testing.assert_close(backbone(image), expected, rtol=1e-4, atol=1e-4)
print(len(expected), backbone.stem[1].weight[0].item())
try:
    mmvitattn.build_backbone('linglo_b0', init_cfg=dict(type='Pretrained', checkpoint='a.pth'))
except ValueError as error:
    print(error)
for module in ('timm', 'huggingface'):
    try:
        __import__(f'mmvitattn.{module}')
    except ModuleNotFoundError as error:
        print(error)
"""

EXPORT = """
from pathlib import Path
import torch
from mmvitattn.inference.onnx_export import Exportable, export_onnx
from mmvitattn.models import LinGlo
small = dict(channels=(8, 16), depths=(1, 1), num_heads=(1, 2), ffn_ratios=(2, 2))
model = LinGlo(small, layout='CH')  # squeeze-and-excitation is torchvision's
assert 'torchvision' in sys.modules
export_onnx(Exportable(model), Path(PATH), (1, 3, 64, 64), {})
"""


def test_backbones(run_code, tmp_path):
    """Weights are those of a training with MMEngine, with the objects that it writes."""
    mmengine = pytest.importorskip('mmengine')
    backbone = build_backbone('linglo_b0')
    with torch.no_grad():
        backbone.stem[1].weight.fill_(3)
    state = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    log = mmengine.logging.HistoryBuffer()
    log.update(1.5)
    extra = dict(message_hub=dict(loss=log), cfg=mmengine.ConfigDict(lr=1))
    path = tmp_path / 'training.pth'
    torch.save(dict(state_dict=state, **extra), path)
    code = HIDE.format(hidden=HIDDEN) + CODE.replace('PATH', repr(str(path)))
    printed, error, no_timm, no_hub = run_code(code).splitlines()
    assert printed == '4 3.0'
    assert 'needs MMEngine' in error and 'build_backbone(NAME, pretrained=FILE)' in error
    assert no_timm == 'mmvitattn.timm needs timm: pip install "mmvitattn[timm]"'
    assert no_hub.startswith('mmvitattn.huggingface needs ') and no_hub.endswith('[hf]"')


@pytest.mark.slow
def test_onnx(run_code, tmp_path):
    onnx = pytest.importorskip('onnx', reason='extra [export]')
    path = tmp_path / 'model.onnx'
    run_code(HIDE.format(hidden=HIDDEN) + EXPORT.replace('PATH', repr(str(path))))
    assert [output.name for output in onnx.load(path).graph.output] == ['stage_0', 'stage_1']


def test_drop_path_is_torchvisions():
    stochastic_depth = pytest.importorskip('torchvision.ops').StochasticDepth
    from mmvitattn.layers.drop_path import DropPath

    x = torch.rand(64, 3, 2)
    for p in (0.0, 0.3, 1.0):
        outputs = []
        for module in (DropPath(p), stochastic_depth(p, mode='row')):
            torch.manual_seed(0)
            outputs.append(module(x))
        assert torch.equal(*outputs)
        assert torch.equal(DropPath(p).eval()(x), x)
    with pytest.raises(ValueError, match=r'1.5 must lie in \[0, 1\]'):
        DropPath(1.5)


RUN_TOOLS = """
import runpy
sys.stderr = sys.stdout
for tool in {tools!r}:
    try:
        runpy.run_path(tool, run_name='__main__')
    except ModuleNotFoundError as error:
        sys.excepthook(type(error), error, error.__traceback__)
"""


def test_a_tool_names_the_extra(run_code, root):
    tools = [str(root / 'tools' / name) for name in ('train.py', 'prepare_data.py')]
    lines = run_code(HIDE.format(hidden=HIDDEN) + RUN_TOOLS.format(tools=tools)).splitlines()
    missing = dict(mmengine='onedl', tqdm='tools')
    for line, (package, extra) in zip(lines, missing.items(), strict=True):
        expected = f'error: {package} is not installed: pip install "mmvitattn[{extra}]"'
        assert line.startswith(expected)


def test_every_tool_imports_extras_first(root):
    for path in Path(root / 'tools').rglob('*.py'):
        if path.name == 'run_onnx.py':  # needs no mmvitattn
            continue
        first = re.search(r'^(import|from) .*$', path.read_text(), re.MULTILINE)[0]
        assert first.startswith('from mmvitattn import extras  # noqa'), path


def test_extras_are_those_of_the_package(root):
    metadata = (root / 'pyproject.toml').read_text()
    for extra in extras.EXTRAS:
        assert re.search(rf'^{extra} = \[', metadata, re.MULTILINE), extra
    assert extras.missing_extra(ModuleNotFoundError(name='cv2.aruco')).startswith('cv2 is not')
    assert extras.missing_extra(ModuleNotFoundError(name='nothing')) is None
    assert extras.missing_extra(ImportError(name='cv2')) is None
