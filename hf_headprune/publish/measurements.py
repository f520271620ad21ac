"""What was measured, as plain data: a metric on a named split, latency with its conditions, and the effort spent."""

from __future__ import annotations

from dataclasses import dataclass

from hf_headprune.errors import InvalidSettingError


@dataclass(frozen=True)
class MetricChange:
    """A metric of the model before and after, on the same examples.

    Attributes:
        name: Name of the metric, such as "accuracy".
        split: What the examples are, such as "search split".
        num_examples: Examples that both values were computed on.
        before: Value of the reference.
        after: Value with what the plan keeps.
        reference: What the reference had open, as a phrase, such as "the heads that training kept".
    """

    name: str
    split: str
    num_examples: int
    before: float
    after: float
    reference: str = "all heads"

    def __post_init__(self) -> None:
        """Checks the number of examples.

        Raises:
            InvalidSettingError: The metric was computed on no example.
        """
        if self.num_examples < 1:
            raise InvalidSettingError(
                f"MetricChange: num_examples must be at least 1, received {self.num_examples}. Leave the metric out of "
                "the report when nothing was measured."
            )


@dataclass(frozen=True)
class LatencySample:
    """Median and quartiles of repeated measurements of one model, in milliseconds per batch."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float

    def __post_init__(self) -> None:
        """Checks that the three values are ordered.

        Raises:
            InvalidSettingError: They are not positive and ascending.
        """
        if not 0 < self.lower_quartile_ms <= self.median_ms <= self.upper_quartile_ms:
            raise InvalidSettingError(
                "LatencySample: needs 0 < lower quartile <= median <= upper quartile, received "
                f"{self.lower_quartile_ms}, {self.median_ms}, {self.upper_quartile_ms} ms. Pass the quartiles of one "
                "list of measurements."
            )


@dataclass(frozen=True)
class LatencyChange:
    """Latency of the model before and after the cut, measured in turns under the same conditions.

    Attributes:
        before: Of the model with everything that it had.
        after: Of the pruned model.
        device: Device of both, such as "cpu".
        dtype: Dtype of the weights of both, such as "float32".
        batch_size: Sequences per batch.
        seq_len: Tokens per sequence.
        threads: Threads that torch used on the CPU.
        runs: Measurements of each model.
    """

    before: LatencySample
    after: LatencySample
    device: str
    dtype: str
    batch_size: int
    seq_len: int
    threads: int
    runs: int

    @property
    def speed_up(self) -> float | None:
        """Median before over median after; None while the quartile intervals overlap, since nothing is shown then."""
        apart = (
            self.after.upper_quartile_ms < self.before.lower_quartile_ms
            or self.before.upper_quartile_ms < self.after.lower_quartile_ms
        )
        return self.before.median_ms / self.after.median_ms if apart else None

    @property
    def verdict(self) -> str:
        """What the measurements show, in words."""
        if self.speed_up is None:
            return "no difference shown"
        return f"{self.speed_up:.2f}x faster" if self.speed_up >= 1 else f"{1 / self.speed_up:.2f}x slower"


@dataclass(frozen=True)
class Effort:
    """What it took to find the plan. A part that did not run is None.

    Attributes:
        training_seconds: Wall time of training, in seconds.
        search_seconds: Wall time of the search, in seconds.
        evaluations: Plans that the search evaluated.
        optimality: What the search may claim about its plan: "proved", "under heredity", "budget", or other words.
    """

    training_seconds: float | None = None
    search_seconds: float | None = None
    evaluations: int | None = None
    optimality: str = ""
