"""A symmetric matrix by blocks: what it holds, and what it saves."""

import pytest
import torch

from hf_headprune.refit.symmetric import ROWS, Symmetric


@pytest.mark.parametrize("size", [1, 7, ROWS, ROWS + 1, 3 * ROWS, 3 * ROWS + 5])
def test_blocks_hold_the_product(size):
    left = torch.randn(20, size, generator=torch.Generator().manual_seed(size))
    weights = torch.rand(20, 1, generator=torch.Generator().manual_seed(1))
    found = Symmetric.product(left * weights, left)
    expected = (left * weights).T @ left
    assert len(found) == size
    torch.testing.assert_close(found.dense(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=1e-4, atol=1e-4)


def test_sums_and_scales_in_place_and_takes_little_more_than_half():
    first, second = torch.randn(2, 9, 6 * ROWS + 1, generator=torch.Generator().manual_seed(0))
    found = Symmetric.product(first, first)
    found.add_(Symmetric.product(second, second))
    assert found.each_(lambda block: block.div_(4.0)) is found
    torch.testing.assert_close(found.dense(), (first.T @ first + second.T @ second) / 4, rtol=1e-4, atol=1e-4)
    assert sum(block.numel() for block in found.blocks) < 0.6 * len(found) ** 2
