"""Watches a deployed model: whether it answers otherwise than the dense one more often than its certificate saw.

Each live input on which both models are run gives one number: 1 where their answers differ. No label is needed. Let r
be the upper confidence bound, by Clopper and Pearson, on the rate of such changes that the certificate saw. A gambler
bets that the live rate is above r. Under a rate of at most r, the wealth

    W_t = sum over starts s <= t of w_s mean over bets q of prod_{s <= i <= t} f_q(x_i),    f_q(1) = q / r

with f_q(0) = (1 - q) / (1 - r), q > r and weights of the starts that sum to 1, is a non-negative supermartingale from
1, so that it ever exceeds 1 / alpha with a probability of at most alpha (Ville), however long and however often one
looks. New starts find a change that comes late. Half of alpha goes to the bound, half to the bets.

Source:
    Shin, Ramdas and Rinaldo, E-detectors, New England Journal of Statistics in Data Science 2 (2024), arXiv 2203.03532;
    with weights of the starts in place of their sum, which bounds the chance of any false alarm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import betaincinv

from hf_headprune._checks import is_number
from hf_headprune.errors import CertificateError, InvalidSettingError, shown
from hf_headprune.guarantee.wording import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.guarantee.certificate import Certificate

RISES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)  # of the rate of changes, that are bet on
START_EVERY = 250  # live inputs
_LARGEST_WEALTH = 1e100


def upper_share(count: int, examples: int, alpha: float) -> float:
    """Returns Clopper and Pearson's upper confidence bound on a share, of which `count` of `examples` were seen."""
    return float(betaincinv(count + 1, examples - count, 1 - alpha)) if count < examples else 1.0


class Bets:
    """Wealth of the gambler, for any number of streams side by side.

    Attributes:
        seen: Inputs so far, the same of each stream.
        wealth: Shape `(num_streams,)`; never less than it takes for the alarm again, once it was reached.
    """

    def __init__(self, rate: float | np.ndarray, num_streams: int = 1) -> None:
        """Starts with a wealth of 1 in each stream.

        Args:
            rate: The live rate is at most this under the hypothesis, in [0, 1); one, or one of each stream.
            num_streams: Streams.
        """
        base = np.broadcast_to(np.maximum(rate, 1e-12), num_streams)[:, None]  # (num_streams, 1)
        bets = base + (1 - base) * np.array(RISES)
        self._factors = ((1 - bets) / (1 - base), bets / base)  # (num_streams, num_bets) each
        self._stakes = np.zeros(bets.shape)
        self.seen = 0
        self.wealth = np.ones(num_streams)

    def place(self, changed: np.ndarray) -> None:
        """Goes on by one input of each stream.

        Args:
            changed: Whether the answers differ, `(num_streams,)`.
        """
        block, inside = divmod(self.seen, START_EVERY)
        if not inside:
            self._stakes += 1.0 / ((block + 1) * (block + 2))
        same, other = self._factors
        self._stakes *= np.where(np.asarray(changed, dtype=bool)[:, None], other, same)
        np.minimum(self._stakes, _LARGEST_WEALTH, out=self._stakes)
        self.seen += 1
        self.wealth = self._stakes.mean(axis=1) + 1.0 / (block + 2)


class Monitor:
    """Says when live data are no longer covered by what a certificate has seen.

    Attributes:
        rate: Of changed answers on the certification split.
        bound: Upper confidence bound on that rate; the live rate is compared with it.
        alpha: Chance of a false alarm, over any length.
        examples: Live inputs so far.
        changed: Live inputs on which the answers differed.
        alarm_at: Number of the live input at which the alarm was raised, or None.
    """

    def __init__(self, certificate: Certificate, confidence: float = 0.95) -> None:
        """Reads how often the certified model answered otherwise.

        Args:
            certificate: Of the deployed model.
            confidence: One minus the chance that the alarm is ever raised though nothing has changed.

        Raises:
            CertificateError: The certificate does not say which answers changed.
            InvalidSettingError: The confidence is out of range.
        """
        if not (is_number(confidence) and 0 < confidence < 1):
            raise InvalidSettingError(f"Monitor: confidence must be in (0, 1), received {shown(confidence)}.")
        largest = max(
            certificate.parts(), key=lambda part: part.evidence.examples
        )  # the whole split, not a class of it
        seen = largest.evidence
        if seen.changed is None:
            raise CertificateError(
                "Monitor: the certificate must say how many answers changed, as for classes and several labels; "
                f"received one about {largest.claim.metric}. Certify with the metric 'accuracy' or 'agreement'."
            )
        self.alpha = 1.0 - float(confidence)
        self.rate = seen.changed / seen.examples
        self.bound = upper_share(seen.changed, seen.examples, self.alpha / 2)
        self.examples = self.changed = 0
        self.alarm_at: int | None = None
        self._certified_on = seen.examples
        self._bets = Bets(min(self.bound, 1 - 1e-9))

    def update(self, dense: Sequence[Any], pruned: Sequence[Any]) -> bool:
        """Adds the answers of both models to the same live inputs, in the order in which they came.

        Args:
            dense: Answers of the dense model, such as classes.
            pruned: Answers of the pruned model.

        Returns:
            Whether the alarm is raised, now or before.

        Raises:
            InvalidSettingError: There are not equally many.
        """
        if len(dense) != len(pruned):
            raise InvalidSettingError(
                f"Monitor: each input needs the answers of both models, received {len(dense)} and {len(pruned)}."
            )
        for before, after in zip(dense, pruned, strict=True):
            is_changed = bool(before != after)
            self.examples += 1
            self.changed += is_changed
            self._bets.place(np.array([is_changed]))
            if self.alarm_at is None and self._bets.wealth[0] >= 2 / self.alpha:
                self.alarm_at = self.examples
        return self.alarm_at is not None

    def to_text(self) -> str:
        """Returns in words what was seen."""
        certified = (
            f"{percent(self.rate)} of {self._certified_on:,} when it was certified (at most {percent(self.bound)})"
        )
        live = percent(self.changed / self.examples) if self.examples else "none"
        seen = f"The models answer {live} of {self.examples:,} live inputs differently, {certified}."
        if self.alarm_at is not None:
            return (
                f"NOT COVERED. {seen} The rate has risen, seen at input {self.alarm_at:,}; the chance of a false alarm "
                f"is at most {percent(self.alpha)}. The certificate does not cover these inputs. Certify on new ones."
            )
        return f"Covered so far. {seen} No rise was shown."
