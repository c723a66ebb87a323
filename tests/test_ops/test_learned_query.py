import itertools

import numpy as np
import pytest
import torch

from mmvitattn.ops import explain, force, learned_query_attention, learned_query_scores
from mmvitattn.ops.dispatch import HAS_OPERATORS, chosen
from mmvitattn.ops.learned_query.convolution import MAX_SPREAD
from mmvitattn.ops.reference import learned_query_attention as reference

IMPLEMENTATIONS = ['convolution', 'offset_loop', 'window_stack']
IMPLEMENTATIONS += ['operator'] if HAS_OPERATORS else []


def run(name, *arguments):
    with force(name):
        return learned_query_attention(*arguments)


def make_arguments(
    height, width, kernel_size, queries=2, heads=2, dim=3, batch=2, bias=True, scale='offsets'
):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = {'offsets': kernel_size**2, 'uniform': 1, None: 0}[scale]
    return [
        3 * randn(batch, height, width, queries, heads),
        randn(batch, height, width, heads, dim),
        randn(kernel_size**2, queries, heads) if bias else None,
        randn(offsets, queries, heads) if offsets else None,
    ]


def relative_difference(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_reference_equals_the_ratio_of_sums_in_numpy():
    """The specification's ratio for each output, with raw exponentials over a padded image."""
    k, stride = 3, 2
    scores, values, bias, scale = (t.numpy() for t in make_arguments(5, 4, k, batch=1))
    pad = [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0)]
    exponentials = np.pad(np.exp(scores), pad)  # zero outside: no part of either sum
    values = np.pad(values, pad)
    expected = np.zeros((1, 3, 2, 2, 3))
    for y, x, q, h in itertools.product(range(3), range(2), range(2), range(2)):
        numerator, denominator = 0, 0
        for row, column in itertools.product(range(k), range(k)):
            at = (0, y * stride + row, x * stride + column)
            weight = exponentials[at][q, h] * np.exp(bias[row * k + column, q, h])
            numerator += weight * scale[row * k + column, q, h] * values[at][h]
            denominator += weight
        expected[0, y, x, h] += numerator / denominator
    actual = reference(*make_arguments(5, 4, k, batch=1), k, stride)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize('size', [(4, 5), (3, 3), (1, 6)])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('name', IMPLEMENTATIONS)
def test_equals_reference_forward_and_gradients(name, kernel_size, stride, size):
    """All sizes, windows larger than the image among them, with and without tables."""
    options = [(True, 'offsets'), (False, 'uniform'), (True, None)][(kernel_size // 2 + stride) % 3]
    arguments = make_arguments(
        *size, kernel_size, 1 + stride % 2, bias=options[0], scale=options[1]
    )
    leaves = [t.requires_grad_() for t in arguments if t is not None]
    actual = run(name, *arguments, kernel_size, stride)
    expected = reference(*arguments, kernel_size, stride)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    direction = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(actual, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ('kernel_size', 'stride', 'size'),
    [(1, 1, (2, 3)), (3, 1, (3, 2)), (3, 2, (5, 4)), (5, 2, (3, 3)), (7, 1, (2, 3))],
)
@pytest.mark.parametrize('name', IMPLEMENTATIONS)
def test_gradcheck(name, kernel_size, stride, size):
    arguments = make_arguments(*size, kernel_size, dim=2, batch=1)
    leaves = [t.requires_grad_() for t in arguments]
    assert torch.autograd.gradcheck(
        lambda *a: run(name, *a, kernel_size, stride), leaves, fast_mode=True
    )


@pytest.mark.parametrize('kernel_size', [3, 7])
@pytest.mark.parametrize('bound', [5, 100, 1e4])
@pytest.mark.parametrize('setting', ['', 'window_stack'], ids=['chosen', 'window_stack'])
def test_float32_is_exact_for_scores_of_any_size(setting, bound, kernel_size):
    """The right half lies 1e3 lower: an image-wide maximum would make its windows 0 / 0."""
    arguments = make_arguments(9, 16, kernel_size)
    scores = torch.rand(arguments[0].shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    arguments[0] = (bound * scores).double()
    arguments[0][:, :, 8:] -= 1e3
    single = [t.float().requires_grad_() for t in arguments]
    double = [t.detach().double().requires_grad_() for t in single]  # the same numbers
    with force(setting):
        actual = learned_query_attention(*single, kernel_size)
    expected = reference(*double, kernel_size)
    assert relative_difference(actual, expected) < 1e-5
    # Only windows of the lower half, so that the others' size hides nothing.
    assert relative_difference(actual[:, :, 12:], expected[:, :, 12:]) < 1e-5
    direction = torch.ones_like(actual)
    for a, e in zip(
        torch.autograd.grad(actual, single, direction),
        torch.autograd.grad(expected, double, direction.double()),
        strict=True,
    ):
        # Where one position takes all the weight, gradients of scores are differences of numbers
        # near 1 that cancel.
        assert (a - e).abs().max() < 1e-5 * max(1, e.abs().max())


@pytest.mark.parametrize('kernel_size', [3, 7, 11, 15])
def test_convolution_is_exact_up_to_its_spread(kernel_size):
    """Large and small scores side by side, more positions than a tile of the gradient has."""
    arguments = make_arguments(31, 30, kernel_size)
    bias, scores = arguments[2], arguments[0]
    scores.clamp_(-5, 5)[:, 10:] -= MAX_SPREAD - 0.1 - 10 - (bias.max() - bias.min())
    single = [t.float().requires_grad_() for t in arguments]
    double = [t.detach().double().requires_grad_() for t in single]
    assert 'convolution: can run' in explain('learned_query_attention', *single, kernel_size, 1)
    actual = learned_query_attention(*single, kernel_size)
    with force('offset_loop'):
        expected = learned_query_attention(*double, kernel_size)
    assert relative_difference(actual, expected) < 1e-5
    direction = torch.randn_like(actual)
    for a, e in zip(
        torch.autograd.grad(actual, single, direction),
        torch.autograd.grad(expected, double, direction.double()),
        strict=True,
    ):
        assert relative_difference(a, e) < 1e-5


@pytest.mark.parametrize('low', [-MAX_SPREAD, float('nan')])
def test_scores_too_far_apart_for_the_convolution_take_the_loop(low):
    arguments = make_arguments(6, 7, 5)
    arguments[0][0, 0, 0] = low
    text = explain('learned_query_attention', *arguments, 5, 1)
    assert 'convolution: the scores of an image spread' in text and 'loop: can run' in text


@pytest.mark.parametrize('bound', [5, 1e4])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype, bound):
    arguments = make_arguments(6, 7, 3)
    arguments[0] *= bound / arguments[0].abs().max()
    leaves = [t.to(dtype).requires_grad_() for t in arguments]
    output = learned_query_attention(*leaves, 3, 2)
    assert output.dtype == dtype
    output.float().square().mean().backward()
    assert output.isfinite().all()
    for leaf in leaves:
        assert leaf.grad.dtype == dtype and leaf.grad.isfinite().all()
    expected = reference(*(t.double() for t in leaves), 3, 2)
    assert relative_difference(output.double(), expected) < 2e-2


def test_half_precision_values_keep_the_convolution():
    """As under autocast: scores in float32, values in bfloat16, sums in float32."""
    scores, values, *tables = (t.float() for t in make_arguments(9, 7, 5))
    arguments = (scores, values.bfloat16(), *tables)
    assert chosen('learned_query_attention', *arguments, 5, 1) == 'convolution'
    leaves = [t.detach().requires_grad_() for t in arguments]
    output = learned_query_attention(*leaves, 5, 1)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    expected = reference(*exact, 5, 1)
    assert relative_difference(output.double(), expected) < 4e-3  # half a unit of bfloat16
    for actual, correct in zip(
        torch.autograd.grad(output.float().square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), exact),
        strict=True,
    ):
        assert relative_difference(actual.double(), correct) < 1e-2


@pytest.mark.skipif(not HAS_OPERATORS, reason='operators need torch 2.4')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('spread', [1, 100])
def test_operator(dtype, spread):
    """Its schema, shapes and gradients, with the convolution and with the loop."""
    scores, values, *tables = (t.float() for t in make_arguments(5, 7, 3))
    tensors = [t.requires_grad_() for t in (spread * scores, values.to(dtype), *tables)]
    for stride in (1, 2):
        torch.library.opcheck(torch.ops.mmvitattn.learned_query_cpu, (*tensors, 3, stride))


def test_scores_are_those_of_projected_keys_and_queries():
    x, query, weight = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4), torch.randn(12, 5)
    unit = query / (query.norm(dim=-1, keepdim=True) + 1e-6)
    keys = (x @ weight.T).unflatten(-1, (3, 4))
    for normalize, queries in ((True, unit), (False, query)):
        expected = torch.einsum('bxyhd,qhd->bxyqh', keys, queries) / 2
        torch.testing.assert_close(learned_query_scores(x, query, weight, normalize), expected)


def test_scores_are_float32_for_half_precision_inputs():
    """Scores above 65504 are infinite in float16."""
    x = torch.full((1, 1, 1, 8), 6e4, dtype=torch.float16)
    query, weight = torch.ones(1, 1, 8), torch.ones(8, 8)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        scores = learned_query_scores(x, query.half(), weight.half())
    assert scores.dtype == torch.float32 and 1e5 < scores.item() < float('inf')


def test_memory_stays_below_an_unfolded_window():
    """No tensor in the graph holds k*k maps: autograd keeps inputs and two maps of scores."""
    arguments = [t.float().requires_grad_() for t in make_arguments(16, 16, 7, dim=16)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        learned_query_attention(*arguments, 7)
    limit = max(t.numel() for t in arguments)
    assert kept and max(t.numel() for t in kept) <= limit


def test_second_derivative_raises():
    leaves = [t.requires_grad_() for t in make_arguments(3, 3, 3)]
    output = learned_query_attention(*leaves, 3).square().sum()
    gradients = torch.autograd.grad(output, leaves, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(sum(g.sum() for g in gradients), leaves)


def test_reference_can_be_forced():
    arguments = make_arguments(3, 4, 3)
    with force('learned_query_attention=reference'):
        forced = learned_query_attention(*arguments, 3)
    assert torch.equal(forced, reference(*arguments, 3))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(kernel_size=2), 'odd'),
        (dict(stride=0), 'stride'),
        (dict(values=torch.zeros(2, 3, 4, 5, 3)), '5'),
        (dict(values=torch.zeros(2, 3, 3, 2, 3)), r'\(2, 3, 3, 2, 3\)'),
        (dict(position_bias=torch.zeros(25, 2, 2)), r'position_bias must be \(9, 2, 2\)'),
        (dict(attention_scale=torch.zeros(9, 1, 2)), r'attention_scale must be \(9, 2, 2\)'),
    ],
)
def test_wrong_shapes_are_named(change, message):
    names = ('scores', 'values', 'position_bias', 'attention_scale')
    arguments = dict(zip(names, make_arguments(3, 4, 3), strict=True), kernel_size=3, stride=1)
    with pytest.raises(ValueError, match=message):
        learned_query_attention(**arguments | change)


def test_an_empty_batch_gives_an_empty_output():
    arguments = make_arguments(5, 4, 3, batch=0)
    assert learned_query_attention(*arguments, 3).shape == (0, 5, 4, 2, 3)
