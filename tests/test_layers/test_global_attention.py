import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmvitattn.layers import GlobalAttention


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that an operator makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        made = output if isinstance(output, tuple | list) else (output,)
        self.largest = max(self.largest, *(t.numel() for t in made if torch.is_tensor(t)), 0)
        return output


def make_layer(shared_kv=False, kv_pool=1):
    layer = GlobalAttention(12, 3, shared_kv, kv_pool).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def attend(layer, x, tokens):
    """Each head as the equations say; keys and values of the given tokens (B, M, C)."""
    query = layer.query(x.flatten(1, 2))
    key, value = layer.key_value(tokens).chunk(2, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        k, v = (t if layer.shared_kv else t[..., part] for t in (key, value))
        heads.append((query[..., part] @ k.mT / 2).softmax(-1) @ v)
    return layer.out(torch.cat(heads, dim=-1)).view(x.shape)


@pytest.mark.parametrize('shared_kv', [False, True])
def test_follows_the_equations(shared_kv):
    layer = make_layer(shared_kv)
    assert layer.key_value.out_features == (8 if shared_kv else 24)
    x = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), attend(layer, x, x.flatten(1, 2)))
    turned = x.transpose(1, 2)  # not contiguous
    torch.testing.assert_close(layer(turned), layer(x).transpose(1, 2))


@pytest.mark.parametrize('shared_kv', [False, True])
@pytest.mark.parametrize(('size', 'pool'), [((4, 6), 2), ((5, 7), 3), ((2, 3), 4)])
def test_pooled_keys_and_values(size, pool, shared_kv):
    """Averages of squares; one that the border cuts averages what is inside."""
    layer = make_layer(shared_kv, pool)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    squares = [
        x[:, i : i + pool, j : j + pool].mean((1, 2))
        for i in range(0, size[0], pool)
        for j in range(0, size[1], pool)
    ]
    expected = attend(layer, x, torch.stack(squares, dim=1))
    torch.testing.assert_close(layer(x), expected)
    layer.load_state_dict(make_layer(shared_kv).state_dict())  # the same parameters


@pytest.mark.parametrize('shared_kv', [False, True])
@pytest.mark.parametrize('pool', [1, 2])
def test_gradients(shared_kv, pool):
    layer = make_layer(shared_kv, pool)
    x = torch.randn(1, 3, 2, 12, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    assert torch.autograd.gradcheck(lambda x: layer(x), x, fast_mode=True)
    if pool == 1:
        actual, expected = layer(x), attend(layer, x, x.flatten(1, 2))
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), inputs),
        )


@pytest.mark.parametrize('shared_kv', [False, True])
def test_memory_is_linear_in_positions(shared_kv):
    """No operator, forward or backward, makes more than the projections."""
    layer = GlobalAttention(16, 2, shared_kv)
    x = torch.randn(1, 48, 48, 16, requires_grad=True)
    with LargestTensor() as recorded:
        layer(x).sum().backward()
    assert 0 < recorded.largest <= 2 * x.numel() < 48**4


@pytest.mark.parametrize('shared_kv', [False, True])
@pytest.mark.parametrize('scale', [1, 1e3])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype, scale, shared_kv):
    if dtype == torch.float16 and torch.__version__ < '2.2':
        pytest.skip('no float16 matrix product on the CPU in this torch')
    layer = make_layer(shared_kv, kv_pool=2)
    layer.query.weight.data *= scale
    x = torch.randn(1, 6, 5, 12).double()
    expected = layer(x).detach()
    half, x = layer.to(dtype), x.to(dtype).requires_grad_()
    y = half(x)
    assert y.dtype == dtype and y.isfinite().all()
    (1e-3 * y.float()).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in half.parameters())
    if scale == 1:
        assert (y - expected).abs().max() / expected.abs().max() < 3e-2


@pytest.mark.parametrize('shared_kv', [False, True])
def test_compiles_to_one_graph(shared_kv):
    layer = GlobalAttention(12, 3, shared_kv, kv_pool=2)
    x = torch.randn(1, 5, 4, 12, requires_grad=True)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x).square().sum(), inputs),
        torch.autograd.grad(layer(x).square().sum(), inputs),
    )
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ('options', 'message'), [(dict(num_heads=5), 'num_heads=5'), (dict(kv_pool=0), 'kv_pool=0')]
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalAttention(**dict(channels=12, num_heads=3) | options)
