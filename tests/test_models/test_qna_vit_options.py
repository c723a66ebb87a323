"""Options of QnA-ViT that the published models do not use. Their outputs are compared with the
official release's in tests/test_converters/test_qna_options.py."""

import numpy as np
import pytest
import torch
from torch import nn

from mmvitattn.layers import QnALayer, WindowAttention
from mmvitattn.models import QnAPooling, QnAViT
from mmvitattn.models.qna_vit_variants import AvgPoolSkip, ResNetStem

MINI = dict(
    base_channels=8,
    qna_depths=(1, 1),
    qna_heads=(2, 4),
    kernel_sizes=(3, 5),
    lsa_depths=(0, 1),
    lsa_heads=(1, 2),
    window_sizes=(7, 4),
    drop_path_rate=0.0,
)
OPTIONS = dict(
    num_queries=3,
    position_bias='contextual_pos',
    attention_scale='ones',
    normalize_queries=(False, True),
    stem='resnet',
    downsample_skip='avgpool',
    window_position_bias=None,
    layer_scale=0.1,
)
SIZES = ((32, 32), (33, 35), (34, 45), (47, 64))


def mini(**options):
    torch.manual_seed(0)
    return QnAViT(MINI, **options)


def same_padding(size, kernel_size):
    """JAX's rule for stride 2."""
    total = max((-(-size // 2) - 1) * 2 + kernel_size - size, 0)
    return total // 2, total - total // 2


def window_reduction(x, kernel_size, reduce, fill):
    """Each window of an (H, W, C) map in turn, with JAX's 'SAME' padding and stride 2."""
    rows, columns = (same_padding(n, kernel_size) for n in x.shape[:2])
    x = np.pad(x, (rows, columns, (0, 0)), constant_values=fill)
    return np.stack(
        [
            np.stack(
                [
                    reduce(x[y : y + kernel_size, z : z + kernel_size])
                    for z in range(0, x.shape[1] - kernel_size + 1, 2)
                ]
            )
            for y in range(0, x.shape[0] - kernel_size + 1, 2)
        ]
    )


@torch.no_grad()
@pytest.mark.parametrize('size', [(8, 8), (9, 11), (10, 7)])
def test_resnet_stem(size):
    stem = ResNetStem(3, 4).double().eval()
    for name in ('running_mean', 'weight', 'bias'):
        nn.init.normal_(getattr(stem.norm, name))
    stem.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(1, *size, 3, dtype=torch.float64)
    kernel = stem.conv.weight.numpy()
    y = window_reduction(x[0].numpy(), 7, lambda w: np.einsum('yxc,dcyx->d', w, kernel), fill=0)
    mean, var, weight, bias = (
        getattr(stem.norm, name).numpy()
        for name in ('running_mean', 'running_var', 'weight', 'bias')
    )
    y = (y - mean) / np.sqrt(var + 1e-5) * weight + bias
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    y = window_reduction(y, 3, lambda w: w.max((0, 1)), fill=-np.inf)
    assert y.shape[:2] == tuple(-(-n // 4) for n in size)
    np.testing.assert_allclose(stem(x)[0], y, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('size', [(8, 6), (9, 7), (1, 2)])
def test_avgpool_skip(size, kernel_size):
    skip = AvgPoolSkip(4, 6, kernel_size).double()
    x = torch.randn(1, *size, 4, dtype=torch.float64)
    means = window_reduction(x[0].numpy(), kernel_size, lambda w: w.mean((0, 1)), fill=0)
    expected = means @ skip.conv.weight.numpy()[..., 0, 0].T
    np.testing.assert_allclose(skip(x)[0], expected, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize('size', SIZES)
def test_any_size(size):
    model = mini(**OPTIONS).eval()
    for i, output in enumerate(model(torch.randn(2, 3, *size))):
        grid = [-(-n // (4 * 2**i)) for n in size]
        assert output.shape == (2, 8 * 2**i, *grid) and output.isfinite().all()


@pytest.mark.parametrize('position_bias', ['absolute_pos', 'contextual_pos'])
def test_every_parameter_gets_a_gradient(position_bias):
    model = mini(**OPTIONS | dict(position_bias=position_bias)).train()
    sum(
        y.square().mean() * (i + 1) for i, y in enumerate(model(torch.randn(2, 3, 33, 38)))
    ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if 'norms' not in name:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('size', [(8, 8), (5, 7)])
def test_windows_without_a_bias(size):
    """As with a table of zeros, padded maps too, and with the same gradients."""
    plain = WindowAttention(8, 2, window_size=4, position_bias=None)
    zeros = WindowAttention(8, 2, window_size=4)
    assert set(zeros.state_dict()) - set(plain.state_dict()) == {'position_bias'}
    zeros.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, *size, 8, requires_grad=True)
    expected, actual = zeros(x), plain(x)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision(autocast):
    model, image = mini(**OPTIONS).train(), torch.randn(2, 3, 33, 38)
    if not autocast:
        model, image = model.bfloat16(), image.bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        outputs = model(image)
    sum(y.float().square().mean() for y in outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_recomputed_blocks_give_the_same_gradients():
    image, gradients = torch.randn(2, 3, 33, 38), []
    for with_cp in (False, True):
        model = mini(**OPTIONS, with_cp=with_cp).train()
        sum(y.square().mean() for y in model(image)).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_defaults_have_the_names_that_weights_have():
    names = {name for name, _ in mini().named_parameters()}
    assert 'downsamples.0.skip.conv.weight' in names and 'stem.conv.weight' in names
    assert not any(part in name for name in names for part in ('vectors', 'map', 'stem.norm'))
    names = {name for name, _ in mini(**OPTIONS).named_parameters()}
    assert {'stem.norm.weight', 'downsamples.0.skip.conv.weight'} <= names
    assert 'stages.1.0.attention.position_bias' not in names


def test_options_reach_their_layers():
    model = mini(**OPTIONS, normalize_stop_grads=True)
    layers = [m for m in model.modules() if isinstance(m, QnALayer)]
    assert [layer.normalize_queries for layer in layers] == [False, True, False]  # last: between
    assert [layer.kernel_size for layer in layers] == [3, 5, 3]
    assert {layer.normalize_stop_grads for layer in layers} == {True}
    (window,) = (m for m in model.modules() if isinstance(m, WindowAttention))
    assert window.position_bias is None
    assert model.downsamples[0].skip.pool.kernel_size == 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(stem='vgg'), "stem='vgg' must be one of 'patch', 'resnet'"),
        (dict(downsample_skip='max'), "downsample_skip='max' must be one of 'conv', 'avgpool'"),
        (dict(normalize_queries=(True,) * 3), 'normalize_queries must be one'),
        (dict(window_position_bias='absolute'), "position_bias='absolute'"),
        (dict(position_bias='absolute'), "'absolute'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mini(**options)


def test_downsampling_blocks_may_stay_out_of_the_ramp():
    model = mini(drop_path_rate=0.4, drop_path_downsample=False)
    assert [block.drop_path.p for stage in model.stages for block in stage] == [0.0, 0.2, 0.4]
    assert [block.drop_path.p for block in model.downsamples] == [0.0]


def test_stem_is_frozen_and_evaluated():
    x = torch.randn(2, 3, 32, 32)
    for options in (dict(frozen_stages=0), dict(norm_eval=True)):
        model = mini(stem='resnet', **options).train()
        before = model.stem.norm.running_mean.clone()
        model(x)
        assert torch.equal(model.stem.norm.running_mean, before)
    model = mini(stem='resnet').train()
    model(x)
    assert not torch.equal(model.stem.norm.running_mean, before)
    assert model.stem.norm.momentum == 0.1 and model.stem.norm.eps == 1e-5


def test_no_weight_decay():
    for kind, exempt in (
        ('absolute_pos', {'position_bias_vectors'}),
        ('contextual_pos', set()),  # the release decays the map's kernel and bias
    ):
        model = mini(**OPTIONS | dict(position_bias=kind))
        found = {name.rpartition('.')[2] for name in model.no_weight_decay()}
        assert found == {'query', 'attention_scale'} | exempt


class Classifier(nn.Module):
    """Backbone, QnA head and linear map, called as a classifier of mmpretrain."""

    def __init__(self):
        super().__init__()
        self.backbone = mini(**OPTIONS, out_indices=-1)
        self.neck = QnAPooling(16, num_heads=4, map_size=4, skip=True)
        nn.init.normal_(self.neck.position_bias)
        self.fc = nn.Linear(16, 5)

    def forward(self, image, mode='tensor'):
        return self.fc(self.neck(self.backbone(image))[0])


@torch.no_grad()
def test_compiles_to_one_graph():
    torch._dynamo.reset()
    model = Classifier().eval()
    model.backbone = mini(**OPTIONS, kernel_sizes=(3, 1), out_indices=-1).eval()  # few offsets
    image = torch.randn(1, 3, 35, 38)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(image), model(image))
    layer = QnALayer(8, 2, position_bias='absolute_pos')
    nn.init.normal_(layer.position_bias_vectors)
    compiled = torch.compile(layer.bias_table, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(), layer.bias_table())
    torch._dynamo.reset()


def test_exports_for_every_size(tmp_path):
    pytest.importorskip('onnxruntime', reason='extra [export]')
    from mmvitattn.inference.onnx_export import Exportable, export_onnx, largest_differences

    module = Exportable(Classifier().eval())
    path = tmp_path / 'classifier.onnx'
    export_onnx(module, path, (2, 3, 37, 46), {}, 'torchscript')
    shapes = [(n, 3, *size) for n, size in enumerate(SIZES, 1)]
    assert max(largest_differences(module, path, shapes)) < 1e-4
