import copy

import pytest
import torch

from mmvitattn.layers import RPCPE
from mmvitattn.ops import force
from mmvitattn.ops.dispatch import HAS_OPERATORS

FORMS = dict(CPE=(1, False), R_CPE=(1, True), P_CPE=(4, False), RP_CPE=(4, True))


def make(form='RP_CPE', channels=6, kernel_size=3):
    branches, skip = FORMS[form]
    layer = RPCPE(channels, branches, skip, kernel_size)
    with torch.no_grad():
        for norm in layer.norms:
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return layer


def from_the_equation(layer, x):
    """z = t + sum of BatchNorm(convolution(t)), by the modules themselves."""
    z = sum(norm(conv(x)) for conv, norm in zip(layer.convs, layer.norms, strict=True))
    return z + x if layer.skip else z


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', [(5, 3), (29, 19)])  # branches computed; moments
@pytest.mark.parametrize('kernel_size', [3, 5])
def test_training_equals_the_equation(form, size, kernel_size):
    layer = make(form, kernel_size=kernel_size).train()
    twin = copy.deepcopy(layer)
    x = (torch.randn(2, 6, *size) + 1).requires_grad_()
    y = x.detach().clone().requires_grad_()
    actual, expected = layer(x), from_the_equation(twin, y)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(expected)
    actual.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-5)
    for a, e in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-3, atol=1e-3)
    for a, e in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
def test_deploy_equals_evaluation_and_is_idempotent(form):
    layer = make(form).eval()
    x = torch.randn(2, 6, 7, 9)
    expected = from_the_equation(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer.switch_to_deploy()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    state = copy.deepcopy(layer.state_dict())
    layer.switch_to_deploy()
    assert sorted(state) == ['folded.bias', 'folded.weight']
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())


def test_frozen_norms_keep_their_statistics_and_learn_their_weights():
    layer = make().train()
    layer.norms.eval()
    before = [b.clone() for b in layer.buffers()]
    layer(torch.randn(2, 6, 29, 19)).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_synchronised_norms_are_left_to_themselves():
    layer = torch.nn.SyncBatchNorm.convert_sync_batchnorm(make().train())
    assert layer._batch_statistics(torch.randn(2, 6, 29, 19)) is None


def test_forced_branches_give_the_same():
    layer, x = make().train(), torch.randn(2, 6, 29, 19)
    with force('branch_statistics=branches'):
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_is_finite():
    layer = make().train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(torch.randn(2, 6, 17, 19, requires_grad=True) * 1e3)
    y.float().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('mean', [0, 3])
def test_bfloat16_errors_are_not_above_those_of_the_branches(mean):
    """Output and gradients under autocast, against float64."""
    layer, x = make(channels=16).train(), torch.randn(8, 16, 31, 17)
    x = (x + mean * torch.randn(1, 16, 1, 1)).bfloat16()
    direction = torch.randn(x.shape).bfloat16()
    exact = copy.deepcopy(layer).double()

    def run(module, x, direction):
        x = x.clone().requires_grad_()
        y = module(x)
        grads = torch.autograd.grad(y, [x, *module.parameters()], direction.to(y.dtype))
        return [t.double() for t in (y, *grads)]

    expected = run(exact, x.double(), direction)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert layer._batch_statistics(x) is not None
        actual = run(layer, x, direction)
        with force('branch_statistics=branches'):
            branches = run(layer, x, direction)
    for a, b, e in zip(actual, branches, expected, strict=True):
        assert (a - e).norm() <= 2 * (b - e).norm() + 2e-3 * e.norm()


@pytest.mark.skipif(not HAS_OPERATORS, reason='operators need torch 2.4')
@pytest.mark.parametrize('autocast', [False, True])
def test_training_compiles_to_one_graph(autocast):
    layer = make().train()
    x = torch.randn(4, 6, 29, 19, requires_grad=True)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    inputs = [x, *layer.parameters()]
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        results = [f(x) for f in (compiled, layer)]
    gradients = [torch.autograd.grad(y.float().square().sum(), inputs) for y in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('arguments', [dict(num_branches=0), dict(kernel_size=4)])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match='num_branches >= 1 and an odd kernel_size'):
        RPCPE(4, **arguments)
