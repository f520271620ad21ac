"""Exact sums of gains, and what heredity proves about sets that were never evaluated.

Heredity says that every subset of a feasible set is feasible. Then a feasible set contains no set that was found
infeasible (a *nogood*): it must keep at least one unit of each. Bounds on that are bounds on hitting sets.
"""

from __future__ import annotations

import heapq
import math
from fractions import Fraction
from typing import TYPE_CHECKING

from hf_headprune.search.problem import units_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class ExactGains:
    """Sums of gains as integers, so that equal sums compare equal whatever their order.

    Attributes:
        weights: Integer gain of each unit.
        everything: Bit mask of all units.
    """

    def __init__(self, gains: Sequence[float]) -> None:
        """Brings all gains to a common denominator."""
        fractions = [Fraction(gain) for gain in gains]
        self._denominator = math.lcm(*(fraction.denominator for fraction in fractions))
        self.weights = tuple(int(fraction * self._denominator) for fraction in fractions)
        self.everything = (1 << len(gains)) - 1

    def of(self, mask: int) -> int:
        """Returns the exact gain of a set."""
        return sum(self.weights[unit] for unit in units_of(mask))

    def value(self, gain: int) -> float:
        """Returns an exact gain in the unit of the gains given."""
        return float(Fraction(gain, self._denominator))


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
    return gains.of(free) - _packing(gains, rests)


def best_consistent(gains: ExactGains, nogoods: Nogoods, *, above: int, max_nodes: int) -> tuple[int, int | None]:
    """Finds the set of the largest gain that contains no nogood.

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
    total = gains.of(gains.everything)
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
                heapq.heappush(heap, (gains.of(with_unit) + _packing(gains, rests), with_unit, allowed))
    return total - (heap[0][0] if heap else total), None


def sets_by_gain(gains: ExactGains) -> Iterator[int]:
    """Yields every set once, the largest gain first, without holding them all."""
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
