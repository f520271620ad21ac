"""Scores of language models: how likely they find each reference, or each text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hf_headprune.tasks.answers import Answers
from hf_headprune.tasks.examples import IGNORED_LABEL as IGNORED
from hf_headprune.tasks.scorer import LABELS, Scorer, label_problem, logits_of, range_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST = 1e-6  # keeps the margin of a likelihood of 0 or 1 finite


@dataclass(frozen=True)
class LikelihoodScorer(Scorer):
    """Translation and the like; batches hold "labels" of shape `(batch, target_length)`, -100 where there is none.

    An example's score is `exp` of the mean log probability of its reference's tokens, each given those before it: the
    geometric mean of their probabilities, in (0, 1]. Its margin is the log odds of that.

    Attributes:
        vocab_size: Tokens that the model knows.
    """

    vocab_size: int
    metric = "likelihood"
    scored = "the geometric mean of the probabilities of its reference's tokens (1 / perplexity)"
    is_continuous = True
    in_words = "likelihood of references"

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        labels = batch.get(LABELS)
        fits = labels is not None and not labels.is_floating_point() and labels.ndim == 2  # noqa: PLR2004
        if not fits or not (self._targets(labels) != IGNORED).any(dim=1).all():  # type: ignore[arg-type]
            rule = f"the tokens of a reference for each example, {IGNORED} for padding"
            return label_problem(batch, rule, "Remove examples without a reference.")
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= self.vocab_size))]  # type: ignore[index, operator]
        rule = f"tokens 0..{self.vocab_size - 1}, or {IGNORED}"
        return range_problem(wrong, rule, "Tokenize the references with the model's tokenizer.")

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns all: without `decoder_input_ids`, the model shifts the labels to make them."""
        return {name: tensor for name, tensor in batch.items() if name != LABELS or "decoder_input_ids" not in batch}

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads the likelihoods; nothing is a tie."""
        scores = self._scores(outputs, batch)
        margins = scores.clamp(LEAST, 1 - LEAST).logit().cpu().numpy()
        gaps = np.full(len(margins), np.inf, dtype=np.float32)
        return Answers(margins, scores.cpu().double().numpy(), gaps, np.zeros((len(margins), 0)))

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns the likelihoods that log odds stand for."""
        return 1.0 / (1.0 + np.exp(-np.clip(margins.astype(np.float64), -30, 30)))

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the log odds of the likelihood."""
        return self._scores(outputs, batch).clamp(LEAST, 1 - LEAST).logit()

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean cross entropy over the reference's tokens."""
        labels = self._targets(batch[LABELS])
        logits = self._logits(outputs, batch)
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1)

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the tokens that are predicted, `(batch, num_predicted)`."""
        return labels

    def _logits(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns their logits, `(batch, num_predicted, vocab_size)`."""
        return logits_of(outputs, (*batch[LABELS].shape, self.vocab_size), "language")

    def _scores(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.losses(outputs, batch).neg().exp()


@dataclass(frozen=True)
class CausalScorer(LikelihoodScorer):
    """Causal language models; batches hold "labels" of shape `(batch, length)`: the input, -100 where not to score.

    The logits at a token predict the next one. Scores are those of `LikelihoodScorer`: the score of a text is one over
    its perplexity.
    """

    scored = "the geometric mean of the probabilities of its tokens, each given those before it (1 / perplexity)"
    in_words = "likelihood of texts"

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns all but the labels."""
        return {name: tensor for name, tensor in batch.items() if name != LABELS}

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        return labels[:, 1:]

    def _logits(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return super()._logits(outputs, batch)[:, :-1]
