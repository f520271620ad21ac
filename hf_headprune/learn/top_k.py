"""The hard choice of every method: the largest scores, ties by their order."""

from __future__ import annotations

import torch


def top_k_mask(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """Marks the `kept` largest scores; of equal scores the one with the lower index is kept.

    Args:
        scores: Shape `(n,)`.
        kept: Between 0 and n.

    Returns:
        Mask of ones and zeros, shape `(n,)`, in the dtype of the scores.
    """
    order = torch.sort(scores.detach(), descending=True, stable=True).indices
    mask = torch.zeros_like(scores, requires_grad=False)
    mask[order[:kept]] = 1.0
    return mask
