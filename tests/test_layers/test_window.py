import pytest
import torch

from mmvitattn.layers import WindowAttention
from mmvitattn.layers.window import relative_position_index


def make_layer(window_size, channels=12, heads=3, bias=False):
    layer = WindowAttention(channels, heads, window_size, bias).double()
    for name, parameter in layer.named_parameters():
        if 'bias' in name:
            torch.nn.init.normal_(parameter)
    return layer


def attend(layer, tokens, positions):
    """Attention over a list of tokens, head by head, as the equations say."""
    heads, dim = layer.num_heads, layer.channels // layer.num_heads
    side = 2 * layer.window_size - 1
    qkv = layer.qkv(tokens)
    outputs = []
    for head in range(heads):
        query, key, value = qkv[:, head * 3 * dim : (head + 1) * 3 * dim].split(dim, dim=-1)
        offset = positions[:, None] - positions + layer.window_size - 1
        bias = layer.position_bias[offset[..., 0] * side + offset[..., 1], head]
        weights = (query @ key.T / dim**0.5 + bias).softmax(-1)
        outputs.append(weights @ value)
    return layer.out(torch.cat(outputs, -1))


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize(('height', 'width'), [(6, 3), (4, 7), (2, 2), (1, 5)])
def test_each_window_attends_to_its_real_tokens_alone(height, width, bias):
    layer, w = make_layer(3, bias=bias), 3
    x = torch.randn(2, height, width, 12, dtype=torch.float64)
    actual = layer(x)
    assert actual.shape == x.shape
    for top in range(0, height, w):
        for left in range(0, width, w):
            window = x[:, top : top + w, left : left + w]
            rows, columns = window.shape[1:3]
            positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
            for b in range(2):
                expected = attend(layer, window[b].flatten(0, 1), positions)
                torch.testing.assert_close(
                    actual[b, top : top + w, left : left + w].flatten(0, 1), expected
                )


def test_relative_index_is_query_minus_key():
    index = relative_position_index(2)
    # positions (0,0) (0,1) (1,0) (1,1); the offset (0, 0) is in the middle of 3 x 3
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_padding_is_finite_in_half_precision(dtype):
    if dtype == torch.float16 and torch.__version__ < '2.2':
        pytest.skip('no float16 matrix product on the CPU in this torch')
    layer = make_layer(4).to(dtype)
    x = torch.randn(1, 5, 5, 12).to(dtype).requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_autocast_and_compile():
    layer = make_layer(4).float()
    x = torch.randn(1, 6, 8, 12)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and (y - layer(x)).abs().max() < 0.1


def test_index_is_no_weight_and_start_values():
    layer = WindowAttention(32, 4, 7)
    assert set(layer.state_dict()) == {'qkv.weight', 'out.weight', 'position_bias'}
    biases = set(WindowAttention(32, 4, 7, bias=True).state_dict()) - set(layer.state_dict())
    assert biases == {'qkv.bias', 'out.bias'}
    assert layer.position_bias.shape == (169, 4) and (layer.position_bias == 0).all()
    assert layer.qkv.weight.std().item() == pytest.approx(32**-0.5, rel=0.05)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match='num_heads=5'):
        WindowAttention(32, 5, 7)
    with pytest.raises(ValueError, match='window_size=0'):
        WindowAttention(32, 4, 0)
