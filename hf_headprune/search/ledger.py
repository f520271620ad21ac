"""Everything a running search knows: each set is evaluated once, within the budget, and the best one is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidSettingError
from hf_headprune.search.bounds import ExactGains, Nogoods
from hf_headprune.search.problem import Measurement, Progress, SearchStep, checked_measurement, units_of

if TYPE_CHECKING:
    from hf_headprune.search.journal import Journal
    from hf_headprune.search.problem import OnProgress, SearchProblem
    from hf_headprune.search.settings import AStarSearch

ROUND_OFF = 1e-9  # far below one example's share of any mean, far above the error of a float64 subtraction


class BudgetSpent(Exception):  # noqa: N818 - ends the search in good order, it is no error
    """No further evaluation is allowed."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A set that was evaluated.

    Attributes:
        mask: Units removed.
        gain: Exact gain.
        measurement: What was measured.
        surplus: Metric above the threshold; below zero where the set is infeasible.
    """

    mask: int
    gain: int
    measurement: Measurement
    surplus: float

    @property
    def feasible(self) -> bool:
        """Whether the constraint holds, up to round-off."""
        return self.surplus >= 0


class Ledger:
    """Transposition table, budget, history and incumbent of one search.

    Attributes:
        gains: Exact gains of the units.
        reference: The start, evaluated.
        incumbent: The feasible set with the largest gain; of equal gains the one with the higher metric.
        nogoods: Minimal infeasible sets.
        history: Every evaluation in its order.
    """

    def __init__(
        self,
        problem: SearchProblem,
        settings: AStarSearch,
        *,
        start: int,
        journal: Journal | None,
        on_progress: OnProgress | None,
    ) -> None:
        """Evaluates the start, which sets the threshold.

        Raises:
            InvalidSettingError: The metric of the start is not finite.
        """
        self._problem = problem
        self._settings = settings
        self._journal = journal
        self._on_progress = on_progress
        self._known: dict[int, Evaluated] = {}
        self._num_examples: int | None = -1
        self.gains = ExactGains(problem.gains)
        self.nogoods = Nogoods()
        self.history: list[SearchStep] = []
        measurement, replayed = self._measure(start)
        if not math.isfinite(measurement.metric):
            raise InvalidSettingError(
                f"search: the metric of the start {list(units_of(start))} must be finite, received "
                f"{measurement.metric}. Check the model and the metric before the search."
            )
        margins = measurement.margins
        self._num_examples = None if margins is None else margins.size
        self.threshold = measurement.metric - settings.max_drop
        self.reference = Evaluated(start, self.gains.of(start), measurement, settings.max_drop)
        self.incumbent = self.reference
        self._best_step = self._record(self.reference, replayed=replayed, is_incumbent=True)

    def __contains__(self, mask: int) -> bool:
        """Whether the set was evaluated."""
        return mask in self._known

    def __len__(self) -> int:
        """Sets evaluated."""
        return len(self._known)

    @property
    def remaining(self) -> int | None:
        """Evaluations left, or None for no limit."""
        limit = self._settings.max_evaluations
        return None if limit is None else limit - len(self._known)

    def evaluate(self, mask: int) -> Evaluated:
        """Evaluates a set, or returns what is known about it.

        Raises:
            BudgetSpent: The set is not known and no evaluation is left.
        """
        if mask in self._known:
            return self._known[mask]
        if self.remaining == 0:
            raise BudgetSpent
        measurement, replayed = self._measure(mask)
        evaluated = Evaluated(mask, self.gains.of(mask), measurement, self._surplus(measurement.metric))
        better = evaluated.feasible and self._rank(evaluated) > self._rank(self.incumbent)
        if better:
            self.incumbent = evaluated
        if not evaluated.feasible:
            self.nogoods.add(mask)
        self._record(evaluated, replayed=replayed, is_incumbent=better)
        return evaluated

    def heredity_violations(self) -> int:
        """Counts the infeasible sets that have a feasible strict superset among the evaluated ones."""
        maximal: list[int] = []
        for found in sorted(self._known.values(), key=lambda found: -found.mask.bit_count()):
            if found.feasible and all(found.mask & ~known for known in maximal):
                maximal.append(found.mask)
        failed = [found.mask for found in self._known.values() if not found.feasible]
        return sum(any(mask & ~known == 0 for known in maximal) for mask in failed)

    def _surplus(self, metric: float) -> float:
        """Returns the metric above the threshold; equal counts of examples compare equal."""
        surplus = metric - self.threshold
        scale = max(1.0, abs(self.threshold))
        if abs(surplus) <= ROUND_OFF * scale:
            return 0.0
        return surplus if math.isfinite(surplus) else -math.inf

    @staticmethod
    def _rank(evaluated: Evaluated) -> tuple[int, float]:
        return evaluated.gain, evaluated.measurement.metric

    def _measure(self, mask: int) -> tuple[Measurement, bool]:
        removed = units_of(mask)
        known = None if self._journal is None else self._journal.get(mask)
        measured = known or self._problem.measure(frozenset(removed))
        measurement = checked_measurement(measured, removed, self._num_examples)
        if self._journal is not None and known is None:
            self._journal.add(mask, measurement)
        return measurement, known is not None

    def _record(self, evaluated: Evaluated, *, replayed: bool, is_incumbent: bool) -> SearchStep:
        step = SearchStep(
            index=len(self.history),
            removed=units_of(evaluated.mask),
            metric=evaluated.measurement.metric,
            feasible=evaluated.feasible,
            gain=self.gains.value(evaluated.gain),
            is_incumbent=is_incumbent,
        )
        self._known[evaluated.mask] = evaluated
        self.history.append(step)
        if is_incumbent:
            self._best_step = step
        if self._on_progress is not None:
            limit = self._settings.max_evaluations
            self._on_progress(Progress(step, self._best_step, len(self._known), limit, replayed))
        return step
