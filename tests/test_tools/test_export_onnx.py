"""Exported files against PyTorch, at sizes that the tool itself did not see."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvitattn import build_backbone, list_backbones
from mmvitattn.engine import onnx_export
from mmvitattn.engine.errors import UsageError
from mmvitattn.engine.onnx_export import Exportable, export_onnx, largest_differences
from mmvitattn.zoo import families

onnx = pytest.importorskip('onnx', reason='extra [export]')
onnxruntime = pytest.importorskip('onnxruntime', reason='extra [export]')

TOOL = 'export_onnx.py'
TASKS = ('detector', 'segmenter', 'classifier')
FAMILIES = [cls.__name__ for cls in families().values()]
DEFAULT = list(zip(TASKS, FAMILIES, strict=True))
CASES = [
    pytest.param(t, f, marks=() if (t, f) in DEFAULT else pytest.mark.slow)
    for t in TASKS
    for f in FAMILIES
    if t == 'classifier' or f != 'SAGViT'  # see below
]


def run_onnx(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {'image': image.numpy()}), strict=True))


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == tuple(e.shape)
        assert (torch.from_numpy(a) - e).abs().max() < 1e-4 * e.abs().max()


@pytest.mark.parametrize(('task', 'family'), CASES)
def test_whole_model(task, family, run_tool, tiny_config, tiny_checkpoint, tmp_path):
    config, out = tiny_config(task, family), tmp_path / 'model.onnx'
    checkpoint, model = tiny_checkpoint(config)
    lines = run_tool(TOOL, config, checkpoint, '--out', out).stdout.splitlines()
    assert [line.rsplit(maxsplit=1)[0] for line in lines[-4:-1]] == (
        ['1 x 112 x 112', '2 x 65 x 99', '3 x 16 x 32']
        if family == 'SAGViT'
        else ['1 x 224 x 224', '2 x 129 x 195', '3 x 32 x 64']
    )
    image = torch.randn(4, 3, 61, 143)
    outputs = run_onnx(out, image)
    with torch.no_grad():
        expected = model(image, mode='tensor')
    if task == 'detector':
        expected = [level for part in expected for level in part]
        names = [f'{part}_{i}' for part in ('cls_score', 'bbox_pred') for i in range(3)]
        assert list(outputs) == names
    else:
        expected = [expected[0] if isinstance(expected, tuple) else expected]
        assert list(outputs) == ['logits']
    assert_equal(outputs.values(), expected)
    exported = onnx.load(out)
    onnx.checker.check_model(exported)
    metadata = {entry.key: json.loads(entry.value) for entry in exported.metadata_props}
    assert metadata['source'] == config.name and metadata['checkpoint'] == checkpoint.name
    assert metadata['mean'] == [123.675, 116.28, 103.53] and len(metadata['std']) == 3
    convolutions = sum(node.op_type == 'BatchNormalization' for node in exported.graph.node)
    assert convolutions == 0  # LinGlo's are folded


def test_backbone_of_a_config(run_tool, tiny_config, tiny_checkpoint, tmp_path):
    config, out = tiny_config('detector'), tmp_path / 'backbone.onnx'
    checkpoint, model = tiny_checkpoint(config, deploy=True)
    run_tool(TOOL, config, checkpoint, '--out', out, '--backbone-only')
    image = torch.randn(1, 3, 50, 33)
    outputs = run_onnx(out, image)
    assert list(outputs) == ['stage_1', 'stage_2', 'stage_3']
    with torch.no_grad():
        assert_equal(outputs.values(), model.backbone(image))


def exported_by_name(name, run_tool, tmp_path):
    backbone = build_backbone(name).eval()
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    out = tmp_path / 'backbone.onnx'
    run_tool(TOOL, name, tmp_path / 'weights.pth', '--out', out)
    image = torch.randn(2, 3, backbone.min_size + 7, 2 * backbone.min_size + 2)
    with torch.no_grad():
        assert_equal(run_onnx(out, image).values(), backbone(image))


def test_backbone_by_name(run_tool, tmp_path):
    exported_by_name('linglo_b0', run_tool, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('name', list_backbones())
def test_every_arch(name, run_tool, tmp_path):
    exported_by_name(name, run_tool, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        'demo/retinanet_sag_small_fpn_shapes',
        'demo/semfpn_sag_small_shapes',
        'semfpn_sag_tiny_40k_ade20k',
        'upernet_linglo_b2_160k_ade20k',
    ],
)
def test_published_config(config, run_tool, tmp_path):
    run_tool(TOOL, f'configs/{config}.py', '--out', tmp_path / 'model.onnx')


def test_training_form(run_tool, tiny_config, tiny_checkpoint, tmp_path):
    config, out = tiny_config('classifier'), tmp_path / 'model.onnx'
    checkpoint, model = tiny_checkpoint(config)
    run_tool(TOOL, config, checkpoint, '--out', out, '--training-form')
    image = torch.randn(2, 3, 40, 41)
    with torch.no_grad():
        assert_equal(run_onnx(out, image).values(), [model(image, mode='tensor')])


def test_nothing_is_overwritten_or_left_behind(run_tool, tmp_path, monkeypatch):
    def refused(*arguments):
        return run_tool(TOOL, *arguments, status=2).stderr

    out = tmp_path / 'model.onnx'
    out.write_bytes(b'precious')
    assert '--force' in refused('linglo_b0', '--out', out)
    assert 'did you mean linglo_b2, ' in refused('linglo_b', '--out', tmp_path / 'a.onnx')
    assert 'no config' in refused('nothing.py', '--out', tmp_path / 'a.onnx')
    assert 'no checkpoint' in refused('linglo_b0', 'nothing.pth', '--out', tmp_path / 'a.onnx')
    assert 'folder' in refused('linglo_b0', '--out', tmp_path / 'folder' / 'a.onnx')
    torch.save(build_backbone('linglo_b0').state_dict(), tmp_path / 'weights.pth')
    wrong = refused('linglo_b1', tmp_path / 'weights.pth', '--out', tmp_path / 'a.onnx')
    assert 'does not fit' in wrong
    monkeypatch.setattr(onnx_export, 'TOLERANCE', -1.0)
    assert 'differ by more than' in refused('linglo_b0', '--out', out, '--force')
    assert out.read_bytes() == b'precious'
    assert {path.name for path in tmp_path.iterdir()} == {'model.onnx', 'weights.pth'}


@pytest.mark.slow
@pytest.mark.parametrize(
    'config', ['mask-rcnn_linglo_b2_fpn_1x_coco', 'detr_qna_vit_tiny_150e_coco']
)
def test_detectors_in_stages_are_refused(config, run_tool, tmp_path):
    done = run_tool(TOOL, f'configs/{config}.py', '--out', tmp_path / 'model.onnx', status=2)
    assert '--backbone-only' in done.stderr
    assert not list(tmp_path.iterdir())


class Halves(nn.Module):
    """Half the image, by arithmetic that a recording keeps or not."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = frozen

    def forward(self, image, mode):
        sides = image.shape[2:]
        half = [int(side) // 2 if self.frozen else side // 2 for side in sides]
        return F.interpolate(image, size=half, mode='nearest')


@pytest.mark.parametrize('frozen', [False, True])
def test_a_recorded_size_is_noticed(frozen, tmp_path):
    module, path = Exportable(Halves(frozen)), tmp_path / 'model.onnx'
    export_onnx(module, path, (2, 3, 20, 30), {})
    assert largest_differences(module, path, [(2, 3, 20, 30)]) == [0.0]
    if frozen:
        with pytest.raises(UsageError, match='a size was recorded'):
            largest_differences(module, path, [(1, 3, 40, 50)])
    else:
        assert largest_differences(module, path, [(1, 3, 40, 50)]) == [0.0]


@pytest.mark.parametrize('size', [(7, 10), (3, 4), (12, 6), (1, 25)])
@pytest.mark.parametrize('bins', [2, 3, (6, 4)])
def test_pooling_of_the_pyramid_heads(size, bins):
    pool, x = nn.AdaptiveAvgPool2d(bins), torch.randn(2, 3, *size)
    torch.testing.assert_close(onnx_export._adaptive_average(pool, x), pool(x))
