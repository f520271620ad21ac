"""Everything a running search knows: each set is evaluated once, within the budget, and the best one is kept."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.search.bounds import ExactGains, Nogoods
from hf_headprune.search.information import check_reference, check_repeats, tell
from hf_headprune.search.problem import (
    Measurement,
    Progress,
    Question,
    SearchStep,
    surplus_over,
    to_mask,
    units_of,
)

if TYPE_CHECKING:
    from hf_headprune.search.journal import Journal
    from hf_headprune.search.problem import OnProgress, SearchProblem
    from hf_headprune.search.settings import AStarSearch


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
        evidence: Margins `(num_examples,)`, those not seen predicted; the metric alone, `(1,)`, without margins; empty
            once they are forgotten.
    """

    mask: int
    gain: int
    measurement: Measurement
    surplus: float
    evidence: np.ndarray

    @property
    def feasible(self) -> bool:
        """Whether the constraint holds, up to round-off; by what is known so far."""
        return self.surplus >= 0

    @property
    def forgotten(self) -> Evaluated:
        """The same without its margins, which are what takes memory."""
        if self.measurement.margins is None:
            return self
        measurement = dataclasses.replace(self.measurement, margins=None)
        return dataclasses.replace(self, measurement=measurement, evidence=self.evidence[:0].copy())

    @property
    def is_certain(self) -> bool:
        """Whether no further measurement can change that: it is exact, or a bound below the threshold."""
        kind = self.measurement.kind
        return kind == "exact" or (kind == "bound" and not self.feasible)


class Ledger:
    """Transposition table, budget, history and incumbent of one search.

    Of a set that can't be expanded, since it misses the constraint by more than the slack, only what was found is kept
    and not the margins; whoever knows of others that they are not needed again calls `forget`.

    Attributes:
        gains: Exact gains of the units.
        reference: The start, evaluated.
        incumbent: The feasible set with the largest gain; of equal gains the one with the higher metric.
        nogoods: Minimal infeasible sets.
        history: Every evaluation in its order.
        warnings: What is suspicious about the start.
    """

    def __init__(
        self,
        problem: SearchProblem,
        settings: AStarSearch,
        *,
        journal: Journal | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Evaluates the start, which sets the threshold.

        Raises:
            InvalidSettingError: The metric of the start says nothing: see `check_reference`, `check_repeats`.
        """
        self._problem = problem
        self._settings = settings
        self._slack = settings.tuning.constraint_slack
        self._journal = journal
        self._on_progress = on_progress
        self._known: dict[int, Evaluated] = {}
        self._questions: dict[int, Question] = {}  # of estimates, until they are confirmed
        self._places: dict[int, int] = {}  # of sets in the history
        self._started = time.monotonic()
        self._replayed = 0
        self.gains = ExactGains(problem.gains, problem.tables)
        self.nogoods = Nogoods()
        self.history: list[SearchStep[int]] = []
        start = problem.with_implied(to_mask(problem.start))
        measurement, replayed = self._measure(start)
        metric = measurement.metric
        self.warnings = check_reference(metric, problem.facts, settings.max_drop)
        if problem.facts.may_vary and not replayed:  # a journal has been compared with a new measurement
            check_repeats(metric, problem.measure(problem.start).metric)
        tell(self.warnings)
        self.threshold = metric - settings.max_drop
        evidence = _evidence(measurement, None)
        self.reference = Evaluated(start, self.gains.of(start), measurement, settings.max_drop, evidence)
        self.incumbent = self.reference
        self._best_step = self._record(self.reference, replayed=replayed, is_incumbent=True)

    def __contains__(self, mask: int) -> bool:
        """Whether the set was evaluated."""
        return self._problem.with_implied(mask) in self._known

    def __len__(self) -> int:
        """Sets evaluated."""
        return len(self._known)

    @property
    def remaining(self) -> int | None:
        """Evaluations left, or None for no limit."""
        limit = self._settings.max_evaluations
        return None if limit is None else limit - len(self._known)

    @property
    def non_finite(self) -> int:
        """Evaluations whose metric is no number."""
        return sum(not math.isfinite(step.metric) for step in self.history)

    def evaluate(self, mask: int, question: Question | None = None) -> Evaluated:
        """Evaluates a set as far as a question needs, or returns what is known about it.

        Raises:
            BudgetSpent: The set is not known, and no evaluation or no time is left.
        """
        mask = self._problem.with_implied(mask)
        if mask in self._known:
            return self._known[mask]
        if self.remaining == 0 or (self._is_late() and (self._journal is None or self._journal.get(mask) is None)):
            raise BudgetSpent
        measurement, replayed = self._measure(mask, question)
        evaluated = self._take(mask, measurement, None if question is None else question.expected, replayed=replayed)
        if measurement.kind == "estimate" and question is not None and evaluated.feasible:
            self._questions[mask] = question
        return evaluated

    def forget(self, mask: int) -> None:
        """Lets the margins of a set go; the set will not be expanded, nor others be compared with it."""
        if mask != self.reference.mask and mask not in self._questions:
            self._known[mask] = self._known[mask].forgotten

    def is_settled(self, mask: int) -> bool:
        """Whether it is known for certain that a set is feasible or not."""
        mask = self._problem.with_implied(mask)
        return mask in self._known and self._known[mask].is_certain

    def confirm(self, mask: int) -> Evaluated:
        """Measures a known set exactly, where it was estimated; that is no further evaluation of the budget."""
        mask = self._problem.with_implied(mask)
        known = self._known[mask]
        if known.is_certain:
            return known
        question = self._questions.pop(mask, None)
        question = None if question is None else dataclasses.replace(question, floor=None)
        measurement, replayed = self._measure(mask, question, confirmed=True)
        return self._take(mask, measurement, None, replayed=replayed)

    @property
    def leader(self) -> Evaluated:
        """The incumbent, or an estimate that looks better."""
        estimates = [known for known in map(self._known.__getitem__, self._questions) if known.feasible]
        promising = [known for known in estimates if known.gain > self.incumbent.gain]
        return max(promising, key=lambda known: (*self._rank(known), -known.mask), default=self.incumbent)

    def settle(self) -> None:
        """Confirms the most promising estimates until none that is feasible gains more than the incumbent."""
        while (leader := self.leader) is not self.incumbent:
            self.confirm(leader.mask)

    def _is_late(self) -> bool:
        limit = self._settings.max_seconds
        return limit is not None and time.monotonic() - self._started >= limit

    @staticmethod
    def _rank(evaluated: Evaluated) -> tuple[int, float]:
        return evaluated.gain, evaluated.measurement.metric

    def _measure(
        self, mask: int, question: Question | None = None, *, confirmed: bool = False
    ) -> tuple[Measurement, bool]:
        """Returns a measurement, and whether the journal had it."""
        removed = units_of(mask)
        known = None if self._journal is None else self._journal.get(mask, confirmed=confirmed)
        if known is not None:
            measured = known
        elif self._problem.probe is None or question is None:
            measured = self._problem.measure(frozenset(removed))
        else:
            measured = self._problem.probe(frozenset(removed), question)
        measurement = measured.in_float32
        if self._journal is not None and known is None:
            self._journal.add(mask, measurement, confirmed=confirmed)
        return measurement, known is not None

    def _take(self, mask: int, measurement: Measurement, expected: np.ndarray | None, *, replayed: bool) -> Evaluated:
        evidence = _evidence(measurement, expected)
        if measurement.margins is not None:
            measurement = dataclasses.replace(measurement, margins=evidence)  # once in memory
        surplus = surplus_over(self.threshold, measurement.metric)
        evaluated = Evaluated(mask, self.gains.of(mask), measurement, surplus, evidence)
        is_exact = measurement.kind == "exact"
        better = is_exact and evaluated.feasible and self._rank(evaluated) > self._rank(self.incumbent)
        if better:
            self.incumbent = evaluated
            beaten = [known for known in self._questions if self._known[known].gain <= evaluated.gain]
            for known in beaten:
                del self._questions[known]
        if evaluated.is_certain and not evaluated.feasible:
            self.nogoods.add(self._problem.without_implied(mask))
        self._record(evaluated, replayed=replayed, is_incumbent=better)
        return evaluated

    def _record(self, evaluated: Evaluated, *, replayed: bool, is_incumbent: bool) -> SearchStep[int]:
        place = self._places.setdefault(evaluated.mask, len(self.history))
        step = SearchStep(
            index=place,
            removed=units_of(evaluated.mask),
            metric=evaluated.measurement.metric,
            feasible=evaluated.feasible,
            gain=self.gains.value(evaluated.gain),
            is_incumbent=is_incumbent,
            kind=evaluated.measurement.kind,
        )
        self._known[evaluated.mask] = evaluated if evaluated.surplus >= -self._slack else evaluated.forgotten
        self._replayed += replayed and place == len(self.history)
        self.history[place : place + 1] = [step]
        if is_incumbent:
            self._best_step = step
        if self._on_progress is not None:
            limit = self._settings.max_evaluations
            rate = (len(self._known) - self._replayed) / max(time.monotonic() - self._started, 1e-9)
            self._on_progress(Progress(step, self._best_step, len(self._known), limit, replayed, rate))
        return step


def _evidence(measurement: Measurement, expected: np.ndarray | None) -> np.ndarray:
    """Returns the margins, those not seen as they were predicted; the metric where there are none."""
    if measurement.margins is None:
        return np.nan_to_num(np.array([measurement.metric]))
    if expected is None:
        return np.nan_to_num(measurement.margins)
    return np.where(np.isnan(measurement.margins), expected, measurement.margins).astype(np.float32)
