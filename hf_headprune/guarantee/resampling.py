"""Bootstrap of the drop of a metric that is no mean over examples: an approximation, not finite-sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import bootstrap

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Callable

RESAMPLES = 2000
LEAST_DISAGREEING = 10  # rows that differ, for a bootstrap of them alone to mean anything, and for a FAIL
ROUND_OFF = 1e-9  # of the difference of two metrics
MOST_CHANGES = 2000  # of an answer, among which the worst is looked for
LABEL_AND_ANSWER = 2  # numbers in a row of a classifier


def resampled_drops(
    dense: np.ndarray,
    pruned: np.ndarray,
    aggregate: Callable[[np.ndarray], float],
    *,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Draws examples with replacement, the same ones for both models, and returns the drop of the metric in each draw.

    Args:
        dense: What the metric needs of each example, such as (gold, predicted), `(n, ...)`.
        pruned: The same of the pruned model.
        aggregate: Metric of such rows; higher is better.
        seed: Of the draws.
        groups: Group of each example, `(n,)`: whole groups are drawn.

    Returns:
        Ascending, shape `(RESAMPLES,)`.

    Raises:
        InvalidSettingError: The metric is no number in a draw.
    """
    members = [np.array([i]) for i in range(len(dense))] if groups is None else _members(groups)

    def drop(units: np.ndarray) -> float:
        rows = np.concatenate([members[unit] for unit in units])
        metrics = float(aggregate(dense[rows])), float(aggregate(pruned[rows]))
        if not np.isfinite(metrics).all():
            raise InvalidSettingError(
                f"bootstrap: the metric must be a number whatever examples are drawn, received {metrics[0]} and "
                f"{metrics[1]} for a draw, such as one without a class. Let it return a number there, too."
            )
        return metrics[0] - metrics[1]

    result = bootstrap(
        (np.arange(len(members)),),
        drop,
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return np.sort(result.bootstrap_distribution)


def one_answer_worse(
    dense: np.ndarray, pruned: np.ndarray, aggregate: Callable[[np.ndarray], float]
) -> np.ndarray | None:
    """Returns the rows of the pruned model with one answer more that differs: the one that lowers the metric most.

    A bootstrap of few differences is too sure. With one difference more it is as careful as the exact bound on a share
    (Clopper and Pearson 1934) at levels of 5 % and above: where D answers got worse, and k would be too many, its
    p-value is about P(Poisson(D + 1) >= k), and the exact one P(Poisson(k) <= D). Far below that level it is smaller:
    about half of an exact .005.

    Args:
        dense: Label and predicted class of each example, `(n, 2)`.
        pruned: The same of the pruned model.
        aggregate: Metric of such rows; higher is better.

    Returns:
        None where rows are no such pairs, there are too many ways to change one, or none lowers the metric.
    """
    if pruned.shape[1:] != (LABEL_AND_ANSWER,) or (dense[:, 0] != pruned[:, 0]).any():
        return None
    same = np.flatnonzero((dense == pruned).all(axis=1))
    kinds, firsts = np.unique(pruned[same], axis=0, return_index=True)
    answers = np.unique(np.concatenate([dense, pruned]))  # labels are answers that there are, too
    if not same.size or len(kinds) * len(answers) > MOST_CHANGES:
        return None
    worst, lowest = None, float(aggregate(pruned))
    for kind, row in zip(kinds, same[firsts], strict=True):
        for answer in answers[answers != kind[1]]:
            changed = pruned.copy()
            changed[row, 1] = answer
            if (value := float(aggregate(changed))) < lowest:
                worst, lowest = changed, value
    return worst


def bootstrap_p_value(drops: np.ndarray, epsilon: float) -> float:
    """Returns the share of draws that drop by epsilon or more, up to rounding; the data themselves count as one."""
    return float((1 + np.count_nonzero(drops >= epsilon - ROUND_OFF)) / (1 + len(drops)))


def bootstrap_upper_bound(drops: np.ndarray, alpha: float) -> float:
    """Returns the percentile bound: the largest draw that is not excluded at level alpha; 1.0 where nothing is."""
    excluded = int(np.floor(alpha * (1 + len(drops)))) - 1
    return 1.0 if excluded < 0 else float(drops[-1 - excluded])


def _members(groups: np.ndarray) -> list[np.ndarray]:
    _, inverse = np.unique(groups, return_inverse=True)
    return [np.flatnonzero(inverse == group) for group in range(inverse.max() + 1)]
