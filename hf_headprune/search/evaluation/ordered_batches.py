"""The batches of a data set, the hardest of them first, and the answers that plans gave in them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from hf_headprune.plan import PruningPlan
    from hf_headprune.tasks.answers import Answers

ANSWERS = 32  # plans whose answers so far stay in memory, for a confirmation


@dataclass(frozen=True)
class Batch:
    """Examples that are computed together, with their labels."""

    indices: np.ndarray
    entries: dict[str, torch.Tensor]


class OrderedBatches:
    """The batches of a data set.

    Attributes:
        weights: Of each example in the metric, `(num_examples,)`.
        batches: As they are given.
    """

    def __init__(
        self, given: Sequence[Mapping[str, torch.Tensor]], weights: np.ndarray, *, device: torch.device
    ) -> None:
        """Moves the batches to a device.

        Args:
            given: All batches, with labels.
            weights: Of each example, `(num_examples,)`.
            device: Of the model.
        """
        self.weights = weights
        self.batches: list[Batch] = []
        start = 0
        for batch in given:
            end = start + len(next(iter(batch.values())))
            entries = {name: tensor.to(device) for name, tensor in batch.items()}
            self.batches.append(Batch(np.arange(start, end), entries))
            start = end
        self._answers: OrderedDict[PruningPlan, dict[int, Answers]] = OrderedDict()

    def hardest_first(self, expected: np.ndarray) -> list[int]:
        """Orders batches by the share of errors that predicted margins, `(num_examples,)`, let expect in them."""
        doubt = 1 / (1 + np.exp(np.clip(expected, -30, 30)))
        shares = [-float(doubt[batch.indices].mean()) for batch in self.batches]
        return sorted(range(len(shares)), key=lambda place: (shares[place], place))

    def answers_of(self, plan: PruningPlan) -> dict[int, Answers]:
        """Returns the answers of a plan so far, by the place of their batch."""
        answers = self._answers.setdefault(plan, {})
        self._answers.move_to_end(plan)
        while len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)
        return answers

    def some(self, which: np.ndarray) -> list[Batch]:
        """Returns the batches that hold any of the examples which are marked, `(num_examples,)`."""
        return [batch for batch in self.batches if which[batch.indices].any()]
