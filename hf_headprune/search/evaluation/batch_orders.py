"""Batches in the order in which a parent finds their examples hard, and the answers that plans gave in them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.tasks.rebatching import Rows, can_be_taken_apart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.evaluation.memory import StateMemory
    from hf_headprune.tasks.answers import Answers

ORDERS = 8  # orders whose states and answers stay in memory
ANSWERS = 32  # plans whose answers so far stay in memory, for a confirmation
STRATA = 8  # groups of equal hardness; examples of like length share a batch within them


@dataclass(frozen=True)
class Batch:
    """Examples that are computed together, with their labels."""

    indices: np.ndarray
    entries: dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class BatchOrder:
    """Batches in the order in which a parent finds them hard, and the answers that plans gave in them so far."""

    key: str
    batches: list[Batch]
    answers: OrderedDict[tuple[PruningPlan, bool], dict[int, Answers]] = field(default_factory=OrderedDict)

    def hardest_first(self, expected: np.ndarray) -> list[int]:
        """Orders batches by the share of errors that predicted margins, `(num_examples,)`, let expect in them."""
        doubt = 1 / (1 + np.exp(np.clip(expected, -30, 30)))
        shares = [-float(doubt[batch.indices].mean()) for batch in self.batches]
        return sorted(range(len(shares)), key=lambda place: (shares[place], place))

    def answers_of(self, plan: PruningPlan, *, is_exact: bool) -> dict[int, Answers]:
        """Returns the answers of a plan so far, exact or rough ones, by the place of their batch."""
        answers = self.answers.setdefault((plan, is_exact), {})
        self.answers.move_to_end((plan, is_exact))
        while len(self.answers) > ANSWERS:
            self.answers.popitem(last=False)
        return answers


class BatchOrders:
    """The batches of a data set, in one order for each parent that finds other examples hard; the latest ones stay.

    Attributes:
        weights: Of each example in the metric, `(num_examples,)`.
    """

    def __init__(
        self,
        given: Sequence[Mapping[str, torch.Tensor]],
        weights: np.ndarray,
        model: nn.Module,
        *,
        batch_size: int,
        memory: StateMemory,
        recompose: bool,
    ) -> None:
        """Takes the batches given apart, where that is wanted and possible.

        Args:
            given: All batches, with labels.
            weights: Of each example, `(num_examples,)`.
            model: Its device gets the batches; its configuration says what fills "input_ids".
            batch_size: Examples of a new batch.
            memory: Forgets the states of orders that go.
            recompose: Whether examples may be put together anew.
        """
        self.weights = weights
        self._given = given
        self._batch_size = batch_size
        self._device = next(model.parameters()).device
        self._memory = memory
        filler = getattr(model.config, "pad_token_id", None)
        self._rows = Rows(given, filler) if recompose and can_be_taken_apart(given) else None
        self._held: OrderedDict[str, BatchOrder] = OrderedDict()

    @property
    def are_recomposed(self) -> bool:
        """Whether examples are put together anew; else every order has the batches given."""
        return self._rows is not None

    def by(self, margins: np.ndarray) -> BatchOrder:
        """Returns the order for the margins of a parent, `(num_examples,)`."""
        key = hashlib.sha256(np.ascontiguousarray(margins).tobytes()).hexdigest()
        if key not in self._held:
            self._held[key] = BatchOrder(key, list(self._batches(margins)))
        self._held.move_to_end(key)
        while len(self._held) > ORDERS:
            old, _ = self._held.popitem(last=False)
            for is_exact in (True, False):
                self._memory.drop((old, is_exact))
        return self._held[key]

    def some(self, indices: np.ndarray) -> Iterator[Batch]:
        """Yields batches that hold some examples, those of like length together, and where possible no others."""
        if self._rows is None:
            yield from (batch for batch in self.given() if np.isin(batch.indices, indices).any())
            return
        indices = indices[np.argsort(-self._rows.lengths[indices], kind="stable")]
        for first in range(0, len(indices), self._batch_size):
            chosen = indices[first : first + self._batch_size]
            yield Batch(chosen, self._rows.batch(chosen.tolist(), self._device))

    def given(self) -> Iterator[Batch]:
        """Yields the batches given."""
        start = 0
        for batch in self._given:
            size = len(next(iter(batch.values())))
            entries = {name: tensor.to(self._device) for name, tensor in batch.items()}
            yield Batch(np.arange(start, start + size), entries)
            start += size

    def _batches(self, margins: np.ndarray) -> Iterator[Batch]:
        """Yields batches: strata of like hardness, and within each the examples by their length."""
        if self._rows is None:
            yield from self.given()
            return
        order = np.argsort(margins, kind="stable")
        size = max(4 * self._batch_size, -(-len(order) // STRATA))
        for start in range(0, len(order), size):
            stratum = order[start : start + size]
            stratum = stratum[np.argsort(-self._rows.lengths[stratum], kind="stable")]
            for first in range(0, len(stratum), self._batch_size):
                indices = stratum[first : first + self._batch_size]
                yield Batch(indices, self._rows.batch(indices.tolist(), self._device))
