"""Metrics of a whole split, from one row per example: our own, and any function of predictions and references."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from hf_headprune.errors import InvalidSettingError, shown

ARGUMENTS = (("predictions", "references"), ("y_pred", "y_true"))  # as `evaluate` and scikit-learn name them
NUM_DRAWS, DRAWN = 4, 48  # made-up predictions that tell which metric a function is


def confusion_of(gold: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts `(gold, predicted)`, `(num_labels, num_labels)`, of classes `(num_examples,)` each."""
    confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
    np.add.at(confusion, (gold, predicted), 1)
    return confusion


def accuracy(confusion: np.ndarray) -> float:
    """Share of right examples, from counts `(gold, predicted)`."""
    return float(np.trace(confusion) / confusion.sum())


def macro_f1(confusion: np.ndarray) -> float:
    """Mean F1 of the classes that occur, gold or predicted, from counts `(gold, predicted)`."""
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * np.diag(confusion)[sizes > 0] / sizes[sizes > 0]))


def f1(confusion: np.ndarray) -> float:
    """F1 of class 1, from counts `(gold, predicted)` of two classes; zero where class 1 does not occur."""
    return float(2 * confusion[1, 1] / max(1, confusion[1].sum() + confusion[:, 1].sum()))


def matthews_correlation(confusion: np.ndarray) -> float:
    """Multi-class Matthews correlation, zero where it is undefined, from counts `(gold, predicted)`.

    Source: Gorodkin, Computational Biology and Chemistry 28 (2004), equation 8.
    """
    counts = confusion.astype(np.float64)
    gold, predicted, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    covariance = np.trace(counts) * total - gold @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


CLASSIFICATION_METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "f1": f1,
}


def pearson(rows: np.ndarray) -> float:
    """Pearson correlation of labels and predictions, `(n, 2)`; zero where one of them is constant."""
    centered = rows - rows.mean(axis=0)
    spread = math.sqrt(float((centered[:, 0] ** 2).sum()) * float((centered[:, 1] ** 2).sum()))
    return float(np.clip(centered[:, 0] @ centered[:, 1] / spread, -1.0, 1.0)) if spread > 0 else 0.0


def spearman(rows: np.ndarray) -> float:
    """Spearman's rank correlation of labels and predictions, `(n, 2)`; equal values share their mean rank."""
    return pearson(rankdata(rows, axis=0))


REGRESSION_METRICS: dict[str, Callable[[np.ndarray], float]] = {"pearson": pearson, "spearman": spearman}


@dataclass(frozen=True)
class PredictionMetric:
    """A function `(predictions, references) -> metric` of the user, or a module of the package `evaluate`.

    Attributes:
        given: Something with `compute(predictions=, references=)`, or the function. It returns a number, or a mapping
            with one number.
    """

    given: Any

    def __call__(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """Returns the metric.

        Raises:
            InvalidSettingError: It is not one finite number.
        """
        compute = _function_of(self.given)
        names = next((names for names in ARGUMENTS if _takes(compute, **dict.fromkeys(names))), None)
        pair = (predictions, references)
        result = compute(*pair) if names is None else compute(**dict(zip(names, pair, strict=True)))
        try:
            (value,) = result.values() if isinstance(result, Mapping) else (result,)
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InvalidSettingError(
                f"metric {self.name}: it must return one finite number, or a mapping with one, received "
                f"{shown(result)}. Pass a function that picks one: lambda predictions, references: "
                "module.compute(predictions=predictions, references=references)['f1']."
            )
        return number

    @property
    def name(self) -> str:
        """Name of the module or function."""
        name = getattr(self.given, "name", None) or getattr(self.given, "__name__", None)
        return name if isinstance(name, str) and name.isidentifier() else type(self.given).__name__


def is_prediction_metric(metric: Any) -> bool:
    """Tells whether a metric is a function of predictions and references, or a module of the package `evaluate`."""
    function = _function_of(metric)
    if not callable(function) or isinstance(function, type):
        return False
    has_names = any(_takes(function, **dict.fromkeys(names)) for names in ARGUMENTS)
    return has_names or (_takes(function, None, None) and not _takes(function, None))


def known_metric(metric: PredictionMetric, num_labels: int) -> str | None:
    """Returns the name of the metric of ours that a function of classes equals, or None.

    Both are compared on made-up predictions, among them some without a class, all right, and all wrong. A share of
    right answers then gets the exact test whatever its name, and none else does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a metric may warn about a class that does not occur
        try:
            draws = [(gold, found, metric(found.tolist(), gold.tolist())) for gold, found in _made_up(num_labels)]
        except (ArithmeticError, InvalidSettingError, LookupError, TypeError, ValueError):
            return None  # what it needs beyond classes is seen when it gets the real ones
    for name, known in CLASSIFICATION_METRICS.items():
        if name == "f1" and num_labels != 2:  # noqa: PLR2004
            continue
        values = [(known(confusion_of(gold, found, num_labels)), value) for gold, found, value in draws]
        if all(math.isclose(ours, value, rel_tol=0, abs_tol=1e-9) for ours, value in values):
            return name
    return None


def _made_up(num_labels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns pairs of classes, gold and predicted."""
    rng = np.random.default_rng(0)
    gold = [rng.integers(0, num_labels, DRAWN) for _ in range(NUM_DRAWS)]
    pairs = [(one, np.where(rng.random(DRAWN) < 0.7, one, rng.integers(0, num_labels, DRAWN))) for one in gold]  # noqa: PLR2004
    first, zeros = gold[0], np.zeros(DRAWN, dtype=np.int64)
    edges = [(first, first), (first, (first + 1) % num_labels), (first, zeros), (zeros, first), (zeros, zeros)]
    return [*pairs, *edges]


def _function_of(metric: Any) -> Any:
    return getattr(metric, "compute", metric)


def _takes(function: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    """Tells whether a function can be called with such arguments."""
    try:
        inspect.signature(function).bind(*arguments, **named)
    except (TypeError, ValueError):
        return False
    return True
