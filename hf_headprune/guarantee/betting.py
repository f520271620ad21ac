"""Test that a mean score in [0, 1] dropped by less than epsilon, by betting on paired differences.

A gambler bets against "the drop is at least epsilon". Under it, the wealth

    W_t = mean over bets k of prod_{i <= t} (1 + k (epsilon - d_i)),    d_i = dense score - pruned score

is a non-negative supermartingale from 1, so that it ever exceeds 1 / alpha with a probability of at most alpha (Ville).
One over the largest wealth is a p-value, exact for every n and every distribution. Groups of examples come in an order
that depends on their sizes: the largest has the first example more often. Their p-value is one over the last wealth,
which depends on no order (Markov).

Source:
    Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024), arXiv
    2010.09686; bets are constants side by side (their diversified Kelly), which needs no estimate of the variance.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from hf_headprune.errors import InvalidSettingError

NUM_BETS = 24
SMALLEST_BET, LARGEST_BET = 0.01, 0.95  # share of the largest bet that can't ruin the gambler
BOUND_TOLERANCE = 1e-6


def cluster_sums(differences: np.ndarray, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Adds up the differences of examples that share a group, such as the questions on one paragraph.

    Args:
        differences: Shape `(n,)`.
        groups: Group of each example, shape `(n,)`; None makes each example its own group.

    Returns:
        Sums and sizes of the groups in the order of their first examples, each divided by the largest size.
    """
    if groups is None:
        return differences, np.ones(len(differences))
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    sizes = np.bincount(rank[inverse]).astype(np.float64)
    return np.bincount(rank[inverse], weights=differences) / sizes.max(), sizes / sizes.max()


def betting_p_value(differences: np.ndarray, epsilon: float, groups: np.ndarray | None = None) -> float:
    """Returns the p-value of "the drop is at least epsilon".

    Args:
        differences: Dense score minus pruned score in [-1, 1], shape `(n,)`, in an order that was fixed before any
            score was known, such as that of the examples' fingerprints.
        epsilon: Drop that is to be excluded, in (-1, 1).
        groups: Group of each example, `(n,)`, where examples of one group depend on each other. Groups are then the
            independent units, and the largest one here is taken for the largest there is.

    Raises:
        InvalidSettingError: A difference or epsilon is out of range.
    """
    _check(differences, epsilon)
    sums, sizes = cluster_sums(differences, groups)
    bets = _bets(epsilon)
    gains = np.cumsum(np.log1p(bets[:, None] * (epsilon * sizes - sums)), axis=1)  # (num_bets, num_units)
    wealth = logsumexp(gains, axis=0) - np.log(NUM_BETS)
    return float(min(1.0, np.exp(-(wealth.max() if groups is None else wealth[-1]))))


def examples_without_change(epsilon: float, alpha: float) -> int:
    """Returns how many independent examples exclude a drop, with a p-value of at most alpha, where no score changes.

    Args:
        epsilon: Drop that is to be excluded, in (0, 1).
        alpha: Level.
    """
    growth = np.log1p(epsilon * _bets(epsilon))  # of each bet by one more example

    def excess(examples: float) -> float:
        return float(logsumexp(examples * growth) - np.log(NUM_BETS) + np.log(alpha))

    enough = (np.log(NUM_BETS) - np.log(alpha)) / growth.max()  # for the boldest bet alone
    return math.ceil(brentq(excess, 0.0, enough, xtol=BOUND_TOLERANCE))


def _bets(epsilon: float) -> np.ndarray:
    return np.geomspace(SMALLEST_BET, LARGEST_BET, NUM_BETS) / max(1.0, 1.0 - epsilon)


def betting_upper_bound(differences: np.ndarray, alpha: float, groups: np.ndarray | None = None) -> float:
    """Returns the upper confidence bound on the drop: larger drops are excluded at level alpha.

    Args:
        differences: As in `betting_p_value`.
        alpha: One minus the confidence.
        groups: As in `betting_p_value`.

    Returns:
        Rounded up to a millionth, and never below the drop seen; 1.0 where nothing is excluded.
    """
    low, high = max(float(np.mean(differences)), -1.0 + BOUND_TOLERANCE), 1.0 - BOUND_TOLERANCE
    if betting_p_value(differences, high, groups) > alpha:
        return 1.0
    found = low
    if betting_p_value(differences, low, groups) > alpha:  # else the gambler was rich enough on the way already
        found = brentq(
            lambda epsilon: betting_p_value(differences, epsilon, groups) - alpha, low, high, xtol=BOUND_TOLERANCE / 4
        )
    return float(np.ceil(found / BOUND_TOLERANCE + 0.25) * BOUND_TOLERANCE)


def _check(differences: np.ndarray, epsilon: float) -> None:
    if differences.ndim != 1 or len(differences) == 0 or not (np.abs(differences) <= 1).all():
        raise InvalidSettingError(
            "betting test: differences must be a non-empty array (n,) of numbers in [-1, 1], received shape "
            f"{differences.shape}, largest {np.abs(differences).max(initial=0)}. Scale the scores to [0, 1]."
        )
    if not -1 < epsilon < 1:
        raise InvalidSettingError(f"betting test: epsilon must be in (-1, 1), received {epsilon}. Pass 0.01 for 1 %.")
