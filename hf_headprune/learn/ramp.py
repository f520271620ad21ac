"""The ramp that gates and block scores share: pruning that is fast at first and slow towards its end."""

from __future__ import annotations


def cubic(progress: float) -> float:
    """Returns how far pruning has got, from 0 to 1, so that what is kept falls by `(1 - progress)^3`.

    Args:
        progress: Fraction of the way, clipped to [0, 1].

    Source: Zhu and Gupta 2017 (arXiv 1710.01878), equation 1.
    """
    return 1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3
