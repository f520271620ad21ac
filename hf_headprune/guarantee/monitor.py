"""Watches a deployed model: whether it answers otherwise than the dense one more often than its certificate saw.

Each live input on which both models are run gives one number: 1 where their answers differ. No label is needed. A
gambler bets that the live rate is above r. Under a rate of at most r, the wealth

    W_t(r) = sum over starts s <= t of w_s mean over bets q of prod_{s <= i <= t} f_q(x_i),    f_q(1) = q / r

with f_q(0) = (1 - q) / (1 - r), q > r and weights of the starts that sum to 1, is a non-negative supermartingale from
1, so that one over its largest value is a p-value (Ville), however long and however often one looks. New starts find a
change that comes late.

The rate r of the data that the certificate is about is not known. That so few answers changed among its examples has
the exact binomial p-value p(r), independent of the live inputs. The alarm is raised where the product of both p-values
is at most c for every r (Fisher's combination, c (1 - ln c) = alpha): a low rate is refuted by the bets, a high one
by the certificate. Rates are treated in cells between the bounds of Clopper and Pearson at levels
1 = u_0 > u_1 > ... > u_m = c: in each, the bets are against its highest rate, and must reach u_(j-1) / c, as if p(r)
were the largest there. That sums to a chance of false alarms of c + c sum_j (u_(j-1) - u_j) / u_(j-1), which is set
to alpha.

Source:
    Shin, Ramdas and Rinaldo, E-detectors, New England Journal of Statistics in Data Science 2 (2024), arXiv 2203.03532;
    with weights of the starts in place of their sum, which bounds the chance of any false alarm. Fisher, Statistical
    Methods for Research Workers (1932), section 21.1, for the product of p-values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv

from hf_headprune._checks import is_number
from hf_headprune.errors import CertificateError, InvalidSettingError, shown
from hf_headprune.guarantee.wording import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.guarantee.certificate import Certificate

RISES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)  # of the rate of changes, that are bet on
START_EVERY = 250  # live inputs
NUM_LEVELS = 12
_LARGEST_WEALTH = 1e100
_LARGEST_RATE = 1 - 1e-9


def upper_share(count: int, examples: int, alpha: float) -> float:
    """Returns Clopper and Pearson's upper confidence bound on a share, of which `count` of `examples` were seen."""
    return float(betaincinv(count + 1, examples - count, 1 - alpha)) if count < examples else 1.0


def levels_of(alpha: float) -> np.ndarray:
    """Returns the levels between which rates are treated alike, `(NUM_LEVELS + 1,)`, from 1 down to c."""

    def false_alarms(level: float) -> float:
        return level * (1 + NUM_LEVELS * (1 - level ** (1 / NUM_LEVELS)))

    smallest = brentq(lambda level: false_alarms(level) - alpha, alpha * 1e-6, alpha, xtol=alpha * 1e-12)
    return np.geomspace(1.0, smallest * (1 - 1e-9), NUM_LEVELS + 1)


class Bets:
    """Wealth of the gambler, for any number of streams side by side.

    Attributes:
        seen: Inputs so far, the same of each stream.
        wealth: Shape `(num_streams, num_rates)`; from 1e100 on it is not counted further.
    """

    def __init__(self, rates: np.ndarray) -> None:
        """Starts with a wealth of 1 at each rate.

        Args:
            rates: The live rate is at most this under the hypothesis, in [0, 1], `(num_streams, num_rates)`.
        """
        base = np.clip(rates, 1 - _LARGEST_RATE, _LARGEST_RATE)[:, :, None]  # (num_streams, num_rates, 1)
        bets = base + (1 - base) * np.array(RISES)
        self._same = (1 - bets) / (1 - base)  # (num_streams, num_rates, num_bets)
        self._turned = bets / base / self._same
        self._stakes = np.zeros(bets.shape)
        self.seen = 0
        self.wealth = np.ones(rates.shape)

    def place(self, changed: np.ndarray) -> None:
        """Goes on by one input of each stream.

        Args:
            changed: Whether the answers differ, `(num_streams,)`.
        """
        block, inside = divmod(self.seen, START_EVERY)
        if not inside:
            self._stakes += 1.0 / ((block + 1) * (block + 2))
        where = np.flatnonzero(changed)
        self._stakes *= self._same
        self._stakes[where] = np.minimum(self._stakes[where] * self._turned[where], _LARGEST_WEALTH)
        self.seen += 1
        self.wealth = self._stakes.mean(axis=2) + 1.0 / (block + 2)


class Alarms:
    """Alarms of any number of streams side by side, each with a certificate of its own."""

    def __init__(self, changed: Sequence[int], examples: int, alpha: float) -> None:
        """Starts without an alarm.

        Args:
            changed: Changed answers that each certificate saw, `(num_streams,)`.
            examples: Examples of each certificate.
            alpha: Chance that an alarm is ever raised though the rate is still that of the certificate's data.
        """
        levels = levels_of(alpha)
        self._needed = levels[:-1] / levels[-1]  # (NUM_LEVELS,)
        bounds = {count: [upper_share(count, examples, level) for level in levels[1:]] for count in {*changed}}
        self._bets = Bets(np.array([bounds[count] for count in changed]))
        self._reached = np.zeros(self._bets.wealth.shape, dtype=bool)

    def place(self, changed: np.ndarray) -> None:
        """Goes on by one input of each stream.

        Args:
            changed: Whether the answers differ, `(num_streams,)`.
        """
        self._bets.place(changed)
        self._reached |= self._bets.wealth >= self._needed

    @property
    def raised(self) -> np.ndarray:
        """Whether the alarm was raised, `(num_streams,)`."""
        return np.asarray(self._reached.all(axis=1))


class Monitor:
    """Says when live data are no longer covered by what a certificate has seen.

    Attributes:
        rate: Of changed answers on the certification split.
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
            InvalidSettingError: The confidence is out of range, or there is no certificate.
        """
        if not hasattr(certificate, "parts"):
            raise InvalidSettingError(
                f"Monitor: certificate must be a Certificate, received {shown(certificate)}. Read one: "
                "Certificate.load(folder)."
            )
        if not (is_number(confidence) and 0 < confidence < 1):
            raise InvalidSettingError(f"Monitor: confidence must be in (0, 1), received {shown(confidence)}.")
        largest = max(
            certificate.parts(), key=lambda part: part.evidence.examples
        )  # the whole split, not a class of it
        seen = largest.evidence
        if seen.changed is None:
            raise CertificateError(
                "Monitor: the certificate must say how many answers changed, as for classes and several labels; "
                f"received one about {largest.claim.metric}. Certify with 'accuracy', 'jaccard' or 'agreement'."
            )
        self.alpha = 1.0 - float(confidence)
        self.rate = seen.changed / seen.examples
        self.examples = self.changed = 0
        self.alarm_at: int | None = None
        self._certified_on = seen.examples
        self._alarms = Alarms([seen.changed], seen.examples, self.alpha)

    def update(self, dense: Sequence[Any], pruned: Sequence[Any]) -> bool:
        """Adds the answers of both models to the same live inputs, in the order in which they came.

        Args:
            dense: Answers of the dense model: classes, as numbers or by name, or the labels of each input, `(n,)` or
                `(n, num_labels)`.
            pruned: Answers of the pruned model, of the same kind.

        Returns:
            Whether the alarm is raised, now or before.

        Raises:
            InvalidSettingError: There are not equally many, one is missing or no answer, or one model's are numbers and
                the other's names. None is counted then.
        """
        given = [_answers(answers, self.examples) for answers in (dense, pruned)]
        if len(given[0]) != len(given[1]):
            raise InvalidSettingError(
                f"Monitor: each input needs the answers of both models, received {len(given[0])} and {len(given[1])}."
            )
        pairs = list(zip(*given, strict=True))
        for number, (before, after) in enumerate(pairs, self.examples + 1):
            if type(before) is not type(after):
                raise InvalidSettingError(
                    f"Monitor: both models' answers must be of one kind, numbers or names, received {shown(before)} "
                    f"and {shown(after)} for input {number}. Write both in the same way."
                )
        for before, after in pairs:
            is_changed = before != after
            self.examples += 1
            self.changed += is_changed
            self._alarms.place(np.array([is_changed]))
            if self.alarm_at is None and self._alarms.raised[0]:
                self.alarm_at = self.examples
        return self.alarm_at is not None

    def to_text(self) -> str:
        """Returns in words what was seen."""
        certified = f"{percent(self.rate)} of {self._certified_on:,} when it was certified"
        live = percent(self.changed / self.examples) if self.examples else "none"
        seen = f"The models answer {live} of {self.examples:,} live inputs differently, {certified}."
        if self.alarm_at is not None:
            return (
                f"NOT COVERED. {seen} The rate has risen, seen at input {self.alarm_at:,}; the chance of a false alarm "
                f"is at most {percent(self.alpha)}. The certificate does not cover these inputs. Certify on new ones."
            )
        return f"Covered so far. {seen} No rise was shown."


def _answers(answers: Any, before: int) -> list[Any]:
    """Returns answers of a model as whole numbers, names, or tuples of whole numbers.

    Args:
        answers: As they were passed.
        before: Inputs that were counted earlier, for the message.
    """
    values = answers.tolist() if hasattr(answers, "tolist") else answers
    if not isinstance(values, (list, tuple)):
        raise InvalidSettingError(
            f"Monitor: answers must be a list or an array, one for each input, received {shown(answers)}."
        )
    return [_answer(value, number) for number, value in enumerate(values, before + 1)]


def _answer(value: Any, number: int) -> int | str | tuple[int, ...]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)) and value:
        found = tuple(_answer(label, number) for label in value)
        if all(isinstance(label, int) for label in found):
            return found  # type: ignore[return-value] # as just checked
    elif isinstance(value, str) and value.strip():
        return value
    elif isinstance(value, bool) or (is_number(value) and value == int(value)):
        return int(value)
    raise InvalidSettingError(
        f"Monitor: an answer must be a class, its name, or a list of labels, received {shown(value)} for input "
        f"{number}. Leave inputs out that a model did not answer."
    )
