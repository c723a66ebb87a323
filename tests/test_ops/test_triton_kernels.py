"""The Triton kernels against the reference: on a CUDA device, or in Triton's interpreter.

Whether Triton interprets a kernel is decided when the kernel is defined. ``make test`` therefore
runs this file a second time, with TRITON_INTERPRET=1.
"""

import json

import pytest
import torch

from mmvitattn.ops import (
    force,
    key_only_attention,
    learned_query_attention,
    local_shift_attention,
    reference,
    triton_support,
)

if triton_support.UNAVAILABLE is None:
    from mmvitattn.ops.key_only import triton as key_only_triton
    from mmvitattn.ops.learned_query import triton as learned_query_triton
    from mmvitattn.ops.shifted import triton as shifted_triton
    from mmvitattn.ops.triton_blocks import Blocks, cache_file

DEVICE = 'cuda' if torch.cuda.is_available() and not triton_support.INTERPRETED else 'cpu'
pytestmark = pytest.mark.skipif(
    triton_support.UNAVAILABLE is not None or DEVICE == 'cpu' and not triton_support.INTERPRETED,
    reason=triton_support.UNAVAILABLE or 'needs a CUDA device, or TRITON_INTERPRET=1',
)
on_gpu = pytest.mark.skipif(DEVICE == 'cpu', reason='too large for the interpreter')


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks in small inputs."""
    for module in (learned_query_triton, key_only_triton, shifted_triton):
        monkeypatch.setattr(module, 'BLOCKS', Blocks(256))
    monkeypatch.setattr(key_only_triton, 'NUM_PROGRAMS', 8)  # several steps of each


@pytest.fixture(autouse=True)
def kernels():
    torch.manual_seed(0)
    with force('triton'):
        yield


def randn(*shape, scale=1.0):
    return scale * torch.randn(*shape)


def window_arguments(size, kernel_size, heads, dim, queries, bias=True, scale='offsets', batch=1):
    offsets = {'offsets': kernel_size**2, 'uniform': 1, None: 0}[scale]
    return [
        randn(batch, *size, queries, heads, scale=3),
        randn(batch, *size, heads, dim),
        randn(kernel_size**2, queries, heads) if bias else None,
        randn(offsets, queries, heads) if offsets else None,
    ]


def check(function, truth, tensors, tolerance=1e-5, floor=0.1):
    """Compares output and gradients in float32 with those of the truth in float64."""
    single = [t if t is None else t.to(DEVICE).requires_grad_() for t in tensors]
    double = [t if t is None else t.detach().double().requires_grad_() for t in single]
    actual, expected = function(*single), truth(*double)
    assert actual.shape == expected.shape
    direction = randn(*expected.shape).to(DEVICE)
    compared = [('output', actual, expected)]
    leaves = [[t for t in tensors if t is not None] for tensors in (single, double)]
    gradients = torch.autograd.grad(actual, leaves[0], direction)
    truths = torch.autograd.grad(expected, leaves[1], direction.double())
    pairs = zip(gradients, truths, strict=True)
    compared += [(f'gradient {i}', *pair) for i, pair in enumerate(pairs)]
    for name, a, e in compared:
        difference = (a - e).abs().max().item()
        assert difference <= tolerance * max(floor, e.abs().max().item()) + 1e-9, (name, difference)


SEVERAL_BLOCKS = [
    # size, k, stride, heads, dim, queries, bias, scale
    ((7, 9), 3, 1, 2, 8, 2, True, 'offsets'),  # several on both axes
    ((5, 7), 3, 2, 3, 5, 2, True, 'uniform'),  # no power of two; the stride leaves a rest
    ((2, 3), 3, 1, 12, 4, 1, True, None),  # of heads
]
ONE_BLOCK = [
    ((3, 4), 5, 1, 1, 3, 1, False, 'offsets'),  # the window exceeds the image
    ((1, 6), 3, 1, 1, 1, 3, False, None),
    ((5, 4), 3, 4, 2, 2, 2, True, 'offsets'),  # a stride that leaves positions out
    ((3, 3), 1, 1, 1, 33, 2, True, 'offsets'),
]


def check_windows(size, kernel_size, stride, heads, dim, queries, bias, scale):
    check(
        lambda *t: learned_query_attention(*t, kernel_size, stride),
        lambda *t: reference.learned_query_attention(*t, kernel_size, stride),
        window_arguments(size, kernel_size, heads, dim, queries, bias, scale, batch=2),
        floor=1.0 if kernel_size == 1 else 0.1,  # the score of a lone position has gradient zero
    )


@pytest.mark.parametrize('case', SEVERAL_BLOCKS, ids=str)
def test_windows_in_several_blocks_equal_the_reference(case, small_blocks):
    check_windows(*case)


@pytest.mark.parametrize('case', ONE_BLOCK, ids=str)
def test_windows_equal_the_reference(case):
    check_windows(*case)


@pytest.mark.slow
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
def test_windows_of_all_sizes(kernel_size, stride):
    for size, channels, bias in [
        ((1, 1), (1, 16, 2), True),
        ((2, 9), (5, 3, 1), True),
        ((8, 8), (8, 8, 2), False),
        ((7, 5), (3, 20, 4), True),
    ]:
        check_windows(size, kernel_size, stride, *channels, bias, 'offsets')


@pytest.mark.parametrize('bound', [5, 1e4])
def test_windows_with_scores_of_any_size(bound):
    """The right half lies 1e3 lower: an image-wide maximum would make its windows 0 / 0."""
    arguments = window_arguments((4, 12), 3, 2, 3, 2)
    arguments[0] = bound * (2 * torch.rand(1, 4, 12, 2, 2) - 1)
    arguments[0][:, :, 6:] -= 1e3
    # Where one position takes all the weight, gradients of scores are differences that cancel.
    check(
        lambda *t: learned_query_attention(*t, 3),
        lambda *t: reference.learned_query_attention(*t, 3),
        arguments,
        floor=1.0,
    )


def test_positions_that_scores_of_minus_infinity_exclude():
    arguments = [t if t is None else t.to(DEVICE) for t in window_arguments((4, 5), 3, 1, 4, 1)]
    arguments[0][:, 1, 1] = float('-inf')
    actual = learned_query_attention(*arguments, 3)
    torch.testing.assert_close(actual, reference.learned_query_attention(*arguments, 3))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Outputs and gradients keep their dtypes; only the results are rounded."""
    arguments = [t.to(DEVICE).to(dtype) for t in window_arguments((5, 6), 3, 2, 8, 2)]
    arguments[0] *= 1e4 / arguments[0].abs().max()
    x, saliency, *affines = key_only_arguments(20, 2, 4)
    x = x.to(dtype)
    variants, *projections = shift_arguments(2, 4, 3)
    runs = [
        (lambda *t: learned_query_attention(*t, 3, 2), arguments),
        (lambda t: key_only_triton.saliency_means(t, saliency.repeat(1, 2)).to(dtype), [x]),
        (lambda t: shifted_triton.pool_variants(t.flatten(1, 3), randn(2, 4, 8).to(DEVICE)),
         [variants.to(dtype)]),
    ]  # fmt: skip
    for run, tensors in runs:
        leaves = [t.detach().requires_grad_() for t in tensors]
        output = run(*leaves)
        assert output.dtype == dtype and output.isfinite().all()
        for leaf, grad in zip(leaves, torch.autograd.grad(output.sum(), leaves), strict=True):
            assert grad.dtype == leaf.dtype and grad.isfinite().all()
    expected = reference.learned_query_attention(*(t.double() for t in arguments), 3, 2)
    actual = learned_query_attention(*arguments, 3, 2)
    assert (actual - expected).abs().max() < 1e-2 * expected.abs().max()


def key_only_arguments(positions, heads, dim, batch=2, device=DEVICE):
    channels = heads * dim
    affines = [(randn(channels, channels) / channels**0.5, randn(channels)) for _ in range(4)]
    arguments = (randn(batch, positions, channels), randn(heads, dim), *affines)
    return [
        tuple(t.to(device) for t in a) if isinstance(a, tuple) else a.to(device) for a in arguments
    ]


@pytest.mark.parametrize(('positions', 'heads', 'dim'), [(70, 1, 5), (37, 2, 3), (16, 2, 4)])
def test_key_only_attention_equals_the_reference(positions, heads, dim, small_blocks):
    x, saliency, *affines = key_only_arguments(positions, heads, dim, device='cpu')

    def call(function):
        return lambda x, saliency, *flat: function(
            x, saliency, *((flat[i], flat[i + 1]) for i in range(0, 8, 2))
        )

    tensors = [x, saliency, *(t for affine in affines for t in affine)]
    check(call(key_only_attention), call(reference.key_only_attention), tensors, floor=1.0)


def weighted_means(x, vectors):
    return (x @ vectors.T).softmax(dim=1).transpose(1, 2) @ x


@pytest.mark.parametrize(
    ('positions', 'channels', 'heads', 'scale'),
    [(1, 3, 1, 1), (130, 5, 1, 1), (64, 24, 3, 1), (90, 4, 2, 1e4)],
)
def test_saliency_means(positions, channels, heads, scale, small_blocks):
    check(
        key_only_triton.saliency_means,
        weighted_means,
        [randn(2, positions, channels), randn(heads, channels, scale=scale)],
        # A score of 1e4 is known to 1e-3 in float32; gradients of such scores are tiny, times it.
        tolerance=1e-5 if scale == 1 else 1e-3,
        floor=1.0,
    )


def test_saliency_means_of_one_dominant_position(small_blocks):
    """All other parts of the positions lie 1e3 below."""
    x = randn(1, 200, 4)
    x[0, 150, 0] = 1e3
    vectors = torch.tensor([[1.0, 0, 0, 0]])
    check(key_only_triton.saliency_means, weighted_means, [x, vectors], floor=1.0)


def shift_arguments(heads, dim, variants, shared=False, bias=True, grid=(2, 1, 2)):
    channels, inner = heads * dim, dim if shared else heads * dim
    affines = [
        (randn(rows, channels).to(DEVICE), randn(rows).to(DEVICE) if bias else None)
        for rows in (channels, inner, inner)
    ]
    return [randn(variants, *grid, channels).to(DEVICE), *affines, heads]


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize(('heads', 'dim', 'variants'), [(1, 4, 10), (2, 3, 5), (3, 8, 1)])
def test_shift_attention_equals_the_reference(heads, dim, variants, shared, small_blocks):
    x, query, key, value, _ = shift_arguments(heads, dim, variants, shared, grid=(2, 3, 5))

    def call(function):
        return lambda x, q, qb, k, v, vb: function(x, (q, qb), (k, None), (v, vb), heads)

    tensors = [t.cpu() for t in (x, *query, key[0], *value)]
    check(
        call(local_shift_attention),
        call(reference.local_shift_attention),
        tensors,
        tolerance=2e-5,
        floor=1.0,
    )


def pooled(x, queries):
    weights = torch.einsum('hnc,tnc->hnt', queries, x).softmax(dim=-1)
    return torch.einsum('hnt,tnc->hnc', weights, x)


@pytest.mark.parametrize(
    ('variants', 'patches', 'channels', 'heads', 'scale'),
    [(10, 9, 8, 2, 1), (18, 70, 5, 1, 1), (3, 4, 24, 3, 1), (4, 30, 6, 2, 1e4)],
)
def test_pooling_of_variants(variants, patches, channels, heads, scale, small_blocks):
    x, queries = randn(variants, patches, channels), randn(heads, patches, channels, scale=scale)
    tolerance = 1e-5 if scale == 1 else 1e-3  # as above
    check(shifted_triton.pool_variants, pooled, [x, queries], tolerance, floor=1.0)


@pytest.mark.parametrize('blocks', [(1024, 8), (4096, 4)], ids=str)
def test_results_do_not_depend_on_the_blocks(blocks, monkeypatch):
    for module in (learned_query_triton, key_only_triton, shifted_triton):
        monkeypatch.setattr(module, 'BLOCKS', Blocks(*blocks))
    check_windows((5, 9), 3, 1, 2, 3, 2, True, 'offsets')
    check(key_only_triton.saliency_means, weighted_means, [randn(2, 90, 24), randn(3, 24)], floor=1)
    check(shifted_triton.pool_variants, pooled, [randn(4, 90, 24), randn(3, 90, 24)], floor=1)


def test_blocks_are_searched_for_each_operator(monkeypatch, tmp_path):
    monkeypatch.setenv('MMVITATTN_AUTOTUNE', '1')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    check_windows((3, 4), 3, 1, 2, 3, 2, True, 'offsets')
    check(key_only_triton.saliency_means, weighted_means, [randn(2, 9, 4), randn(3, 4)], floor=1)
    check(shifted_triton.pool_variants, pooled, [randn(4, 9, 4), randn(3, 9, 4)], floor=1)
    found = [key.split(',')[0] for key in json.loads(cache_file().read_text())]
    operators = ['learned_query', 'pool_variants', 'saliency_means']
    assert sorted(found) == [name + end for name in operators for end in ('', '_backward')]


def calls():
    """Each operator with arguments, of which some are not contiguous."""
    scores, values, bias, _ = (
        t if t is None else t.to(DEVICE) for t in window_arguments((4, 5), 3, 2, 4, 2, scale=None)
    )
    scores = scores.transpose(3, 4).contiguous().transpose(3, 4)
    scale = randn(1, 2, 2).to(DEVICE).expand(9, 2, 2)
    values = values.transpose(1, 2).contiguous().transpose(1, 2)
    x = randn(2, 3, 20).to(DEVICE).transpose(1, 2)
    variants = randn(4, 5, 3).to(DEVICE).transpose(0, 1)
    ops = torch.ops.mmvitattn
    return {
        'learned_query': (ops.learned_query, [scores, values, bias, scale, 3, 1]),
        'saliency_means': (ops.saliency_means, [x, randn(2, 3).to(DEVICE)]),
        'pool_variants': (ops.pool_variants, [variants, randn(2, 4, 3).to(DEVICE)]),
    }


@pytest.mark.parametrize('name', ['learned_query', 'saliency_means', 'pool_variants'])
def test_operators_are_registered_correctly(name):
    """Schema, autograd, shapes without data, and ahead-of-time tracing, of PyTorch's own check."""
    operator, arguments = calls()[name]
    leaves = [t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments]
    torch.library.opcheck(operator.default, tuple(leaves))


@pytest.mark.parametrize('name', ['learned_query', 'saliency_means', 'pool_variants'])
def test_contiguity_and_repetition_change_nothing(name):
    operator, arguments = calls()[name]
    results = []
    for convert in (lambda t: t, torch.Tensor.contiguous, torch.Tensor.contiguous):
        leaves = [
            convert(t).detach().requires_grad_() if isinstance(t, torch.Tensor) else t
            for t in arguments
        ]
        output = operator(*leaves)
        output = output if isinstance(output, torch.Tensor) else output[0]
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        weighted = output * torch.arange(output.numel(), device=DEVICE).view(output.shape)
        results.append([output, *torch.autograd.grad(weighted.sum(), tensors)])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_frozen_tables_need_no_gradient():
    arguments = [t.to(DEVICE) for t in window_arguments((4, 5), 3, 2, 4, 2)]
    leaves = [t.requires_grad_() for t in arguments[:2]]
    frozen = torch.autograd.grad(learned_query_attention(*arguments, 3).sum(), leaves)
    arguments[2].requires_grad_()
    trained = torch.autograd.grad(learned_query_attention(*arguments, 3).sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(frozen, trained, strict=True))


def test_compiles_as_one_graph():
    arguments = [t.to(DEVICE).requires_grad_() for t in window_arguments((4, 5), 3, 2, 4, 2)]
    key_only = key_only_arguments(20, 2, 4)
    shift = shift_arguments(2, 4, 3)

    def run(window, key_only, shift):
        outputs = (
            learned_query_attention(*window, 3, 2),
            key_only_attention(*key_only),
            local_shift_attention(*shift),
        )
        return sum(output.sum() for output in outputs)

    expected = run(arguments, key_only, shift)
    backend = 'inductor' if DEVICE == 'cuda' else 'aot_eager'
    actual = torch.compile(run, fullgraph=True, backend=backend)(arguments, key_only, shift)
    torch.testing.assert_close(actual, expected)
    gradients = (torch.autograd.grad(y, arguments) for y in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e)


class ForExport(torch.nn.Module):
    def forward(self, scores, values):
        return learned_query_attention(scores, values, None, None, 3)


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='needs PyTorch 2.7')
def test_is_no_part_of_an_exported_program():
    arguments = tuple(t.to(DEVICE) for t in window_arguments((4, 5), 3, 2, 4, 2)[:2])
    with pytest.raises(ValueError, match='an exported program'):
        torch.export.export(ForExport(), arguments)


def test_second_derivative_raises():
    x = randn(1, 9, 3).to(DEVICE).requires_grad_()
    means = key_only_triton.saliency_means(x, randn(1, 3).to(DEVICE))
    (gradient,) = torch.autograd.grad(means.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)


@on_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('size', 'batch'), [((56, 56), 128), ((200, 334), 8)])
def test_large_maps_on_a_gpu(size, batch, stride, dtype):
    """Equal to the loop over the window's offsets, on the same device."""
    arguments = [t.to(DEVICE) for t in window_arguments(size, 7, 8, 8, 2, batch=batch)]
    arguments[1] = arguments[1].to(dtype)
    results = []
    for name in ('triton', 'offset_loop'):
        leaves = [t.detach().requires_grad_() for t in arguments]
        with force(f'learned_query_attention={name}'):
            output = learned_query_attention(*leaves, 7, stride)
        results.append([output, *torch.autograd.grad(output.float().square().mean(), leaves)])
    for a, e in zip(*results, strict=True):
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        assert (a - e).abs().max() <= tolerance * e.abs().max()


@on_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_real_blocks_on_a_gpu(dtype):
    for positions, channels, heads in [(3136, 64, 1), (66800, 32, 1), (784, 256, 8), (999, 77, 7)]:
        x, vectors = randn(8, positions, channels), randn(heads, channels)
        x, vectors = x.to(DEVICE).to(dtype), vectors.to(DEVICE)
        expected = weighted_means(x.double(), vectors.double())
        means = key_only_triton.saliency_means(x, vectors)
        assert (means - expected).abs().max() < 1e-5 * expected.abs().max()
    for variants, patches, channels, heads in [
        (10, 25088, 64, 2),
        (18, 4096, 192, 3),
        (5, 9, 77, 7),
    ]:
        x = randn(variants, patches, channels).to(DEVICE).to(dtype)
        queries = randn(heads, patches, channels).to(DEVICE) / channels**0.5
        expected = pooled(x.double(), queries.double())
        difference = (shifted_triton.pool_variants(x, queries) - expected).abs().max()
        assert difference < (1e-5 if dtype == torch.float32 else 1e-2) * expected.abs().max()
