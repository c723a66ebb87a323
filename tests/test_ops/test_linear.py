"""Linear maps by oneDNN's convolutions, on any CPU: the choice of the CPU is replaced."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvitattn.layers.linear import Linear
from mmvitattn.ops import explain, force
from mmvitattn.ops import linear as module
from mmvitattn.ops.linear import linear, linear_per_image


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch):
    monkeypatch.setattr(module, 'MKL_IS_SLOWER', True)


@pytest.fixture
def convolutions(monkeypatch):
    """Shapes of the maps that are convolved."""
    shapes, convolve = [], F.conv2d

    def record(x, *args):
        shapes.append(tuple(x.shape))
        return convolve(x, *args)

    monkeypatch.setattr(F, 'conv2d', record)
    return shapes


def check(function, truth, *tensors):
    """Output and gradients in float32 against those of the truth in float64."""
    single = [None if t is None else t.clone().requires_grad_() for t in tensors]
    double = [None if t is None else t.double().requires_grad_() for t in tensors]
    actual, expected = function(*single), truth(*double)
    assert actual.is_contiguous()
    direction = torch.randn(expected.shape)
    leaves = [[t for t in inputs if t is not None] for inputs in (single, double)]
    gradients = torch.autograd.grad(actual, leaves[0], direction)
    truths = torch.autograd.grad(expected, leaves[1], direction.double())
    for a, e in zip((actual, *gradients), (expected, *truths), strict=True):
        assert a.shape == e.shape
        assert (a - e).abs().max() <= 3e-6 * e.abs().max()


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    ('shape', 'num_threads', 'images'),
    [
        ((2, 28, 28, 64), 2, 1),
        ((2, 28, 28, 64), 1, 16),
        ((1, 17, 29, 65), 1, 17),
        ((3000, 33), 2, 1),
        ((3000, 33), 1, 20),
        ((2, 1, 400, 25), 2, 16),  # less than 20,480 values
    ],
)
def test_equals_the_product(shape, num_threads, images, bias, threads, convolutions):
    torch.manual_seed(0)
    threads(num_threads)
    weight = torch.randn(107, shape[-1])
    check(linear, F.linear, torch.randn(shape), weight, torch.randn(107) if bias else None)
    assert [s[0] for s in convolutions] == [images]


def product_per_image(x, weight, bias):
    return torch.einsum('bnc,boc->bno', x, weight) + bias[:, None]


@pytest.mark.parametrize(('rows', 'channels', 'number'), [(704, 48, 3), (100, 300, 0)])
def test_a_matrix_for_each_image(rows, channels, number, convolutions):
    """With few rows, preparing the matrix would take longer than it saves."""
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(3, rows, channels),
        torch.randn(3, 80, channels),
        torch.randn(3, 80),
    )
    check(linear_per_image, product_per_image, x, weight, bias)
    assert len(convolutions) == number


def test_products_that_stay(convolutions):
    weight = torch.randn(64, 64)
    for x in (
        torch.randn(4, 64),  # small
        torch.randn(64, 3000).T,  # of another layout
        torch.randn(3000, 64, dtype=torch.float64),
        torch.randn(3000, 64, device='meta'),
        torch.randn(0, 64),
    ):
        linear(x, weight.to(x.device, x.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        assert linear(torch.randn(3000, 64), weight).dtype == torch.bfloat16
    assert convolutions == []


def test_forced_reference(convolutions):
    with force('linear=reference'):
        linear(torch.randn(3000, 64), torch.randn(64, 64))
        linear_per_image(torch.randn(2, 3000, 64), torch.randn(2, 64, 64), torch.randn(2, 64))
    assert convolutions == []
    assert 'convolution: can run' in explain('linear', torch.randn(3000, 64), torch.randn(64, 64))


def test_rows_without_a_divisor(threads, convolutions):
    """A prime number of rows and one thread: PyTorch would not use oneDNN."""
    threads(1)
    linear(torch.randn(3001, 64), torch.randn(64, 64))
    assert convolutions == []


def test_module_is_a_linear_layer():
    torch.manual_seed(0)
    ours, plain = Linear(64, 96), nn.Linear(64, 96)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 20, 30, 64)
    torch.testing.assert_close(ours(x), plain(x))
    ours(x).square().mean().backward()
    assert ours.weight.grad.stride() == ours.weight.stride()  # as DistributedDataParallel expects


def test_traced_programs_contain_a_product():
    x = torch.randn(2, 1000, 64)
    traced = torch.jit.trace(Linear(64, 96), x)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert 'aten::linear' in kinds and not any('conv' in kind for kind in kinds)


def test_only_some_cpus(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    assert not module._is_mkl_slower()
