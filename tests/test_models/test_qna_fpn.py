import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmvitattn.models import QnAFPN, QnAUpsample2d

CHANNELS = [4, 6, 8]


def maps(sizes=((13, 18), (7, 9), (4, 5))):
    torch.manual_seed(0)
    return [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize('extra', [False, True, 'on_input', 'on_lateral', 'on_output'])
def test_outputs_and_gradients(extra):
    neck = QnAFPN(CHANNELS, 16, num_outs=5, add_extra_convs=extra, num_heads=4)
    outputs = neck(maps())
    sizes = [(13, 18), (7, 9), (4, 5), (2, 3), (1, 2)]
    assert [tuple(y.shape) for y in outputs] == [(2, 16, *size) for size in sizes]
    sum(y.square().sum() for y in outputs).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in neck.parameters())


def test_coarse_maps_reach_fine_outputs():
    neck = QnAFPN(CHANNELS, 16, num_outs=3, num_heads=4)
    inputs = maps()
    before = neck(inputs)
    inputs[2] = inputs[2] + 1
    after = neck(inputs)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize('toolbox, module', [('mmdet', 'mmdet.models'), ('mmseg', 'mmseg.models')])
@pytest.mark.parametrize('extra', [False, 'on_input', 'on_lateral', 'on_output'])
def test_equals_the_toolboxes_fpn_with_its_up_sampling(toolbox, module, extra):
    """With nearest-neighbour interpolation in place of QnA, and the same weights."""
    import importlib

    fpn = importlib.import_module(module).necks.FPN
    reference = fpn(CHANNELS, 16, num_outs=5, start_level=0, add_extra_convs=extra)
    neck = QnAFPN(CHANNELS, 16, num_outs=5, add_extra_convs=extra, num_heads=4)
    state = {name.replace('.conv.', '.'): x for name, x in reference.state_dict().items()}
    for i in range(len(neck.extra_convs)):
        for kind in ('weight', 'bias'):
            state[f'extra_convs.{i}.{kind}'] = state.pop(f'fpn_convs.{i + 3}.{kind}')
    neck.upsamples = torch.nn.ModuleList(torch.nn.Upsample(scale_factor=2) for _ in range(2))
    neck.load_state_dict(state)
    sizes = ((16, 24), (8, 12), (4, 6))
    for actual, expected in zip(neck(maps(sizes)), reference(maps(sizes)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_start_level_leaves_finer_maps_out():
    neck = QnAFPN(CHANNELS, 16, num_outs=3, start_level=1, num_heads=4)
    assert [tuple(y.shape[2:]) for y in neck(maps())] == [(7, 9), (4, 5), (2, 3)]


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_outs=2), 'num_outs=2'),
        (dict(num_outs=5, start_level=3), 'start_level=3'),
        (dict(num_outs=5, add_extra_convs='on_top'), 'on_top'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        QnAFPN(CHANNELS, 16, **options)


def test_another_number_of_maps():
    with pytest.raises(ValueError, match='takes 3 maps, got 2'):
        QnAFPN(CHANNELS, 16, num_outs=3, num_heads=4)(maps()[:2])


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_configs_find_the_up_sampling(scope):
    from mmcv.cnn import build_upsample_layer

    DefaultScope.get_instance(f'qna_fpn_{scope}', scope_name=scope)
    config = dict(type='QnAUpsample', in_channels=6, out_channels=8, scale=2, num_heads=2)
    layers = [build_upsample_layer(dict(config)), MODELS.build(dict(config))]
    for layer in layers:
        assert type(layer) is QnAUpsample2d
        assert layer(torch.randn(1, 6, 5, 7)).shape == (1, 8, 10, 14)
