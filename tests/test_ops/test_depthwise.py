import pytest
import torch
import torch.nn.functional as F

from mmvitattn.ops import depthwise, depthwise_conv2d


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(7, 5), (2, 4), (1, 1)])
def test_convolution_and_gradients(size, kernel_size, bias, memory_format):
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    weight = torch.randn(3, 1, kernel_size, kernel_size, dtype=torch.float64)
    arguments = [x, weight, torch.randn(3, dtype=torch.float64) if bias else None]
    leaves = [t.requires_grad_() for t in arguments if t is not None]
    actual = depthwise_conv2d(*arguments)
    expected = F.conv2d(*arguments, padding=kernel_size // 2, groups=3)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
    )


def test_frozen_weight_still_passes_the_gradient_on():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    depthwise_conv2d(x, torch.randn(2, 1, 3, 3)).sum().backward()
    assert x.grad.abs().sum() > 0


def test_gradients_of_parameters_under_autocast_are_precise(monkeypatch):
    """On a CPU without bfloat16: as if only the map and the output's gradient had been rounded."""
    monkeypatch.setattr(depthwise, 'ONEDNN_HAS_BFLOAT16', False)
    x = (torch.randn(8, 4, 31, 17) + 3).bfloat16()
    direction = torch.randn(x.shape).bfloat16()
    weight, bias = torch.randn(4, 1, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = depthwise.depthwise_conv2d(x, weight, bias)
    actual = torch.autograd.grad(y, (weight, bias), direction)
    exact = [t.detach().double().requires_grad_() for t in (weight, bias)]
    z = F.conv2d(x.double(), *exact, padding=1, groups=4)
    expected = torch.autograd.grad(z, exact, direction.double())
    assert y.dtype == torch.bfloat16
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-3)
