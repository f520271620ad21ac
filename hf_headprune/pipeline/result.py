"""PruningResult: a plan, its refit, and what is known about both; what `masked` and `prune_model_` take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune.plan import RefittedPlan

if TYPE_CHECKING:
    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.path import CertifiedPath
    from hf_headprune.plan import PruningPlan
    from hf_headprune.publish.report import PruningReport
    from hf_headprune.search.results import PlanSearchResult, PlanStep

RESULT_FORMAT = "hf_headprune.result/1"


@dataclass(frozen=True, kw_only=True)
class PruningResult(RefittedPlan):
    """What to prune of a model, and what is known about the outcome.

    Pass it to `prune_model_(model, result)` to prune, or to `masked(model, result)` to try it out.

    Attributes:
        plan: Heads and FFN units that are kept.
        refit: Update of the remaining weights that belongs to the plan.
        reference: What the plan is compared with: the whole model, unless training had closed units before.
        report: Sizes, metric and effort; `.to_text()` is a table.
        certificate: What held-out examples show about unseen data; None where nothing could be certified.
        path: Candidates that were tested on the held-out examples, where only what is certified may be pruned.
        search: Course of the search; None where a budget decided.
    """

    reference: PruningPlan
    report: PruningReport
    certificate: Certificate | None = None
    path: CertifiedPath | None = None
    search: PlanSearchResult | None = None

    @property
    def history(self) -> tuple[PlanStep, ...]:
        """Every plan that the search evaluated, in its order; empty without a search."""
        return () if self.search is None else self.search.history

    @property
    def frontier(self) -> tuple[PlanStep, ...]:
        """Plans measured on all searched examples that no other one beats in both size and metric, the largest first.

        `result.search.plan_of(step)` returns the plan of a step.
        """
        exact = sorted((s for s in self.history if s.kind == "exact"), key=lambda s: (-s.gain, -s.metric))
        found: list[PlanStep] = []
        for step in exact:
            if not found or step.metric > found[-1].metric:
                found.append(step)
        return tuple(reversed(found))

    def to_json(self) -> str:
        """Returns plan, report, certificate and search as JSON text."""
        parts: dict[str, Any] = {"plan": self.plan, "reference": self.reference, "report": self.report}
        parts |= {"certificate": self.certificate, "search": self.search}
        content: dict[str, Any] = {"format": RESULT_FORMAT}
        content |= {name: None if part is None else json.loads(part.to_json()) for name, part in parts.items()}
        return json.dumps(content, indent=2)
