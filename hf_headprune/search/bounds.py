"""Exact sums of gains, and what heredity proves about sets that were never evaluated.

Heredity says that every subset of a feasible set is feasible. Then a feasible set contains no set that was found
infeasible (a *nogood*): it must keep at least one unit of each. Bounds on that are bounds on hitting sets.
"""

from __future__ import annotations

import heapq
import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.search.problem import to_mask, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hf_headprune.search.problem import GainTable


class ExactGains:
    """Gains of sets as integers, so that equal ones compare equal whatever their order.

    Where tables make the gain no sum, `bound` is one: an upper bound that counts for each unit kept the least that
    keeping it can cost.

    Attributes:
        weights: For each unit the least that keeping it costs of the largest gain; its exact gain where gains add up.
        shares: For each unit what its removal gains on average; positive, to rank candidates by.
        ceiling: Largest gain of any set.
        everything: Bit mask of all units.
    """

    def __init__(self, gains: Sequence[float], tables: Sequence[GainTable] = ()) -> None:
        """Brings all gains to a common denominator."""
        savings = [[Fraction(saved) for saved in table.saved] for table in tables]
        fractions = [Fraction(gain) for gain in gains]
        in_table = {unit for table in tables for unit in itertools.chain(*table.units)}
        denominators = {fraction.denominator for fraction in [*fractions, *itertools.chain(*savings)]}
        self._denominator = math.lcm(*denominators)
        self._alone = [0 if u in in_table else int(gain * self._denominator) for u, gain in enumerate(fractions)]
        weights = list(self._alone)
        self._tables: list[tuple[list[int], np.ndarray]] = []
        self.ceiling = sum(self._alone)
        for table, fractional in zip(tables, savings, strict=True):
            saved = np.array([int(saving * self._denominator) for saving in fractional], dtype=object)
            saved = saved.reshape(table.shape)
            for units, weight in zip(table.units, _least_weights(saved), strict=True):
                for unit in units:
                    weights[unit] = weight
            self._tables.append(([to_mask(units) for units in table.units], saved))
            self.ceiling += saved.max()
        self.weights = tuple(weights)
        self.shares = tuple(float(gain) for gain in gains)
        self.everything = (1 << len(gains)) - 1

    def of(self, mask: int) -> int:
        """Returns the exact gain of a set."""
        joint = sum(saved[tuple((mask & units).bit_count() for units in kinds)] for kinds, saved in self._tables)
        return joint + sum(self._alone[unit] for unit in units_of(mask))

    def bound(self, mask: int) -> int:
        """Returns an upper bound on the gain of a set; the gain itself where gains add up."""
        return self.ceiling - self.kept_weight(self.everything & ~mask)

    def kept_weight(self, kept: int) -> int:
        """Returns the least that keeping some units costs of the ceiling."""
        return sum(self.weights[unit] for unit in units_of(kept))

    def share(self, mask: int) -> float:
        """Returns the sum of the shares of a set."""
        return sum(self.shares[unit] for unit in units_of(mask))

    def value(self, gain: int) -> float:
        """Returns an exact gain in the unit of the gains given."""
        return float(Fraction(gain, self._denominator))


def _least_weights(saved: np.ndarray) -> list[int]:
    """Returns for each axis of a table what keeping one of its units costs at least, beside the axes before it."""
    best = saved
    for axis in range(saved.ndim):
        best = np.maximum.accumulate(best, axis=axis)  # with at most so many removed
    lost = np.flip(best.flat[-1] - best)  # at least, with so many kept
    found: list[int] = []
    for axis in range(saved.ndim):
        kept = np.indices(saved.shape).astype(object)
        rest = lost - sum(weight * kept[place] for place, weight in enumerate(found))
        found.append(min(cost // number for cost, number in zip(rest.flat, kept[axis].flat, strict=True) if number))
    return found


class Nogoods:
    """The smallest sets known to be infeasible: none contains another."""

    def __init__(self) -> None:
        """Starts empty."""
        self.minimal: list[int] = []

    def add(self, mask: int) -> None:
        """Adds an infeasible set. The empty set is left out: no unit can answer for it."""
        if not mask or any(known & ~mask == 0 for known in self.minimal):
            return
        self.minimal = [known for known in self.minimal if mask & ~known]
        self.minimal.append(mask)


def completion_bound(gains: ExactGains, nogoods: Nogoods, removed: int) -> int:
    """Bounds from above what a feasible superset of a set can gain beyond it, under heredity.

    Among nogoods that are pairwise disjoint outside the set, each keeps its cheapest unit at least. Nogoods inside
    the set are left out: they only say that heredity forbids the set itself.
    """
    free = gains.everything & ~removed
    rests = [rest for rest in (nogood & free for nogood in nogoods.minimal) if rest]
    return gains.ceiling - _packing(gains, rests) - gains.of(removed)


def best_consistent(gains: ExactGains, nogoods: Nogoods, *, above: int, max_nodes: int) -> tuple[int, int | None]:
    """Finds the set of the largest gain (by `ExactGains.bound`) that contains no nogood.

    The units that it keeps are a hitting set of the nogoods with the least weight, found best first: the cost so far
    plus the packing bound of the nogoods not yet hit.

    Args:
        gains: Gain of each unit.
        nogoods: Sets known to be infeasible.
        above: Gain that the set must exceed.
        max_nodes: Partial hitting sets to look at.

    Returns:
        An upper bound on the gain, and the set that reaches it; None where no set exceeds `above` or the nodes ran out.
    """
    total = gains.ceiling
    heap = [(_packing(gains, nogoods.minimal), 0, gains.everything)]  # (bound on the weight kept, kept, may be kept)
    for _ in range(max_nodes):
        if not heap:
            return 0, None
        bound, kept, allowed = heapq.heappop(heap)
        if total - bound <= above:
            return total - bound, None
        missed = [nogood & allowed for nogood in nogoods.minimal if not nogood & kept]
        if not missed:
            return total - bound, gains.everything & ~kept
        for unit in units_of(min(missed, key=lambda rest: (rest.bit_count(), rest))):
            allowed &= ~(1 << unit)
            with_unit = kept | 1 << unit
            rests = [nogood & allowed for nogood in nogoods.minimal if not nogood & with_unit]
            if all(rests):
                heapq.heappush(heap, (gains.kept_weight(with_unit) + _packing(gains, rests), with_unit, allowed))
    return total - (heap[0][0] if heap else total), None


def sets_by_gain(gains: ExactGains) -> Iterator[int]:
    """Yields every set once, the largest `ExactGains.bound` first, without holding them all."""
    order = sorted(range(len(gains.weights)), key=lambda unit: (gains.weights[unit], unit))
    yield gains.everything
    heap = [(gains.weights[order[0]], 0, 1 << order[0])]  # (weight kept, last place in the order, units kept)
    while heap:
        weight, place, kept = heapq.heappop(heap)
        yield gains.everything & ~kept
        if place + 1 < len(order):
            last, following = order[place], order[place + 1]
            longer = weight + gains.weights[following]
            heapq.heappush(heap, (longer, place + 1, kept | 1 << following))
            heapq.heappush(heap, (longer - gains.weights[last], place + 1, kept & ~(1 << last) | 1 << following))


def _packing(gains: ExactGains, rests: Sequence[int]) -> int:
    """Bounds the weight of a hitting set from below: disjoint sets each need a unit of their own."""
    used = weight = 0
    for rest in sorted(rests, key=lambda rest: (rest.bit_count(), rest)):
        if not rest & used:
            used |= rest
            weight += min(gains.weights[unit] for unit in units_of(rest))
    return weight
