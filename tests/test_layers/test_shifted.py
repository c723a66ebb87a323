import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvitattn.layers import LocalShiftAttention, PositionTable, ShiftedPatchEmbed
from mmvitattn.layers.position_table import resize_table
from mmvitattn.layers.shifted import CIFAR_SHIFTS, IMAGENET_SHIFTS, TranslatedPatchEmbed


def test_shifts_are_those_of_the_paper():
    """Sections 4 (ImageNet as (right, down), here turned) and CIFAR, as (down, right)."""
    right_down = '(0,0) (1,0) (2,0) (3,0) (0,1) (0,2) (0,3) (1,1) (2,2) (3,3)'
    assert ' '.join(f'({right},{down})' for down, right in IMAGENET_SHIFTS) == right_down
    down_right = (
        '(0,0) (1,0) (0,1) (-1,0) (0,-1) (2,0) (0,2) (-2,0) (0,-2) '
        '(1,1) (1,2) (1,-1) (-1,1) (-1,2) (-1,-1) (2,1) (2,2) (2,-1)'
    )
    assert ' '.join(f'({down},{right})' for down, right in CIFAR_SHIFTS) == down_right


@pytest.mark.parametrize(
    ('options', 'size', 'grid'),
    [
        (dict(kernel_size=4, stride=4), (16, 20), (4, 5)),
        (dict(kernel_size=4, stride=4), (13, 21), (4, 6)),
        (dict(kernel_size=9, stride=7, padding=1), (112, 33), (16, 5)),
        (dict(kernel_size=3, stride=1, padding=1, border='roll'), (5, 9), (5, 9)),
    ],
)
def test_images_are_padded_before_they_are_shifted(options, size, grid):
    """What a shift brings in from the other side are the zeros that fill the last patches."""
    embed = ShiftedPatchEmbed(3, 6, **options).eval()
    nn.init.normal_(embed.bias)
    image = torch.randn(2, 3, *size)
    padded = F.pad(image, (0, -size[1] % embed.stride, 0, -size[0] % embed.stride))
    y = embed(image.permute(0, 2, 3, 1))
    assert embed.grid_size(*size) == grid and y.shape == (10, 2, *grid, 6)
    for t, (down, right) in enumerate(embed.shifts):
        if embed.border == 'roll':
            shifted = padded.roll((down, right), (2, 3))
        else:
            shifted = F.pad(padded, (right, 0, down, 0), mode='circular')
        expected = F.conv2d(shifted, embed.weight[t], embed.bias[t], embed.stride, embed.padding)
        expected = expected[..., : grid[0], : grid[1]].permute(0, 2, 3, 1)
        torch.testing.assert_close(y[t], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('options', 'size', 'grid'),
    [
        (dict(kernel_size=3, stride=1, padding=1, shifts=CIFAR_SHIFTS), (5, 9), (5, 9)),
        (dict(kernel_size=4, stride=4), (13, 22), (4, 6)),
        (dict(kernel_size=9, stride=7, padding=1), (20, 33), (3, 5)),
    ],
)
def test_translations_share_one_embedding(options, size, grid):
    """NumPy's reflection, then the padding to whole patches, then one convolution."""
    embed = TranslatedPatchEmbed(3, 6, **options)
    nn.init.normal_(embed.conv.bias)
    image = torch.randn(2, *size, 3)
    y = embed(image)
    assert embed.grid_size(*size) == grid and y.shape == (len(embed.shifts), 2, *grid, 6)
    stride, reflected = embed.stride, np.pad(image, ((0, 0), (3, 3), (3, 3), (0, 0)), 'reflect')
    for variant, (down, right) in zip(y, embed.shifts, strict=True):
        shifted = reflected[:, 3 - down :, 3 - right :][:, : size[0], : size[1]]
        shifted = torch.from_numpy(shifted).permute(0, 3, 1, 2)
        shifted = F.pad(shifted, (0, -size[1] % stride, 0, -size[0] % stride))
        expected = F.conv2d(shifted, *embed.parameters(), stride, embed.padding)
        torch.testing.assert_close(variant, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shared_kv', [False, True])
def test_attention_follows_the_equations(shared_kv):
    """Heads, and keys before values, as in the release; the residual is the caller's."""
    layer = LocalShiftAttention(12, num_heads=3, shared_kv=shared_kv).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 2, 3, 4, 12, dtype=torch.float64)
    query, key_value = layer.query(x[0]), layer.key_value(x)
    assert key_value.shape[-1] == (8 if shared_kv else 24)
    key, value = key_value.chunk(2, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        k, v = (t if shared_kv else t[..., part] for t in (key, value))
        weights = ((query[..., part] * k).sum(-1) / 2).softmax(0)
        heads.append((weights[..., None] * v).sum(0))
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


def test_every_parameter_gets_a_gradient():
    """Also the keys' bias, of zeros: a missing one would stop distributed training."""
    layer = LocalShiftAttention(8, num_heads=2)
    layer(torch.randn(3, 1, 2, 2, 8)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert (layer.key_value.bias.grad[:8] == 0).all()
    assert (layer.key_value.bias.grad[8:] != 0).all()


def test_start_values():
    embed, attention = ShiftedPatchEmbed(3, 32, 7, 7), LocalShiftAttention(96, 2)
    weights = [embed.weight, *(m.weight for m in attention.children())]
    assert all(w.std().item() == pytest.approx(0.02, rel=0.05) for w in weights)
    biases = [embed.bias, *(m.bias for m in attention.children())]
    assert all((b == 0).all() for b in biases)
    assert PositionTable((9, 9), 64).table.std().item() == pytest.approx(0.02, rel=0.05)


def test_embedding_and_attention_compile_to_one_graph():
    model = nn.Sequential(
        ShiftedPatchEmbed(3, 8, 3, 2, 1, CIFAR_SHIFTS, 'roll'),
        PositionTable((2, 2), 8, num_variants=18),  # resized
        LocalShiftAttention(8, 2),
    )
    x = torch.randn(1, 9, 6, 3)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    actual, expected = compiled(x), model(x)
    torch.testing.assert_close(actual, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )
    torch._dynamo.reset()


def test_bfloat16_under_autocast_and_as_weights():
    model = nn.Sequential(
        ShiftedPatchEmbed(3, 8, 4, 4), PositionTable((3, 3), 8, 10), LocalShiftAttention(8, 2)
    )
    x = torch.randn(2, 16, 16, 3)
    expected = model(x).detach()
    for autocast in (True, False):
        model, x = (model, x) if autocast else (model.bfloat16(), x.bfloat16())
        model.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            actual = model(x)
        assert actual.dtype == torch.bfloat16
        assert (actual - expected).abs().max() / expected.abs().max() < 3e-2
        actual.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_table_of_the_maps_own_size_is_used_as_it_is(monkeypatch):
    monkeypatch.setattr(F, 'interpolate', None)
    table = PositionTable((3, 4), 5, num_variants=2)
    x = torch.randn(2, 6, 3, 4, 5)
    assert torch.equal(table(x), x + table.table[:, None])
    assert resize_table(table.table, (3, 4)) is table.table


@pytest.mark.parametrize('size', [(6, 5), (2, 9), (4, 3), (1, 1)])
def test_table_is_resized_bicubically_with_antialiasing(size):
    """Against the resampling written out: Keys' kernel, half-pixel centres."""

    def weights(n, m):
        scale = max(n / m, 1)  # antialiasing widens the kernel when it shrinks
        centres = (torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5
        t = (centres[:, None] - torch.arange(n)).abs() / scale
        near = 1.5 * t**3 - 2.5 * t**2 + 1
        far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        kernel = torch.where(t < 1, near, torch.where(t < 2, far, 0))
        return kernel / kernel.sum(1, keepdim=True)

    position = PositionTable((4, 6), 3, num_variants=2).double()
    nn.init.normal_(position.table)
    rows, columns = weights(4, size[0]), weights(6, size[1])
    expected = torch.einsum('ij,kl,tjlc->tikc', rows, columns, position.table)
    x = torch.zeros(2, 1, *size, 3, dtype=torch.float64)
    actual = position(x)
    torch.testing.assert_close(actual[:, 0], expected, rtol=1e-6, atol=1e-7)
    one = resize_table(position.table[1], size)  # variants do not mix
    torch.testing.assert_close(one, actual[1, 0])
    actual.sum().backward()
    assert (position.table.grad != 0).any()


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: ShiftedPatchEmbed(3, 8, 3, 1, shifts=CIFAR_SHIFTS), "use 'roll'"),
        (lambda: ShiftedPatchEmbed(3, 8, 3, 1, border='zero'), "'zero'"),
        (lambda: LocalShiftAttention(8, 3), 'num_heads=3'),
        (lambda: TranslatedPatchEmbed(3, 8, 3, 1, shifts=((0, 0), (1,))), 'pairs'),
    ],
)
def test_wrong_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
