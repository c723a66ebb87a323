import numpy as np
import pytest
import torch

from mmvitattn.layers.shifted import CIFAR_SHIFTS
from mmvitattn.ops.shifted.shifts import translate


@pytest.mark.parametrize('size', [(7, 6), (3, 5), (8, 3)])
@pytest.mark.parametrize(
    'shifts', [CIFAR_SHIFTS, ((0, 0),), ((0, 0), (0, 2)), ((-2, 1), (0, 0), (1, -2))]
)
def test_equals_numpys_reflection(size, shifts):
    """A window of the image padded on all sides, as far up and left as the image moves."""
    image = torch.randn(2, *size, 3, dtype=torch.float64)
    copies = translate(image, shifts)
    assert copies.shape == (len(shifts), *image.shape)
    padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
    for copy, (down, right) in zip(copies, shifts, strict=True):
        expected = padded[:, 2 - down :, 2 - right :][:, : size[0], : size[1]]
        np.testing.assert_array_equal(copy, expected)


def test_gradient():
    image = torch.randn(1, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    shifts = ((0, 0), (2, -3), (-1, 1))
    assert torch.autograd.gradcheck(lambda x: translate(x, shifts), image, fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    if dtype == torch.float16 and torch.__version__ < '2.2':
        pytest.skip('no float16 reflection on the CPU in this torch')
    image = torch.randn(1, 4, 5, 2).to(dtype)
    expected = translate(image.double(), CIFAR_SHIFTS)
    assert torch.equal(translate(image, CIFAR_SHIFTS).double(), expected)


@pytest.mark.parametrize(
    ('size', 'shifts', 'message'),
    [
        (
            (3, 9),
            ((0, 0), (3, 0)),
            r'3 x 9 pixels and shifts \(\(0, 0\), \(3, 0\)\); give a larger',
        ),
        ((9, 3), ((0, 0), (0, -3)), '9 x 3 pixels'),
        ((9, 9), ((0, 0, 0),), 'pairs'),
        ((9, 9), (), 'pairs'),
    ],
)
def test_reflections_that_do_not_exist_are_named(size, shifts, message):
    with pytest.raises(ValueError, match=message):
        translate(torch.zeros(1, *size, 3), shifts)
