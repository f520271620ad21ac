"""What a search may claim about its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_headprune.search.bounds import best_consistent, sets_by_gain
from hf_headprune.search.information import non_finite_words, tell
from hf_headprune.search.problem import SearchResult, units_of

if TYPE_CHECKING:
    from hf_headprune.search.ledger import Ledger
    from hf_headprune.search.problem import Optimality

BOUND_NODES = 2000  # partial hitting sets that a bound under heredity may take


def _optimality(ledger: Ledger) -> tuple[Optimality, int]:
    """Returns what is proved about the incumbent, and an upper bound on the gain."""
    best = ledger.incumbent.gain
    for mask in sets_by_gain(ledger.gains):
        if ledger.gains.bound(mask) <= best:
            return "proved", best
        if ledger.gains.of(mask) > best and not ledger.is_settled(mask):
            break
    else:
        return "proved", best
    bound, _ = best_consistent(ledger.gains, ledger.nogoods, above=best, max_nodes=BOUND_NODES)
    return ("under heredity", best) if bound <= best else ("budget", bound)


def result_of(ledger: Ledger) -> SearchResult:
    """Returns what a search found, and what it may claim."""
    best = ledger.incumbent
    optimality, bound = _optimality(ledger)
    doubts = non_finite_words(ledger.non_finite, len(ledger) - 1, found_any=best is not ledger.reference)
    tell(doubts)
    return SearchResult(
        removed=frozenset(units_of(best.mask)),
        measurement=best.measurement,
        reference=ledger.reference.measurement,
        threshold=ledger.threshold,
        gain=ledger.gains.value(best.gain),
        evaluations=len(ledger),
        history=tuple(ledger.history),
        optimality=optimality,
        upper_bound=ledger.gains.value(bound),
        non_finite=ledger.non_finite,
        warnings=ledger.warnings + doubts,
    )
