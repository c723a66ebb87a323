import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvitattn.ops import branch_statistics, depthwise_conv2d, explain
from mmvitattn.ops.depthwise import MIN_POSITIONS, local_moments, statistics_by_moments
from mmvitattn.ops.reference import branch_statistics as reference

sizes = st.integers(1, 9)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), channels=st.integers(1, 4), height=sizes, width=sizes, n=sizes)
def test_statistics_equal_reference_forward_and_gradients(batch, channels, height, width, n):
    x = torch.randn(batch, channels, height, width, dtype=torch.float64).add(1).requires_grad_()
    weights = torch.randn(n, channels, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    actual, expected = statistics_by_moments(x, weights), reference(x, weights)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    directions = [torch.randn_like(t) for t in expected]
    torch.testing.assert_close(
        torch.autograd.grad(actual, (x, weights), directions),
        torch.autograd.grad(expected, (x, weights), directions),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize('offset', [0, 30])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_statistics_in_float32(offset, memory_format):
    """A large mean leaves the variance a small difference: it must survive."""
    x = torch.randn(4, 8, 23, 17).add(offset).to(memory_format=memory_format)
    weights = torch.randn(4, 8, 1, 3, 3)
    mean, var = branch_statistics(x, weights)
    expected_mean, expected_var = reference(x.double(), weights.double())
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-5 * max(1, offset))
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5 * max(1, offset**2), atol=0)


def test_variance_of_a_constant_map_is_not_negative():
    weights = torch.zeros(1, 2, 1, 3, 3)
    weights[:, :, :, 1, 1] = 1
    _, var = branch_statistics(torch.full((2, 2, 16, 16), 1e3), weights)
    assert (var >= 0).all()


def test_moments_gradcheck():
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(local_moments, x)


def test_small_maps_compute_the_branches():
    side = int((MIN_POSITIONS - 1) ** 0.5)
    x = torch.randn(1, 1, side, side)
    weights = torch.randn(2, 1, 1, 3, 3)
    assert branch_statistics(x, weights) is None
    assert f'fewer than {MIN_POSITIONS}' in explain('branch_statistics', x, weights)


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_convolution_and_gradients(kernel_size, bias, memory_format):
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64).to(memory_format=memory_format)
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
