"""Computes answers of plans batch by batch, and reuses what their parents computed."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_headprune.masking import evaluating
from hf_headprune.search.evaluation.capabilities import ModelCapabilities
from hf_headprune.search.evaluation.layers import LayerStack, digests_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.evaluation.memory import StateMemory
    from hf_headprune.tasks.answers import Answers
    from hf_headprune.tasks.scorer import Scorer


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """A plan, the plan whose hidden states it shares, and up to where.

    Attributes:
        plan: To be measured.
        base: Shares the layers below `first` with it.
        first: Layer at which the two first differ.
        shared: For each number of layers below `first`, what identifies the units that both keep in them.
    """

    plan: PruningPlan
    base: PruningPlan
    first: int
    shared: tuple[str, ...]


class PlanRunner:
    """A model that answers for plans, entered late and left early where that changes nothing.

    Attributes:
        is_shortened: Whether products have other shapes than in a plain evaluation, and so other rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        scorer: Scorer,
        memory: StateMemory,
        sample: dict[str, torch.Tensor],
        *,
        refit: Refit | None = None,
    ) -> None:
        """Tries on a few examples what the model allows.

        Args:
            model: Its weights must not change from now on.
            scorer: Of the model's task.
            memory: For hidden states.
            sample: A small batch with labels.
            refit: Refits output projections to each plan.
        """
        self._refit = refit
        self._model = model
        self._scorer = scorer
        self._memory = memory
        self._stack = LayerStack(model)
        self._closed: PruningPlan | None = None
        inputs = scorer.inputs(sample)
        with evaluating(model):
            allows = ModelCapabilities(self._stack)
            self._is_resumable = allows.is_resumable(inputs)
            # Products of other shapes round otherwise, which continuous scores would show, and bf16.
            may_skip = self._is_resumable and not scorer.is_continuous and allows.computes_in_full_precision(inputs)
            self._takes_out = may_skip and allows.can_take_out(inputs)
            self._reads_first = may_skip and allows.reads_first_token(inputs)
        self.is_shortened = self._takes_out or self._reads_first

    def check_fits(self, plan: PruningPlan) -> None:
        """Checks that a plan was made for this model.

        Raises:
            InvalidPlanError: It was not.
        """
        plan.check_fits(self._stack.anatomy)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Makes the model ready for `answers`; it is left as it was."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            if self._refit is not None:
                stack.enter_context(self._refit.restoring(self._model))
            stack.enter_context(self._stack.attached())  # it restores first
            if self._reads_first:
                stack.enter_context(self._stack.first_token_only())
            self._closed = None
            yield

    def prefix(self, plan: PruningPlan, base: PruningPlan) -> SharedPrefix:
        """Returns from which layer on a plan leaves its base; states of the layers below are kept from now on."""
        kept, kept_base = self._stack.kept_per_layer(plan), self._stack.kept_per_layer(base)
        differing = [layer for layer in range(self._stack.depth) if kept[layer] != kept_base[layer]]
        first = differing[0] if differing and self._is_resumable else 0
        shared = digests_of(kept_base[:first])
        self._memory.work_on(shared)
        return SharedPrefix(plan, base, first, shared)

    def answers(self, entries: dict[str, torch.Tensor], place: int, prefix: SharedPrefix) -> Answers:
        """Runs a plan on the batch at a place, from the layer at which it leaves its base; only while open."""
        inputs = self._scorer.inputs(entries)
        first, state = self._state(place, inputs, prefix)
        self._close(prefix.plan)
        return self._scorer.answers(self._stack.outputs(inputs, first, state), entries)

    def _state(
        self, place: int, inputs: dict[str, torch.Tensor], prefix: SharedPrefix
    ) -> tuple[int, torch.Tensor | None]:
        """Returns a layer to enter at and its input: from memory, or computed from the nearest one and remembered.

        Where there is no room to remember it, an earlier layer is entered.
        """
        held = [self._memory.get(digest, place) for digest in prefix.shared]
        nearest = max((layers for layers, state in enumerate(held) if state is not None), default=0)
        state = held[nearest]
        if nearest == prefix.first or not self._memory.has_room:
            return nearest, state
        self._close(prefix.base)
        for reached, found in self._stack.states(inputs, nearest, prefix.first, state).items():
            self._memory.add(prefix.shared[reached], place, found)
            state = found
        return prefix.first, state

    def _close(self, plan: PruningPlan) -> None:
        if plan is not self._closed:
            if self._refit is not None:
                self._stack.open()
                self._refit.apply_(self._model, plan)
            self._stack.close(plan)
            if self._takes_out:
                self._stack.take_out(plan)
            self._closed = plan
