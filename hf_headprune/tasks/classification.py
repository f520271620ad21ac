"""Scores of sequence classification: one class per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hf_headprune.tasks.answers import Answers, tie_scale
from hf_headprune.tasks.metrics import CLASSIFICATION_METRICS, confusion_of
from hf_headprune.tasks.scorer import LABELS, Kind, Scorer, label_problem, logits_of, range_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

MEAN_OF_RIGHT = "accuracy"  # the metric that is a mean of 0/1 scores, so that errors seen decide


@dataclass(frozen=True)
class ClassScorer(Scorer):
    """Single-label classification; batches hold "labels" of shape `(batch,)`.

    Margins are the gold logit minus the best other one.

    Attributes:
        num_labels: Classes.
        metric: One of `CLASSIFICATION_METRICS`.
    """

    num_labels: int
    metric: str = MEAN_OF_RIGHT
    num_rows = 2

    @property
    def kind(self) -> Kind:
        """Accuracy is a mean of 0/1 scores; the other metrics are not means."""
        return "binary" if self.metric == MEAN_OF_RIGHT else "corpus"

    @property
    def scored(self) -> str:
        """What is compared."""
        return "whether the predicted class is right" if self.is_mean else "its label and its predicted class"

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        labels = batch.get(LABELS)
        if labels is None or labels.ndim != 1 or labels.is_floating_point() or labels.dtype is torch.bool:
            return label_problem(
                batch,
                "whole numbers of shape (batch,)",
                "Give each example one class; for several labels per example, set "
                "model.config.problem_type = 'multi_label_classification'.",
            )
        wrong = labels[(labels < 0) | (labels >= self.num_labels)]
        advice = "Remove unlabelled examples, or map the labels to the classes of the model."
        return range_problem(wrong, f"0..{self.num_labels - 1}", advice)

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
        return self.aggregate(answers.rows)

    def aggregate(self, rows: np.ndarray) -> float:
        """Returns the metric of rows of gold and predicted classes, `(n, 2)`."""
        gold, predicted = rows.astype(np.int64).T
        return CLASSIFICATION_METRICS[self.metric](confusion_of(gold, predicted, self.num_labels))

    @property
    def any_label(self) -> Any:
        """The first class, if right and wrong answers are counted."""
        return 0 if self.is_mean else None

    def answered(self, rows: np.ndarray) -> np.ndarray:
        """Returns predicted classes, `(n, 1)`."""
        return rows[:, 1:]

    def predictions_of(self, rows: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Returns predicted and gold classes."""
        gold, predicted = rows.astype(np.int64).T.tolist()
        return predicted, gold

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns ones where the margin is above zero."""
        return (margins > 0).astype(np.float64)

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the gold logit minus the best other one."""
        logits, gold = self._logits(outputs, batch), batch[LABELS][:, None]
        return (logits.gather(1, gold) - logits.scatter(1, gold, float("-inf")).amax(dim=1, keepdim=True))[:, 0]

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the cross entropy."""
        return functional.cross_entropy(self._logits(outputs, batch), batch[LABELS], reduction="none")

    def _logits(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return logits_of(outputs, (len(batch[LABELS]), self.num_labels), "...ForSequenceClassification")
