import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmvitattn.ops import force, local_shift_attention, reference, shifted_patch_embedding

POSITIVE = ((0, 0), (0, 2), (3, 0), (1, 1), (0, 2))
MIXED = ((0, 0), (1, -2), (-3, 1), (2, 2), (0, -1))


class Recorded(TorchDispatchMode):
    """Names of the operators that run, and the largest tensor that one of them makes."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        inputs = {t.untyped_storage().data_ptr() for t in args if torch.is_tensor(t)}
        if torch.is_tensor(output) and output.untyped_storage().data_ptr() not in inputs:
            self.largest = max(self.largest, output.numel())
        return output


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def embedding_arguments(size, shifts, kernel_size, channels=2, width=3, batch=2):
    image = randn(batch, *size, channels)
    weight = randn(len(shifts), width, channels, kernel_size, kernel_size, seed=1)
    return image, weight, randn(len(shifts), width, seed=2)


def relative_difference(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(('border', 'shifts'), [('extend', POSITIVE), ('roll', MIXED)])
@pytest.mark.parametrize(
    ('kernel_size', 'stride', 'padding'), [(2, 2, 0), (3, 1, 1), (4, 3, 2), (5, 4, 0), (1, 2, 3)]
)
def test_reference_equals_the_definition_in_numpy(border, shifts, kernel_size, stride, padding):
    """Where a shifted image ends decides what lies in the padding."""
    size = (7, 6)
    image, weight, bias = embedding_arguments(size, shifts, kernel_size, batch=1)
    actual = reference.shifted_patch_embedding(image, weight, bias, shifts, stride, padding, border)
    rows, columns = ((n + 2 * padding - kernel_size) // stride + 1 for n in size)
    assert actual.shape == (5, 1, rows, columns, 3)
    for t, i, j in itertools.product(range(5), range(rows), range(columns)):
        (down, right), expected = shifts[t], bias[t].numpy().copy()
        grown = (size[0] + down, size[1] + right) if border == 'extend' else size
        for k, m in itertools.product(range(kernel_size), repeat=2):
            y, x = i * stride + k - padding, j * stride + m - padding
            if 0 <= y < grown[0] and 0 <= x < grown[1]:
                pixel = image[0, (y - down) % size[0], (x - right) % size[1]]
                expected += (weight[t, :, :, k, m] @ pixel).numpy()
        np.testing.assert_allclose(actual[t, 0, i, j], expected, atol=1e-12)


@pytest.mark.parametrize(('border', 'shifts'), [('extend', POSITIVE), ('roll', MIXED)])
@pytest.mark.parametrize('size', [(9, 9), (11, 7), (16, 23)])
@pytest.mark.parametrize(
    ('kernel_size', 'stride', 'padding'),
    [(4, 4, 0), (9, 7, 1), (3, 1, 1), (2, 3, 0), (3, 2, 4), (1, 1, 0)],
)
def test_embeddings_equal_the_reference(border, shifts, size, kernel_size, stride, padding):
    arguments = embedding_arguments(size, shifts, kernel_size)
    options = (shifts, stride, padding, border)
    expected = reference.shifted_patch_embedding(*arguments, *options)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        actual = shifted_patch_embedding(*(t.to(dtype) for t in arguments), *options)
        assert actual.dtype == dtype and actual.shape == expected.shape
        assert relative_difference(actual, expected) < tolerance


def test_embeddings_without_bias_and_with_autocast():
    image, weight, _ = embedding_arguments((8, 8), POSITIVE, 4)
    options = (POSITIVE, 4, 0, 'extend')
    expected = reference.shifted_patch_embedding(image, weight, None, *options)
    actual = shifted_patch_embedding(image, weight, None, *options)
    torch.testing.assert_close(actual, expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = shifted_patch_embedding(image.float(), weight.float(), None, *options)
    assert half.dtype == torch.bfloat16 and relative_difference(half, expected) < 2e-2


def test_shifts_beyond_the_image_go_round_again():
    image, weight, bias = embedding_arguments((5, 4), ((0, 0),), 3)
    for far, near in (((12, -9), (2, 3)), ((5, 4), (0, 0))):
        actual = shifted_patch_embedding(image, weight, bias, (far,), 1, 1, 'roll')
        expected = shifted_patch_embedding(image, weight, bias, (near,), 1, 1, 'roll')
        torch.testing.assert_close(actual, expected)
    grown = torch.cat([image[:, -2:], image, image], dim=1)[:, :5]
    actual = shifted_patch_embedding(image, weight, bias, ((7, 0),), 1, 0, 'extend')
    expected = shifted_patch_embedding(grown, weight, bias, ((0, 0),), 1, 0, 'extend')
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(('border', 'shifts'), [('extend', POSITIVE), ('roll', MIXED)])
def test_gradients_of_embeddings(border, shifts):
    leaves = [t.requires_grad_() for t in embedding_arguments((5, 6), shifts, 3, 1, 2, 1)]
    options = (shifts, 2, 1, border)
    assert torch.autograd.gradcheck(
        lambda *a: shifted_patch_embedding(*a, *options), leaves, fast_mode=True
    )
    actual, expected = (
        torch.autograd.grad(f(*leaves, *options).square().sum(), leaves)
        for f in (shifted_patch_embedding, reference.shifted_patch_embedding)
    )
    torch.testing.assert_close(actual, expected)


def test_all_shifts_are_one_product():
    arguments = embedding_arguments((12, 12), MIXED, 3)
    with Recorded() as recorded:
        shifted_patch_embedding(*arguments, MIXED, 1, 1, 'roll')
    assert 'convolution' not in recorded.names
    assert sum(name in ('bmm', 'baddbmm', 'mm', 'addmm') for name in recorded.names) == 1


def attention_arguments(heads=2, dim=3, shared=False, variants=4, grid=(2, 3), bias=True):
    channels, kv_channels = heads * dim, dim if shared else heads * dim
    affines = [
        (randn(out, channels, seed=seed), randn(out, seed=seed + 3) if bias else None)
        for seed, out in enumerate((channels, kv_channels, kv_channels), 1)
    ]
    return randn(variants, 2, *grid, channels), *affines, heads


def leaves_of(arguments):
    x, *affines, _ = arguments
    return [t.requires_grad_() for t in (x, *itertools.chain(*affines)) if t is not None]


def converted(arguments, dtype):
    x, *affines, heads = (a.to(dtype) if torch.is_tensor(a) else a for a in arguments)
    affines = [tuple(t if t is None else t.detach().to(dtype) for t in pair) for pair in affines]
    return x.detach(), *affines, heads


def test_reference_attention_equals_the_equations_in_numpy():
    """Equations 1 to 4 for each patch and head; head i has channels i*d to (i+1)*d."""
    arguments = attention_arguments(heads=2, dim=3)
    actual = reference.local_shift_attention(*arguments)
    x, query, key, value = (
        a.numpy() if torch.is_tensor(a) else [t.numpy() for t in a] for a in arguments[:4]
    )
    for b, i, j, head in itertools.product(range(2), range(2), range(3), range(2)):
        part = slice(3 * head, 3 * head + 3)
        variants = x[:, b, i, j]
        q = query[0][part] @ variants[0] + query[1][part]
        k, v = (variants @ weight[part].T + bias[part] for weight, bias in (key, value))
        exponentials = np.exp(k @ q / 3**0.5)
        expected = exponentials @ v / exponentials.sum()
        np.testing.assert_allclose(actual[b, i, j, part], expected, rtol=1e-10)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('heads', 'dim', 'variants'), [(1, 4, 3), (2, 3, 4), (6, 1, 2), (3, 5, 1)])
def test_attention_and_its_gradients_equal_the_reference(shared, bias, heads, dim, variants):
    arguments = attention_arguments(heads, dim, shared, variants, bias=bias)
    leaves = leaves_of(arguments)
    actual = local_shift_attention(*arguments)
    expected = reference.local_shift_attention(*arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(actual, leaves, direction, allow_unused=True)
    references = torch.autograd.grad(expected, leaves, direction)
    for leaf, a, e in zip(leaves, gradients, references, strict=True):
        if a is None:  # the keys' bias, which no result depends on
            assert bias and leaf is arguments[2][1] and e.abs().max() < 1e-12
        else:
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('shared', [False, True])
def test_gradcheck_of_attention(shared):
    x, query, key, value, heads = attention_arguments(shared=shared, grid=(1, 2))
    leaves = leaves_of((x, query, (key[0], None), value, heads))
    assert torch.autograd.gradcheck(
        lambda x, q, qb, k, v, vb: local_shift_attention(x, (q, qb), (k, None), (v, vb), heads),
        leaves,
        fast_mode=True,
    )


@pytest.mark.parametrize('scale', [1, 1e2, 1e4])
def test_float32_is_exact_for_scores_of_any_size(scale):
    arguments = attention_arguments(heads=2, dim=4)
    arguments[1][0].mul_(scale)
    single = converted(arguments, torch.float32)
    actual = local_shift_attention(*single)
    expected = reference.local_shift_attention(*converted(single, torch.float64))
    # A score of 1e5 is known to 1e-2 in float32; only ties between variants feel that.
    assert relative_difference(actual, expected) < 1e-5 * max(1, scale**0.5)


@pytest.mark.parametrize('scale', [1, 1e3])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype, scale):
    """Scores above 65504, the largest number in float16."""
    if dtype == torch.float16 and torch.__version__ < '2.2':
        pytest.skip('no float16 matrix product on the CPU in this torch')
    arguments = attention_arguments(heads=2, dim=8, variants=6)
    arguments[1][0].mul_(scale)
    arguments[2][0].mul_(scale**0.5)
    half = converted(arguments, dtype)
    leaves = leaves_of(half)
    output = local_shift_attention(*half)
    assert output.dtype == dtype and output.isfinite().all()
    (1e-3 * output.float()).sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
    expected = reference.local_shift_attention(*converted(half, torch.float64))
    assert relative_difference(output, expected) < 3e-2


def test_scores_keep_their_precision_under_autocast():
    arguments = converted(attention_arguments(heads=2, dim=8), torch.float32)
    arguments[1][0].mul_(1e3)  # rounded to bfloat16, such scores would choose other variants
    expected = local_shift_attention(*arguments)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = local_shift_attention(*arguments)
    assert actual.dtype == torch.bfloat16 and relative_difference(actual, expected) < 2e-2


def test_keys_and_values_of_the_variants_never_exist():
    """With few heads, nothing the size of keys is made but, in the backward pass, x's gradient."""
    arguments = converted(attention_arguments(heads=2, dim=16, variants=9), torch.float32)
    x = arguments[0].requires_grad_()
    with Recorded() as recorded:
        output = local_shift_attention(*arguments)
        per_head = 2 * x[0].numel()
        assert 0 < recorded.largest <= per_head < x.numel()
        output.sum().backward()
    assert recorded.largest == x.numel()


def test_reference_can_be_forced():
    arguments = attention_arguments()
    with force('local_shift_attention=reference'):
        assert torch.equal(
            local_shift_attention(*arguments), reference.local_shift_attention(*arguments)
        )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(border='mirror'), "'mirror'"),
        (dict(shifts=((0, 0), (-1, 0))), "use 'roll'"),
        (dict(shifts=()), 'pairs'),
        (dict(shifts=((0, 0),)), '1 shifts need'),
        (dict(image=torch.zeros(1, 4, 4, 5)), r'\(1, 4, 4, 5\)'),
        (dict(image=torch.zeros(1, 2, 4, 2)), '2 x 4'),
        (dict(bias=torch.zeros(2, 4)), r'\(2, 4\)'),
        (dict(stride=0), 'stride=0'),
    ],
)
def test_wrong_embedding_arguments_are_named(change, message):
    image, weight, bias = embedding_arguments((4, 4), ((0, 0), (1, 0)), 3)
    arguments = dict(image=image, weight=weight, bias=bias, shifts=((0, 0), (1, 0)), stride=1)
    with pytest.raises(ValueError, match=message):
        shifted_patch_embedding(**arguments | change)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_heads=4), '4 heads'),
        (dict(x=torch.zeros(2, 3, 4, 6)), r'\(2, 3, 4, 6\)'),
        (dict(key=(torch.zeros(4, 6), None)), r'\(4, 6\)'),
        (dict(value=(torch.zeros(3, 6), None)), r'\(3, 6\)'),
    ],
)
def test_wrong_attention_arguments_are_named(change, message):
    names = ('x', 'query', 'key', 'value', 'num_heads')
    arguments = dict(zip(names, attention_arguments(), strict=True))
    with pytest.raises(ValueError, match=message):
        local_shift_attention(**arguments | change)
