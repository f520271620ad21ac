"""Scores that are not learned: the mean of |W| over each block, or over all that belongs to each unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_headprune._distributed import whole
from hf_headprune.anatomy import matrix_of
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
        weights = [whole(matrix_of(linear)).detach().abs() for linear in matrices]
        if tensor.is_units:
            *inputs, output = weights
            sums = output.sum(0, dtype=torch.float32).view(tensor.numel, -1).sum(1)
            for weight, rows in zip(inputs, tensor.rows, strict=True):
                owners = torch.tensor(rows.owners(), device=weight.device)
                sums = sums.index_add(0, owners, weight.sum(1, dtype=torch.float32))
        else:
            sums = block_sums(weights[0], torch.empty(tensor.shape, device="meta")).flatten()
        parts.append(sums * (tensor.numel / sum(weight.numel() for weight in weights)))
    return torch.cat(parts)
