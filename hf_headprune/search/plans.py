"""Searches over pruning plans: units become heads, FFN chunks or layers, sets become plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan, check_plan
from hf_headprune.refit.removal_costs import elimination
from hf_headprune.search.astar import check_provable
from hf_headprune.search.astar import search as search_sets
from hf_headprune.search.problem import Measurement, Question, SearchProblem, SearchResult
from hf_headprune.search.results import PlanSearchResult, PlanStep
from hf_headprune.search.settings import AStarSearch
from hf_headprune.search.units import (
    check_latency_table,
    gains_of,
    groups_of_layers,
    latency_gains,
    plan_without,
    prior_of,
    removed_at,
    units_of_search,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.problem import OnProgress, Probe
    from hf_headprune.search.units import Unit

RANKED_TOGETHER = 8  # FFN units; each step prices the others anew


@runtime_checkable
class PredictsEffects(Protocol):
    """An evaluator that can also estimate what each unit's removal does to each example's margin."""

    def unit_effects(self, plan: PruningPlan, units: Sequence[Unit]) -> np.ndarray:
        """Returns the estimated changes, `(num_units, num_examples)`, around a plan."""


@runtime_checkable
class ScoresFFN(Protocol):
    """An evaluator that can also score FFN units."""

    def ffn_importance(self, plan: PruningPlan) -> dict[str, np.ndarray]:
        """Returns the importance of each FFN unit, `{site: (units,)}`."""


@runtime_checkable
class Probes(Protocol):
    """An evaluator that can also answer a question with less work than a whole evaluation."""

    def probe(self, plan: PruningPlan, question: Question[PruningPlan]) -> Measurement:
        """Measures a plan as far as the question needs."""


@runtime_checkable
class UsesRefit(Protocol):
    """An evaluator that can also refit output projections to the plans that it measures."""

    def use_refit(self, start: PruningPlan, *, ffn: bool = False) -> Refit:
        """Does so from now on, in FFNs too where asked, and returns what the model has to be cut with."""


def search_over_plans(  # noqa: PLR0913 - the seam between training and search; each argument is one of their data
    anatomy: Anatomy,
    measure: Callable[[PruningPlan], Measurement],
    search: AStarSearch,
    *,
    start: PruningPlan | None = None,
    alive: PruningPlan | None = None,
    head_scores: np.ndarray | None = None,
    ffn_scores: Mapping[str, np.ndarray] | None = None,
    journal: str | Path | None = None,
    fingerprint: str = "",
    on_progress: OnProgress | None = None,
    algorithm: Callable[..., SearchResult] = search_sets,
) -> PlanSearchResult:
    """Finds the plan that removes most whose metric loses at most `search.max_drop` against the start.

    Args:
        anatomy: Of the model that the plans are for.
        measure: Measures a plan, such as an `ExampleEvaluator`. Where it has a method `unit_effects`, the order
            of the search starts from those estimates, which spares one evaluation per unit; where it has `probe`,
            most plans are measured only as far as matters.
        search: Settings.
        start: The reference, such as the plan that training learned; None keeps everything. Units that it removes
            may be restored; those of a kind that is not searched stay as they are.
        alive: What the start keeps, and what there is to restore: units beyond it have weights of zero, such as those
            that movement removed, and stay removed. None: every unit may be restored.
        head_scores: Importance per head, `(anatomy.num_heads,)` in the order of `anatomy.attention_sites`.
        ffn_scores: Importance per FFN unit, `{site: (units,)}`, by which chunks are formed. When left out, units that
            cost least leave first where projections are refitted; else the evaluator's `ffn_importance` decides, or
            the order of the units.
        journal: File that holds the state of the search.
        fingerprint: Identifies weights and data in the journal.
        on_progress: Called after each evaluation.
        algorithm: Searches a `SearchProblem`, with the arguments of `hf_headprune.search.astar.search`.

    Raises:
        InvalidPlanError: The start, or what is alive, was made for another anatomy.
        InvalidSettingError: The model has nothing of what is searched, what is alive lacks some of the start, scores
            have another shape, or the table of latencies does not fit.
        SearchStateError: The journal belongs to another search or is damaged.
    """
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
    check_latency_table(anatomy, search)
    cuts_ffn = search.units != ("heads",)
    refit = _refit(measure, start, ffn=cuts_ffn) if search.refit else None
    if ffn_scores is None and cuts_ffn and refit is not None:
        ffn_scores = _ranks(refit, start)
    elif ffn_scores is None and cuts_ffn and isinstance(measure, ScoresFFN):
        ffn_scores = measure.ffn_importance(start)
    units = units_of_search(anatomy, start, search, ffn_scores, alive)
    if search.latency_ms is not None:
        gains, tables = latency_gains(units, search.latency_ms)
    else:
        gains, tables = gains_of(anatomy, units, search), ()
    problem = SearchProblem(
        gains=gains,
        tables=tables,
        measure=lambda removed: measure(plan_without(start, units, removed)),
        probe=_probe(measure, start, units) if isinstance(measure, Probes) else None,
        start=removed_at(start, units),
        scores=prior_of(units, start, head_scores, ffn_scores),
        effects=measure.unit_effects(start, units) if isinstance(measure, PredictsEffects) else None,
        groups=groups_of_layers(anatomy, units) if search.units[-1:] == ("layers",) and len(search.units) > 1 else (),
        fingerprint=f"{fingerprint} {start.to_json()} {units}",
    )
    found = algorithm(problem, search, journal=None if journal is None else Path(journal), on_progress=on_progress)
    return replace(_result(found, start, units, search), refit=refit)


def _ranks(refit: Refit, start: PruningPlan) -> dict[str, np.ndarray]:
    """Returns for each FFN unit how late it leaves where what stays is refitted, `{site: (units,)}`; closed ones 0."""
    found = {site: np.zeros(units) for site, units in start.num_ffn.items()}
    for site, ranks in found.items():
        if site in refit.blocks:
            path = elimination(refit.blocks[site], start.kept(site), width_multiple=RANKED_TOGETHER)
            for place, removal in enumerate(path):
                ranks[list(removal.units)] = place + 1
    return found


def _refit(measure: Any, start: PruningPlan, *, ffn: bool) -> Refit:
    if not isinstance(measure, UsesRefit):
        raise InvalidSettingError(
            f"search: AStarSearch(refit=True) needs an evaluator with a method use_refit, received a "
            f"{type(measure).__name__}. Pass an ExampleEvaluator or a MetricEvaluator, or refit=False."
        )
    return measure.use_refit(start, ffn=ffn)


def check_drop(name: str, max_drop: float, *, where: str) -> None:
    """Refuses a drop that allows anything.

    Raises:
        InvalidSettingError: It is 1 or more.
    """
    if max_drop >= 1:
        raise InvalidSettingError(
            f"{where}: max_drop is absolute and {name} at most 1, received {max_drop}, which allows anything. "
            "Pass 0.01 for one point."
        )


def check_searchable(anatomy: Anatomy, search: AStarSearch, *, start_cuts_ffn: bool = False) -> None:
    """Refuses settings that a search of a model would refuse, before any work on the model.

    Args:
        anatomy: Of the model.
        search: Settings.
        start_cuts_ffn: Whether the search will start without some FFN units that it may restore, which share no chunk
            with the others.

    Raises:
        InvalidSettingError: Nothing of what is searched is there, the table of latencies does not fit, or a proof is
            asked for too many units.
    """
    check_latency_table(anatomy, search)
    units = units_of_search(anatomy, PruningPlan.full(anatomy), search, None)
    chunked = {part.site for unit in units for part in unit if len(unit) == 1} & {s.name for s in anatomy.ffn_sites}
    check_provable(len(units) + start_cuts_ffn * len(chunked), search)


def _probe(evaluator: Probes, start: PruningPlan, units: Sequence[Unit]) -> Probe:
    def probe(removed: frozenset[int], question: Question[frozenset[int]]) -> Measurement:
        return evaluator.probe(*_over_plans(removed, question, start, units))

    return probe


def _over_plans(
    removed: frozenset[int], question: Question[frozenset[int]], start: PruningPlan, units: Sequence[Unit]
) -> tuple[PruningPlan, Question[PruningPlan]]:
    asked: Any = replace(question, base=plan_without(start, units, question.base))  # type: ignore[arg-type]
    return plan_without(start, units, removed), asked


def _result(found: SearchResult, start: PruningPlan, units: Sequence[Unit], search: AStarSearch) -> PlanSearchResult:
    names = [[(part.site, part.index) for part in unit] for unit in units]
    history = tuple(
        PlanStep(**{**vars(step), "removed": tuple(name for unit in step.removed for name in names[unit])})
        for step in found.history
    )
    searched: dict[str, list[tuple[int, ...]]] = {}
    for part in (part for unit in units for part in unit):
        searched.setdefault(part.site, []).append(part.indices)
    return PlanSearchResult(
        plan=plan_without(start, units, found.removed),
        start=start,
        metric=found.measurement.metric,
        reference_metric=found.reference.metric,
        threshold=found.threshold,
        objective=search.objective,
        gain=found.gain,
        upper_bound=found.upper_bound,
        optimality=found.optimality,
        heredity_violations=found.heredity_violations,
        evaluations=found.evaluations,
        history=history,
        units=search.units,
        heads={site: sum(parts, ()) for site, parts in searched.items() if site in start.kept_heads},
        ffn_chunks={site: tuple(parts) for site, parts in searched.items() if site in start.kept_ffn},
    )
