"""Scores that are not learned: the mean of |W| over each block, or over all that belongs to each unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_headprune.learn.movement.blocks import block_sums

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from hf_headprune.learn.movement.masks import ScoreTensor


def magnitudes(layout: Iterable[ScoreTensor], linears: Iterable[tuple[nn.Linear, ...]]) -> torch.Tensor:
    """Returns the mean of |W| over each block, or over all that belongs to each unit, `(num_scores,)`.

    Args:
        layout: The score tensors.
        linears: The matrices of each.
    """
    parts = []
    for tensor, matrices in zip(layout, linears, strict=True):
        weights = [linear.weight.detach().abs() for linear in matrices]
        if tensor.is_units:
            weights[-1] = weights[-1].T  # of an output projection the columns belong to the units
        sums = [block_sums(weight, torch.empty(_grid(tensor), device="meta")).flatten() for weight in weights]
        parts.append(torch.stack(sums).sum(0) * (tensor.numel / sum(weight.numel() for weight in weights)))
    return torch.cat(parts)


def _grid(tensor: ScoreTensor) -> tuple[int, int]:
    """Returns the rows and columns of blocks that a tensor's scores belong to; units are rows."""
    return (tensor.numel, 1) if len(tensor.shape) == 1 else (tensor.shape[0], tensor.shape[1])
