"""What a search is asked and what it answers: plain data, no model.

Units are numbered from zero. A set of removed units is a `frozenset` outside and a bit mask inside the search.
A search algorithm is a function of a `SearchProblem` and its settings that returns a `SearchResult`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

import numpy as np

Optimality = Literal["proved", "under heredity", "budget"]
MeasurementKind = Literal["exact", "estimate", "bound"]
ROUND_OFF = 1e-9  # far below one example's share of any mean, far above the error of a float64 subtraction
UnitName = TypeVar("UnitName")


@dataclass(frozen=True, eq=False)
class Measurement:
    """What the evaluation of one set of removed units found.

    Attributes:
        metric: Higher is better. Where `kind` is "bound", the true one is at most this.
        margins: Per example the gold logit minus the best other one, shape `(num_examples,)`, in the same order at
            each evaluation; or None. They only order the search. NaN where an example was not looked at.
        kind: "exact": all examples were looked at. "bound": enough to know that the metric is below the floor of the
            question. "estimate": the rest was predicted.
    """

    metric: float
    margins: np.ndarray | None = None
    kind: MeasurementKind = "exact"

    @property
    def in_float32(self) -> Measurement:
        """The same with margins as a journal keeps them, so that a replayed one is the same to the last bit."""
        margins = None if self.margins is None else np.array(self.margins, dtype=np.float32)
        return Measurement(float(self.metric), margins, self.kind)


@dataclass(frozen=True, eq=False)
class Question:
    """What is known and wanted of a set, so that it can be measured with less work than looking at every example.

    Attributes:
        expected: Margins predicted for the set itself, shape `(num_examples,)`.
        floor: A metric below it need not be known, only that it is below; None asks for the exact metric.
        tentative: Whether an estimate that reaches the floor is enough.
    """

    expected: np.ndarray
    floor: float | None = None
    tentative: bool = True


Measure = Callable[[frozenset[int]], Measurement]
Probe = Callable[[frozenset[int], Question], Measurement]


@dataclass(frozen=True)
class GainTable:
    """What the removal of several units of one site saves together, where that is no sum, such as latency.

    Attributes:
        units: Units of the problem that the table speaks of, by their kinds: what they save depends on how many of each
            kind are removed.
        saved: What the removal of 0, 1, ... of each kind saves: a table with an axis for each, `len(units[axis]) + 1`
            long, flattened row by row; the first is zero.
    """

    units: tuple[tuple[int, ...], ...]
    saved: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the table."""
        return tuple(len(kind) + 1 for kind in self.units)


@dataclass(frozen=True)
class MetricFacts:
    """What is known about a metric besides its values.

    Attributes:
        num_examples: Examples of equal weight that it is the mean of, or None.
        without_input: Its value for a model that always gives the most common answer, or None.
        is_bounded: Whether it lies in [0, 1].
        may_vary: Whether it comes from a function of the user, which might not return the same number twice.
    """

    num_examples: int | None = None
    without_input: float | None = None
    is_bounded: bool = False
    may_vary: bool = False


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """A function of sets of removed units, to be searched.

    Attributes:
        gains: What the removal of each unit saves, `(num_units,)`, positive.
        measure: Evaluates a set of removed units, exactly.
        start: Units that are removed in the reference. The search may restore them.
        order: Units in the order in which they are removed first, the cheapest first, or None. Others follow.
        fingerprint: Identifies what `measure` measures, weights and data, in a journal.
        probe: Evaluates a set as far as a question needs, or None. It must answer the same question alike each time.
        groups: Sets of units that one step may remove together, such as a layer.
        tables: Joint savings. For a unit in one of them, `gains` holds its share, by which candidates are ordered.
        implied: Pairs of sets: where the first is removed, the second makes no difference. No unit is in two of all
            these sets.
        facts: What is known about the metric.
    """

    gains: tuple[float, ...]
    measure: Measure
    start: frozenset[int] = frozenset()
    order: tuple[int, ...] | None = None
    fingerprint: str = ""
    probe: Probe | None = None
    groups: tuple[frozenset[int], ...] = ()
    tables: tuple[GainTable, ...] = ()
    implied: tuple[tuple[frozenset[int], frozenset[int]], ...] = ()
    facts: MetricFacts = MetricFacts()

    @property
    def num_units(self) -> int:
        """Units of the problem."""
        return len(self.gains)

    def with_implied(self, mask: int) -> int:
        """Returns the largest set that is the same to `measure`, both as bit masks."""
        return mask | self._implied(mask)

    def without_implied(self, mask: int) -> int:
        """Returns the smallest set that is the same to `measure`, both as bit masks."""
        return mask & ~self._implied(mask)

    def _implied(self, mask: int) -> int:
        return sum(others for units, others in self._implied_masks if not units & ~mask)

    @cached_property
    def _implied_masks(self) -> list[tuple[int, int]]:
        return [(to_mask(units), to_mask(others)) for units, others in self.implied]


@dataclass(frozen=True)
class SearchStep(Generic[UnitName]):
    """One evaluation.

    Attributes:
        index: Number of the evaluation, from zero; zero is the reference.
        removed: Units removed, by number, or in a search over plans by name.
        metric: What was measured, as `kind` says.
        feasible: Whether the constraint holds; by an estimate where `kind` is "estimate"; whether it may
            hold where `kind` is "bound".
        gain: What the removal saves.
        is_incumbent: Whether the set became the best one known; then the metric is exact.
        kind: See `Measurement`. An estimate that is confirmed later becomes exact.
    """

    index: int
    removed: tuple[UnitName, ...]
    metric: float
    feasible: bool
    gain: float
    is_incumbent: bool
    kind: MeasurementKind = "exact"


@dataclass(frozen=True)
class Progress:
    """State of a running search, after each evaluation and each confirmation of an estimate.

    Attributes:
        step: The evaluation that just ended.
        best: The best evaluation so far; exact.
        evaluations: Evaluations so far.
        max_evaluations: Evaluations allowed, or None.
        replayed: Whether the evaluation came from the journal.
        evaluations_per_second: Since the start, without those that came from the journal.
    """

    step: SearchStep[int]
    best: SearchStep[int]
    evaluations: int
    max_evaluations: int | None
    replayed: bool
    evaluations_per_second: float = 0.0

    @property
    def remaining(self) -> int | None:
        """Evaluations that are left, or None for no limit."""
        return None if self.max_evaluations is None else self.max_evaluations - self.evaluations


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Course(Generic[UnitName]):
    """The course of a search, over sets or over plans.

    Attributes:
        threshold: Least metric that is feasible: that of the reference minus `max_drop`.
        gain: What the removal of the best set saves, in the unit of the objective.
        evaluations: Sets evaluated, those replayed from a journal included.
        history: Every evaluation in its order.
        optimality: What exact measurements and certain bounds show of the sets that units make. "proved": every set
            with a larger gain was evaluated and fails. "under heredity": every set with a larger gain contains one that
            was evaluated and fails, so the set is optimal if subsets of feasible sets are feasible, which real models
            violate. "budget": neither.
        upper_bound: Largest gain of any feasible set, under the same assumption; without it where proved.
        non_finite: Evaluations whose metric was no number; they count as infeasible.
        warnings: Why the result may say little, one sentence each; empty where nothing is suspicious.
    """

    threshold: float
    gain: float
    evaluations: int
    history: tuple[SearchStep[UnitName], ...]
    optimality: Optimality
    upper_bound: float
    non_finite: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchResult(Course[int]):
    """Outcome of a search over sets.

    Attributes:
        removed: The best set found; the start where nothing better was.
        measurement: Of exactly this set.
        reference: Of the start.
    """

    removed: frozenset[int]
    measurement: Measurement
    reference: Measurement


def surplus_over(threshold: float, metric: float) -> float:
    """Returns the metric above the threshold, -inf where it is no number; equal counts of examples compare equal."""
    surplus = metric - threshold
    if abs(surplus) <= ROUND_OFF * max(1.0, abs(threshold)):
        return 0.0
    return surplus if math.isfinite(surplus) else -math.inf


def to_mask(units: Iterable[int]) -> int:
    """Returns the bit mask of a set of units."""
    return sum(1 << unit for unit in set(units))


def units_of(mask: int) -> tuple[int, ...]:
    """Returns the units of a bit mask, ascending."""
    units = []
    while mask:
        lowest = mask & -mask
        units.append(lowest.bit_length() - 1)
        mask ^= lowest
    return tuple(units)
