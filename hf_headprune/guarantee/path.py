"""Candidates from the least pruned to the most, tested in that order until the first that can't be certified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_headprune.guarantee.claim import Claim
from hf_headprune.guarantee.evidence import p_value_of
from hf_headprune.guarantee.sequence import last_certified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hf_headprune.guarantee.outcomes import Outcome, PairedScores


@dataclass(frozen=True)
class PathStep:
    """One tested candidate.

    Attributes:
        name: In words.
        regressions: Examples on which it is worse than the dense model.
        improvements: Examples on which it is better.
        metric: Its metric on the certification split; None in certificates of older formats that can't tell.
        p_value: Of "its drop is at least max_drop".
        certified: Whether the p-value is at most the threshold.
    """

    name: str
    regressions: int
    improvements: int
    metric: float | None
    p_value: float
    certified: bool


@dataclass(frozen=True)
class CertifiedPath:
    """Outcome of the tests along a path.

    Attributes:
        claim: What was tested of each candidate.
        split: sha256 of the certification split.
        dense_metric: Metric of what the candidates are compared with; None as for `PathStep.metric`.
        steps: Candidates that were tested, in their order; only the last may have failed.
        untested: Names of the candidates after them, in their order.
    """

    claim: Claim
    split: str
    dense_metric: float | None
    steps: tuple[PathStep, ...]
    untested: tuple[str, ...]

    _outcomes: ClassVar[Any] = {}  # by weights, of this path in memory; no file holds it

    def remember(self, outcomes: Mapping[str | None, Outcome]) -> None:
        """Keeps how models answered, so that `certify` need not run them again.

        Args:
            outcomes: On the whole split, by the sha256 of a model's weights.
        """
        object.__setattr__(self, "_outcomes", outcomes)

    def outcome_of(self, weights: str | None) -> Outcome | None:
        """Returns how the model with these weights answered, if that is known."""
        return None if weights is None else self._outcomes.get(weights)

    @property
    def planned(self) -> int:
        """Candidates that there were."""
        return len(self.steps) + len(self.untested)

    @property
    def certified_index(self) -> int | None:
        """Index of the last certified candidate, or None where none is."""
        return last_certified((step.p_value for step in self.steps), self.claim.threshold)

    @property
    def own_index(self) -> int:
        """Index of the candidate that a certificate is about: the last certified one, else the first that failed."""
        return 0 if self.certified_index is None else self.certified_index


def certify_in_order(
    dense: PairedScores,
    candidates: Sequence[tuple[str, Callable[[], PairedScores]]],
    claim: Claim,
    split: str,
    aggregate: Callable[[np.ndarray], float] | None = None,
) -> CertifiedPath:
    """Tests candidates in their order; scores none after the first failure.

    Args:
        dense: Scores of the dense model, in both places.
        candidates: Names that identify them, such as plans in JSON, and functions that compare them with the dense
            model.
        claim: To be tested of each.
        split: sha256 of the certification split.
        aggregate: Of a corpus metric.
    """
    steps: list[PathStep] = []

    def mean(pair: PairedScores) -> float | None:
        value = np.mean if aggregate is None else aggregate
        return float(value(pair.pruned)) if pair.labelled is None else None

    def p_values() -> Iterator[float]:
        for name, compared in candidates:
            scores = compared()
            p = p_value_of(scores, claim, aggregate)
            counts = scores.counts
            steps.append(PathStep(name, counts.regressions, counts.improvements, mean(scores), p, p <= claim.threshold))
            yield p

    last_certified(p_values(), claim.threshold)
    untested = tuple(name for name, _ in candidates[len(steps) :])
    return CertifiedPath(claim, split, mean(dense), tuple(steps), untested)
