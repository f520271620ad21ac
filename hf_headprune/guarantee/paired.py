"""Exact test that a model's accuracy dropped by less than epsilon, from paired right and wrong answers.

Of n independent examples, b are regressions (the dense model is right, the pruned one wrong) and c improvements (the
other way round). The drop is delta = p_b - p_c. The test rejects "the drop is at least epsilon" where the score
statistic

    z(b, c) = (b - c - n epsilon) / sqrt(n (2 p_c + epsilon (1 - epsilon)))

is small; p_c is the maximum-likelihood estimate under delta = epsilon. Its p-value is not the normal tail, which is too
small by up to a factor of two, but the exact trinomial probability of a z at most as large, maximised over the unknown
disagreement q = p_b + p_c. The maximum over all drops of at least epsilon lies at epsilon, since z rises with b and
falls with c.

Source:
    Tango, Statistics in Medicine 17 (1998), for z; Hsueh, Liu and Chen, Biometrics 57 (2001), for the exact
    unconditional test ordered by it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtr, gammaln

from hf_headprune.errors import InvalidSettingError

GRID_POINTS = 1500
POINTS_PER_DEVIATION = 10  # grid points per standard deviation of the estimated disagreement
NUMERIC_SLACK = 0.02  # share of alpha that is given away for the distance between grid points
BOUND_TOLERANCE = 1e-6
_TAIL_DEVIATIONS = 8.0  # the binomial outside of it holds less than 1e-12, see _window
_CHUNK = 200_000  # entries of a work array
_TIE = 1e-9


def level_of(alpha: float) -> float:
    """Returns the level to reject at, so that the error stays below alpha though the nuisance runs on a grid."""
    return alpha * (1.0 - NUMERIC_SLACK)


def score_statistic(regressions: np.ndarray, improvements: np.ndarray, n: int, epsilon: float) -> np.ndarray:
    """Returns z for arrays of counts of any one shape.

    Args:
        regressions: Examples that only the dense model gets right.
        improvements: Examples that only the pruned model gets right.
        n: Examples.
        epsilon: Drop under the hypothesis, in (-1, 1).
    """
    b, c = np.asarray(regressions, dtype=np.float64), np.asarray(improvements, dtype=np.float64)
    half = ((2 * n - b + c) * epsilon - b - c) / (4 * n)  # p^2 + 2 half p + ... = 0
    root = np.sqrt(np.maximum(half**2 + c * epsilon * (1 - epsilon) / (2 * n), 0.0))
    rate = np.clip(root - half, max(0.0, -epsilon), 1.0)
    variance = n * (2 * rate + epsilon * (1 - epsilon))
    distance = b - c - n * epsilon
    return np.where(variance > 0, distance / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)


def p_value(regressions: int, improvements: int, n: int, epsilon: float) -> float:
    """Returns the exact p-value of "the drop is at least epsilon".

    Args:
        regressions: Examples that only the dense model gets right.
        improvements: Examples that only the pruned model gets right.
        n: Examples.
        epsilon: Drop that is to be excluded, in (-1, 1).

    Raises:
        InvalidSettingError: The counts or epsilon are out of range.
    """
    _check(regressions, improvements, n, epsilon)
    return size_of(float(score_statistic(np.array(regressions), np.array(improvements), n, epsilon)), n, epsilon)


def upper_bound(regressions: int, improvements: int, n: int, alpha: float) -> float:
    """Returns the upper confidence bound on the drop: every larger drop is excluded at level alpha.

    Args:
        regressions: Examples that only the dense model gets right.
        improvements: Examples that only the pruned model gets right.
        n: Examples.
        alpha: One minus the confidence.

    Returns:
        Rounded up to a millionth; negative where the data show a gain.
    """
    _check(regressions, improvements, n, 0.0)
    level = level_of(alpha)
    low, high = (regressions - improvements) / n, 1.0 - BOUND_TOLERANCE
    if low >= high or p_value(regressions, improvements, n, high) > level:
        return 1.0
    step = 3.0 * math.sqrt(regressions + improvements + 4.0) / n  # brackets the bound, so that few points are tried
    if low + step < high and p_value(regressions, improvements, n, low + step) <= level:
        high = low + step
    low = max(low, -1.0 + BOUND_TOLERANCE)
    if p_value(regressions, improvements, n, low) <= level:
        return low
    found = brentq(
        lambda epsilon: p_value(regressions, improvements, n, epsilon) - level, low, high, xtol=BOUND_TOLERANCE / 4
    )
    return math.ceil(found / BOUND_TOLERANCE + 0.25) * BOUND_TOLERANCE  # the root is known to a quarter


def regressions_to_spare(regressions: int, improvements: int, n: int, epsilon: float, alpha: float) -> int:
    """Returns how many further regressions leave the drop certified; -1 where it is not certified now."""
    level = level_of(alpha)
    low, high = -1, n - regressions - improvements + 1  # holds at low, fails at high
    step = 1
    while low + step < high:
        if p_value(regressions + low + step, improvements, n, epsilon) > level:
            high = low + step
            break
        low, step = low + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        certified = p_value(regressions + middle, improvements, n, epsilon) <= level
        low, high = (middle, high) if certified else (low, middle)
    return low


@lru_cache(maxsize=4096)
def critical_value(n: int, epsilon: float, level: float, *, points: int = GRID_POINTS) -> float:
    """Returns a z at and below which every outcome has a p-value of at most `level`.

    Found by bisection to 1e-4, with few points to 1e-3: outcomes that lie so close above the true one are not counted,
    which errs on the safe side.
    """
    low, high, tolerance = -8.0, 0.0, 1e-3 if points < GRID_POINTS else 1e-4
    if size_of(low, n, epsilon, points=points) > level:
        return -math.inf
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if size_of(middle, n, epsilon, points=points) <= level else (low, middle)
    return low


@lru_cache(maxsize=65536)
def size_of(critical: float, n: int, epsilon: float, *, points: int = GRID_POINTS) -> float:
    """Returns the largest probability of z at most `critical` under a drop of epsilon, over all disagreements."""
    limits = rejection_limits(critical, n, epsilon)
    # Equal steps of this angle are equal shares of a standard deviation of the estimated disagreement.
    count = points if points < GRID_POINTS else max(points, math.ceil(POINTS_PER_DEVIATION * math.pi * math.sqrt(n)))
    first = math.asin(math.sqrt(abs(epsilon)))
    angles = np.linspace(first, math.pi / 2, count)
    tails = tail_probabilities(limits, n, np.sin(angles) ** 2, epsilon)
    best = angles[np.argmax(tails)]
    step = angles[1] - angles[0]
    near = np.clip(np.linspace(best - step, best + step, 21), first, math.pi / 2)
    refined = tail_probabilities(limits, n, np.sin(near) ** 2, epsilon)
    return float(min(1.0, max(tails.max(), refined.max())))


def tail_probabilities(limits: np.ndarray, n: int, disagreements: np.ndarray, drop: float) -> np.ndarray:
    """Returns the probability that B <= limits[B + C], for each disagreement.

    Args:
        limits: Largest counted b for each number of disagreeing examples, shape `(n + 1,)`; -1 where none is.
        n: Examples.
        disagreements: Values of p_b + p_c, shape `(num_disagreements,)`, each at least `abs(drop)`.
        drop: p_b - p_c.

    Returns:
        Shape `(num_disagreements,)`, exact but for 1e-11.
    """
    chances = np.clip(np.asarray(disagreements, dtype=np.float64), 1e-15, 1 - 1e-15)
    shares = np.clip((chances + drop) / (2 * chances), 1e-15, 1 - 1e-15)  # of regressions among disagreeing examples
    totals = np.arange(n + 1)
    sums = gammaln(n + 1.0) - gammaln(totals + 1.0) - gammaln(n - totals + 1.0)
    counted = np.maximum(limits, 0)
    ways = gammaln(totals + 1.0) - gammaln(counted + 1.0) - gammaln(totals - counted + 1.0)
    starts, widths = _window(chances, n)
    result = np.empty(len(chances))
    order = np.argsort(widths)
    while len(order):
        size = 1  # rows of similar width share one work array
        while size < len(order) and (size + 1) * widths[order[size]] <= _CHUNK:
            size = min(len(order), 2 * size)
        rows, order = order[:size], order[size:]
        columns = np.minimum(starts[rows, None] + np.arange(widths[rows].max()), n)  # (rows, width)
        inside = np.diff(columns, axis=1, prepend=-1) > 0
        chance, share = chances[rows, None], shares[rows, None]
        weight = np.exp(sums[columns] + columns * np.log(chance) + (n - columns) * np.log1p(-chance)) * inside
        result[rows] = (weight * _conditional(limits, ways, columns, share)).sum(axis=1)
    return result


def _conditional(limits: np.ndarray, ways: np.ndarray, columns: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns P(B <= limits[D] | D) at the numbers D of disagreeing examples in `columns`, `(rows, width)`.

    The first column is a binomial distribution function; each next one follows from its neighbour by single terms,
    since F(b; D + 1) = F(b; D) - share f(b; D), and b rises by none or one: z rises with b and falls with c.
    """
    limit = limits[columns]
    counted = np.maximum(limit, 0)
    term = np.exp(ways[columns] + counted * np.log(share) + (columns - counted) * np.log1p(-share)) * (limit >= 0)
    rise = np.diff(limit, axis=1)
    moved = np.diff(columns, axis=1) > 0
    steps = np.where(moved, np.where(rise > 0, term[:, 1:], 0.0) - share * term[:, :-1], 0.0)
    first = bdtr(counted[:, 0].astype(np.float64), columns[:, 0], share[:, 0]) * (limit[:, 0] >= 0)
    return np.concatenate([first[:, None], first[:, None] + np.cumsum(steps, axis=1)], axis=1)


def _window(chances: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns first numbers and widths of the ranges that hold all but 1e-12 of the binomials, by Bernstein's bound."""
    reach = _TAIL_DEVIATIONS * np.sqrt(n * chances * (1 - chances)) + 20.0
    starts = np.maximum(0, np.floor(n * chances - reach)).astype(np.int64)
    ends = np.minimum(n, np.ceil(n * chances + reach)).astype(np.int64)
    return starts, ends - starts + 1


def rejection_limits(critical: float, n: int, epsilon: float) -> np.ndarray:
    """Returns for each number D of disagreeing examples the largest b with z(b, D - b) <= critical, or -1."""
    totals = np.arange(n + 1)
    low, high = np.full(n + 1, -1), totals.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        holds = score_statistic(middle, totals - middle, n, epsilon) <= critical + _TIE
        low, high = np.where(holds, np.maximum(middle, low), low), np.where(holds, high, middle - 1)
    return low


def _check(regressions: int, improvements: int, n: int, epsilon: float) -> None:
    counts_hold = min(regressions, improvements) >= 0 and regressions + improvements <= n and n >= 1
    if not counts_hold or not -1 < epsilon < 1:
        raise InvalidSettingError(
            "paired test: regressions and improvements must be counts with regressions + improvements <= n, n at least "
            f"1 and epsilon in (-1, 1), received {regressions} and {improvements}, n {n}, epsilon {epsilon}. Pass "
            "counts of examples, and 0.01 for one percentage point."
        )
