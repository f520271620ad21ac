"""Scores of token classification: the share of labelled tokens that are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.answers import Answers, tie_scale, weighted_mean
from hf_headprune.tasks.examples import IGNORED_LABEL as IGNORED
from hf_headprune.tasks.scorer import LABELS, Scorer, label_problem, logits_of, range_problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class TokenScorer(Scorer):
    """Token classification by accuracy; batches hold "labels" of shape `(batch, length)`, -100 where there is none.

    The score of a text is the share of its labelled tokens that are right. In a search a text weighs as much as it has
    labelled tokens, so that the metric is the accuracy over all of them. Its margin is the mean over them of the
    squashed gold logit minus the best other one.

    Attributes:
        num_labels: Classes.
    """

    num_labels: int
    metric = "accuracy"
    scored = "the share of its labelled tokens whose predicted class is right"
    in_words = "accuracy of tokens"

    def check(self, batches: Sequence[Mapping[str, torch.Tensor]], *, where: str = "ExampleEvaluator") -> Scorer:
        """Refuses batches without one class, or -100, for each token, or without any labelled token."""
        super().check(batches, where=where)
        if not any((batch[LABELS] != IGNORED).any() for batch in batches):
            raise InvalidSettingError(f"{where}: no token has a label. Pass labelled examples.")
        return self

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        labels, ids = batch.get(LABELS), batch.get("input_ids")
        fits = labels is not None and not labels.is_floating_point() and labels.ndim == 2  # noqa: PLR2004
        if not fits or (ids is not None and labels.shape != ids.shape):  # type: ignore[union-attr]
            advice = f"Align the labels with the tokens, and give others {IGNORED}."
            return label_problem(batch, "whole numbers, one per token", advice)
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= self.num_labels))]  # type: ignore[index, operator]
        rule = f"0..{self.num_labels - 1}, or {IGNORED} for none"
        return range_problem(wrong, rule, "Map the labels to the classes of the model.")

    def weights(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Returns the number of labelled tokens, `(batch,)`."""
        return (batch[LABELS] != IGNORED).sum(dim=1).cpu().numpy().astype(np.float64)

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads the share of right tokens, and the nearest tie among them."""
        logits, labelled = self._logits(outputs, batch), batch[LABELS] != IGNORED
        predicted = torch.from_numpy(logits.cpu().numpy().argmax(axis=2)).to(logits.device)
        right = ((predicted == batch[LABELS]) & labelled).sum(dim=1).cpu().numpy()
        best, second = logits.topk(2, dim=2).values.unbind(dim=2)
        gaps = torch.where(labelled, best - second, torch.inf).amin(dim=1) / tie_scale(logits)
        scores = right / np.maximum(self.weights(batch), 1.0)
        return Answers(
            self.margins(outputs, batch).cpu().numpy(), scores, gaps.cpu().numpy(), np.zeros((len(right), 0))
        )

    def value(self, answers: Answers, weights: np.ndarray) -> float:
        """Returns the share of labelled tokens that are right; a count over a count, free of round-off."""
        return weighted_mean(np.rint(answers.scores * weights), np.ones_like(weights)) * len(weights) / weights.sum()

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns the share of right tokens that a mean squashed margin stands for."""
        return np.clip((1.0 + margins) / 2, 0.0, 1.0)

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean over labelled tokens of the squashed margin, in (-1, 1)."""
        logits, labels = self._logits(outputs, batch), batch[LABELS]
        labelled = labels != IGNORED
        gold = labels.clamp_min(0)[:, :, None]
        margins = (logits.gather(2, gold) - logits.scatter(2, gold, -torch.inf).amax(dim=2, keepdim=True))[:, :, 0]
        return (margins.tanh() * labelled).sum(dim=1) / labelled.sum(dim=1).clamp_min(1)

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean cross entropy over labelled tokens."""
        logits, labels = self._logits(outputs, batch), batch[LABELS]
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp_min(1)

    def _logits(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return logits_of(outputs, (*batch[LABELS].shape, self.num_labels), "...ForTokenClassification")
