import pytest
import torch

from mmvitattn.layers.position_table import _resize_by_products, resize_table


@pytest.mark.parametrize('size', [(8, 6), (5, 6), (20, 31), (3, 2), (1, 1), (8, 13)])
@pytest.mark.parametrize('variants', [(), (3,)])
def test_both_ways_to_resize_are_one(size, variants):
    """What is recorded for export equals PyTorch's antialiased bicubic interpolation."""
    table = torch.randn(*variants, 8, 6, 4, dtype=torch.float64)
    actual = _resize_by_products(table, size)
    assert actual.shape == (*variants, *size, 4)
    torch.testing.assert_close(actual, resize_table(table, size), rtol=1e-6, atol=1e-6)
    if size == (8, 6):
        assert torch.equal(actual, table)
