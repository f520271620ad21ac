"""Checks that a model classifies sequences and that examples carry labels for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

LABELS = "labels"


def num_labels_of(model: nn.Module) -> int:
    """Returns the number of classes.

    Raises:
        UnsupportedModelError: The model is no single-label classifier.
    """
    config: Any = getattr(model, "config", None)
    num_labels = getattr(config, "num_labels", 0)
    problem = getattr(config, "problem_type", None)
    if num_labels <= 1 or problem not in (None, "single_label_classification"):
        raise UnsupportedModelError(
            f"ClassificationEvaluator: {type(model).__name__} must be a single-label classifier, received num_labels "
            f"{num_labels} and problem_type {problem!r}. Use MetricEvaluator with a function that measures this model."
        )
    return num_labels


def check_labels(batches: Sequence[Mapping[str, torch.Tensor]], num_labels: int) -> None:
    """Refuses batches without one class for each example.

    Raises:
        InvalidSettingError: There is no example, or labels are missing or out of range.
    """
    if not sum(len(batch.get(LABELS, ())) for batch in batches):
        missing = [sorted(batch) for batch in batches if LABELS not in batch][:1]
        raise InvalidSettingError(
            "ClassificationEvaluator: at least one labelled example is needed, received "
            + (f"batches with {missing[0]} and no 'labels'" if missing else "none")
            + ". Pass a non-empty data set whose batches hold 'labels'."
        )
    for number, batch in enumerate(batches):
        labels = batch.get(LABELS)
        if labels is None or labels.ndim != 1 or labels.is_floating_point():
            received = None if labels is None else (tuple(labels.shape), labels.dtype)
            raise InvalidSettingError(
                f"ClassificationEvaluator: batch {number}: labels must be whole numbers of shape (batch,), "
                f"received {received}. Give each example one class."
            )
        wrong = labels[(labels < 0) | (labels >= num_labels)]
        if wrong.numel():
            raise InvalidSettingError(
                f"ClassificationEvaluator: batch {number}: labels must be 0..{num_labels - 1}, received "
                f"{sorted(set(wrong.tolist()))[:5]}. Remove unlabelled examples, or map the labels to the "
                "classes of the model."
            )
