"""Classification metrics of a table of counts; higher is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


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
}
