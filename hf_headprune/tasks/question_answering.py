"""Scores of extractive question answering: the best span of tokens in each window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from hf_headprune.errors import UnsupportedModelError
from hf_headprune.tasks.answers import Answers, tie_scale
from hf_headprune.tasks.scorer import Kind, Scorer, finite

if TYPE_CHECKING:
    from collections.abc import Mapping

START, END = "start_positions", "end_positions"
MASK = "attention_mask"
LONGEST_ANSWER = 30


@dataclass(frozen=True)
class SpanScorer(Scorer):
    """Question answering; batches hold "start_positions" and "end_positions" of shape `(batch,)`, in tokens.

    Each window of a context is an example, and answers are compared as spans of tokens: this is neither the F1 of the
    answers' words nor the best of several windows, which a Trainer's `compute_metrics` gives. A window without the
    answer has both positions at 0, the first token. The span predicted is the one with the largest sum of its two
    logits among those that do not end before they start, are not longer than `longest_answer`, and hold neither
    padding nor, unless it is all they hold, the first token. Margins are the gold span's sum minus the best other one.

    Attributes:
        metric: "f1" of the tokens of both spans, or "exact_match".
        longest_answer: Tokens of an answer.
    """

    metric: Literal["f1", "exact_match"] = "f1"
    longest_answer: int = LONGEST_ANSWER

    @property
    def kind(self) -> Kind:
        """A span is the right one or not; its F1 is between."""
        return "bounded" if self.metric == "f1" else "binary"

    @property
    def scored(self) -> str:
        """What is compared."""
        if self.metric == "f1":
            return "the F1 of the tokens of the predicted and the right span, each window for itself"
        return "whether the predicted span is the right one, each window for itself"

    @property
    def in_words(self) -> str:
        """Name of the metric, and of what: a Trainer's own may compare words."""
        return f"{self.metric} of spans"

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        for name in (START, END):
            positions = batch.get(name)
            if positions is None or positions.ndim != 1 or positions.is_floating_point():
                received = sorted(batch) if positions is None else (tuple(positions.shape), positions.dtype)
                return (
                    f"{name} must be whole numbers of shape (batch,), received {received}. Give each window the tokens "
                    "at which its answer starts and ends."
                )
        lengths = batch[MASK].sum(dim=1) if MASK in batch else torch.tensor(batch["input_ids"].shape[1])
        wrong = (batch[START] < 0) | (batch[START] > batch[END]) | (batch[END] >= lengths)
        if not wrong.any():
            return None
        pairs = [(int(s), int(e)) for s, e in zip(batch[START][wrong], batch[END][wrong], strict=True)]
        return (
            f"answers must start and end inside their windows, start <= end, received {pairs[:5]}. Give windows "
            "without the answer 0 for both, and pad on the right."
        )

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns all but the positions."""
        return {name: tensor for name, tensor in batch.items() if name not in (START, END)}

    def weights(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Returns ones, `(batch,)`."""
        return np.ones(len(batch[START]))

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads the best span of each window."""
        sums = self._sums(outputs, batch)
        best, second = sums.flatten(1).topk(2, dim=1).values.T
        first = torch.from_numpy(sums.flatten(1).cpu().numpy().argmax(axis=1)).to(sums.device)
        start = first // self.longest_answer
        end = start + first % self.longest_answer
        common = (torch.minimum(end, batch[END]) - torch.maximum(start, batch[START]) + 1).clamp_min(0)
        total = (end - start + 1) + (batch[END] - batch[START] + 1)
        f1 = 2 * common.cpu().double() / total.cpu()
        scores = f1 if self.metric == "f1" else (f1 == 1.0).double()
        scale = tie_scale(torch.stack([outputs.start_logits, outputs.end_logits], dim=1).float())
        margins = self.margins(outputs, batch).cpu().numpy()
        return Answers(margins, scores.numpy(), ((best - second) / scale).cpu().numpy(), np.zeros((len(margins), 0)))

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns ones where the margin is above zero."""
        return (margins > 0).astype(np.float64)

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the gold span's sum of logits minus the best other one."""
        sums, start = self._sums(outputs, batch), batch[START]
        rows = torch.arange(len(start), device=sums.device)
        gold = outputs.start_logits.float()[rows, start] + outputs.end_logits.float()[rows, batch[END]]
        length = batch[END] - start
        is_candidate = torch.zeros_like(sums, dtype=torch.bool)
        is_candidate[rows, start, length.clamp_max(self.longest_answer - 1)] = length < self.longest_answer
        return gold - sums.masked_fill(is_candidate, -torch.inf).flatten(1).amax(dim=1)

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean cross entropy of both positions."""
        start = functional.cross_entropy(outputs.start_logits.float(), batch[START], reduction="none")
        return (start + functional.cross_entropy(outputs.end_logits.float(), batch[END], reduction="none")) / 2

    def _sums(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the sum of logits of each span, `(batch, length, longest_answer)`, minus infinity where none is."""
        starts, ends = getattr(outputs, "start_logits", None), getattr(outputs, "end_logits", None)
        if starts is None or ends is None:
            raise UnsupportedModelError(
                f"The model must return start_logits and end_logits, received {type(outputs).__name__}. Use a "
                "...ForQuestionAnswering model, or a function that measures this one."
            )
        starts, ends = finite(starts), finite(ends)
        if MASK in batch:
            starts, ends = (logits.masked_fill(batch[MASK] == 0, -torch.inf) for logits in (starts, ends))
        padded = functional.pad(ends, (0, self.longest_answer - 1), value=-torch.inf)
        sums = starts[:, :, None] + padded.unfold(1, self.longest_answer, 1)  # (batch, length, longest_answer)
        through_first = torch.zeros_like(sums, dtype=torch.bool)
        through_first[:, 0, 1:] = True
        return sums.masked_fill(through_first, -torch.inf)
