"""Batches in the order in which a search finds their examples hard, and the answers that plans gave in them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.tasks.rebatching import Rows, can_be_taken_apart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.tasks.answers import Answers

ANSWERS = 32  # plans whose answers so far stay in memory, for a confirmation
STRATA = 8  # groups of equal hardness; examples of like length share a batch within them


@dataclass(frozen=True)
class Batch:
    """Examples that are computed together, with their labels."""

    indices: np.ndarray
    entries: dict[str, torch.Tensor]


class OrderedBatches:
    """The examples of a data set in batches of like hardness, where they may be put together anew.

    Attributes:
        weights: Of each example in the metric, `(num_examples,)`.
        batches: In the order sorted last.
    """

    def __init__(
        self,
        given: Sequence[Mapping[str, torch.Tensor]],
        weights: np.ndarray,
        model: nn.Module,
        *,
        batch_size: int,
        recompose: bool,
    ) -> None:
        """Takes the batches given apart, where that is wanted and possible.

        Args:
            given: All batches, with labels.
            weights: Of each example, `(num_examples,)`.
            model: Its device gets the batches; its configuration says what fills "input_ids".
            batch_size: Examples of a new batch.
            recompose: Whether examples may be put together anew; else the batches given are kept.
        """
        self.weights = weights
        self.batches: list[Batch] = []
        self._given = given
        self._batch_size = batch_size
        self._device = next(model.parameters()).device
        filler = getattr(model.config, "pad_token_id", None)
        self._rows = Rows(given, filler) if recompose and can_be_taken_apart(given) else None
        self._hardness: np.ndarray | None = None
        self._answers: OrderedDict[tuple[PruningPlan, bool], dict[int, Answers]] = OrderedDict()

    @property
    def are_recomposed(self) -> bool:
        """Whether examples are put together anew."""
        return self._rows is not None

    def sort(self, hardness: np.ndarray) -> bool:
        """Puts the batches together by the margins of the start, `(num_examples,)`; tells whether they changed."""
        if self._hardness is not None and np.array_equal(self._hardness, hardness):
            return False
        self._hardness = hardness
        self._answers.clear()
        self.batches = list(self._composed(hardness))
        return True

    def hardest_first(self, expected: np.ndarray) -> list[int]:
        """Orders batches by the share of errors that predicted margins, `(num_examples,)`, let expect in them."""
        doubt = 1 / (1 + np.exp(np.clip(expected, -30, 30)))
        shares = [-float(doubt[batch.indices].mean()) for batch in self.batches]
        return sorted(range(len(shares)), key=lambda place: (shares[place], place))

    def answers_of(self, plan: PruningPlan, *, is_exact: bool) -> dict[int, Answers]:
        """Returns the answers of a plan so far, exact or rough ones, by the place of their batch."""
        answers = self._answers.setdefault((plan, is_exact), {})
        self._answers.move_to_end((plan, is_exact))
        while len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)
        return answers

    def some(self, indices: np.ndarray) -> Iterator[Batch]:
        """Yields batches that hold some examples, those of like length together, and where possible no others."""
        if self._rows is None:
            yield from (batch for batch in self.given() if np.isin(batch.indices, indices).any())
            return
        yield from self._of_like_length(indices)

    def given(self) -> Iterator[Batch]:
        """Yields the batches given."""
        start = 0
        for batch in self._given:
            size = len(next(iter(batch.values())))
            entries = {name: tensor.to(self._device) for name, tensor in batch.items()}
            yield Batch(np.arange(start, start + size), entries)
            start += size

    def _composed(self, hardness: np.ndarray) -> Iterator[Batch]:
        """Yields batches: strata of like hardness, and within each the examples by their length."""
        if self._rows is None:
            yield from self.given()
            return
        order = np.argsort(hardness, kind="stable")
        size = max(4 * self._batch_size, -(-len(order) // STRATA))
        for start in range(0, len(order), size):
            yield from self._of_like_length(order[start : start + size])

    def _of_like_length(self, indices: np.ndarray) -> Iterator[Batch]:
        assert self._rows is not None  # noqa: S101 - for the type checker: the callers have looked
        indices = indices[np.argsort(-self._rows.lengths[indices], kind="stable")]
        for first in range(0, len(indices), self._batch_size):
            chosen = indices[first : first + self._batch_size]
            yield Batch(chosen, self._rows.batch(chosen.tolist(), self._device))
