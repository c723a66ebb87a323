import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvitattn.ops import branch_statistics, explain
from mmvitattn.ops.dispatch import HAS_OPERATORS
from mmvitattn.ops.local_moments import MIN_POSITIONS, local_moments, statistics_by_moments
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
    _, var = branch_statistics(torch.full((2, 2, 32, 32), 1e3), weights)
    assert (var >= 0).all()


def test_moments_gradcheck():
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(local_moments, x)


@pytest.mark.parametrize('dtype, least', [('float32', 1), ('bfloat16', 2)])
def test_small_batches_compute_the_branches(dtype, least):
    least *= MIN_POSITIONS
    weights = torch.randn(2, 1, 1, 3, 3)
    x = torch.randn(2, 1, 1, least // 2 - 1, dtype=getattr(torch, dtype))
    assert branch_statistics(x, weights) is None
    assert f'fewer than {least}' in explain('branch_statistics', x, weights)
    assert branch_statistics(torch.cat([x, x]), weights) is not None


@pytest.mark.parametrize('batch, size', [(2, (61, 43)), (300, (3, 5)), (9, (19, 31))])
def test_groups_of_images_and_bands_of_rows(batch, size, monkeypatch):
    """A batch is processed in parts; their borders must not show."""
    monkeypatch.setattr('mmvitattn.ops.local_moments.BAND', 3000)
    x = torch.randn(batch, 5, *size, dtype=torch.float64).add(1)
    weights = torch.randn(3, 5, 1, 3, 3, dtype=torch.float64)
    actual, expected = statistics_by_moments(x, weights), reference(x, weights)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('offset', [0, 10])
def test_bfloat16_sums_in_float32(offset):
    x = torch.randn(4, 8, 33, 17).add(offset).bfloat16()
    weights = torch.randn(4, 8, 1, 3, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = branch_statistics(x, weights)
    expected = reference(x.double(), weights.double())
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), e, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not HAS_OPERATORS, reason='operators need torch 2.4')
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_operator_and_its_gradient(memory_format):
    x = torch.randn(2, 3, 5, 7).to(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(torch.ops.mmvitattn.local_moments_cpu, (x,))
    grads = torch.randn(3, 9), torch.randn(3, 9, 9)
    torch.library.opcheck(torch.ops.mmvitattn.local_moments_cpu_backward, (*grads, x.detach()))
