"""What is certified, and by which measure: the metric and the claim that a certificate is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from hf_headprune._checks import is_number, is_whole
from hf_headprune._strict_json import LARGEST
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.guarantee.paired import level_of
from hf_headprune.guarantee.wording import AGREEMENT, SAME_ANSWER, SAME_NEIGHBOUR
from hf_headprune.tasks.registry import scorer_for
from hf_headprune.tasks.scorer import Kind as ScoreKind
from hf_headprune.tasks.scorer import Scorer

Kind = Literal[ScoreKind, "agreement"]
METHODS = {
    "agreement": "Clopper-Pearson bound on the share of changed answers, finite-sample, without labels",
    "binary": "exact unconditional paired score test, finite-sample",
    "bounded": "betting on paired differences, finite-sample",
    "corpus": "paired percentile bootstrap, approximate, not finite-sample",
}
RIGHT_ANSWER = "whether its answer is the label"
BY_FUNCTION = "a score that a function of the user returned"
LONGEST_NAME = 200


@dataclass(frozen=True)
class Metric:
    """How two models are compared.

    Attributes:
        name: In words.
        kind: What a score is, which decides the test. "binary": 0 or 1 for each example. "bounded": a number in [0, 1]
            for each example, such as the F1 of an answer. "corpus": one or more numbers for each example, of which
            `aggregate` makes the metric of all; its certificate is a bootstrap and holds approximately only.
            "agreement" is for the library's own bound on changed answers.
        score: Function `(model, dataset) -> scores`, one row per example in the order of the data set; the model is in
            evaluation mode, without gradients. Or a scorer of the library, see `Metric.of`.
        aggregate: Function `rows -> metric`, for "corpus" only; higher is better.

    Raises:
        InvalidSettingError: The settings contradict each other.
    """

    name: str
    kind: Kind
    score: Callable[[Any, Any], Any] | Scorer
    aggregate: Callable[[np.ndarray], float] | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not isinstance(self.kind, str) or self.kind not in get_args(Kind):
            raise InvalidSettingError(
                f"Metric: kind must be one of {', '.join(get_args(Kind))}, received {shown(self.kind)}. Choose one."
            )
        if not is_name(self.name):
            raise InvalidSettingError(
                f"Metric: name must be a text of 1 to {LONGEST_NAME} letters, received {shown(self.name)}."
            )
        if not (callable(self.score) or isinstance(self.score, Scorer)):
            raise InvalidSettingError(
                f"Metric: score must be a function of a model and a data set, received {shown(self.score)}. For a "
                "metric of the library, pass its name to certify in place of a Metric."
            )
        if (self.aggregate is None) == (self.kind == "corpus") or not (
            self.aggregate is None or callable(self.aggregate)
        ):
            raise InvalidSettingError(
                f"Metric: aggregate is a function of rows for kind 'corpus', and None for any other, received kind "
                f"{self.kind!r} and aggregate {shown(self.aggregate)}. Leave it out, or pass the function."
            )

    @classmethod
    def of(cls, metric: Any, model: Any, *, where: str = "certify") -> Metric:
        """Returns how examples of a model are compared.

        Args:
            metric: A `Metric`, returned as it is; or what `scorer_for` takes: a name, a module of the package
                `evaluate`, a function of predictions and references, or None for the first metric of the model's task.
            model: One of the models that are compared.
            where: Name of the caller, for errors.

        Raises:
            InvalidSettingError: The model's task has no such metric.
            UnsupportedModelError: The model has no task whose examples can be scored.
        """
        if isinstance(metric, Metric):
            return metric
        scorer = scorer_for(model, metric, where=where)
        aggregate = None if scorer.is_mean else scorer.aggregate
        return cls(scorer.in_words, scorer.kind, scorer, aggregate)

    @property
    def scored(self) -> str:
        """What the score of one example is, in words."""
        if self.score in (_no_score, _no_neighbour):
            return SAME_ANSWER if self.score is _no_score else SAME_NEIGHBOUR
        if self.score is _by_answer:
            return RIGHT_ANSWER
        return self.score.scored if isinstance(self.score, Scorer) else BY_FUNCTION


def agreement(*, of_neighbours: bool = False) -> Metric:
    """Returns the metric of an agreement, which needs no labels: what changes no answer breaks none."""
    return Metric(AGREEMENT, AGREEMENT, _no_neighbour if of_neighbours else _no_score)


def accuracy_of_answers() -> Metric:
    """Returns the metric of answers that come from elsewhere: the share that are the label."""
    return Metric("accuracy", "binary", _by_answer)


def _by_answer(model: Any, dataset: Any) -> Any:
    raise NotImplementedError("answers are compared with the labels where they are read")


def _no_score(model: Any, dataset: Any) -> Any:
    raise NotImplementedError("an agreement is between two models")


def _no_neighbour(model: Any, dataset: Any) -> Any:
    return _no_score(model, dataset)


@dataclass(frozen=True)
class Claim:
    """The hypothesis that a certificate decides on: "the drop of the metric is at least max_drop".

    Attributes:
        metric: Name of the metric.
        kind: See `Metric`.
        max_drop: Epsilon, absolute: 0.01 is one percentage point of accuracy.
        alpha: One minus the confidence.
        alpha_spent: Part of alpha that this use of the certification split may spend; all of it without a ledger.
        use: Number of this use in the ledger, or 0 without one.
        seed: Of the bootstrap.
        num_candidates: Models among which the certification examples themselves chose; each may spend an equal share of
            alpha (Bonferroni), so that the claim holds however they chose.
        scored: What the score of one example is, in words.
        dataset: Name of the data set, where there are several; else "".
        column: Of the examples, where the claim is about those with one value there; else "".
        value: The value.
        stops_early: Whether examples were looked at one batch after the other, until the verdict was certain.
        num_promises: Claims that one certificate makes together. Each passes at the full level, since all must; that
            one fails is said at its share.

    Raises:
        InvalidSettingError: A number is out of range, or a name no name.
    """

    metric: str
    kind: Kind
    max_drop: float
    alpha: float
    alpha_spent: float
    use: int = 0
    seed: int = 0
    num_candidates: int = 1
    scored: str = BY_FUNCTION
    dataset: str = ""
    column: str = ""
    value: str = ""
    num_promises: int = 1
    stops_early: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges, and makes plain numbers of numpy's."""
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "metric": (is_name, f"a text of 1 to {LONGEST_NAME} letters"),
            "scored": (is_name, f"a text of 1 to {LONGEST_NAME} letters"),
            "kind": (lambda it: isinstance(it, str) and it in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
            "max_drop": (lambda it: is_number(it) and 0 <= it < 1, "in [0, 1): 0.01 is one percentage point"),
            "alpha": (lambda it: is_number(it) and 0 < it < 0.5, "in (0, 0.5): one minus the confidence"),  # noqa: PLR2004
            **{
                name: (lambda it: isinstance(it, str) and len(it) <= LONGEST_NAME, f"at most {LONGEST_NAME} letters")
                for name in ("dataset", "column", "value")
            },
            "stops_early": (lambda it: isinstance(it, bool), "True or False"),
            "num_promises": (lambda it: is_whole(it, at_least=1) and it <= LARGEST, "a count of at least 1"),
            "num_candidates": (lambda it: is_whole(it, at_least=1) and it <= LARGEST, "a count of at least 1"),
            "alpha_spent": (
                lambda it: is_number(it) and 0 < it <= self.alpha / self.num_candidates,
                "in (0, alpha / num_candidates]",
            ),
            "use": (lambda it: is_whole(it, at_least=0) and it <= LARGEST, "a count"),
            "seed": (lambda it: is_whole(it, at_least=0) and it <= LARGEST, "in [0, 2^53]"),
        }
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            if not holds(value):
                raise InvalidSettingError(f"certify: {name} must be {rule}, received {shown(value)}.")
            if is_number(value):
                plain = float(value) if name in ("max_drop", "alpha", "alpha_spent") else int(value)
                object.__setattr__(self, name, plain)  # numbers of numpy are none in JSON

    @property
    def threshold(self) -> float:
        """What a p-value must not exceed."""
        return self._level(self.alpha_spent)

    @property
    def threshold_of_fail(self) -> float:
        """What the p-value of the reverse must not exceed."""
        return self._level(self.alpha_spent / self.num_promises)

    @property
    def scope(self) -> str:
        """The examples that it is about, in words; nothing where they are all."""
        words = [f"of {self.dataset}"] if self.dataset else []
        return " ".join([*words, f"whose {self.column} is {self.value}"] if self.column else words)

    def _level(self, alpha: float) -> float:
        return level_of(alpha) if self.kind == "binary" else alpha


def is_name(text: Any) -> bool:
    """Tells whether something can be a name in a certificate."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST_NAME
