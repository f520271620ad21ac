"""What a search over plans returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_headprune.plan import RefittedPlan
from hf_headprune.search.problem import surplus_over

if TYPE_CHECKING:
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.problem import MeasurementKind, Optimality
    from hf_headprune.search.settings import Objective, UnitKind

RESULT_FORMAT = "hf_headprune.search_result/2"

RemovedUnit = tuple[str, int]


@dataclass(frozen=True)
class PlanStep:
    """One evaluated plan.

    Attributes:
        index: Number of the evaluation, from zero; zero is the start.
        removed: What is removed, as (site, head) or (site, chunk), see `PlanSearchResult.ffn_chunks`.
        metric: What was measured, as `kind` says.
        feasible: Whether the constraint holds; by an estimate where `kind` is "estimate"; whether it may
            hold where `kind` is "bound".
        gain: Heads, parameters, MACs or ms removed of what was searched, as the objective says.
        is_incumbent: Whether the plan became the best one known; then its metric is exact.
        kind: "exact"; "bound", where the metric is at most what is given; or "estimate".
    """

    index: int
    removed: tuple[RemovedUnit, ...]
    metric: float
    feasible: bool
    gain: float
    is_incumbent: bool
    kind: MeasurementKind = "exact"


@dataclass(frozen=True, kw_only=True)
class PlanSearchResult(RefittedPlan):
    """Outcome of a search over plans.

    Attributes:
        plan: The best plan found; the start where nothing better was.
        start: The reference.
        metric: Of the plan, higher is better, measured with exactly this plan.
        reference_metric: Of the start.
        threshold: Least metric that is feasible.
        objective: What was to be removed most of.
        gain: Heads, parameters, MACs or ms that the plan removes of what was searched, see `heads` and `ffn_chunks`.
        upper_bound: Largest gain of any feasible plan, under heredity; without an assumption where proved.
        optimality: See `hf_headprune.search.problem.SearchResult`.
        heredity_violations: How often the evaluated plans contradict heredity.
        evaluations: Plans evaluated.
        history: Every evaluated plan in its order.
        units: What was searched.
        heads: `{site: the heads that were searched}`.
        ffn_chunks: `{site: the FFN units of each chunk}`, where chunks were searched.
        refit: What the model has to be cut with, where output projections were refitted; it is not in the
            JSON text.
    """

    start: PruningPlan
    metric: float
    reference_metric: float
    threshold: float
    objective: Objective
    gain: float
    upper_bound: float
    optimality: Optimality
    heredity_violations: int
    evaluations: int
    history: tuple[PlanStep, ...]
    units: tuple[UnitKind, ...] = ("heads",)
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ffn_chunks: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    refit: Refit | None = field(default=None, repr=False, compare=False)

    def plan_of(self, step: PlanStep) -> PruningPlan:
        """Returns the plan that a step of the history evaluated."""
        gone = set(step.removed)
        return self.start.replace(
            kept_heads={site: [h for h in heads if (site, h) not in gone] for site, heads in self.heads.items()},
            kept_ffn={
                site: [unit for index, chunk in enumerate(chunks) if (site, index) not in gone for unit in chunk]
                for site, chunks in self.ffn_chunks.items()
            },
        )

    def is_feasible(self, metric: float) -> bool:
        """Tells whether a plan with this metric, higher is better, keeps what the search was asked to keep."""
        return surplus_over(self.threshold, metric) >= 0.0

    @property
    def drop(self) -> float:
        """What the plan loses of the metric against the start; negative where it gains."""
        return self.reference_metric - self.metric

    def to_json(self) -> str:
        """Returns the whole result as JSON text; plans are in the form of `PruningPlan.to_json`.

        A metric of the history that is no number, which a function of the user's may return, becomes null.
        """
        content: dict[str, Any] = {"format": RESULT_FORMAT}
        content |= {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "refit"}
        content["plan"] = json.loads(self.plan.to_json())
        content["start"] = json.loads(self.start.to_json())
        content["history"] = [
            {**asdict(step), "metric": step.metric if math.isfinite(step.metric) else None} for step in self.history
        ]
        return json.dumps(content, indent=2, allow_nan=False)
