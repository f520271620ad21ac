"""What a search may remove at once: heads, chunks of FFN units, whole layers; and what that saves."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.cost import macs_per_unit
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.problem import GainTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.search.settings import AStarSearch

LEAST_SHARE = 1e-9  # ms


@dataclass(frozen=True)
class Part:
    """A head, or a chunk of FFN units.

    Attributes:
        site: Where.
        index: Of the head, or of the chunk within its site.
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
    ffn_scores: Mapping[str, np.ndarray] | None,
    alive: PruningPlan | None = None,
) -> list[Unit]:
    """Lists what a search may remove or put back, in the order of the sites.

    FFN units are put into chunks in the order of their importance, the least important first; those that the start
    removes and those that it keeps never share a chunk, and a chunk that is not full is the least important one.

    Args:
        anatomy: Of the model.
        start: The reference.
        search: Says which kinds of units and how wide a chunk is.
        ffn_scores: Importance of each FFN unit, `{site: (units,)}`; None orders them by index.
        alive: What the start keeps, and what could be put back; None: everything.

    Raises:
        InvalidSettingError: The scores do not fit the anatomy, or nothing is left to remove.
    """
    alive = PruningPlan.full(anatomy) if alive is None else alive
    parts: dict[str, list[Part]] = {}
    for site in anatomy.sites:
        if not _is_searched(site, search):
            continue
        if site.is_attention:
            parts[site.name] = [Part(site.name, head, (head,)) for head in alive.kept(site.name)]
        else:
            scores = _scores_of(site, ffn_scores)
            width = max(site.units, 1) if search.units == ("layers",) else search.ffn_chunk
            kept = set(start.kept(site.name))
            parts[site.name] = _chunks(site, kept, set(alive.kept(site.name)) - kept, scores, width)
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


def layers_of(anatomy: Anatomy) -> dict[str, list[str]]:
    """Returns the sites of each layer by the layer's path."""
    layers: dict[str, list[str]] = {}
    for site in anatomy.sites:
        stack, number, _ = site.name.partition(f".{site.layer}.")
        layers.setdefault(stack + number[:-1], []).append(site.name)
    return layers


def groups_of_layers(anatomy: Anatomy, units: Sequence[Unit]) -> tuple[frozenset[int], ...]:
    """Returns for each layer the numbers of the units that lie in it."""
    return tuple(
        frozenset(number for number, unit in enumerate(units) if all(part.site in sites for part in unit))
        for sites in layers_of(anatomy).values()
    )


def plan_without(start: PruningPlan, units: Sequence[Unit], removed: Iterable[int]) -> PruningPlan:
    """Returns the plan that removes some units and keeps the others; sites without units stay as they start."""
    gone = set(removed)
    kept: dict[str, list[int]] = {part.site: [] for unit in units for part in unit}
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
    per_unit = {
        "heads": lambda site: 1.0,
        "parameters": lambda site: float(site.parameters_per_unit),
        "macs": lambda site: float(macs_per_unit(site, search.seq_len, search.target_len)),
    }[search.objective]
    return tuple(sum(per_unit(sites[part.site]) * len(part.indices) for part in unit) for unit in units)


def check_latency_table(anatomy: Anatomy, search: AStarSearch) -> None:
    """Sees that a table of latencies speaks of all that is searched, and of nothing else.

    Raises:
        InvalidSettingError: A site is missing or unknown, lacks the ms with none or with all of its units, or is no
            faster without them; or whole layers alone are searched.
    """
    if search.latency_ms is None:
        return
    where = "AStarSearch(latency_ms=...)"
    if search.units == ("layers",):
        raise InvalidSettingError(
            f"{where}: units of the search must lie in one site each, received whole layers. Use "
            "units=('heads', 'ffn', 'layers'), in which a layer is a step over heads and chunks."
        )
    wanted = {site.name: site for site in anatomy.sites if _is_searched(site, search) and site.units}
    missing = wanted.keys() - search.latency_ms.keys()
    unknown = search.latency_ms.keys() - {site.name for site in anatomy.sites}
    if missing or unknown:
        raise InvalidSettingError(
            f"{where}: each searched site needs its ms, missing are {sorted(missing)} and unknown {sorted(unknown)}. "
            "Measure the model that is searched, with measure_latency_table(model)."
        )
    for name, site in wanted.items():
        measured = search.latency_ms[name]
        outside = [kept for kept in measured if kept > site.units]
        if outside or not {0, site.units} <= measured.keys():
            raise InvalidSettingError(
                f"{where}: {name} needs the ms with 0 and with all {site.units} of its units kept, and none beyond, "
                f"received {sorted(measured)}. Measure the model that is searched, with measure_latency_table(model)."
            )
        if not measured[0] < measured[site.units]:
            raise InvalidSettingError(
                f"{where}: {name} must be faster without any unit than with all, received {measured[0]} and "
                f"{measured[site.units]} ms. Measure again, for longer."
            )


def latency_gains(
    units: Sequence[Unit], latency_ms: Mapping[str, Mapping[int, float]]
) -> tuple[tuple[float, ...], tuple[GainTable, ...]]:
    """Returns each unit's share of what is saved, in ms, and what the units of each site save together.

    The shares only order units, and must be above zero: of units without which the site was never faster, which a
    measurement may say of the few that training left, each has next to nothing. Where the chunks of a site are of two
    sizes, the first of them counts as removed first.

    Args:
        units: Of the search, each in one site.
        latency_ms: Checked for the anatomy that the units come from.
    """
    numbers: dict[str, list[int]] = {}
    for number, (part,) in enumerate(units):
        numbers.setdefault(part.site, []).append(number)
    shares, tables = [0.0] * len(units), []
    for site, listed in numbers.items():
        measured = latency_ms[site]
        widths = [len(units[number][0].indices) for number in listed]
        kept = sum(widths) - np.cumsum([0, *widths])
        ms = np.interp(kept, list(measured), list(measured.values()))
        saved = tuple((ms[0] - ms).tolist())
        tables.append(GainTable(tuple(listed), saved))
        for number in listed:
            shares[number] = max(*saved, LEAST_SHARE) / len(listed)
    return tuple(shares), tuple(tables)


def prior_of(
    units: Sequence[Unit],
    start: PruningPlan,
    head_scores: np.ndarray | None,
    ffn_scores: Mapping[str, np.ndarray] | None,
) -> np.ndarray | None:
    """Returns an importance per unit where scores are given for all units of a search.

    Heads keep their scores where they are alone. Beside FFN chunks, whose scores have another scale, each is ranked
    among its kind.

    Raises:
        InvalidSettingError: The head scores have another shape.
    """
    num_heads = sum(start.num_heads.values())
    if head_scores is not None and (np.shape(head_scores) != (num_heads,) or not np.isfinite(head_scores).all()):
        raise InvalidSettingError(
            f"search_over_plans: head_scores must be {num_heads} finite numbers, received shape "
            f"{np.shape(head_scores)}. Give one score per head, in the order of anatomy.attention_sites, or None."
        )
    if any(len(unit) > 1 for unit in units):
        return None
    first = dict(zip(start.num_heads, np.cumsum([0, *start.num_heads.values()]).tolist(), strict=False))
    is_head = np.array([unit[0].site in start.num_heads for unit in units])
    if (is_head.any() and head_scores is None) or (not is_head.all() and ffn_scores is None):
        return None
    scores = np.zeros(len(units))
    for number, (part,) in enumerate(units):
        if is_head[number]:
            scores[number] = head_scores[first[part.site] + part.index]  # type: ignore[index]
        else:
            scores[number] = np.mean(ffn_scores[part.site][list(part.indices)])  # type: ignore[index]
    if is_head.all():
        return scores
    for kind in (is_head, ~is_head):
        scores[kind] = (np.argsort(np.argsort(scores[kind], kind="stable"), kind="stable") + 0.5) / max(kind.sum(), 1)
    return scores


def _is_searched(site: Site, search: AStarSearch) -> bool:
    return search.units != (("ffn",) if site.is_attention else ("heads",))


def _scores_of(site: Site, ffn_scores: Mapping[str, np.ndarray] | None) -> np.ndarray:
    scores = np.arange(site.units, dtype=np.float64) if ffn_scores is None else np.asarray(ffn_scores.get(site.name))
    if scores.shape != (site.units,) or not np.isfinite(scores).all():
        raise InvalidSettingError(
            f"search_over_plans: ffn_scores must hold {site.units} finite numbers for {site.name}, received shape "
            f"{scores.shape}. Give one score per FFN unit of every site, or None."
        )
    return scores


def _chunks(site: Site, kept: set[int], restorable: set[int], scores: np.ndarray, width: int) -> list[Part]:
    order = [int(i) for i in np.argsort(scores, kind="stable")]
    parts: list[Part] = []
    for group in ([i for i in order if i in restorable], [i for i in order if i in kept]):
        bounds = sorted({0, *range(len(group) % width, len(group) + 1, width)})
        for first, end in itertools.pairwise(bounds):
            parts.append(Part(site.name, len(parts), tuple(sorted(group[first:end]))))
    return parts
