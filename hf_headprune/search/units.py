"""What a search may remove in one step: heads, chunks of FFN units, whole layers; and what that saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.anatomy import Price
from hf_headprune.cost import macs_price
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.problem import GainTable
from hf_headprune.uniform import stops, tied_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.search.settings import AStarSearch

Order = Sequence[tuple[str, tuple[int, ...]]]  # (site, units of that site removed together), the cheapest first


@dataclass(frozen=True)
class Part:
    """A head, a chunk of FFN units, or where query heads share keys and values: a group of them, or one of each group.

    Attributes:
        site: Where.
        index: Of the head, the group, or the chunk within its site; those of one head of each group follow.
        indices: Of the heads or FFN units of the site that belong to it.
        is_across: Whether it is one head of each group, each of which belongs to a group, too.
    """

    site: str
    index: int
    indices: tuple[int, ...]
    is_across: bool = field(default=False, repr=False)


Unit = tuple[Part, ...]


def units_of_search(
    anatomy: Anatomy,
    start: PruningPlan,
    search: AStarSearch,
    order: Order | None = None,
    alive: PruningPlan | None = None,
    *,
    whole_groups: bool = False,
) -> list[Unit]:
    """Lists what a search may remove or put back, in the order of the sites.

    FFN units that the order lists together are a chunk; others are put into chunks by their index. Those that the start
    removes and those that it keeps never share a chunk. Where query heads share keys and values, a group of them may
    leave, or one head of each group: all but one of them, in the order given.

    Args:
        anatomy: Of the model.
        start: The reference.
        search: Says which kinds of units and how wide a chunk is.
        order: What is removed together; units that the start removes are left out. None: nothing is known.
        alive: What the start keeps, and what could be put back; None: everything.
        whole_groups: Whether groups of heads leave as a whole alone.

    Raises:
        InvalidSettingError: Nothing is left to remove.
    """
    alive = PruningPlan.full(anatomy) if alive is None else alive
    parts: dict[str, list[Part]] = {}
    for site in anatomy.sites:
        if search.units == (("ffn",) if site.is_attention else ("heads",)):
            continue
        whole = search.units == ("layers",)
        together = [] if whole else [units for name, units in order or () if name == site.name]
        if site.is_attention:
            parts[site.name] = list(_heads(site, start, alive))
            if site.group > 1 and not (whole_groups or whole):
                parts[site.name] = [*_across(site, start, alive, together)]
        else:
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
    """Yields each head alone, and of grouped heads what the start keeps of each group.

    Groups that the start has removed are restorable where it has taken no head out of the others.
    """
    present = {heads[0] // site.group: heads for heads in start.groups(site.name)}
    restorable = {heads[0] // site.group: heads for heads in alive.groups(site.name)}
    sizes = set(map(len, present.values()))
    for group, heads in sorted({**restorable, **present}.items()):
        if group in present or not sizes or len(heads) in sizes:
            yield Part(site.name, group, heads)


def _across(site: Site, start: PruningPlan, alive: PruningPlan, together: Sequence[Sequence[int]]) -> Iterator[Part]:
    """Yields each group of heads, and then one head of each group as often as leaves one.

    What the order removes in one step of all groups that are left, leaves together. Heads that the start has removed of
    the groups that it keeps could be put back together, too.
    """
    groups = {heads[0] // site.group: heads for heads in alive.groups(site.name)}
    kept = {*start.kept(site.name)}
    left = {group: [head for head in heads if head in kept] for group, heads in groups.items() if kept & {*heads}}
    leaving = {group: [h for h in heads if group in left and h not in kept] for group, heads in groups.items()}
    for units in together:
        step = {*units} & {*chain(*left.values())}
        emptied = [group for group, heads in left.items() if step == {*heads}]
        if emptied:
            del left[emptied[0]]
        elif len(step) == len(left) and all(len(step & {*heads}) == 1 for heads in left.values()):
            left = {group: [head for head in heads if head not in step] for group, heads in left.items()}
            for group, heads in groups.items():  # of groups that have left before, too, where the order says so
                leaving[group] += {*units} & {*heads} - {*leaving[group]}
    for group, whole in groups.items():
        yield Part(site.name, group, whole)
        leaving[group] += [head for head in whole if head not in leaving[group]]
    for place, across in enumerate([*zip(*leaving.values(), strict=True)][:-1]):
        yield Part(site.name, site.groups + place, tuple(sorted(across)), is_across=True)


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
            "uniform: a search removes heads and chunks of FFN units as wholes, and no layer of this model can lose "
            "one and keep another. Pass plan_for_budget a size, such as density, or leave uniform out."
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

    A group of heads, and one head of each group, stand where the last of their heads leaves.

    Raises:
        InvalidSettingError: An entry lies in several units of the search.
    """
    owners: dict[tuple[str, int], list[int]] = {}
    for number, part in ((number, part) for number, unit in enumerate(units) for part in unit):
        for index in part.indices:
            owners.setdefault((part.site, index), []).append(number)
    crossed = {part.site for unit in units for part in unit if part.is_across}
    gone: set[tuple[str, int]] = set()
    places: dict[int, list[int]] = {}
    for place, (site, indices) in enumerate(order):
        found = {number for index in indices for number in owners.get((site, index), ())}
        if site in crossed:
            gone.update((site, index) for index in indices)
            found = {number for number in found if all((site, index) in gone for index in units[number][0].indices)}
        elif len(found) > 1:
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
    gone = {(part.site, index) for number in removed for part in units[number] for index in part.indices}
    kept = {part.site: {*start.kept(part.site)} for unit in units for part in unit}
    for part in chain(*units):
        kept[part.site].update(part.indices)
    kept = {site: {index for index in indices if (site, index) not in gone} for site, indices in kept.items()}
    return start.replace(
        kept_heads={site: indices for site, indices in kept.items() if site in start.kept_heads},
        kept_ffn={site: indices for site, indices in kept.items() if site in start.kept_ffn},
    )


def removed_at(start: PruningPlan, units: Sequence[Unit]) -> frozenset[int]:
    """Returns the units that a plan removes wholly.

    Raises:
        InvalidSettingError: The plan removes a unit in part.
    """
    kept = {part.site: {*start.kept(part.site)} for unit in units for part in unit}
    removed = {n for n, unit in enumerate(units) if not any(kept[part.site] & {*part.indices} for part in unit)}
    explained = {(part.site, index) for number in removed for part in units[number] for index in part.indices}
    for unit in units:
        gone = {(part.site, i) for part in unit for i in part.indices if i not in kept[part.site]}
        if gone - explained:
            raise InvalidSettingError(
                f"search_over_plans: the start must keep or remove each searched layer wholly, received one that "
                f"removes {len(gone)} units of {sorted({part.site for part in unit})}. Search heads and FFN chunks too."
            )
    return frozenset(removed)


def gains_of(
    anatomy: Anatomy, units: Sequence[Unit], search: AStarSearch
) -> tuple[tuple[float, ...], tuple[GainTable, ...]]:
    """Returns what the removal of each unit saves, in heads, parameters, or MACs of one sequence, and joint savings.

    The latter are those of sites of which one head of each group may leave: how many those are depends on the groups.
    """
    sites = {site.name: site for site in anatomy.sites}
    price_of: dict[str, Callable[[Site], Price]] = {
        "heads": lambda site: Price(1),
        "parameters": lambda site: site.parameters,
        "macs": lambda site: macs_price(site, search.tuning.seq_len, search.tuning.target_len),
    }
    prices = {site.name: price_of[search.objective](site) for site in anatomy.sites}

    def saved(part: Part) -> int:
        if part.is_across:
            return prices[part.site].per_unit * len(part.indices)
        return sites[part.site].price(prices[part.site], part.indices)

    tables = []
    for groups, across in crossed_units(units):
        (first,) = units[groups[0]]
        price, size, sizes = prices[first.site], len(first.indices), (len(groups), len(across))
        kept = [
            price.of((sizes[0] - gone) * (size - lost), sizes[0] - gone)
            for gone, lost in product(*(range(count + 1) for count in sizes))
        ]
        tables.append(GainTable((groups, across), tuple(float(kept[0] - left) for left in kept)))
    return tuple(float(sum(saved(part) for part in unit)) for unit in units), tuple(tables)


def crossed_units(units: Sequence[Unit]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns, for each site of which one head of each group may leave, the numbers of the groups, and of those."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for site in dict.fromkeys(part.site for part in chain(*units) if part.is_across):
        found[site] = [], []
    for number, (part, *_) in enumerate(units):
        if part.site in found:
            found[part.site][part.is_across].append(number)
    return [(tuple(groups), tuple(across)) for groups, across in found.values()]
