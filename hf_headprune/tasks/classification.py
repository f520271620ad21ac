"""Scores of sequence classification: one class per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.tasks.answers import Answers, tie_scale
from hf_headprune.tasks.metrics import CLASSIFICATION_METRICS, confusion_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

LABELS = "labels"
MEAN_OF_RIGHT = "accuracy"  # the metric that is a mean of 0/1 scores, so that errors seen decide


def gives_one_class(config: Any) -> bool:
    """Tells whether a sequence classifier with this configuration chooses one of several classes."""
    return config.num_labels > 1 and config.problem_type in (None, "single_label_classification")


@dataclass(frozen=True)
class ClassScoring:
    """Single-label classification; batches hold "labels" of shape `(batch,)`.

    Margins are the gold logit minus the best other one.

    Attributes:
        num_labels: Classes.
        metric: One of `CLASSIFICATION_METRICS`.
    """

    num_labels: int
    metric: str = MEAN_OF_RIGHT
    is_continuous = False
    margins_are_gaps = True
    num_rows = 2

    @classmethod
    def of(cls, model: nn.Module, metric: str) -> ClassScoring:
        """Returns the scoring of a model.

        Raises:
            UnsupportedModelError: The model is no single-label classifier.
        """
        config: Any = model.config
        if not gives_one_class(config):
            raise UnsupportedModelError(
                f"ExampleEvaluator: {type(model).__name__} must be a single-label classifier, received num_labels "
                f"{config.num_labels} and problem_type {config.problem_type!r}. Use MetricEvaluator with a function "
                "that measures this model."
            )
        return cls(config.num_labels, metric)

    @property
    def in_words(self) -> str:
        """Name of the metric."""
        return self.metric

    @property
    def is_mean(self) -> bool:
        """Whether the metric is the share of right answers."""
        return self.metric == MEAN_OF_RIGHT

    def check(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Refuses batches without one class for each example."""
        for number, batch in enumerate(batches):
            labels = batch.get(LABELS)
            if labels is None or labels.ndim != 1 or labels.is_floating_point():
                received = sorted(batch) if labels is None else (tuple(labels.shape), labels.dtype)
                raise InvalidSettingError(
                    f"ExampleEvaluator: batch {number}: labels must be whole numbers of shape (batch,), "
                    f"received {received}. Give each example one class."
                )
            wrong = labels[(labels < 0) | (labels >= self.num_labels)]
            if wrong.numel():
                raise InvalidSettingError(
                    f"ExampleEvaluator: batch {number}: labels must be 0..{self.num_labels - 1}, received "
                    f"{sorted(set(wrong.tolist()))[:5]}. Remove unlabelled examples, or map the labels to the "
                    "classes of the model."
                )

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns all but the labels."""
        return {name: tensor for name, tensor in batch.items() if name != LABELS}

    def weights(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Returns ones, `(batch,)`."""
        return np.ones(len(batch[LABELS]))

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads margins, right answers, and gold and predicted classes."""
        logits = self._logits(outputs, batch)
        margins = self.margins(outputs, batch).cpu().numpy()
        gold, predicted = batch[LABELS].cpu().numpy(), logits.cpu().numpy().argmax(axis=1)
        best, second = logits.topk(2, dim=1).values.T
        gaps = np.abs(margins) if self.is_mean else (best - second).cpu().numpy()
        rows = np.stack([gold, predicted], axis=1).astype(np.float64)
        return Answers(margins, (gold == predicted).astype(np.float64), gaps / tie_scale(logits).cpu().numpy(), rows)

    def value(self, answers: Answers, weights: np.ndarray) -> float:
        """Returns the metric of the classes gold and predicted."""
        del weights
        gold, predicted = answers.rows.astype(np.int64).T
        return CLASSIFICATION_METRICS[self.metric](confusion_of(gold, predicted, self.num_labels))

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns ones where the margin is above zero."""
        return (margins > 0).astype(np.float64)

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the gold logit minus the best other one."""
        logits, gold = self._logits(outputs, batch), batch[LABELS][:, None]
        return (logits.gather(1, gold) - logits.scatter(1, gold, -torch.inf).amax(dim=1, keepdim=True))[:, 0]

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the cross entropy."""
        return functional.cross_entropy(self._logits(outputs, batch), batch[LABELS], reduction="none")

    def _logits(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return logits_of(outputs, (len(batch[LABELS]), self.num_labels), "...ForSequenceClassification")


def logits_of(outputs: Any, shape: tuple[int, ...], wanted: str) -> torch.Tensor:
    """Returns the logits of a model's output, float32.

    Raises:
        UnsupportedModelError: There are none, or they have another shape, or are no numbers.
    """
    logits = getattr(outputs, "logits", None)
    if logits is None or tuple(logits.shape) != shape:
        raise UnsupportedModelError(
            f"ExampleEvaluator: the model must return logits of shape {shape}, received "
            f"{type(outputs).__name__} with {None if logits is None else tuple(logits.shape)}. Use a {wanted} model, "
            "or MetricEvaluator with a function that measures this one."
        )
    check_numbers(logits)
    return logits.float()


def check_numbers(logits: torch.Tensor) -> None:
    """Refuses logits that are no numbers: the first class would pass for the predicted one.

    Raises:
        UnsupportedModelError: There is a NaN.
    """
    if logits.isnan().any():
        raise UnsupportedModelError(
            f"ExampleEvaluator: the model must return numbers, received {int(logits.isnan().sum())} logits that are "
            "NaN. Look for weights that are, or load the model in a precision that holds its values."
        )
