"""Exported files against PyTorch, at sizes that the tool itself did not see."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn

import mmvitattn
from mmvitattn import build_backbone, list_backbones
from mmvitattn.compat.onnx import has_dynamo_exporter, write_onnx
from mmvitattn.errors import UsageError
from mmvitattn.inference import onnx_export, onnx_quantize
from mmvitattn.inference.build import build_model
from mmvitattn.inference.onnx_export import Exportable, export_onnx, largest_differences
from mmvitattn.inference.onnx_metadata import load_runner, resize_steps
from mmvitattn.ops import learned_query_attention
from mmvitattn.ops.reference import learned_query_attention as reference
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


OLDER = ('--exporter', 'torchscript')  # seconds where the newer one takes a minute


def run_onnx(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {'image': image.numpy()}), strict=True))


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == tuple(e.shape)
        assert (torch.from_numpy(a) - e).abs().max() < 1e-4 * e.abs().max()


def toolbox_detections(model, image):
    """Batch index, label, score and box of mmdet's detections, and the masks."""
    from mmdet.structures import DetDataSample

    batch, _, height, width = image.shape
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    padded = F.pad(image, (0, -width % divisor, 0, -height % divisor))
    metainfo = dict(
        img_shape=(height, width),
        ori_shape=(height, width),
        batch_input_shape=tuple(padded.shape[2:]),
        scale_factor=(1.0, 1.0),
    )
    samples = [DetDataSample(metainfo=metainfo) for _ in range(batch)]
    with torch.no_grad():
        found = [sample.pred_instances for sample in model.predict(padded, samples, rescale=True)]
    return [
        torch.cat([torch.full((len(x), 1), i), x.labels[:, None], x.scores[:, None], x.bboxes], 1)
        for i, x in enumerate(found)
    ], found


def assert_same_detections(outputs, model, image):
    """All but a few near-ties are the same, and in the same order."""
    expected, found = toolbox_detections(model, image)
    expected = torch.cat(expected)
    assert len(expected) > 10
    batch_index = outputs.get('batch_index', np.zeros_like(outputs['labels']))
    columns = (batch_index, outputs['labels'], outputs['scores'], *outputs['boxes'].T)
    actual = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
    assert abs(len(actual) - len(expected)) <= 0.05 * len(expected)
    close = ((actual[None] - expected[:, None]).abs() < 1e-3 * (1 + expected[:, None].abs())).all(2)
    assert close.any(1).float().mean() > 0.95
    for i in actual[:, 0].unique():
        scores = actual[actual[:, 0] == i, 2]
        assert (scores.diff() <= 0).all()
    return close, found


@pytest.mark.parametrize(('task', 'family'), CASES)
def test_whole_model(task, family, run_tool, tiny_config, tiny_checkpoint, tmp_path):
    config, out = tiny_config(task, family), tmp_path / 'model.onnx'
    checkpoint, model = tiny_checkpoint(config)
    lines = run_tool(TOOL, config, checkpoint, '--out', out, *OLDER).stdout.splitlines()
    assert [line.rsplit(maxsplit=1)[0] for line in lines[-4:-1]] == (
        ['1 x 112 x 112', '2 x 65 x 99', '3 x 16 x 32']
        if family == 'SAGViT'
        else ['1 x 224 x 224', '2 x 129 x 195', '3 x 32 x 64']
    )
    image = torch.randn(4, 3, 61, 143)
    outputs = run_onnx(out, image)
    if task == 'detector':
        assert list(outputs) == ['boxes', 'scores', 'labels', 'batch_index']
        assert_same_detections(outputs, model, image)
    else:
        with torch.no_grad():
            logits = model(image, mode='tensor')
        logits = logits[0] if isinstance(logits, tuple) else logits
        if task == 'segmenter':
            size = dict(size=image.shape[2:], mode='bilinear', align_corners=False)
            expected = F.interpolate(logits, **size).argmax(1)
            assert outputs['labels'].dtype == np.uint8 and list(outputs) == ['labels']
            assert (outputs['labels'] == expected.numpy()).mean() > 0.999
        else:
            assert list(outputs) == ['probabilities']
            assert_equal(outputs.values(), [logits.softmax(1)])
    exported = onnx.load(out)
    onnx.checker.check_model(exported)
    assert {node.domain for node in exported.graph.node} == {''}  # only standard operators
    metadata = {entry.key: json.loads(entry.value) for entry in exported.metadata_props}
    assert metadata['source'] == config.name and metadata['checkpoint'] == checkpoint.name
    assert metadata['mean'] == [123.675, 116.28, 103.53] and len(metadata['std']) == 3
    assert metadata['task'] in ('detection', 'segmentation', 'classification')
    assert metadata['classes'][:1] == ([] if task == 'classifier' else ['circle'])
    assert metadata['channels'] == 'rgb' and metadata['version'] == mmvitattn.__version__
    convolutions = sum(node.op_type == 'BatchNormalization' for node in exported.graph.node)
    assert convolutions == 0  # LinGlo's are folded


SMALL_MASK_RCNN = """
_base_ = [{0!r} + '/configs/_base_/models/mask_rcnn_fpn.py']
default_scope = 'mmdet'
model = dict(
    backbone=dict(type='mmvitattn.LinGlo', arch=dict(
        channels=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 2, 2), ffn_ratios=(2,) * 4)),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(in_channels=8, fc_out_channels=16, num_classes=5),
        mask_roi_extractor=dict(out_channels=8),
        mask_head=dict(in_channels=8, conv_out_channels=8, num_convs=1, num_classes=5)),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=40), rcnn=dict(score_thr={1})))
"""


@pytest.mark.parametrize('score_thr', [0.0, 1.0])
def test_mask_rcnn(score_thr, root, run_tool, tiny_checkpoint, tmp_path):
    """Masks are cells of their boxes; no detection at all is possible."""
    config, out = tmp_path / 'config.py', tmp_path / 'model.onnx'
    config.write_text(SMALL_MASK_RCNN.format(str(root), score_thr))
    checkpoint, model = tiny_checkpoint(config)
    run_tool(TOOL, config, checkpoint, '--out', out, *OLDER)
    image = torch.randn(1, 3, 161, 243)
    outputs = run_onnx(out, image)
    assert list(outputs) == ['boxes', 'scores', 'labels', 'masks']
    if score_thr:
        assert outputs['boxes'].shape == (0, 4) and outputs['masks'].shape == (0, 28, 28)
        return
    close, (found,) = assert_same_detections(outputs, model, image)
    paste = load_runner().paste
    same = []
    for i, j in close.nonzero().tolist():
        mask = paste(outputs['masks'][j], outputs['boxes'][j], 161, 243)
        same.append((mask == found.masks[i].numpy()).mean())
    assert len(same) > 10 and min(same) > 0.999


@pytest.mark.slow
def test_detr(root, run_tool, tiny_checkpoint, tmp_path):
    config, out = root / 'configs/detr_qna_vit_tiny_150e_coco.py', tmp_path / 'model.onnx'
    checkpoint, model = tiny_checkpoint(config)
    run_tool(TOOL, config, checkpoint, '--out', out, *OLDER)
    image = torch.randn(2, 3, 61, 143)
    outputs = run_onnx(out, image)
    assert outputs['boxes'].shape == (200, 4) and set(outputs['batch_index']) == {0, 1}
    assert_same_detections(outputs, model, image)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('task', 'family'),
    [
        ('detector', 'LinGlo'),
        ('segmenter', 'LinGlo'),
        ('classifier', 'LinGlo'),
        ('classifier', 'QnAViT'),
        ('classifier', 'SAGViT'),
    ],
)
def test_newer_exporter(task, family, run_tool, tiny_config, tiny_checkpoint, tmp_path):
    """The same file within rounding, where PyTorch has it."""
    if not has_dynamo_exporter():
        pytest.skip('no exporter based on torch.export here')
    config, image = tiny_config(task, family), torch.randn(3, 3, 75, 61)
    checkpoint, model = tiny_checkpoint(config)
    out = tmp_path / 'model.onnx'
    arguments = (config, checkpoint, '--out', out, '--exporter', 'dynamo')
    printed = run_tool(TOOL, *arguments, process=True)
    assert 'exporter: dynamo\n' in printed.stdout
    assert 'onnxruntime' not in printed.stderr  # no warnings, for example of unused constants
    run_tool(TOOL, config, checkpoint, '--out', tmp_path / 'older.onnx', *OLDER)
    outputs, older = run_onnx(out, image), run_onnx(tmp_path / 'older.onnx', image)
    assert list(outputs) == list(older)
    if task == 'detector':
        assert_same_detections(outputs, model, image)
    else:
        (a,), (b,) = outputs.values(), older.values()
        assert a.shape == b.shape and (abs(a - b) < 1e-5).mean() > 0.999
    if task == 'classifier':
        int8 = tmp_path / 'int8.onnx'
        onnx_quantize.quantise(out, int8, [image.numpy()])
        (b,) = run_onnx(int8, image).values()
        assert 0 < abs(a - b).max() < 0.05


class Attention(nn.Module):
    """Learned-query attention whose scores and values are channels of the image."""

    def __init__(self, kernel_size, stride):
        super().__init__()
        self.window = kernel_size, stride
        self.bias = nn.Parameter(torch.randn(kernel_size**2, 2, 2))
        self.scale = nn.Parameter(torch.randn(kernel_size**2, 2, 2))

    def forward(self, image, attend=learned_query_attention):
        maps = image.permute(0, 2, 3, 1)
        scores, values = maps[..., :4].unflatten(3, (2, 2)), maps[..., 4:].unflatten(3, (2, 3))
        tables = (t.to(image.dtype) for t in (self.bias, self.scale))
        return (attend(scores, values, *tables, *self.window),)


@pytest.mark.slow
@pytest.mark.skipif(not has_dynamo_exporter(), reason='no exporter based on torch.export here')
@pytest.mark.parametrize(('kernel_size', 'stride'), [(3, 1), (3, 2), (5, 1)])
def test_choice_by_the_spread_of_the_scores(kernel_size, stride, tmp_path):
    """Convolutions for near scores, whose file must not use them for scores that lie far apart."""
    torch.manual_seed(0)
    module, path = Attention(kernel_size, stride), tmp_path / 'model.onnx'
    write_onnx(module, torch.randn(2, 10, 15, 12), path, ['output'], True, dynamo=True)
    (choice,) = [node for node in onnx.load(path).graph.node if node.op_type == 'If']
    kinds = [[node.op_type for node in attribute.g.node] for attribute in choice.attribute]
    assert sorted(names.count('Conv') for names in kinds) == [0, 2]
    plain = tmp_path / 'plain.onnx'
    onnx.save(onnx_quantize.without_choice(onnx.load(path)), plain)
    assert not {'If', 'Conv'} & {node.op_type for node in onnx.load(plain).graph.node}
    for bound, shape in ((1, (3, 17, 16)), (20, (1, 9, 14)), (100, (2, 8, 16)), (1e4, (1, 13, 11))):
        image = torch.randn(shape[0], 10, *shape[1:])
        image[:, :4] = bound * (2 * torch.rand(shape[0], 4, *shape[1:]) - 1)
        if bound > 20:
            image[:, :4, :, 8:] -= 1e3  # an image-wide maximum would make these windows 0 / 0
        (expected,) = module(image.double(), reference)
        for file in (path, plain):
            (actual,) = run_onnx(file, image).values()
            difference = (torch.from_numpy(actual) - expected).detach().abs()
            assert difference.max() < 1e-5 * expected.abs().max()
            # Only windows of the lower part, so that the others' size hides nothing.
            low = [x[:, :, 10 // stride :] for x in (difference, expected)]
            assert low[0].max() < 1e-5 * low[1].abs().max()


@pytest.mark.slow
def test_int8(run_tool, tiny_config, tiny_checkpoint, small_shapes, tmp_path):
    """Both files on the test data, and nearly the same probabilities."""
    config, out = tiny_config('classifier'), tmp_path / 'model.onnx'
    dataset = dict(dataset=dict(data_root=str(small_shapes / 'imagenet')))
    with config.open('a') as file:
        file.write(f'test_dataloader = {dataset!r}\n')
    checkpoint, _ = tiny_checkpoint(config)
    pictures = small_shapes / 'imagenet/train'
    options = ('--out', out, *OLDER, '--int8', pictures)
    lines = run_tool(TOOL, config, checkpoint, *options).stdout.splitlines()
    assert '1 x last layer: logits and box offsets need more than 8 bits' in lines[-4]
    rows = [line.split() for line in lines[-2:]]
    assert [row[:2] for row in rows] == [
        ['model.onnx', 'accuracy/top1'],
        ['model.int8.onnx', 'accuracy/top1'],
    ]
    assert all(float(value) >= 0 for row in rows for value in row[2:])
    int8, image = tmp_path / 'model.int8.onnx', torch.randn(2, 3, 64, 64)
    kinds = [node.op_type for node in onnx.load(int8).graph.node]
    assert kinds.count('QuantizeLinear') > 5
    a, b = (run_onnx(path, image)['probabilities'] for path in (out, int8))
    assert 0 < abs(a - b).max() < 0.05
    assert load_runner().Model(int8).task == 'classification'  # the metadata are there
    done = run_tool(TOOL, 'linglo_b0', '--int8', pictures, '--out', tmp_path / 'b.onnx', status=2)
    assert '--int8 needs a whole model' in done.stderr
    gone = ('--int8', tmp_path / 'gone', '--out', tmp_path / 'b.onnx')
    assert 'there is no input' in run_tool(TOOL, config, checkpoint, *gone, status=2).stderr


def test_fallback_names_the_reason(monkeypatch, tmp_path):
    def refused(*arguments, dynamo, **options):
        if dynamo:
            raise ValueError('a guard on the height\nsecond line')
        return write_onnx(*arguments, dynamo=False, **options)

    monkeypatch.setattr(onnx_export, 'has_dynamo_exporter', lambda: True)
    monkeypatch.setattr(onnx_export, 'write_onnx', refused)
    module, path = Exportable(Halves(False)), tmp_path / 'model.onnx'
    note = export_onnx(module, path, (2, 3, 20, 30), {})
    assert note == 'torchscript (torch.export cannot express it: ValueError: a guard on the height)'
    with pytest.raises(UsageError, match='a guard on the height'):
        export_onnx(module, path, (2, 3, 20, 30), {}, 'dynamo')


def test_backbone_of_a_config(run_tool, tiny_config, tiny_checkpoint, tmp_path):
    config, out = tiny_config('detector'), tmp_path / 'backbone.onnx'
    checkpoint, model = tiny_checkpoint(config, deploy=True)
    run_tool(TOOL, config, checkpoint, '--out', out, '--backbone-only', *OLDER)
    image = torch.randn(1, 3, 50, 33)
    outputs = run_onnx(out, image)
    assert list(outputs) == ['stage_1', 'stage_2', 'stage_3']
    with torch.no_grad():
        assert_equal(outputs.values(), model.backbone(image))


def exported_by_name(name, run_tool, tmp_path):
    backbone = build_backbone(name).eval()
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    out = tmp_path / 'backbone.onnx'
    run_tool(TOOL, name, tmp_path / 'weights.pth', '--out', out, *OLDER)
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
    run_tool(TOOL, f'configs/{config}.py', '--out', tmp_path / 'model.onnx', *OLDER)


def test_training_form(run_tool, tiny_config, tiny_checkpoint, tmp_path):
    config, out = tiny_config('classifier'), tmp_path / 'model.onnx'
    checkpoint, model = tiny_checkpoint(config)
    run_tool(TOOL, config, checkpoint, '--out', out, '--training-form', *OLDER)
    image = torch.randn(2, 3, 40, 41)
    with torch.no_grad():
        assert_equal(run_onnx(out, image).values(), [model(image, mode='tensor').softmax(1)])


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
    assert 'differ by more than' in refused('linglo_b0', '--out', out, '--force', *OLDER)
    assert out.read_bytes() == b'precious'
    assert {path.name for path in tmp_path.iterdir()} == {'model.onnx', 'weights.pth'}


def test_settings_that_onnx_cannot_express_are_refused(tiny_config):
    """They would be exported wrongly."""
    model = build_model(Config.fromfile(tiny_config('detector')))
    head = model.bbox_head
    head.test_cfg.nms.type = 'soft_nms'
    with pytest.raises(UsageError, match='soft_nms'):
        Exportable(model)
    head.test_cfg.nms.type, head.use_sigmoid_cls = 'nms', False
    with pytest.raises(UsageError, match='sigmoid scores'):
        Exportable(model)
    head.use_sigmoid_cls, head.bbox_coder.add_ctr_clamp = True, True
    with pytest.raises(UsageError, match='DeltaXYWHBBoxCoder'):
        Exportable(model)
    model.bbox_head = nn.Identity()
    with pytest.raises(UsageError, match='--backbone-only'):
        Exportable(model)
    with pytest.raises(UsageError, match='RandomCrop'):
        resize_steps([dict(type='LoadImageFromFile'), dict(type='mmdet.RandomCrop')])


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
    export_onnx(module, path, (2, 3, 20, 30), {}, 'torchscript')
    assert largest_differences(module, path, [(2, 3, 20, 30)]) == [0.0]
    if frozen:
        with pytest.raises(UsageError, match='has hard-coded a size'):
            largest_differences(module, path, [(1, 3, 40, 50)])
    else:
        assert largest_differences(module, path, [(1, 3, 40, 50)]) == [0.0]


@pytest.mark.parametrize('size', [(7, 10), (3, 4), (12, 6), (1, 25)])
@pytest.mark.parametrize('bins', [2, 3, (6, 4)])
def test_pooling_of_the_pyramid_heads(size, bins):
    pool, x = nn.AdaptiveAvgPool2d(bins), torch.randn(2, 3, *size)
    torch.testing.assert_close(onnx_export._adaptive_average(pool, x), pool(x))
