"""In which order units cost least to remove when those that stay are refitted: Optimal Brain Surgeon, for structures.

The cost of a removal is what it adds to the squared error of an output projection, in the metric of the loss's
gradient: a second-order estimate of what the loss gains. It is comparable over the sites of a model.

Source: Hassibi and Stork 1992; for whole structures ZipLM (Kurtic et al. 2023, arXiv 2302.04089, equation 2), here with
the gradient's second moments in place of equal weights for every output, which makes layers comparable.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from hf_headprune.cost import weights_price
from hf_headprune.refit.symmetric import inverse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hf_headprune.anatomy import Price
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Block, Refit


@dataclass(frozen=True)
class Removal:
    """Units of one site that leave together.

    Attributes:
        site: Name of the site.
        units: In the numbering of the site.
        cost: Estimated gain of the loss, in an arbitrary unit that all sites of a recording share.
        saved: Entries of weight matrices, or multiply-accumulates, that leave with them.
    """

    site: str
    units: tuple[int, ...]
    cost: float
    saved: int


@dataclass(frozen=True)
class Step:
    """Removals that are made together: one of each site that loses equally many units."""

    removals: tuple[Removal, ...]

    @property
    def cost(self) -> float:
        """Of all of them."""
        return sum(removal.cost for removal in self.removals)

    @property
    def saved(self) -> int:
        """By all of them."""
        return sum(removal.saved for removal in self.removals)


Priced = TypeVar("Priced", Removal, Step)


def elimination(
    block: Block,
    kept: Sequence[int],
    *,
    removable: Iterable[int] | None = None,
    width_multiple: int = 32,
    whole_groups: bool = False,
    price: Price | None = None,
) -> list[Removal]:
    """Returns the removals of one site, greedily the cheapest next, each priced after those before it.

    FFN units leave in chunks, heads one by one. Of heads that share keys and values by groups, either one group leaves
    as a whole, or one head of each group that is there, whichever costs less for what it saves: so groups keep equally
    many.

    Args:
        block: With moments that were recorded with exactly the `kept` units open. Where no loss was recorded with them,
            the price is the lost share of what the block adds.
        kept: Units that are still there, in order.
        removable: Those of them that may leave; None for all.
        width_multiple: FFN units leave in such numbers, the first so that a multiple stays.
        whole_groups: Whether groups of heads leave as a whole alone.
        price: What units save; the entries of their weight matrices when left out.
    """
    site, price = block.site, weights_price(block.site) if price is None else price
    columns = block.columns(kept, constant=True)
    augmented = block.weight if block.bias is None else torch.cat([block.weight, block.bias[:, None]], dim=1)
    weight = _root(_metric(block)) @ augmented[:, columns]  # (hidden_size, width * units [+ 1])
    precision = inverse(block.regularised(columns))
    left, found = list(kept), []
    multiple = 1 if site.is_attention else width_multiple
    may_leave = set(left) if removable is None else set(left) & set(removable)
    while may_leave:
        stays = torch.tensor([unit not in may_leave for unit in left])
        if site.group > 1:
            groups = len(site.groups_of(left))
            ways = _ways_of_groups(weight, precision, stays, groups, site.unit_width, whole=whole_groups)
        else:
            count = min(len(left) % multiple or multiple, len(may_leave))
            ways = [(_cheapest(weight, precision, stays, site.unit_width, count), 0)]
        steps = []
        for places, emptied in ways:
            own = (places[:, None] * site.unit_width + torch.arange(site.unit_width)).flatten()
            pivot = torch.linalg.inv(precision[own][:, own])
            cost = float(((weight[:, own] @ pivot) * weight[:, own]).sum())
            units = tuple(left[place] for place in places.tolist())
            steps.append((Removal(site.name, units, cost, price.of(len(units), emptied)), own, pivot @ precision[own]))
        removal, own, change = min(steps, key=lambda step: step[0].cost / step[0].saved)
        found.append(removal)
        rest = torch.ones(len(precision), dtype=torch.bool).index_fill(0, own, value=False).nonzero().flatten()
        weight = weight.addmm_(weight[:, own], change, alpha=-1).index_select(1, rest)
        precision = precision.addmm_(precision[:, own], change, alpha=-1).index_select(0, rest).index_select(1, rest)
        may_leave.difference_update(removal.units)
        gone = {*removal.units}
        left = [unit for unit in left if unit not in gone]
    return found


def _cheapest(
    weight: torch.Tensor, precision: torch.Tensor, stays: torch.Tensor, width: int, count: int
) -> torch.Tensor:
    """Returns the places of the units whose removal costs least, each alone."""
    costs = _costs(weight, precision, len(stays), width).masked_fill(stays, torch.inf)
    return costs.argsort(stable=True)[:count].sort().values


def _ways_of_groups(
    weight: torch.Tensor, precision: torch.Tensor, stays: torch.Tensor, groups: int, width: int, *, whole: bool
) -> list[tuple[torch.Tensor, int]]:
    """Returns the places of the heads that leave in each of the ways that are open, and the groups that it empties.

    Args:
        weight: Of the heads that are there.
        precision: Of the same.
        stays: Marks heads that may not leave.
        groups: Number of groups, of equal size.
        width: Of a head.
        whole: Whether groups leave as a whole alone.
    """
    closed = stays.view(groups, -1)
    places = torch.arange(len(stays)).view_as(closed)
    found = []
    if not bool(closed.any(1).all()):
        costs = _costs(weight, precision, groups, width * closed.shape[1]).masked_fill(closed.any(1), torch.inf)
        found.append((places[costs.argmin()], 1))
    if not whole and closed.shape[1] > 1 and not bool(closed.all(1).any()):
        costs = _costs(weight, precision, len(stays), width).masked_fill(stays, torch.inf).view_as(closed)
        found.append((places.gather(1, costs.argmin(1, keepdim=True)).flatten(), 0))
    return found


def removals_between(refit: Refit, start: PruningPlan, end: PruningPlan, *, width_multiple: int = 32) -> list[Removal]:
    """Returns what is removed on the way from one plan to another, of the sites recorded, the cheapest first.

    Args:
        refit: Recorded with exactly the units of the start open.
        start: What is open at first.
        end: What is kept.
        width_multiple: FFN units leave in such numbers.
    """
    paths = []
    for name, block in refit.blocks.items():
        kept = start.kept(name)
        removable = set(kept) - set(end.kept(name))
        paths.append(elimination(block, kept, removable=removable, width_multiple=width_multiple))
    return cheapest_first(paths)


def cheapest_first(paths: Iterable[Sequence[Priced]]) -> list[Priced]:
    """Merges the removals of several sites: always the next one of the site where it costs least for what it saves."""
    found: list[Priced] = []
    heap = [(path[0].cost / path[0].saved, place, 0, path) for place, path in enumerate(paths) if path]
    heapq.heapify(heap)
    while heap:
        _, place, step, path = heapq.heappop(heap)
        found.append(path[step])
        if step + 1 < len(path):
            upcoming = path[step + 1]
            heapq.heappush(heap, (upcoming.cost / upcoming.saved, place, step + 1, path))
    return found


def _costs(weight: torch.Tensor, precision: torch.Tensor, units: int, width: int) -> torch.Tensor:
    """Returns what each unit's removal alone would cost, `(units,)`."""
    size = units * width
    own = precision[:size, :size].view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight[:, :size].T.reshape(units, width, -1)  # (units, width, hidden_size)
    if width == 1:
        return columns.square().sum(dim=(1, 2)) / own[:, 0, 0]
    return (torch.linalg.solve(own, columns) * columns).sum(dim=(1, 2))


def _metric(block: Block) -> torch.Tensor:
    """Returns what an error in the outputs of a block costs, `(hidden_size, hidden_size)`."""
    if block.sensitivity is not None:
        return block.sensitivity.double()
    weight = block.weight
    added = float(((weight @ block.moments.dense()[:-1, :-1].double()) * weight).sum())
    return torch.eye(len(weight), dtype=torch.float64) / (added or 1.0)


def _root(sensitivity: torch.Tensor) -> torch.Tensor:
    """Returns the symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(sensitivity)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
