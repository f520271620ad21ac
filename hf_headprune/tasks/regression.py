"""Scores of regression: how close the predicted number is, in shares of the range of the labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.answers import Answers
from hf_headprune.tasks.metrics import REGRESSION_METRICS
from hf_headprune.tasks.scorer import LABELS, Kind, Scorer, label_problem, logits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CLOSENESS, SQUARED = "closeness", "mse"


@dataclass(frozen=True)
class RegressionScorer(Scorer):
    """Regression of one number; batches hold "labels" of shape `(batch,)` or `(batch, 1)`.

    An example's score is 1 - |error| / range, at least 0, with the range from the smallest to the largest label of the
    data; of "mse" it is 1 - (error / range)^2. "pearson" and "spearman" are correlations of labels and predictions.
    Margins are the scores, below 0 where the error exceeds the range.

    Attributes:
        metric: "closeness", "mse", "pearson" or "spearman".
        labels: Smallest and largest label, as soon as `check` has read them.
    """

    metric: str = CLOSENESS
    labels: tuple[float, float] | None = None
    is_continuous = True
    num_rows = 2

    @property
    def kind(self) -> Kind:
        """Correlations are no means."""
        return "corpus" if self.metric in REGRESSION_METRICS else "bounded"

    @property
    def range_of_labels(self) -> tuple[float, float]:
        """Smallest and largest label.

        Raises:
            InvalidSettingError: No labels were read yet.
        """
        if self.labels is None:
            raise InvalidSettingError(
                "RegressionScorer: errors are measured in the range of the labels, received none. Score with what "
                "scorer.check(batches) returns."
            )
        return self.labels

    @property
    def in_words(self) -> str:
        """Name of the metric; higher is better."""
        return "1 - mse / squared range of the labels" if self.metric == SQUARED else self.metric

    @property
    def scored(self) -> str:
        """What is compared."""
        if not self.is_mean:
            return "its label and its predicted number"
        power = "^2" if self.metric == SQUARED else ""
        if self.labels is None:
            return f"1 - (|error| / range of the labels){power}"
        low, high = self.labels
        return f"1 - (|error| / {high - low:g}){power}, at least 0; labels run from {low:g} to {high:g}"

    def describes(self, scored: str) -> bool:
        """Tells whether these words, perhaps of a scorer that knows the labels, say what this one scores."""
        return scored == self.scored or (self.is_mean and scored.startswith("1 - (|error| / "))

    def check(self, batches: Sequence[Mapping[str, torch.Tensor]], *, where: str = "ExampleEvaluator") -> Scorer:
        """Refuses batches without one number for each example; returns the scorer that knows their range."""
        super().check(batches, where=where)
        if self.labels is not None or not batches:
            return self
        found = torch.cat([batch[LABELS].flatten().double().cpu() for batch in batches])
        low, high = float(found.min()), float(found.max())
        if low == high:
            raise InvalidSettingError(
                f"{where}: the labels of a regression must differ, received {low:g} for all {len(found)} examples. "
                "Pass more examples."
            )
        return replace(self, labels=(low, high))

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        labels = batch.get(LABELS)
        if labels is None or labels.numel() != len(labels) or not labels.double().isfinite().all():
            return label_problem(batch, "one finite number per example", "Remove unlabelled examples.")
        return None

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads scores, labels and predictions; nothing is a tie."""
        margins = self.margins(outputs, batch).cpu()
        gold, predicted = (part.cpu().double().numpy() for part in self._pair(outputs, batch))
        gaps = np.full(len(margins), np.inf, dtype=np.float32)
        return Answers(margins.numpy(), margins.double().clamp(0, 1).numpy(), gaps, np.stack([gold, predicted], axis=1))

    def aggregate(self, rows: np.ndarray) -> float:
        """Returns the correlation of labels and predictions, `(n, 2)`."""
        return REGRESSION_METRICS[self.metric](rows)

    def predictions_of(self, rows: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Returns predicted numbers and labels."""
        gold, predicted = rows.T.tolist()
        return predicted, gold

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the scores, not cut off at 0."""
        gold, predicted = self._pair(outputs, batch)
        low, high = self.range_of_labels
        error = (predicted - gold) / (high - low)
        return 1.0 - (error.square() if self.metric == SQUARED else error.abs())

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the squared error."""
        gold, predicted = self._pair(outputs, batch)
        return (predicted - gold).square()

    def _pair(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns labels and predictions, `(batch,)` each."""
        logits = logits_of(outputs, (len(batch[LABELS]), 1), "...ForSequenceClassification")[:, 0]
        return batch[LABELS].flatten().to(logits.dtype), logits
