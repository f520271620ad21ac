"""Searches over pruning plans: units become heads, FFN chunks or layers, sets become plans."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan, check_plan
from hf_headprune.refit.removal_costs import cheapest_first, elimination
from hf_headprune.search.astar import check_provable
from hf_headprune.search.astar import search as search_sets
from hf_headprune.search.latency import check_latency_of_search, latency_gains
from hf_headprune.search.problem import Course, SearchProblem, SearchResult, SearchStep
from hf_headprune.search.results import PlanSearchResult
from hf_headprune.search.units import (
    crossed_units,
    gains_of,
    groups_of_layers,
    places_of,
    plan_without,
    removed_at,
    tied_units,
    units_of_search,
)
from hf_headprune.uniform import check_uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.evaluation.base import Evaluator
    from hf_headprune.search.problem import OnProgress
    from hf_headprune.search.settings import AStarSearch
    from hf_headprune.search.units import Order, Part, Unit

LEAST_SECONDS = 1e-6


def search_over_plans(  # noqa: PLR0913 - the seam between training and search; each argument is one of their data
    anatomy: Anatomy,
    evaluator: Evaluator,
    search: AStarSearch,
    *,
    start: PruningPlan | None = None,
    alive: PruningPlan | None = None,
    order: Order | None = None,
    head_scores: np.ndarray | None = None,
    journal: str | Path | None = None,
    uniform: bool = False,
    fingerprint: str = "",
    on_progress: OnProgress | None = None,
    algorithm: Callable[..., SearchResult] = search_sets,
) -> PlanSearchResult:
    """Finds the plan that removes most whose metric drops by at most `search.max_drop` from that of the start.

    Args:
        anatomy: Of the model that the plans are for.
        evaluator: Measures plans.
        search: Settings.
        start: The reference, such as the plan that training learned; None keeps everything. Units that it removes
            may be restored; those of a kind that is not searched stay as they are.
        alive: What the start keeps, and what there is to restore: units beyond it have weights of zero, such as those
            that movement removed, and stay removed. None: every unit may be restored.
        order: Units of the start in the order in which they are removed first, the cheapest first: single heads, and
            the FFN units that form a chunk. None: by second-order removal costs, where the evaluator records them.
        head_scores: Importance per head, `(anatomy.num_heads,)` in the order of `anatomy.attention_sites`: where given,
            heads are removed by it, the least important first.
        journal: File that holds the state of the search.
        uniform: Whether all layers keep equally many heads and FFN units: a step then takes one of each.
        fingerprint: Identifies weights and data in the journal.
        on_progress: Called after each evaluation.
        algorithm: Searches a `SearchProblem`, with the arguments of `hf_headprune.search.astar.search`.

    Raises:
        InvalidPlanError: The start, or what is alive, was made for another anatomy.
        InvalidSettingError: The model has nothing of what is searched, what is alive lacks some of the start, scores
            have another shape, the table of latencies does not fit, or the metric says nothing.
        SearchStateError: The journal belongs to another search or is damaged.
    """
    started = time.monotonic()
    start = PruningPlan.full(anatomy) if start is None else start
    alive = PruningPlan.full(anatomy) if alive is None else alive
    for plan in (start, alive):
        check_plan(plan, anatomy)
    lost = [site.name for site in anatomy.sites if not set(start.kept(site.name)) <= set(alive.kept(site.name))]
    if lost:
        raise InvalidSettingError(
            f"search_over_plans: alive must hold all that the start keeps, received less at {lost}. Pass "
            "alive=None where every unit may be restored."
        )
    check_latency_of_search(anatomy, search)
    recorded = evaluator.use_refit(start, ffn=search.units != ("heads",), apply=search.tuning.refit)
    whole = _whole_groups(search, uniform)
    removals = together = order
    if order is None and recorded is not None:
        removals = together = order_by_costs(recorded, start, search, whole_groups=whole or head_scores is not None)
    is_order = order is not None or (recorded is not None and has_sensitivities(recorded))
    if head_scores is not None:
        removals = _heads_by_scores(start, removals if is_order else None, head_scores, inside=not whole)
        together = removals if is_order else [*removals, *(together or ())]
    units = listed = units_of_search(anatomy, start, search, together, alive, whole_groups=whole)
    if uniform:
        units = tied_units(anatomy, listed, start, removals)
    problem = _problem(anatomy, evaluator, search, start, units)
    if removals is not None and (is_order or head_scores is not None):
        problem = replace(problem, order=places_of(units, removals))
    problem = replace(problem, fingerprint=f"{fingerprint} {start.to_json()} {units}")
    if search.max_seconds is not None:
        spent = time.monotonic() - started
        search = replace(search, max_seconds=max(search.max_seconds - spent, LEAST_SECONDS))
    found = algorithm(problem, search, journal=None if journal is None else Path(journal), on_progress=on_progress)
    recorded = recorded if search.tuning.refit else None
    return _result(found, start, units, search, refit=recorded, **_searched(start, listed))


def _whole_groups(search: AStarSearch, uniform: bool) -> bool:  # noqa: FBT001 - as asked
    """Tells whether groups of heads leave whole alone: uniform layers have their number, a table their latencies."""
    return uniform or search.objective == "latency"


def order_by_costs(refit: Refit, start: PruningPlan, search: AStarSearch, *, whole_groups: bool = False) -> Order:
    """Returns heads and chunks of FFN units in the order in which their removal costs least for what it saves."""
    how: Any = {"width_multiple": search.tuning.ffn_chunk, "whole_groups": whole_groups}
    paths = [elimination(block, start.kept(name), **how) for name, block in refit.blocks.items()]
    return [(removal.site, removal.units) for removal in cheapest_first(paths)]


def has_sensitivities(refit: Refit) -> bool:
    """Tells whether removal costs of different sites can be compared."""
    return bool(refit.blocks) and all(block.sensitivity is not None for block in refit.blocks.values())


def _heads_by_scores(start: PruningPlan, removals: Order | None, scores: np.ndarray, *, inside: bool = False) -> Order:
    """Returns an order in which heads are removed by their scores; chunks keep their places.

    Args:
        start: What is there.
        removals: Order by something else, or None.
        scores: Of all heads.
        inside: Whether one head of each group may leave, too: those of the lowest scores first.

    Raises:
        InvalidSettingError: The scores have another shape, or are not finite.
    """
    heads = [(site, (head,)) for site, count in start.num_heads.items() for head in range(count)]
    if np.shape(scores) != (len(heads),) or not np.isfinite(scores).all():
        raise InvalidSettingError(
            f"search_over_plans: head_scores must be {len(heads)} finite numbers, received shape {np.shape(scores)}. "
            "Give one score per head, in the order of anatomy.attention_sites, or None."
        )
    score = dict(zip(heads, map(float, scores), strict=True))
    steps = [(site, group) for site in start.num_heads for group in start.groups(site)]
    for site in start.num_heads if inside else ():
        by_score = [sorted(group, key=lambda head: score[site, (head,)]) for group in start.groups(site)]
        steps += [(site, heads) for heads in [*zip(*by_score, strict=True)][:-1]]
    worth = [np.mean([score[site, (head,)] for head in them]) for site, them in steps]
    ordered = [steps[place] for place in np.argsort(worth, kind="stable")]
    if removals is None:
        return ordered
    slots, found, taken = sum(site in start.num_heads for site, _ in removals), [], 0
    for site, indices in removals:
        if site in start.num_heads:
            taken, first = taken + 1, taken
            found += ordered[len(ordered) * first // slots : len(ordered) * taken // slots]
        else:
            found.append((site, indices))
    return found


def _problem(
    anatomy: Anatomy, evaluator: Evaluator, search: AStarSearch, start: PruningPlan, units: Sequence[Unit]
) -> SearchProblem:
    """Returns the search over plans as one over sets of units."""

    def plan_of(removed: frozenset[int]) -> PruningPlan:
        return plan_without(start, units, removed)

    if search.tuning.latency_ms is not None:
        gains, tables = latency_gains(units, search.tuning.latency_ms)
    else:
        gains, tables = gains_of(anatomy, units, search)
    return SearchProblem(
        gains=gains,
        tables=tables,
        implied=tuple((frozenset(groups), frozenset(across)) for groups, across in crossed_units(units)),
        measure=lambda removed: evaluator(plan_of(removed)),
        probe=lambda removed, question: evaluator.probe(plan_of(removed), question),
        start=removed_at(start, units),
        groups=groups_of_layers(anatomy, units) if search.units[-1:] == ("layers",) and len(search.units) > 1 else (),
        facts=evaluator.facts,
    )


def _result(
    found: SearchResult, start: PruningPlan, units: Sequence[Unit], search: AStarSearch, **others: Any
) -> PlanSearchResult:
    names = [[name for part in unit for name in _names(part, start)] for unit in units]
    steps = [
        SearchStep(**{**vars(step), "removed": tuple(dict.fromkeys(chain(*(names[unit] for unit in step.removed))))})
        for step in found.history
    ]
    course = {name: getattr(found, name) for name in Course.__dataclass_fields__}
    return PlanSearchResult(
        **{**course, "history": tuple(steps)},
        plan=plan_without(start, units, found.removed),
        start=start,
        metric=found.measurement.metric,
        reference_metric=found.reference.metric,
        objective=search.objective,
        units=search.units,
        **others,
    )


def _names(part: Part, start: PruningPlan) -> list[tuple[str, int]]:
    """Returns how a history names a part: each of its heads, or the chunk of FFN units."""
    if part.site in start.num_heads:
        return [(part.site, head) for head in part.indices]
    return [(part.site, part.index)]


def _searched(start: PruningPlan, units: Sequence[Unit]) -> dict[str, Any]:
    """Returns the heads and the chunks of FFN units of the searched sites."""
    searched: dict[str, list[tuple[int, ...]]] = {}
    for part in (part for unit in units for part in unit):
        searched.setdefault(part.site, []).append(part.indices)
    return {
        "heads": {site: tuple(sorted({*chain(*it)})) for site, it in searched.items() if site in start.kept_heads},
        "ffn_chunks": {site: tuple(parts) for site, parts in searched.items() if site in start.kept_ffn},
    }


def check_drop(name: str, max_drop: float, *, where: str) -> None:
    """Refuses a drop that allows anything.

    Raises:
        InvalidSettingError: It is 1 or more.
    """
    if max_drop >= 1:
        raise InvalidSettingError(
            f"{where}: max_drop is absolute and {name} at most 1, received {max_drop}, which allows anything. "
            "Pass 0.01 for one percentage point."
        )


def check_searchable(
    anatomy: Anatomy, search: AStarSearch, *, uniform: bool = False, start_cuts_ffn: bool = False
) -> None:
    """Refuses settings that a search of a model would refuse, before any work on the model.

    Args:
        anatomy: Of the model.
        search: Settings.
        uniform: Whether all layers are to keep equally many units.
        start_cuts_ffn: Whether the search will start without some FFN units that it may restore, which share no chunk
            with the others.

    Raises:
        InvalidSettingError: Nothing of what is searched is there, the table of latencies does not fit, or a proof is
            asked for too many units.
    """
    check_latency_of_search(anatomy, search)
    units = units_of_search(anatomy, PruningPlan.full(anatomy), search, whole_groups=_whole_groups(search, uniform))
    if uniform:
        check_uniform_search(anatomy, search)
        units = tied_units(anatomy, units, PruningPlan.full(anatomy))
    chunked = {part.site for unit in units for part in unit if len(unit) == 1} & {s.name for s in anatomy.ffn_sites}
    check_provable(len(units) + start_cuts_ffn * len(chunked), search)


def check_uniform_search(anatomy: Anatomy, search: AStarSearch) -> None:
    """Refuses a search that equal numbers in all layers leave nothing to, or that could not count its gain.

    Raises:
        InvalidSettingError: No field of the model's configuration says fewer of what is searched, whole layers are
            searched, or latency is the objective.
    """
    check_uniform(anatomy, heads_alone=search.units == ("heads",))
    if "layers" in search.units or search.objective == "latency":
        received = f"units={search.units}" if "layers" in search.units else "objective='latency'"
        raise InvalidSettingError(
            f"uniform: layers with equal numbers are searched by heads and FFN units, and counted in parameters or "
            f"MACs, received AStarSearch({received}). Leave it or uniform out."
        )
