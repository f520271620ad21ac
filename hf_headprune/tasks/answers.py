"""What a model answers to examples: scores, evidence, and how far the next answer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


TIE_BAND = 1e-3  # of the logits, where those are below 10 in size; round-off of another batch stays far below it


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers to some examples; one entry each, NaN where an example was not looked at.

    Attributes:
        margins: Evidence that an answer is right, `(num_examples,)`, float32; see `Scorer.margins`.
        scores: In [0, 1], `(num_examples,)`, float64.
        gaps: How far the next answer is, `(num_examples,)`, float32, in logits relative to their size. Within
            `TIE_BAND`, round-off could turn the answer.
        rows: What the metric is computed from, `(num_examples, k)`, float64; empty where it is the mean score.
    """

    margins: np.ndarray
    scores: np.ndarray
    gaps: np.ndarray
    rows: np.ndarray

    @classmethod
    def unseen(cls, num_examples: int, num_rows: int) -> Answers:
        """Returns the answers to examples that were not looked at."""
        single, double = (np.full(num_examples, np.nan, dtype=dtype) for dtype in (np.float32, np.float64))
        return cls(single, double, single.copy(), np.full((num_examples, num_rows), np.nan))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Returns the answers of several batches, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def taken(self, places: np.ndarray) -> Answers:
        """Returns the answers at some places, in their order."""
        return Answers(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    def put(self, places: np.ndarray, answers: Answers) -> None:
        """Overwrites some entries, in place."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[places] = getattr(answers, name)

    @property
    def seen(self) -> np.ndarray:
        """Whether an example was looked at, `(num_examples,)`."""
        return ~np.isnan(self.margins)


def weighted_mean(scores: np.ndarray, weights: np.ndarray) -> float:
    """Returns the mean of scores, `(n,)`, by their weights, `(n,)`."""
    return float((scores * weights).sum() / weights.sum())


def same_answers(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns 1 where two models answer alike, and else 0, `(n,)`, from what they answer, `(n, k)` each."""
    return (some == others).all(axis=1).astype(np.float64)


def tie_scale(logits: torch.Tensor) -> torch.Tensor:
    """Returns what gaps between the logits of each example, `(batch, ...)`, are divided by, `(batch,)`."""
    return (logits.abs().flatten(1).amax(dim=1) / 10).clamp_min(1.0)
