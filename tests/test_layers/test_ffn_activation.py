import pytest
import torch
import torch.nn.functional as F

from mmvitattn.layers.ffn import HALF_PART, TanhGELU

gelu_tanh = TanhGELU()


def test_gelu_tanh_equals_pytorchs():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -1e3, 0.0, 1e3, 1e30])])
    expected = F.gelu(x.double(), approximate='tanh')
    torch.testing.assert_close(gelu_tanh(x.double()), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gelu_tanh(x).double(), expected, rtol=2e-6, atol=2e-6)
    assert gelu_tanh(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gelu_tanh_with_gradient_and_in_half_precision_is_pytorchs(dtype):
    x = torch.linspace(-6, 6, 101, dtype=dtype).requires_grad_()
    y = gelu_tanh(x)
    assert torch.equal(y, F.gelu(x, approximate='tanh'))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_gelu_tanh_of_every_half_precision_value_is_rounded_once(dtype):
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    values = values[values.isfinite()]
    repeats = HALF_PART // len(values) + 2  # more than one part
    y = gelu_tanh(values.expand(repeats, -1))
    assert torch.equal(y, y[:1].expand(repeats, -1))
    expected = F.gelu(values.double(), approximate='tanh').to(dtype)
    torch.testing.assert_close(y[0], expected, rtol=torch.finfo(dtype).eps, atol=1e-7)
