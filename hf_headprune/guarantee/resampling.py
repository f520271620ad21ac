"""Bootstrap of the drop of a metric that is no mean over examples: an approximation, not finite-sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import bootstrap

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Callable

RESAMPLES = 2000
LEAST_DISAGREEING = 10


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
        InvalidSettingError: Too few rows differ for a bootstrap to mean anything, or the metric is no number in a draw.
    """
    differing = int((dense != pruned).reshape(len(dense), -1).any(axis=1).sum())
    if differing < LEAST_DISAGREEING:
        raise InvalidSettingError(
            f"bootstrap: the models must differ on at least {LEAST_DISAGREEING} examples, received {differing} of "
            f"{len(dense)}. Pass more examples, or a metric that is a mean over examples, which has an exact test."
        )
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


def bootstrap_p_value(drops: np.ndarray, epsilon: float) -> float:
    """Returns the share of draws whose drop is at least epsilon, counting the data themselves as one."""
    return float((1 + np.count_nonzero(drops >= epsilon)) / (1 + len(drops)))


def bootstrap_upper_bound(drops: np.ndarray, alpha: float) -> float:
    """Returns the percentile bound: the largest draw that is not excluded at level alpha; 1.0 where nothing is."""
    excluded = int(np.floor(alpha * (1 + len(drops)))) - 1
    return 1.0 if excluded < 0 else float(drops[-1 - excluded])


def _members(groups: np.ndarray) -> list[np.ndarray]:
    _, inverse = np.unique(groups, return_inverse=True)
    return [np.flatnonzero(inverse == group) for group in range(inverse.max() + 1)]
