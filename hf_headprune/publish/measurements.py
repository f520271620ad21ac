"""What was measured, as plain data: a metric on a named split, latency with its conditions, and the effort spent."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest

from hf_headprune.errors import InvalidSettingError

CONFIDENCE = 0.95
_SHARES = ("accuracy",)  # metrics that are a share of right answers


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
