"""What was measured, as plain data: a metric on a named split, the plans that were tried, and the effort spent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scipy.stats import binomtest

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIDENCE = 0.95
_SHARES = ("accuracy",)  # metrics that are a share of right answers
_ON_HUB = re.compile(r"hf://datasets/([^@]+)@")


@dataclass(frozen=True)
class MetricChange:
    """A metric of the model before and after, on the same examples.

    Attributes:
        name: Name of the metric, such as "accuracy".
        split: What the examples are, such as "search split".
        num_examples: Examples that both values were computed on; None where only an evaluator of the user's knows.
        before: Value of the reference.
        after: Value with what the plan keeps.
        reference: What the reference had open, as a phrase, such as "the heads that training kept".
    """

    name: str
    split: str
    num_examples: int | None
    before: float
    after: float
    reference: str = "all heads"

    def __post_init__(self) -> None:
        """Checks the number of examples.

        Raises:
            InvalidSettingError: The metric was computed on no example.
        """
        if self.num_examples is not None and self.num_examples < 1:
            raise InvalidSettingError(
                f"MetricChange: num_examples must be at least 1, received {self.num_examples}. Leave the metric out of "
                "the report when nothing was measured."
            )

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the value after pruning lies on unseen data, at `CONFIDENCE`; None of what is no share of examples.

        Source: Clopper and Pearson 1934, the exact interval of a binomial share.
        """
        if self.name not in _SHARES or self.num_examples is None:
            return None
        right = round(self.after * self.num_examples)
        if abs(right - self.after * self.num_examples) > 1e-6 * self.num_examples:
            return None
        found = binomtest(right, self.num_examples).proportion_ci(CONFIDENCE, method="exact")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class SizedMetric:
    """A plan that was measured, and its size.

    Attributes:
        density: Share of the weights of all attention and FFN matrices that is kept.
        size_mb: Of the weights, embeddings included, in MB.
        metric: On the examples that decided.
        passed: Whether it met what was asked.
        latency_ms: Of the attention and FFN blocks, by a table of measured latencies; None without one.
    """

    density: float
    size_mb: float
    metric: float
    passed: bool
    latency_ms: float | None = None


@dataclass(frozen=True)
class Frontier:
    """Plans that were measured on the same examples.

    Attributes:
        metric: Name of the metric.
        split: What the examples are, such as "unseen examples".
        max_drop: Drop that was allowed, absolute.
        plans: What they are compared with, then smaller and smaller ones.
        confidence: With which each plan that passed was shown to lose less than `max_drop` on unseen data; None where
            the drop that was seen decided.
        higher_is_better: Whether a larger metric is a better one.
        leaves_at: `{site: (density, ...)}`, how much of the model was left when each attention head went, in the order
            of removal costs; 0 of heads that are in every plan of the order. Empty where there was no such order.
    """

    metric: str
    split: str
    max_drop: float
    plans: tuple[SizedMetric, ...]
    confidence: float | None = None
    higher_is_better: bool = True
    leaves_at: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def has_latency(self) -> bool:
        """Whether the latency of every plan is known."""
        return bool(self.plans) and all(plan.latency_ms is not None for plan in self.plans)

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Frontier:
        """Returns what `dataclasses.asdict` made plain.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is unknown or malformed.
        """
        plans = tuple(SizedMetric(**plan) for plan in content["plans"])
        leaves_at = {site: tuple(densities) for site, densities in content["leaves_at"].items()}
        return cls(**{**content, "plans": plans, "leaves_at": leaves_at})


@dataclass(frozen=True)
class Recipe:
    """How it was decided what to prune, in words. A part that nothing is known of is empty.

    Attributes:
        method: What chose heads and FFN units.
        budget: What was asked for, as it was passed, such as "density=0.5".
        recovery: How the pruned model trained on.
        dataset: Name on the Hub of the data set that the examples are from.
        earlier: What the model had lost before; "the model before pruning" is then not the dense one.
    """

    method: str = ""
    budget: str = ""
    recovery: str = ""
    dataset: str = ""
    earlier: str = ""


def name_on_hub(*datasets: Any) -> str:
    """Returns the name of the first data set that says from where on the Hub it was loaded; an empty text without one.

    Args:
        *datasets: Of any kind; one that holds another, as `.dataset`, is asked for that.
    """
    for given in datasets:
        dataset = given
        while hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        sources = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
        if found := next(filter(None, map(_ON_HUB.match, sources)), None):
            return found[1]
    return ""


@dataclass(frozen=True)
class Effort:
    """What it took to find the plan. A part that did not run is None.

    Attributes:
        training_seconds: Wall time of training, in seconds.
        search_seconds: Wall time of the search, in seconds.
        evaluations: Plans that the search evaluated.
        optimality: What the search may claim about its plan, in words.
    """

    training_seconds: float | None = None
    search_seconds: float | None = None
    evaluations: int | None = None
    optimality: str = ""
