"""From scores to masks: thresholds, ranks and budgets over many score tensors; and the penalty on scores.

Everything here is a pure function of tensors and runs without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_headprune._layouts import Entries
from hf_headprune.learn.top_k import top_k_mask


@dataclass(frozen=True)
class ScoreTensor:
    """One tensor of scores among all those of a model.

    Attributes:
        name: Path of the weight matrix, or of the site whose units are scored.
        paths: Path of the weight matrix; for units those of all matrices of the site, the output projection last.
        kind: "attention" or "ffn", with "decoder_" before it in a decoder; kinds share the penalty equally.
        shape: `(rows, columns)` of blocks, or `(units,)`.
        cost: What one score's block or unit costs.
        multiple: Units stay in multiples of this; 1 for blocks.
        site: Name of the site.
        units: Heads or FFN units of the site.
        rows: For units, which rows of each matrix but the last belong to which.
    """

    name: str
    paths: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    cost: float = 1.0
    multiple: int = 1
    site: str = ""
    units: int = 0
    rows: tuple[Entries, ...] = ()

    @property
    def numel(self) -> int:
        """Scores of this tensor."""
        return math.prod(self.shape)

    @property
    def is_units(self) -> bool:
        """Whether units of a site are scored, rather than blocks of a matrix."""
        return len(self.shape) == 1


def at_least(mask: torch.Tensor, scores: torch.Tensor, min_kept: float) -> torch.Tensor:
    """Returns the mask, or, where it keeps too few, the mask of the largest scores.

    Args:
        mask: Ones and zeros, `(n,)`.
        scores: Shape `(n,)`.
        min_kept: Fraction; at least `int(min_kept * n) + 1` stay, as in the paper's code. 0 asks for nothing.
    """
    if min_kept == 0.0:
        return mask
    kept = int(min_kept * scores.numel()) + 1
    return torch.where(mask.sum() < kept, top_k_mask(scores, kept), mask)


def in_multiples(mask: torch.Tensor, scores: torch.Tensor, multiple: int) -> torch.Tensor:
    """Returns the mask with the best closed units opened until their number is a multiple, `(n,)`."""
    if multiple == 1:
        return mask
    # Open units come first, whatever their score is; among the closed ones the score decides.
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[torch.sort(mask[order], descending=True, stable=True).indices]
    kept = torch.ceil(mask.sum() / multiple) * multiple
    rounded = torch.zeros_like(mask)
    rounded[order] = (torch.arange(len(mask), device=mask.device) < kept).to(mask.dtype)
    return rounded


def threshold_mask(
    scores: torch.Tensor, threshold: float, layout: Sequence[ScoreTensor], *, sigmoid: bool, min_kept: float = 0.0
) -> torch.Tensor:
    """Keeps every block or unit whose score, or its sigmoid, is above the threshold.

    Args:
        scores: Of all tensors, `(n,)`.
        threshold: Compared with `sigmoid(S)` or with S.
        layout: The tensors, in the order of `scores`.
        sigmoid: Whether scores pass through a sigmoid first.
        min_kept: Fraction of each tensor that stays in any case, see `at_least`.

    Returns:
        Ones and zeros, `(n,)`.

    Source: Lagunas et al. 2021 (arXiv 2109.04838), section 3; Sanh et al. 2020 (arXiv 2005.07683).
    """
    mask = ((torch.sigmoid(scores) if sigmoid else scores) > threshold).to(scores.dtype)
    if min_kept == 0.0 and all(tensor.multiple == 1 for tensor in layout):
        return mask
    sizes = [tensor.numel for tensor in layout]
    parts = zip(mask.split(sizes), scores.split(sizes), layout, strict=True)
    return torch.cat([in_multiples(at_least(m, s, min_kept), s, tensor.multiple) for m, s, tensor in parts])


def top_k_per_tensor(scores: torch.Tensor, fraction: float, layout: Sequence[ScoreTensor]) -> torch.Tensor:
    """Keeps the same fraction of every tensor: its `int(fraction * n)` largest scores, units to the nearest multiple.

    Returns:
        Ones and zeros, `(n,)`.
    """
    masks = []
    for part, tensor in zip(scores.split([tensor.numel for tensor in layout]), layout, strict=True):
        wanted = fraction * tensor.numel * (1 + 1e-12)  # 0.29 * 100 is a little less than 29
        nearest = int(wanted / tensor.multiple + 0.5) * tensor.multiple
        masks.append(top_k_mask(part, int(wanted) if tensor.multiple == 1 else nearest))
    return torch.cat(masks)


def top_k_over_model(scores: torch.Tensor, budget: float | torch.Tensor, layout: Sequence[ScoreTensor]) -> torch.Tensor:
    """Keeps the largest scores of the whole model that a budget pays for.

    Each tensor counts in chunks of its multiple (1 for blocks): its best scores, the next best, and so on, each with
    the mean of its scores. Of equal scores the earlier stays. The largest chunks are kept until one does not fit; what
    is left of the budget goes to the best remaining chunks of each cost, dear ones first.

    Args:
        scores: Of all tensors, `(n,)`.
        budget: Sum of the costs of what is kept; it is never exceeded, and met to less than the cheapest chunk, unless
            everything of that cost stays.
        layout: The tensors, in the order of `scores`, with their costs.

    Returns:
        Ones and zeros, `(n,)`.
    """
    values, costs, orders = [], [], []
    for part, tensor in zip(scores.split([tensor.numel for tensor in layout]), layout, strict=True):
        part_sorted, order = (part, None) if tensor.multiple == 1 else torch.sort(part, descending=True, stable=True)
        chunks = part_sorted.view(-1, tensor.multiple).mean(1)
        values.append(chunks)
        costs.append(torch.full_like(chunks, tensor.cost * tensor.multiple, dtype=torch.float64))
        orders.append(order)
    prices = sorted({tensor.cost * tensor.multiple for tensor in layout}, reverse=True)
    kept = _within_budget(torch.cat(values), torch.cat(costs), budget, prices).to(scores.dtype)
    masks = []
    for part, tensor, order in zip(kept.split([len(v) for v in values]), layout, orders, strict=True):
        units = part.repeat_interleave(tensor.multiple)
        masks.append(units if order is None else torch.empty_like(units).scatter_(0, order, units))
    return torch.cat(masks)


def _within_budget(
    values: torch.Tensor, costs: torch.Tensor, budget: float | torch.Tensor, prices: Sequence[float]
) -> torch.Tensor:
    """Marks, `(chunks,)`, the longest run of largest values that the budget pays for, then what its rest pays for."""
    allowed = budget * (1 + 1e-9)  # sums in another order differ by rounding
    order = torch.sort(values, descending=True, stable=True).indices
    cost = costs[order]
    kept = cost.cumsum(0) <= allowed
    for price in prices:
        is_next = ~kept & (cost == price)
        rest = torch.where(is_next, cost, 0.0).cumsum(0)
        kept |= is_next & (rest <= allowed - (cost * kept).sum())
    return torch.zeros_like(kept).scatter_(0, order, kept)


def penalty_weights(layout: Sequence[ScoreTensor], strengths: Mapping[str, float]) -> torch.Tensor:
    """Returns the weight of each score in the penalty, `(n,)`, float32.

    The penalty is the mean over a tensor of `sigmoid(S)`, then over the tensors of a kind, times the kind's strength,
    then over the kinds.

    Args:
        layout: The tensors.
        strengths: `{"attention": ..., "ffn": ...}`; the kinds of a decoder take the same.
    """
    counts: dict[str, int] = {}
    for tensor in layout:
        counts[tensor.kind] = counts.get(tensor.kind, 0) + 1
    parts = []
    for tensor in layout:
        strength = strengths[tensor.kind.removeprefix("decoder_")]
        parts.append(torch.full((tensor.numel,), strength / (len(counts) * counts[tensor.kind] * tensor.numel)))
    return torch.cat(parts)


def penalty(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the penalty on the scores, `(n,)`, before its strength."""
    return (weights * torch.sigmoid(scores)).sum()


def penalty_grad(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of `penalty` with respect to the scores, `(n,)`."""
    kept = torch.sigmoid(scores)
    return weights * kept * (1.0 - kept)
