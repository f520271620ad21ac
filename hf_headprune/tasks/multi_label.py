"""Scores of sequence classification with several labels per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.nn import functional

from hf_headprune.tasks.answers import Answers, tie_scale
from hf_headprune.tasks.scorer import LABELS, Scorer, label_problem, logits_of, range_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


@dataclass(frozen=True)
class MultiLabelScorer(Scorer):
    """Several labels per example; batches hold "labels" of zeros and ones, `(batch, num_labels)`.

    A label is predicted where its logit is above zero. An example's score is the share of its labels that are predicted
    right; its margin is the mean of the squashed logits, each with the sign of its label.

    Attributes:
        num_labels: Labels that an example may have.
    """

    num_labels: int
    metric = "accuracy"
    scored = "the share of labels that are predicted right"
    in_words = "accuracy of labels"

    @property
    def num_rows(self) -> int:
        """Labels, then predictions."""
        return 2 * self.num_labels

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        labels = batch.get(LABELS)
        if labels is None or labels.ndim != 2 or labels.shape[1] != self.num_labels:  # noqa: PLR2004
            rule = f"of shape (batch, {self.num_labels})"
            return label_problem(batch, rule, "Give each example a list with 0 or 1 for each label.")
        wrong = labels[(labels != 0) & (labels != 1)]
        return range_problem(wrong, "0 or 1", "Mark the labels that an example has with 1, all others with 0.")

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads the share of right labels, and the label nearest to a tie."""
        logits, labels = self._logits(outputs, batch), batch[LABELS]
        predicted = logits > 0
        right = (predicted == labels.bool()).sum(dim=1).cpu().numpy()
        gaps = logits.abs().amin(dim=1) / tie_scale(logits)
        rows = np.concatenate([part.cpu().double().numpy() for part in (labels, predicted)], axis=1)
        return Answers(self.margins(outputs, batch).cpu().numpy(), right / self.num_labels, gaps.cpu().numpy(), rows)

    def value(self, answers: Answers, weights: np.ndarray) -> float:
        """Returns the share of labels that are right; a count over a count, free of round-off."""
        return float(np.rint(answers.scores * self.num_labels).sum() / (self.num_labels * len(weights)))

    @property
    def any_label(self) -> Any:
        """No label at all."""
        return [0.0] * self.num_labels

    def answered(self, rows: np.ndarray) -> np.ndarray:
        """Returns zeros and ones, predicted, `(n, num_labels)`."""
        return rows[:, self.num_labels :]

    def predictions_of(self, rows: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Returns lists of zeros and ones, predicted and gold."""
        gold, predicted = np.split(rows.astype(np.int64), 2, axis=1)
        return predicted.tolist(), gold.tolist()

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns the share of right labels that a mean squashed margin stands for."""
        return np.clip((1.0 + margins) / 2, 0.0, 1.0)

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean over labels of the squashed logit with the sign of its label, in (-1, 1)."""
        logits = self._logits(outputs, batch)
        return (logits.tanh() * (2 * batch[LABELS].to(logits.dtype) - 1)).mean(dim=1)

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean binary cross entropy over labels."""
        logits = self._logits(outputs, batch)
        targets = batch[LABELS].to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)

    def _logits(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return logits_of(outputs, (len(batch[LABELS]), self.num_labels), "...ForSequenceClassification")
