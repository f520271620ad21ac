"""Symmetric: a symmetric matrix in little more than half of its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 128  # of a block; a matrix of at most so many rows is one block


class Symmetric:
    """A symmetric matrix as blocks of rows, each of which ends with its last row's entry on the diagonal.

    The second moments of what an FFN hands to its output projection are the largest thing that a refit holds: on
    BERT-base shapes 12 matrices of 38 MB.

    Attributes:
        blocks: Block i holds rows from `i * ROWS`, `(up to ROWS, columns up to its last row)`.
    """

    def __init__(self, blocks: list[torch.Tensor]) -> None:
        """Takes blocks as they are described above."""
        self.blocks = blocks

    @classmethod
    def product(cls, left: torch.Tensor, right: torch.Tensor) -> Symmetric:
        """Returns `left.T @ right` on the CPU, which must be symmetric; half of the multiplications are saved.

        Args:
            left: Shape `(tokens, size)`.
            right: The same shape.
        """
        starts = range(0, left.shape[1], ROWS)
        return cls([(left[:, start : start + ROWS].T @ right[:, : start + ROWS]).cpu() for start in starts])

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.blocks[-1].shape[1]

    def add_(self, other: Symmetric) -> None:
        """Adds another matrix of the same size in place."""
        for mine, its in zip(self.blocks, other.blocks, strict=True):
            mine.add_(its)

    def each_(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Symmetric:
        """Replaces every block by what a function of entries makes of it; returns this matrix."""
        self.blocks = [change(block) for block in self.blocks]
        return self

    def diagonal(self) -> torch.Tensor:
        """Returns the diagonal, `(size,)`."""
        return torch.cat([block.diagonal(block.shape[1] - block.shape[0]) for block in self.blocks])

    def dense(self) -> torch.Tensor:
        """Returns the whole matrix, `(size, size)`; a matrix of one block is that block itself, to be read only."""
        if len(self.blocks) == 1:
            return self.blocks[0]
        whole = self.blocks[0].new_empty(len(self), len(self))
        for start, block in zip(range(0, len(self), ROWS), self.blocks, strict=True):
            whole[start : start + ROWS, : block.shape[1]] = block
            whole[: block.shape[1], start : start + ROWS] = block.T
        return whole


def solved(matrix: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns what a positive definite matrix maps to the targets, by its Cholesky factor: half the time of others.

    Args:
        matrix: Shape `(size, size)`; rounding may have made it indefinite.
        targets: Shape `(size, columns)`.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.solve(matrix, targets) if bool(failed) else torch.cholesky_solve(targets, factor)


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the inverse of a matrix as `solved` takes it."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.inv(matrix) if bool(failed) else torch.cholesky_inverse(factor)
