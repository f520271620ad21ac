"""The sets that wait for expansion, ordered as weighted A* orders them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from hf_headprune.search.bounds import completion_bound
from hf_headprune.search.problem import units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.search.ledger import Evaluated, Ledger
    from hf_headprune.search.settings import SearchTuning

DETOUR_EVERY = 4  # one expansion in so many starts from a set that misses the constraint, while feasible ones wait

_Entry = tuple[float, int, float, int]


class Frontier:
    """Two queues: sets that meet the constraint, and sets that miss it by at most the slack.

    The first is the OPEN list of A*. Under heredity the second would be useless; since heredity is false in practice
    it gets a fixed part of the expansions, so that deep infeasible sets can't starve the feasible ones.

    Attributes:
        weight: w in `f = g + h / w`; `reweigh` changes it.
    """

    def __init__(self, ledger: Ledger, tuning: SearchTuning, groups: Sequence[int] = ()) -> None:
        """Starts empty, with the first weight.

        Args:
            ledger: Of the search.
            tuning: Weights, slack and the bound on waiting sets.
            groups: Bit masks of units that one step may remove together.
        """
        self._groups = tuple(groups)
        self.weight = tuning.heuristic_weights[0]
        self._ledger = ledger
        self._slack = tuning.constraint_slack
        self._limit = tuning.max_open
        self._feasible: list[_Entry] = []
        self._missed: list[_Entry] = []
        self._turn = 0

    def push(self, node: Evaluated) -> None:
        """Lets a set wait; one that misses the constraint by more than the slack is left out."""
        if node.surplus < -self._slack:
            return
        queue = self._feasible if node.feasible else self._missed
        heapq.heappush(queue, self._entry(node))
        if len(queue) > 2 * self._limit:
            ordered = sorted(queue)  # hence a heap
            queue[:] = ordered[: self._limit]
            for *_, mask in ordered[self._limit :]:
                self._ledger.forget(mask)

    def pop(self) -> Evaluated | None:
        """Takes the set to expand next, or None when no waiting set can lead to more than the incumbent."""
        self._turn += 1
        queues = [self._feasible, self._missed]
        if self._turn % DETOUR_EVERY == 0:
            queues.reverse()
        for queue in queues:
            node = self._pop(queue)
            if node is not None:
                return node
        return None

    def reweigh(self, weight: float) -> None:
        """Changes the weight and orders all waiting sets anew."""
        self.weight = weight
        waiting = [entry[-1] for queue in (self._feasible, self._missed) for entry in queue]
        self._feasible, self._missed = [], []
        for mask in waiting:
            self.push(self._ledger.evaluate(mask))

    def children(self, node: Evaluated) -> list[int]:
        """Returns the sets with one more unit or group removed that have not been evaluated."""
        free = units_of(self._ledger.gains.everything & ~node.mask)
        larger = dict.fromkeys([node.mask | 1 << unit for unit in free] + [node.mask | group for group in self._groups])
        return [mask for mask in larger if mask not in self._ledger and mask != node.mask]

    def _pop(self, queue: list[_Entry]) -> Evaluated | None:
        while queue:
            entry = heapq.heappop(queue)
            node = self._ledger.evaluate(entry[-1])
            if (queue is self._feasible) != node.feasible:  # a confirmation has turned the estimate
                self.push(node)
                continue
            fresh = self._entry(node)
            if fresh > entry:  # the estimate fell since the set was pushed
                heapq.heappush(queue, fresh)
            elif -fresh[0] > self._ledger.incumbent.gain:
                return node
            else:
                heapq.heappush(queue, fresh)
                return None
        return None

    def _entry(self, node: Evaluated) -> _Entry:
        """Returns the place in the queue: `-(g + h / w)`, then the deeper, the better, the mask.

        For feasible sets h is admissible under heredity. For the others it counts the children not yet tried, the
        less the more the set misses.
        """
        if node.feasible:
            hope = completion_bound(self._ledger.gains, self._ledger.nogoods, node.mask) / self.weight
        else:
            untried = sum(self._ledger.gains.of(mask ^ node.mask) for mask in self.children(node))
            hope = untried / self.weight * (1 + node.surplus / self._slack)
        return -(node.gain + hope), -node.gain, -node.measurement.metric, node.mask
