"""Anytime A* over sets of removed units. It knows sets and a function that measures them, never a model.

Prior art that this formulation stays clear of: the method of arXiv 2110.15225 is patented (US 12,417,357 B1). It
carries the accuracy cost of each head over to the next iteration and recomputes only those heads whose carried cost
is under the remaining budget. Here feasibility is a property of whole sets, each measured on its own; no unit is ever
excluded, and what earlier sets showed only orders the candidates.
"""

from __future__ import annotations

import dataclasses
import logging
from itertools import accumulate, chain
from operator import or_
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.errors import InvalidSettingError
from hf_headprune.search.bounds import best_consistent, sets_by_gain
from hf_headprune.search.claims import BOUND_NODES, result_of
from hf_headprune.search.frontier import Frontier
from hf_headprune.search.information import same_number
from hf_headprune.search.journal import Journal, fingerprint_of, set_aside
from hf_headprune.search.ledger import BudgetSpent, Ledger
from hf_headprune.search.problem import Question, surplus_over, to_mask, units_of
from hf_headprune.search.surrogate import Surrogate

if TYPE_CHECKING:
    from pathlib import Path

    from hf_headprune.search.ledger import Evaluated
    from hf_headprune.search.problem import OnProgress, SearchProblem, SearchResult
    from hf_headprune.search.settings import AStarSearch

logger = logging.getLogger(__name__)

MAX_PROVABLE_UNITS = 24
TENTATIVE_REACH = 4  # units by which a set may differ from its base for an estimate to be worth its confirmation
SWAP_RESTORES = 16
SWAP_REMOVALS = 6
EXPANSION_WIDTH = 6  # sets evaluated each time a set is expanded, the most promising ones first
EXPLORATION = 1  # sets evaluated beside those at random: they audit the order
# A search may be continued with a larger budget; what is measured says which way is better, and the gains at which
# lengths they were counted.
NOT_IN_COURSE = ("max_evaluations", "max_seconds")
TUNING_NOT_IN_COURSE = ("greater_is_better", "seq_len", "target_len")


def search(
    problem: SearchProblem,
    settings: AStarSearch,
    *,
    journal: Path | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """Finds the set of removed units with the largest gain whose metric drops by at most `max_drop` from the start's.

    The set returned was evaluated; the start itself is returned where nothing better was found. The same problem,
    settings and seed give the same result, also when the search was killed and started again with its journal, which
    spares every evaluation already made. A search may be continued with a larger `max_evaluations`.

    Args:
        problem: Units and the function that measures sets of them.
        settings: Constraint, objective and budget.
        journal: File that holds the state; made where it does not exist. None keeps no state.
        on_progress: Called after each evaluation.

    Raises:
        InvalidSettingError: No budget is given for too many units, a measurement is malformed, or that of the start
            says nothing.
        SearchStateError: The journal belongs to another search or is damaged.
    """
    ledger = opened_ledger(problem, settings, journal, on_progress)
    run = _Run(problem, settings, ledger)
    try:
        run.first_answers()
        run.improve()
        run.close()
    except BudgetSpent:
        ledger.settle()
    return result_of(ledger)


def opened_ledger(
    problem: SearchProblem,
    settings: AStarSearch,
    journal: Path | None,
    on_progress: OnProgress | None,
    *,
    algorithm: str = "A*",
) -> Ledger:
    """Returns what a search starts from: its start evaluated, and its journal read and compared with what is measured.

    A journal whose numbers no longer come out is set aside, and the search begins anew.

    Raises:
        InvalidSettingError: No budget is given for too many units, a measurement is malformed, or that of the start
            says nothing.
        SearchStateError: The journal belongs to another search or is damaged.
    """
    check_provable(problem.num_units, settings)
    opened = None
    if journal is not None:
        fingerprint = _fingerprint(problem, settings, algorithm)
        opened = Journal(journal, fingerprint)
        changed = _changed(problem, settings, opened)
        if changed:
            logger.warning(
                "%s: the journal is kept as %s and the search begins anew, since what it measures has changed: %s.",
                journal,
                set_aside(journal).name,
                changed,
            )
            opened = Journal(journal, fingerprint)
    return Ledger(problem, settings, journal=opened, on_progress=on_progress)


def check_provable(num_units: int, settings: AStarSearch) -> None:
    """Sees that a search without a budget comes to an end.

    Raises:
        InvalidSettingError: No budget is given for too many units.
    """
    if (settings.max_evaluations, settings.max_seconds) == (None, None) and num_units > MAX_PROVABLE_UNITS:
        raise InvalidSettingError(
            f"search: max_evaluations=None asks for a proof, which takes up to 2^n evaluations; at most "
            f"{MAX_PROVABLE_UNITS} units allow it, received {num_units}. Give a number of evaluations, or max_seconds."
        )


class _Run:
    """One search: first answers along a path, weighted A* from there, and the proof at the end."""

    def __init__(self, problem: SearchProblem, settings: AStarSearch, ledger: Ledger) -> None:
        self._settings = settings
        self._tuning = settings.tuning
        self._ledger = ledger
        self._order = problem.order
        self._rng = np.random.default_rng(settings.seed)
        self._surrogate = Surrogate(ledger.gains, problem.order, self._rng)
        self._frontier = Frontier(ledger, self._tuning, [to_mask(group) for group in problem.groups])
        self._floor = ledger.threshold - self._tuning.constraint_slack
        self._frontier.push(ledger.reference)
        self._leapt: set[int] = set()

    def first_answers(self) -> None:
        """Finds feasible sets soon: a bisection along the order given, then one along the surrogate's greedy path."""
        start = self._ledger.reference
        if self._order is not None:
            left = [1 << unit for unit in self._order if not start.mask >> unit & 1]
            self._bisect([start.mask | removed for removed in accumulate(left, or_)])
        self._evaluate_all([start.mask | 1 << unit for unit in self._singles()], start)
        self._bisect(self._surrogate.path(start))

    def improve(self) -> None:
        """Runs weighted A* for each weight until no open set can beat the incumbent under heredity.

        What is left of the budget goes to neighbours of the incumbent, from which A* goes on.
        """
        for weight in self._tuning.heuristic_weights:
            self._frontier.reweigh(weight)
            self._drain()
        while not self._can_afford_the_rest() and (neighbours := self._neighbours(self._ledger.incumbent)):
            self._evaluate_best(self._ledger.incumbent, neighbours)
            self._leap()
            self._drain()

    def close(self) -> None:
        """Evaluates what could still beat the incumbent: first what heredity allows, then, if affordable, the rest."""
        ledger = self._ledger
        while True:
            bound, mask = best_consistent(
                ledger.gains, ledger.nogoods, above=ledger.incumbent.gain, max_nodes=BOUND_NODES
            )
            if mask is None and bound > ledger.incumbent.gain and not self._can_afford_the_rest():
                return
            if mask is None or ledger.is_settled(mask):  # the latter where joint savings make the bound no gain
                break
            self._decide(mask)
        if self._can_afford_the_rest():
            for mask in sets_by_gain(ledger.gains):
                if ledger.gains.bound(mask) <= ledger.incumbent.gain:
                    return
                if ledger.gains.of(mask) > ledger.incumbent.gain:
                    self._decide(mask)

    def _decide(self, mask: int) -> None:
        """Finds out for certain whether a set is feasible."""
        self._evaluate(mask, self._ledger.incumbent)
        self._ledger.confirm(mask)

    def _singles(self) -> list[int]:
        """Returns the units to remove one at a time where nothing is known of them, on at most half of the budget."""
        if self._order is not None:
            return []
        limit = self._settings.max_evaluations
        units = self._surrogate.prior_order(self._ledger.reference.mask)
        return units if limit is None else units[: limit // 2]

    def _bisect(self, path: list[int]) -> None:
        low, high = -1, len(path)
        while high - low > 1:
            middle = (low + high) // 2
            if self._evaluate(path[middle], self._ledger.reference).feasible:
                low = middle
            else:
                high = middle
        self._ledger.settle()

    def _drain(self) -> None:
        """Expands open sets until none can beat the incumbent under heredity."""
        frontier = self._frontier
        while (node := frontier.pop()) is not None:
            is_best = node is self._ledger.incumbent
            self._evaluate_best(node, self._neighbours(node) if is_best else frontier.children(node))
            self._leap()
            if frontier.children(node):
                frontier.push(node)

    def _leap(self) -> None:
        """Goes on from the best set along the greedy path, two units first, then twice as far while it holds.

        Only what is best after that is confirmed: confirmations look at every example, and most of the search's time
        would go into them.
        """
        leader = self._ledger.leader
        if leader.mask not in self._leapt:
            self._leapt.add(leader.mask)
            path = self._surrogate.path(leader)
            place = 1
            while place < len(path) and self._evaluate(path[place], leader).feasible:
                place = 2 * place + 1
        self._ledger.settle()

    def _evaluate_best(self, node: Evaluated, targets: list[int]) -> None:
        """Evaluates the most promising neighbours of a set, and a few at random."""
        ranked = self._surrogate.ranked(node, targets)
        chosen, others = ranked[:EXPANSION_WIDTH], ranked[EXPANSION_WIDTH:]
        count = min(EXPLORATION, len(others))
        chosen += [others[i] for i in sorted(self._rng.choice(len(others), size=count, replace=False))]
        self._evaluate_all(chosen, node)

    def _evaluate_all(self, masks: list[int], base: Evaluated) -> None:
        """Evaluates sets near another, and learns from them."""
        for mask in masks:
            self._surrogate.learn(base, self._evaluate(mask, base))

    def _neighbours(self, node: Evaluated) -> list[int]:
        return self._swaps(node) + self._frontier.children(node)

    def _swaps(self, node: Evaluated) -> list[int]:
        """Returns sets that restore one unit of a set and remove one or two others, and gain more than it."""
        free = self._surrogate.prior_order(node.mask)
        singles = [node.mask | 1 << unit for unit in free]
        best = [mask & ~node.mask for mask in self._surrogate.ranked(node, singles)[:SWAP_REMOVALS]]
        added = [first | second for place, first in enumerate(best) for second in best[place:]]
        removed = list(units_of(node.mask))
        self._rng.shuffle(removed)
        swaps = {node.mask & ~(1 << unit) | units for unit in removed[:SWAP_RESTORES] for units in added}
        gains = self._ledger.gains
        return sorted(mask for mask in swaps if mask not in self._ledger and gains.of(mask) > node.gain)

    def _evaluate(self, mask: int, base: Evaluated) -> Evaluated:
        """Evaluates a set as far as it matters: one below the slack is never expanded, only an incumbent is exact."""
        is_new = mask not in self._ledger
        question = None
        if is_new and base.measurement.margins is not None:
            is_near = (mask ^ base.mask).bit_count() <= TENTATIVE_REACH
            expected = self._surrogate.expected(base, mask)
            question = Question(expected, self._floor, tentative=is_near)
        evaluated = self._ledger.evaluate(mask, question)
        if is_new:
            self._frontier.push(evaluated)
        return evaluated

    def _can_afford_the_rest(self) -> bool:
        """Tells whether every set that gains more than the incumbent can still be evaluated."""
        ledger = self._ledger
        if ledger.remaining is None:
            return ledger.gains.everything.bit_count() <= MAX_PROVABLE_UNITS
        missing = 0
        for mask in sets_by_gain(ledger.gains):
            if ledger.gains.bound(mask) <= ledger.incumbent.gain:
                return True
            missing += ledger.gains.of(mask) > ledger.incumbent.gain and mask not in ledger
            if missing > ledger.remaining:
                return False
        return True


def _changed(problem: SearchProblem, settings: AStarSearch, journal: Journal) -> str:
    """Measures the start and the best set of a journal anew, and says which differs from the journal, if one does."""
    start = problem.with_implied(to_mask(problem.start))
    if start not in journal.exact:
        return ""
    threshold = journal.exact[start] - settings.max_drop
    saved = {mask: sum(problem.gains[unit] for unit in units_of(mask)) for mask in journal.exact}
    kept = [mask for mask, metric in journal.exact.items() if surplus_over(threshold, metric) >= 0]
    for mask in dict.fromkeys((start, max(kept, key=saved.__getitem__, default=start))):
        metric = problem.measure(frozenset(units_of(mask))).metric
        if not same_number(metric, journal.exact[mask]):
            name = "the reference" if mask == start else "the best plan"
            return f"{name} measured {journal.exact[mask]:.6g} then and {metric:.6g} now"
    return ""


def _fingerprint(problem: SearchProblem, settings: AStarSearch, algorithm: str) -> str:
    course = dataclasses.asdict(settings)
    for name in NOT_IN_COURSE:
        del course[name]
    for name in TUNING_NOT_IN_COURSE:
        del course["tuning"][name]
    return fingerprint_of(
        {
            "gains": [str(gain) for gain in problem.gains],
            "tables": [[*chain(*table.units), *map(str, table.saved)] for table in problem.tables],
            "groups": [sorted(group) for group in problem.groups],
            "algorithm": algorithm,
            "probe": problem.probe is not None,
            "start": sorted(problem.start),
            "order": problem.order,
            "settings": course,
            "measured": problem.fingerprint,
        }
    )
