"""What is promised, and by which measure: the metric and the claim that a certificate is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from hf_headprune._checks import is_number, is_whole
from hf_headprune._strict_json import LARGEST
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.paired import level_of

Kind = Literal["binary", "bounded", "corpus"]
METHODS = {
    "binary": "exact unconditional paired score test, finite-sample",
    "bounded": "betting on paired differences, finite-sample",
    "corpus": "paired percentile bootstrap, not finite-sample",
}


@dataclass(frozen=True)
class Metric:
    """How two models are compared.

    Attributes:
        name: In words.
        kind: What a score is, which decides the test. "binary": 0 or 1 for each example. "bounded": a number in [0, 1]
            for each example, such as the F1 of an answer. "corpus": one or more numbers for each example, of which
            `aggregate` makes the metric of all; its certificate is a bootstrap and holds approximately only.
        score: Function `(model, dataset) -> scores`, one row per example in the order of the data set; the model is in
            evaluation mode, without gradients. None stands for the right answers of a sequence classification model.
        aggregate: Function `rows -> metric`, for "corpus" only; higher is better.

    Raises:
        InvalidSettingError: The settings contradict each other.
    """

    name: str = "accuracy"
    kind: Kind = "binary"
    score: Callable[[Any, Any], Any] | None = None
    aggregate: Callable[[np.ndarray], float] | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.kind not in get_args(Kind):
            raise InvalidSettingError(
                f"Metric: kind must be one of {', '.join(get_args(Kind))}, received {self.kind!r}. Choose one."
            )
        if self.score is None and (self.name, self.kind) != ("accuracy", "binary"):
            raise InvalidSettingError(
                f"Metric: without a function `score` only 'accuracy' is known, received {self.name!r} of kind "
                f"{self.kind!r}. Pass score=..., which takes a model and a data set."
            )
        if (self.aggregate is None) == (self.kind == "corpus"):
            raise InvalidSettingError(
                f"Metric: aggregate goes with kind 'corpus' and with no other, received kind {self.kind!r} and "
                f"aggregate {self.aggregate!r}. Leave it out, or pass the function of a corpus metric."
            )

    @classmethod
    def of(cls, metric: str | Metric) -> Metric:
        """Returns the metric of a name, or the metric itself.

        Raises:
            InvalidSettingError: The name is not "accuracy".
        """
        return metric if isinstance(metric, Metric) else cls(name=metric)


@dataclass(frozen=True)
class Claim:
    """The hypothesis that a certificate decides on: "the drop of the metric is at least max_drop".

    Attributes:
        metric: Name of the metric.
        kind: See `Metric`.
        max_drop: Epsilon, absolute: 0.01 is one point of accuracy.
        alpha: One minus the confidence.
        spent: Part of alpha that this use of the certification split may spend; all of it without a ledger.
        use: Number of this use in the ledger, or 0 without one.
        chosen_among: Models among which the certification examples themselves chose; each may spend an equal share of
            alpha (Bonferroni), so that the claim holds however they chose.
        seed: Of the bootstrap.

    Raises:
        InvalidSettingError: A number is out of range.
    """

    metric: str
    kind: Kind
    max_drop: float
    alpha: float
    spent: float
    use: int = 0
    seed: int = 0
    chosen_among: int = 1

    def __post_init__(self) -> None:
        """Checks the ranges, and makes plain numbers of numpy's."""
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "max_drop": (lambda it: is_number(it) and 0 <= it < 1, "in [0, 1): 0.01 is one point"),
            "alpha": (lambda it: is_number(it) and 0 < it < 0.5, "in (0, 0.5): one minus the confidence"),  # noqa: PLR2004
            "chosen_among": (lambda it: is_whole(it, at_least=1), "a count of at least 1"),
            "spent": (
                lambda it: is_number(it) and 0 < it <= self.alpha / self.chosen_among,
                "in (0, alpha / chosen_among]",
            ),
            "use": (lambda it: is_whole(it, at_least=0), "a count"),
            "seed": (lambda it: is_whole(it, at_least=0) and it <= LARGEST, "in [0, 2^53]"),
        }
        if self.kind not in get_args(Kind):
            raise InvalidSettingError(
                f"certify: kind must be one of {', '.join(get_args(Kind))}, received {self.kind!r}."
            )
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            if not holds(value):
                raise InvalidSettingError(f"certify: {name} must be {rule}, received {value!r}.")
            plain = float(value) if name in ("max_drop", "alpha", "spent") else int(value)
            object.__setattr__(self, name, plain)  # numbers of numpy are none in JSON

    @property
    def level(self) -> float:
        """What a p-value must not exceed."""
        return level_of(self.spent) if self.kind == "binary" else self.spent
