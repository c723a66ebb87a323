import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvitattn.layers.patch_embed import PatchEmbed


@pytest.mark.parametrize(
    ('options', 'size', 'grid'),
    [
        (dict(kernel_size=4, stride=4), (16, 20), (4, 5)),
        (dict(kernel_size=4, stride=4), (13, 21), (4, 6)),
        (dict(kernel_size=9, stride=7, padding=1), (20, 33), (3, 5)),
        (dict(kernel_size=3, stride=1, padding=1), (5, 9), (5, 9)),
    ],
)
def test_is_a_convolution_of_the_padded_image(options, size, grid):
    embed = PatchEmbed(3, 6, **options)
    nn.init.normal_(embed.conv.bias)
    image = torch.randn(2, 3, *size)
    padded = F.pad(image, (0, -size[1] % embed.stride, 0, -size[0] % embed.stride))
    expected = F.conv2d(padded, embed.conv.weight, embed.conv.bias, embed.stride, embed.padding)
    y = embed(image.permute(0, 2, 3, 1))
    assert embed.grid_size(*size) == grid and y.shape == (2, *grid, 6) and y.is_contiguous()
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1))


def test_start_values():
    conv = PatchEmbed(3, 32, 7, 7).conv
    assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05) and (conv.bias == 0).all()
