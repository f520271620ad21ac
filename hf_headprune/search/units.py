"""What a search may remove in one step: heads, chunks of FFN units, whole layers; and what that saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.anatomy import Price
from hf_headprune.cost import macs_price
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.uniform import stops, tied_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.search.settings import AStarSearch

Order = Sequence[tuple[str, tuple[int, ...]]]  # (site, units of that site removed together), the cheapest first


@dataclass(frozen=True)
class Part:
    """A head, a group of query heads that share a key and a value, or a chunk of FFN units.

    Attributes:
        site: Where.
        index: Of the head, the group, or the chunk within its site.
        indices: Of the heads or FFN units of the site that belong to it.
    """

    site: str
    index: int
    indices: tuple[int, ...]


Unit = tuple[Part, ...]


def units_of_search(
    anatomy: Anatomy,
    start: PruningPlan,
    search: AStarSearch,
    order: Order | None = None,
    alive: PruningPlan | None = None,
) -> list[Unit]:
    """Lists what a search may remove or put back, in the order of the sites.

    FFN units that the order lists together are a chunk; others are put into chunks by their index. Those that the start
    removes and those that it keeps never share a chunk.

    Args:
        anatomy: Of the model.
        start: The reference.
        search: Says which kinds of units and how wide a chunk is.
        order: What is removed together; units that the start removes are left out. None: nothing is known.
        alive: What the start keeps, and what could be put back; None: everything.

    Raises:
        InvalidSettingError: Nothing is left to remove.
    """
    alive = PruningPlan.full(anatomy) if alive is None else alive
    parts: dict[str, list[Part]] = {}
    for site in anatomy.sites:
        if search.units == (("ffn",) if site.is_attention else ("heads",)):
            continue
        if site.is_attention:
            parts[site.name] = list(_heads(site, start, alive))
        else:
            whole = search.units == ("layers",)
            together = [] if whole else [units for name, units in order or () if name == site.name]
            width = max(site.units, 1) if whole else search.tuning.ffn_chunk
            parts[site.name] = list(_chunks(site, start.kept(site.name), alive.kept(site.name), together, width))
    if search.units == ("layers",):
        listed = [tuple(part for site in layer for part in parts[site]) for layer in layers_of(anatomy).values()]
        units: list[Unit] = [unit for unit in listed if unit]
    else:
        units = [(part,) for listed in parts.values() for part in listed]
    if not units:
        raise InvalidSettingError(
            f"search_over_plans: the model has no {' and '.join(search.units)} left. Search on a model that has some."
        )
    return units


def _heads(site: Site, start: PruningPlan, alive: PruningPlan) -> Iterator[Part]:
    """Yields each head alone, and of grouped heads what the start keeps of a group.

    Groups that the start has removed are restorable where it has taken no head out of the others.
    """
    present = {heads[0] // site.group: heads for heads in start.groups(site.name)}
    restorable = {heads[0] // site.group: heads for heads in alive.groups(site.name)}
    sizes = set(map(len, present.values()))
    for group, heads in sorted({**restorable, **present}.items()):
        if group in present or not sizes or len(heads) in sizes:
            yield Part(site.name, group, heads)


def tied_units(anatomy: Anatomy, units: Sequence[Unit], start: PruningPlan, order: Order | None = None) -> list[Unit]:
    """Joins units of sites that lose equally many: the first of each, by the order of removal, then the second of each.

    Those without which no number is left that a configuration of the dense model can say are left out; where it takes
    few numbers only, one step remains, to the next of them. What the start removes comes first.

    Args:
        anatomy: Of the model.
        units: Heads and chunks, each alone.
        start: The reference, with equally many units in sites that share a number.
        order: What is removed first; None: by index.

    Raises:
        InvalidSettingError: Nothing is left to remove.
    """
    ranks = {(site, indices): rank for rank, (site, indices) in enumerate(order or ())}
    parts: dict[str, list[Part]] = {}
    for unit in units:
        for part in unit:
            parts.setdefault(part.site, []).append(part)

    def place(part: Part) -> tuple[bool, float, int]:
        is_open = part.indices[0] in start.kept(part.site)
        return is_open, ranks.get((part.site, part.indices), math.inf), part.index

    joined: list[Unit] = []
    for tie in tied_sites(site for site in anatomy.sites if site.name in parts):
        rows = [*zip(*(sorted(parts[site.name], key=place) for site in tie), strict=True)]
        steps = [*pairwise([0, *stops(tie[0], [len(row[0].indices) for row in rows])])]
        steps = steps[:1] if tie[0].block.said == "divisors" else steps
        joined += [tuple(chain(*rows[first:end])) for first, end in steps]
    if not joined:
        raise InvalidSettingError(
            "uniform: all layers have one head and one chunk of FFN units, and can't have fewer. Leave uniform out."
        )
    return joined


def _chunks(
    site: Site, kept: Sequence[int], alive: Sequence[int], together: Sequence[Sequence[int]], width: int
) -> Iterator[Part]:
    """Yields what is restorable first, then what is kept; a chunk that is not full is the first of its kind."""
    listed = {unit for chunk in together for unit in chunk}
    restorable = sorted(set(alive) - set(kept))
    groups = [tuple(sorted(chunk)) for chunk in together]
    for others in ([unit for unit in kept if unit not in listed], restorable):
        bounds = sorted({0, *range(len(others) % width, len(others) + 1, width)})
        groups[:0] = [tuple(others[first:end]) for first, end in pairwise(bounds)]
    for index, units in enumerate(groups):
        yield Part(site.name, index, units)


def places_of(units: Sequence[Unit], order: Order) -> tuple[int, ...]:
    """Returns the numbers of the units that an order lists, in this order; a layer stands at the mean of its parts.

    Raises:
        InvalidSettingError: An entry lies in several units of the search.
    """
    owners = {(part.site, index): n for n, unit in enumerate(units) for part in unit for index in part.indices}
    places: dict[int, list[int]] = {}
    for place, (site, indices) in enumerate(order):
        found = {owners[site, index] for index in indices if (site, index) in owners}
        if len(found) > 1:
            raise InvalidSettingError(
                f"search_over_plans: an entry of order must be one head or one chunk, received {indices} of {site}, "
                "which are not removed together. List heads singly, and each FFN unit once."
            )
        for number in found:
            places.setdefault(number, []).append(place)
    return tuple(sorted(places, key=lambda number: (float(np.mean(places[number])), number)))


def layers_of(anatomy: Anatomy) -> dict[str, list[str]]:
    """Returns the sites of each layer by the layer's path."""
    layers: dict[str, list[str]] = {}
    for site in anatomy.sites:
        layers.setdefault(site.prefix, []).append(site.name)
    return layers


def groups_of_layers(anatomy: Anatomy, units: Sequence[Unit]) -> tuple[frozenset[int], ...]:
    """Returns for each layer the numbers of the units that lie in it."""
    return tuple(
        frozenset(number for number, unit in enumerate(units) if all(part.site in sites for part in unit))
        for sites in layers_of(anatomy).values()
    )


def plan_without(start: PruningPlan, units: Sequence[Unit], removed: Iterable[int]) -> PruningPlan:
    """Returns the plan that removes some units and keeps the others; what is in no unit stays as it starts."""
    gone = set(removed)
    listed = {(part.site, index) for unit in units for part in unit for index in part.indices}
    kept: dict[str, list[int]] = {
        site: [index for index in start.kept(site) if (site, index) not in listed]
        for site in {site: None for site, _ in listed}
    }
    for number, unit in enumerate(units):
        for part in unit if number not in gone else ():
            kept[part.site] += part.indices
    return start.replace(
        kept_heads={site: indices for site, indices in kept.items() if site in start.kept_heads},
        kept_ffn={site: indices for site, indices in kept.items() if site in start.kept_ffn},
    )


def removed_at(start: PruningPlan, units: Sequence[Unit]) -> frozenset[int]:
    """Returns the units that a plan removes wholly.

    Raises:
        InvalidSettingError: The plan removes a unit in part.
    """
    removed = set()
    for number, unit in enumerate(units):
        gone = {(part.site, i) for part in unit for i in part.indices if i not in start.kept(part.site)}
        if gone and len(gone) < sum(len(part.indices) for part in unit):
            raise InvalidSettingError(
                f"search_over_plans: the start must keep or remove each searched layer wholly, received one that "
                f"removes {len(gone)} units of {sorted({part.site for part in unit})}. Search heads and FFN chunks too."
            )
        if gone:
            removed.add(number)
    return frozenset(removed)


def gains_of(anatomy: Anatomy, units: Sequence[Unit], search: AStarSearch) -> tuple[float, ...]:
    """Returns what the removal of each unit saves, in heads, parameters, or MACs of one sequence."""
    sites = {site.name: site for site in anatomy.sites}
    price_of: dict[str, Callable[[Site], Price]] = {
        "heads": lambda site: Price(1),
        "parameters": lambda site: site.parameters,
        "macs": lambda site: macs_price(site, search.tuning.seq_len, search.tuning.target_len),
    }
    prices = {site.name: price_of[search.objective](site) for site in anatomy.sites}
    return tuple(float(sum(sites[part.site].price(prices[part.site], part.indices) for part in unit)) for unit in units)
