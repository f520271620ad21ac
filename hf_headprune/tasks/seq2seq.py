"""Scores of sequence-to-sequence models: how likely they find each reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.answers import Answers, weighted_mean
from hf_headprune.tasks.classification import LABELS, logits_of
from hf_headprune.tasks.examples import IGNORED_LABEL as IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEAST = 1e-6  # keeps the margin of a likelihood of 0 or 1 finite


@dataclass(frozen=True)
class LikelihoodScoring:
    """Translation and the like; batches hold "labels" of shape `(batch, target_length)`, -100 where there is none.

    An example's score is `exp` of the mean log probability of its reference's tokens, each given those before it: the
    geometric mean of their probabilities, in (0, 1]. Its margin is the log odds of that.

    Attributes:
        vocab_size: Tokens that the model knows.
    """

    vocab_size: int
    metric = "likelihood"
    in_words = "likelihood of references"
    is_mean = True
    is_continuous = True
    margins_are_gaps = False
    num_rows = 0

    def check(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Refuses batches without a reference for each example."""
        for number, batch in enumerate(batches):
            labels = batch.get(LABELS)
            fits = labels is not None and not labels.is_floating_point() and labels.ndim == 2  # noqa: PLR2004
            if not fits or not (labels != IGNORED).any(dim=1).all():  # type: ignore[union-attr]
                received = sorted(batch) if labels is None else (tuple(labels.shape), labels.dtype)
                raise InvalidSettingError(
                    f"ExampleEvaluator: batch {number}: labels must be the tokens of a reference for each example, "
                    f"{IGNORED} for padding, received {received}. Remove examples without a reference."
                )
            wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= self.vocab_size))]  # type: ignore[index, operator]
            if wrong.numel():
                raise InvalidSettingError(
                    f"ExampleEvaluator: batch {number}: labels must be tokens 0..{self.vocab_size - 1}, or {IGNORED}, "
                    f"received {sorted(set(wrong.tolist()))[:5]}. Tokenize the references with the model's tokenizer."
                )

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns all: without `decoder_input_ids`, the model shifts the labels to make them."""
        return {name: tensor for name, tensor in batch.items() if name != LABELS or "decoder_input_ids" not in batch}

    def weights(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Returns ones, `(batch,)`."""
        return np.ones(len(batch[LABELS]))

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads the likelihoods; nothing is a tie."""
        scores = self._scores(outputs, batch)
        margins = scores.clamp(LEAST, 1 - LEAST).logit().cpu().numpy()
        gaps = np.full(len(margins), np.inf, dtype=np.float32)
        return Answers(margins, scores.cpu().double().numpy(), gaps, np.zeros((len(margins), 0)))

    def value(self, answers: Answers, weights: np.ndarray) -> float:
        """Returns the mean likelihood."""
        return weighted_mean(answers.scores, weights)

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns the likelihoods that log odds stand for."""
        return 1.0 / (1.0 + np.exp(-np.clip(margins.astype(np.float64), -30, 30)))

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the log odds of the likelihood."""
        return self._scores(outputs, batch).clamp(LEAST, 1 - LEAST).logit()

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean cross entropy over the reference's tokens."""
        labels = batch[LABELS]
        logits = logits_of(outputs, (*labels.shape, self.vocab_size), "sequence-to-sequence")
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1)

    def _scores(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.losses(outputs, batch).neg().exp()
