import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvitattn.layers import QnAUpsample
from mmvitattn.models import QnAUpsample2d
from mmvitattn.ops import force


def randomized(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def written_out(layer, x):
    """The layer by loops over positions, in float64; nothing of the package's ops."""
    x = x.double()
    weights = {name: p.detach().double() for name, p in layer.named_parameters()}
    heads, scale, k = layer.num_heads, layer.scale, layer.kernel_size
    channels = weights['out.weight'].shape[0]
    dim = channels // heads
    keys, values = x @ weights['key.weight'].T, x @ weights['value.weight'].T
    batch, height, width, _ = x.shape
    output = x.new_zeros(batch, height * scale, width * scale, channels)
    for row in range(height * scale):
        for column in range(width * scale):
            i, j = row // scale, column // scale
            cell = row % scale * scale + column % scale
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                for q in range(layer.num_queries):
                    query = weights['query'][q, cell, part]
                    query = query / (query.norm() + 1e-6) / dim**0.5
                    scores, scaled = [], []
                    for offset in range(k * k):
                        y, z = i + offset // k - k // 2, j + offset % k - k // 2
                        if 0 <= y < height and 0 <= z < width:
                            entry = (offset, q, cell * heads + head)
                            scores.append(
                                keys[:, y, z, part] @ query + weights['position_bias'][entry]
                            )
                            scaled.append(values[:, y, z, part] * weights['attention_scale'][entry])
                    attention = torch.stack(scores).softmax(0)[..., None]
                    output[:, row, column, part] += (attention * torch.stack(scaled)).sum(0)
    return output @ weights['out.weight'].T


@pytest.mark.parametrize('implementation', [None, 'offset_loop', 'reference'])
@pytest.mark.parametrize('scale, kernel_size, queries', [(2, 3, 2), (3, 5, 1), (1, 1, 2)])
def test_equals_the_definition(implementation, scale, kernel_size, queries):
    torch.manual_seed(0)
    layer = randomized(QnAUpsample(3, 8, scale, kernel_size, num_heads=4, num_queries=queries))
    x = torch.randn(2, 4, 3, 3)
    with force(f'learned_query_attention={implementation}' if implementation else ''):
        actual = layer(x)
    expected = written_out(layer, x)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    scale=st.integers(1, 3),
    kernel_size=st.sampled_from([1, 3, 5]),
)
def test_any_size_and_gradients(height, width, scale, kernel_size):
    layer = randomized(QnAUpsample(3, 4, scale, kernel_size, num_heads=2)).double()
    x = torch.randn(1, height, width, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    results = []
    for implementation in ('', 'reference'):
        with force(implementation):
            y = layer(x)
        assert y.shape == (1, scale * height, scale * width, 4)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('shift', [(1, 0), (2, 3)])
def test_shift_equivariance(shift):
    """A translation of the input by whole positions translates the output by whole cells."""
    layer = randomized(QnAUpsample(3, 8, scale=2, kernel_size=3, num_heads=2))
    wide = torch.randn(1, 12, 13, 3)
    rows, columns = shift
    crop = wide[:, rows : rows + 8, columns : columns + 8]
    inner = layer(crop)[:, 2:-2, 2:-2]
    reference = layer(wide)[:, 2 * rows : 2 * rows + 16, 2 * columns : 2 * columns + 16]
    torch.testing.assert_close(inner, reference[:, 2:-2, 2:-2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size_of_scores', [1.0, 1e3])
def test_half_precision_is_finite(dtype, size_of_scores):
    layer = randomized(QnAUpsample(8, 8, num_heads=2))
    with torch.no_grad():
        layer.key.weight.mul_(size_of_scores)
    x = torch.randn(1, 5, 6, 8)
    try:
        actual = layer.to(dtype)(x.to(dtype))
    except RuntimeError as error:
        if 'not implemented' not in str(error):
            raise
        pytest.skip(f'this torch has no {dtype} products on the CPU: {error}')
    assert actual.dtype == dtype and actual.isfinite().all()
    expected = written_out(layer, x.to(dtype))
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_onnx_of_any_size(tmp_path):
    """The neck's form, (B, C, H, W), exported once and run at other sizes."""
    onnxruntime = pytest.importorskip('onnxruntime')
    layer = randomized(QnAUpsample2d(6, 8, scale=2, num_heads=2)).eval()
    axes = {0: 'batch', 2: 'height', 3: 'width'}
    file = str(tmp_path / 'upsample.onnx')
    export_options = dict(input_names=['x'], output_names=['y'], dynamic_axes=dict(x=axes, y=axes))
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        export_options['dynamo'] = False
    torch.onnx.export(layer, (torch.rand(1, 6, 8, 8),), file, opset_version=17, **export_options)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    for shape in ((2, 6, 5, 7), (1, 6, 13, 1)):
        x = torch.randn(shape)
        (actual,) = session.run(None, dict(x=x.numpy()))
        expected = layer(x).detach()
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4)


def test_starts_close_to_an_interpolation():
    """Of a constant, inside and at the borders, it makes that constant; of a ramp, a ramp."""
    layer = QnAUpsample(4, 4, num_heads=2, num_queries=2)
    with torch.no_grad():
        for linear in (layer.value, layer.out):
            torch.nn.init.eye_(linear.weight)
        layer.key.weight.zero_()
        constant = layer(torch.ones(1, 5, 5, 4))
        ramp = layer(torch.arange(9.0)[None, :, None, None].expand(1, 9, 9, 4))
    torch.testing.assert_close(constant, torch.ones(1, 10, 10, 4))
    steps = ramp[0, 2:-2, 9, 0].diff()
    assert (steps > 0.2).all() and steps.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize('kernel_size', [3, 7])
def test_memory_is_linear_in_positions(kernel_size):
    """What is kept for the backward pass; windows would multiply it by the kernel's area."""
    layer = QnAUpsample(16, 16, num_heads=4, kernel_size=kernel_size)
    kept = []

    def count(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for side in (16, 32):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            layer(torch.randn(1, side, side, 16))
    assert kept[1] <= 4 * kept[0]
    assert kept[1] < 32**2 * 16 * 30  # independent of the window


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_heads=3), 'num_heads=3'),
        (dict(kernel_size=2), 'kernel_size=2'),
        (dict(scale=0), 'scale=0'),
        (dict(num_queries=0), 'num_queries=0'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        QnAUpsample(8, 8, **options)
