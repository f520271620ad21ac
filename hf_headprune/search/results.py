"""What a search over plans returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_headprune.plan import RefittedPlan
from hf_headprune.search.problem import Course, SearchStep, surplus_over

if TYPE_CHECKING:
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.settings import Objective, UnitKind

RESULT_FORMAT = "hf_headprune.search_result/3"

RemovedUnit = tuple[str, int]  # (site, head) or (site, chunk), see `PlanSearchResult.ffn_chunks`
PlanStep = SearchStep[RemovedUnit]


@dataclass(frozen=True, kw_only=True)
class PlanSearchResult(Course[RemovedUnit], RefittedPlan):
    """Outcome of a search over plans: what `Course` says, and the following.

    Attributes:
        plan: The best plan found; the start where nothing better was.
        refit: What the model has to be pruned with, where output projections were refitted; it is not in the JSON text.
        start: The reference.
        metric: Of the plan, higher is better, measured with exactly this plan.
        reference_metric: Of the start.
        objective: What was to be removed most of; `gain` counts it over what was searched.
        units: What was searched.
        heads: `{site: the heads that were searched}`.
        ffn_chunks: `{site: the FFN units of each chunk}`, where chunks were searched.
    """

    start: PruningPlan
    metric: float
    reference_metric: float
    objective: Objective
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
