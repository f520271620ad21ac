"""Scores of sequence classification with several labels per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hf_headprune.tasks.answers import Answers, tie_scale
from hf_headprune.tasks.scorer import LABELS, Scorer, label_problem, logits_of, range_problem

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class MultiLabelScorer(Scorer):
    """Several labels per example; batches hold "labels" of zeros and ones, `(batch, num_labels)`.

    A label is predicted where its logit is above zero. An example's score is the Jaccard index of its labels and those
    predicted: the number that are both, over the number that are either, and 1 where there is none of either. Its
    margin is the same of the squashed logits. (Of many labels most are absent, so that the share of right ones is high
    for a model that predicts nothing.)

    Attributes:
        num_labels: Labels that an example may have.

    Source: Godbole and Sarawagi 2004, who call it the accuracy of several labels.
    """

    num_labels: int
    metric = "jaccard"
    scored = "the Jaccard index of its labels and those predicted, 1 where both are none"
    in_words = "Jaccard index of labels"

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
        """Reads the index of both lists of labels, and the label nearest to a tie."""
        logits = self._logits(outputs, batch)
        gaps = logits.abs().amin(dim=1) / tie_scale(logits)
        gold, predicted = (part.cpu().double().numpy() for part in (batch[LABELS], logits > 0))
        margins = self.margins(outputs, batch).cpu().numpy()
        return Answers(
            margins, self.likeness(predicted, gold), gaps.cpu().numpy(), np.concatenate([gold, predicted], axis=1)
        )

    def likeness(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns the Jaccard index of two lists of labels for each example; one minus it is a distance."""
        either = np.maximum(answers, others).sum(axis=1)
        return np.where(either == 0, 1.0, np.minimum(answers, others).sum(axis=1) / np.maximum(either, 1.0))

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

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the index with the probability of each label in place of whether it is predicted, in [0, 1]."""
        logits, gold = self._logits(outputs, batch), batch[LABELS].float()
        likely = (2 * logits).sigmoid()
        both = (likely * gold).sum(dim=1)
        either = likely.sum(dim=1) + gold.sum(dim=1) - both
        return torch.where(gold.any(dim=1), both / either, (1 - likely).prod(dim=1))

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean binary cross entropy over labels."""
        logits = self._logits(outputs, batch)
        targets = batch[LABELS].to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)

    def _logits(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return logits_of(outputs, (len(batch[LABELS]), self.num_labels), "...ForSequenceClassification")
