"""PruningResult: a plan, its refit, and what is known about both; what `masked` and `prune_model_` take."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune.budgets import linear_density
from hf_headprune.cost import cost_of, latency_of
from hf_headprune.plan import RefittedPlan
from hf_headprune.publish.card import eval_results, model_card
from hf_headprune.publish.measurements import SizedMetric
from hf_headprune.shrink.remote_code import auto_class_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.cost import LatencyTable
    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.path import CertifiedPath
    from hf_headprune.plan import PruningPlan
    from hf_headprune.publish.report import PruningReport
    from hf_headprune.search.results import PlanSearchResult


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan, its size, and what was measured of it.

    Attributes:
        plan: Heads and FFN units that are kept.
        density: Share of the weights of all attention and FFN matrices of the model that is kept.
        metric: On the examples that decided, with the plan's refit; higher is better.
        passed: Whether it met what was asked: the test of its drop, or the drop that may be seen.
    """

    plan: PruningPlan
    density: float
    metric: float
    passed: bool


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
        search: Course of the A* search; None without one.
        history: Every plan that was measured on all examples, in the order of the measurements; the first is the
            reference. Empty where a budget decided.
    """

    reference: PruningPlan
    report: PruningReport
    certificate: Certificate | None = None
    path: CertifiedPath | None = None
    search: PlanSearchResult | None = None
    history: tuple[MeasuredPlan, ...] = ()

    @property
    def frontier(self) -> tuple[MeasuredPlan, ...]:
        """Measured plans that no other one beats in both size and metric, the largest first."""
        return unbeaten(self.history)

    @property
    def certificate_text(self) -> str | None:
        """The certificate as JSON text, which `prune_model_` attaches to the model; None without one."""
        return None if self.certificate is None else self.certificate.to_json()

    def card(self, model: Any, *, dataset: str | None = None) -> str:
        """Returns the model card, `README.md`: metadata and Markdown, every number of which is in the report.

        `prune_model_(model, result)` attaches it to the model, which writes it whenever it is saved with these weights.

        Args:
            model: The pruned model.
            dataset: Name on the Hub of the data set of the metric, for the metadata; that of the report when left out.
        """
        return model_card(
            self.report,
            class_name=type(model).__name__,
            auto_class=auto_class_of(model),
            base_model=model.config.name_or_path,
            dataset=dataset,
        )

    def eval_results(self, *, dataset: str, task: str) -> str:
        """Returns the metric on unseen examples as the Hub's leaderboards read it: the text of `.eval_results/*.yaml`.

        Write it only if the unseen examples are those of a benchmark on the Hub.

        Args:
            dataset: Name on the Hub of the benchmark.
            task: Its name within the benchmark.

        Raises:
            InvalidSettingError: There is no metric on unseen examples.
        """
        return eval_results(self.report, dataset=dataset, task=task)

    def to_json(self) -> str:
        """Returns plan, report, certificate, search and history as JSON text; refitted weights are not in it."""
        parts: dict[str, Any] = {"plan": self.plan, "reference": self.reference, "report": self.report}
        parts |= {"certificate": self.certificate, "search": self.search}
        content: dict[str, Any] = {"format": RESULT_FORMAT}
        content |= {name: None if part is None else json.loads(part.to_json()) for name, part in parts.items()}
        content["history"] = [{**vars(it), "plan": json.loads(it.plan.to_json())} for it in self.history]
        return json.dumps(content, indent=2)


def unbeaten(plans: Iterable[MeasuredPlan]) -> tuple[MeasuredPlan, ...]:
    """Returns the plans that no other one beats in both size and metric, the largest first."""
    found: list[MeasuredPlan] = []
    for measured in sorted(plans, key=lambda it: (it.density, -it.metric)):
        if not found or measured.metric > found[-1].metric:
            found.append(measured)
    return tuple(reversed(found))


def sized(
    plans: Iterable[MeasuredPlan], anatomy: Anatomy, *, sign: float = 1.0, latency_ms: LatencyTable | None = None
) -> tuple[SizedMetric, ...]:
    """Returns numbers alone for the report, of the plans that were measured with a finite one.

    Args:
        plans: Measured.
        anatomy: Of the model before pruning.
        sign: -1 where the metric was negated, because lower is better.
        latency_ms: Table of latencies, where there is one.
    """
    return tuple(
        SizedMetric(
            it.density,
            cost_of(it.plan, anatomy, seq_len=1).size_mb,
            sign * float(it.metric),  # a metric of the user's may be NumPy's
            bool(it.passed),
            None if latency_ms is None else latency_of(it.plan, latency_ms),
        )
        for it in plans
        if math.isfinite(it.metric)
    )


def searched_plans(search: PlanSearchResult, anatomy: Anatomy) -> tuple[MeasuredPlan, ...]:
    """Returns the plans that a search measured on all examples."""
    exact = [(search.plan_of(step), step) for step in search.history if step.kind == "exact"]
    return tuple(MeasuredPlan(plan, linear_density(plan, anatomy), it.metric, it.feasible) for plan, it in exact)
