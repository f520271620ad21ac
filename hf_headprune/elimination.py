"""In which order units cost least to remove when those that stay are refitted: Optimal Brain Surgeon, for structures.

The cost of a removal is what it adds to the squared error of an output projection, in the metric of the loss's
gradient: a second-order estimate of what the loss gains. It is comparable over the sites of a model.

Source: Hassibi and Stork 1992; for whole structures ZipLM (Kurtic et al. 2023, arXiv 2302.04089, equation 2), here with
the gradient's second moments in place of equal weights for every output, which makes layers comparable.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hf_headprune.reconstruction import Block


@dataclass(frozen=True)
class Removal:
    """Units of one site that leave together.

    Attributes:
        site: Name of the site.
        units: In the numbering of the site.
        cost: Estimated gain of the loss, in an arbitrary unit that all sites of a recording share.
        weights: Entries of weight matrices that leave with them.
    """

    site: str
    units: tuple[int, ...]
    cost: float
    weights: int


def elimination(
    block: Block, sensitivity: torch.Tensor, kept: Sequence[int], *, multiple: int = 1, weights_per_unit: int = 1
) -> list[Removal]:
    """Returns all removals of one site, greedily the cheapest next, each priced after those before it.

    Args:
        block: With moments that were recorded with exactly the `kept` units open.
        sensitivity: Of its outputs, `(hidden_size, hidden_size)`, see `SiteMoments`.
        kept: Units that are still there, in order.
        multiple: Units leave in such numbers; the first ones make what stays a multiple.
        weights_per_unit: Entries of weight matrices that leave with a unit.
    """
    width = block.site.unit_width
    columns = block.columns(kept, constant=True)
    augmented = block.weight if block.bias is None else torch.cat([block.weight, block.bias[:, None]], dim=1)
    weight = _root(sensitivity) @ augmented[:, columns]  # (hidden_size, width * units [+ 1])
    precision = torch.linalg.inv(block.regularised(columns))
    left, found = list(kept), []
    while left:
        count = len(left) % multiple or multiple
        gone = _costs(weight, precision, len(left), width).argsort(stable=True)[:count].sort().values
        own = (gone[:, None] * width + torch.arange(width)).flatten()
        pivot = torch.linalg.inv(precision[own][:, own])
        change = pivot @ precision[own]
        cost = float(((weight[:, own] @ pivot) * weight[:, own]).sum())
        found.append(Removal(block.site.name, tuple(left[i] for i in gone.tolist()), cost, count * weights_per_unit))
        stays = torch.ones(len(precision), dtype=torch.bool)
        stays[own] = False
        weight = (weight - weight[:, own] @ change)[:, stays]
        precision = (precision - precision[:, own] @ change)[stays][:, stays]
        left = [unit for place, unit in enumerate(left) if place not in set(gone.tolist())]
    return found


def cheapest_first(paths: Iterable[Sequence[Removal]]) -> list[Removal]:
    """Merges the removals of several sites: always the next one of the site where it costs least per weight."""
    found = []
    heap = [(path[0].cost / path[0].weights, place, 0, path) for place, path in enumerate(paths) if path]
    heapq.heapify(heap)
    while heap:
        _, place, step, path = heapq.heappop(heap)
        found.append(path[step])
        if step + 1 < len(path):
            upcoming = path[step + 1]
            heapq.heappush(heap, (upcoming.cost / upcoming.weights, place, step + 1, path))
    return found


def _costs(weight: torch.Tensor, precision: torch.Tensor, units: int, width: int) -> torch.Tensor:
    """Returns what each unit's removal alone would cost, `(units,)`."""
    size = units * width
    own = precision[:size, :size].view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight[:, :size].T.reshape(units, width, -1)  # (units, width, hidden_size)
    if width == 1:
        return columns.square().sum(dim=(1, 2)) / own[:, 0, 0]
    return (torch.linalg.solve(own, columns) * columns).sum(dim=(1, 2))


def _root(sensitivity: torch.Tensor) -> torch.Tensor:
    """Returns the symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(sensitivity)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
