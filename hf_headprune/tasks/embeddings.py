"""Scores of embedding models: how near the embedding of a text stays to the dense one, or pairs to what people say.

A text is embedded by the mean of its last hidden states over real tokens, at length 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hf_headprune._offloaded import device_of
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.masking import evaluating
from hf_headprune.tasks.answers import Answers
from hf_headprune.tasks.regression import RegressionScorer
from hf_headprune.tasks.scorer import LABELS, Scorer, finite, label_problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

SIMILARITY = "similarity"
IDS, MASK = "input_ids", "attention_mask"
PAIR = 2
PAIRED_DIMS = 3  # (batch, 2, length)


def embedded(outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the embeddings of texts, `(texts, hidden_size)`, float32, each of length 1.

    Args:
        outputs: Of a model without a head.
        batch: What it was given; all tokens are real without "attention_mask".

    Raises:
        UnsupportedModelError: The model returns no hidden states, or some that are not finite.
    """
    hidden = getattr(outputs, "last_hidden_state", None)
    if hidden is None:
        raise UnsupportedModelError(
            f"An embedding model must return last_hidden_state, received {type(outputs).__name__}. Pass the model "
            "without a head, such as AutoModel.from_pretrained(...), or a function that measures this one."
        )
    real = batch.get(MASK)
    real = torch.ones(hidden.shape[:2], device=hidden.device) if real is None else real.reshape(hidden.shape[:2])
    real = real.to(hidden.device, torch.float32)[..., None]  # (texts, length, 1)
    mean = (finite(hidden) * real).sum(dim=1) / real.sum(dim=1).clamp_min(1)
    return functional.normalize(mean, dim=-1)


def texts_of(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what the model takes: the two texts of each pair, `(batch, 2, length)`, one after the other."""
    inputs = {name: tensor for name, tensor in batch.items() if name != LABELS}
    is_paired = inputs[IDS].dim() == PAIRED_DIMS
    return {name: tensor.flatten(0, 1) for name, tensor in inputs.items()} if is_paired else inputs


def signs_like(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draws random signs of the shape of some values, `(batch, ...)`, example by example."""
    drawn = [torch.randint(0, 2, tuple(values.shape[1:]), generator=generator) for _ in values]
    return (2 * torch.stack(drawn) - 1).to(values)


@dataclass(frozen=True)
class SimilarityScorer(Scorer):
    """How near embeddings stay to those of the model before pruning; no labels are needed.

    An example's score is the cosine similarity of its embedding to the dense one, at least 0. "labels" of shape
    `(batch, hidden_size)` are embeddings of another model, which then takes the place of the dense one.
    """

    metric = SIMILARITY
    scored = "the cosine similarity of its embedding to that of the dense model"
    in_words = "similarity to the dense embeddings"
    is_continuous = True
    compares_models = True

    def with_references(
        self, model: nn.Module, batches: Sequence[Mapping[str, torch.Tensor]]
    ) -> list[dict[str, torch.Tensor]]:
        """Returns the batches with the embeddings of a model as labels, where they have none."""
        device = device_of(model)
        found = []
        with evaluating(model):
            for batch in batches:
                if LABELS in batch or IDS not in batch or batch[IDS].dim() == PAIRED_DIMS:
                    found.append(dict(batch))
                    continue
                inputs = {name: tensor.to(device) for name, tensor in batch.items()}
                found.append({**batch, LABELS: embedded(model(**inputs), inputs).to(batch[IDS].device)})
        return found

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        labels = batch.get(LABELS)
        fits = labels is not None and labels.is_floating_point() and labels.ndim == PAIR
        if not fits or not bool(labels.isfinite().all()):  # type: ignore[union-attr]
            rule = "an embedding for each text, or left out"
            return label_problem(batch, rule, 'Leave labels out, or name "spearman" for pairs of texts with a number.')
        return None

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads the similarities; nothing is a tie."""
        margins = self.margins(outputs, batch).cpu()
        gaps = np.full(len(margins), np.inf, dtype=np.float32)
        scores = margins.double().clamp(0, 1).numpy()
        return Answers(margins.numpy(), scores, gaps, np.zeros((len(margins), 0)))

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the similarities."""
        found = embedded(outputs, batch)
        wanted = batch[LABELS].to(found)
        if wanted.shape != found.shape:
            raise UnsupportedModelError(
                f"The model must return embeddings of the width of those it is compared with, {tuple(wanted.shape)}, "
                f"received {tuple(found.shape)}. Compare a model with the one that it was pruned from."
            )
        return (found * functional.normalize(wanted, dim=-1)).sum(dim=-1)

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns random projections of the embeddings: at the dense model their distance has no gradient."""
        found = embedded(outputs, batch)
        drawn = torch.Generator().manual_seed(int(batch[IDS].sum()))  # others for each batch, the same each time
        return (found * signs_like(found, drawn)).sum(dim=-1)


@dataclass(frozen=True)
class PairScorer(RegressionScorer):
    """Pairs of texts with a number; batches hold inputs of shape `(batch, 2, length)` and "labels" `(batch,)`.

    The model says how near two texts are by the cosine similarity of their embeddings. "spearman" and "pearson"
    correlate it with the numbers. Margins are 1 - |similarity - label|, with labels moved into 0 to 1.
    """

    metric: str = "spearman"

    @property
    def scored(self) -> str:
        """What is compared."""
        return "its label and the cosine similarity of its two texts"

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns both texts of each pair, one after the other."""
        return texts_of(batch)

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        if batch[IDS].dim() != PAIRED_DIMS or batch[IDS].shape[1] != PAIR:
            return (
                f"{IDS} must be those of two texts for each example, (batch, 2, length), received "
                f"{tuple(batch[IDS].shape)}. Tokenize both in one call: tokenizer([first, second])."
            )
        return super()._problem(batch)

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns 1 - |similarity - label|."""
        gold, near = self._pair(outputs, batch)
        return 1.0 - (near - gold).abs()

    def _pair(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns labels, moved into 0 to 1, and similarities, `(batch,)` each."""
        low, high = self.range_of_labels
        embeddings = embedded(outputs, texts_of(batch)).unflatten(0, (-1, PAIR))  # (batch, 2, hidden_size)
        near = (embeddings[:, 0] * embeddings[:, 1]).sum(dim=-1)
        return (batch[LABELS].flatten().to(near) - low) / (high - low), near
