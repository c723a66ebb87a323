import pytest
import torch
import torch.nn.functional as F

from mmvitattn.ops.learned_query.convolution import project_in, project_out


def make_arguments(batch=2, height=3, width=5, in_channels=4, out_channels=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, height, width, in_channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(out_channels, in_channels, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize('project', [project_in, project_out])
@pytest.mark.parametrize('batch', [0, 1, 3])
def test_equals_linear_with_gradients(project, batch):
    x, weight = make_arguments(batch)
    actual, expected = project(x, weight), F.linear(x, weight)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(actual, (x, weight), direction),
        torch.autograd.grad(expected, (x, weight), direction),
        strict=True,
    ):
        torch.testing.assert_close(a, e)


def test_layouts_in_memory():
    """Channels-first between the two, for values and for gradients; contiguous outside."""
    x, weight = make_arguments()
    maps = project_in(x, weight)
    assert maps.permute(0, 3, 1, 2).is_contiguous()
    layouts = []
    maps.register_hook(lambda grad: layouts.append(grad.permute(0, 3, 1, 2).is_contiguous()))
    y = project_out(maps, weight.T)
    assert y.is_contiguous()
    y.square().sum().backward()
    assert layouts == [True] and x.grad.is_contiguous()


def test_frozen_inputs_and_weights_get_no_gradient():
    x, weight = make_arguments()
    for project in (project_in, project_out):
        (gradient,) = torch.autograd.grad(project(x.detach(), weight).sum(), weight)
        assert gradient.shape == weight.shape
        (gradient,) = torch.autograd.grad(project(x, weight.detach()).sum(), x)
        assert gradient.shape == x.shape


@pytest.mark.parametrize('project', [project_in, project_out])
def test_autocast_lowers_the_precision_as_for_a_linear_map(project):
    x, weight = (t.detach().float() for t in make_arguments())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y, expected = project(x, weight), F.linear(x, weight)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('project', [project_in, project_out])
def test_autocast_keeps_layout_and_gradients(project):
    x, weight = (t.detach().float().requires_grad_() for t in make_arguments())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = project(x, weight)
    if project is project_in:
        assert y.permute(0, 3, 1, 2).is_contiguous()
    grads = torch.autograd.grad(y.float().square().sum(), (x, weight))
    expected = torch.autograd.grad(F.linear(x, weight).square().sum(), (x, weight))
    for grad, e in zip(grads, expected, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - e).norm() < 2e-2 * e.norm()
