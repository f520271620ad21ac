"""Measures plans with as little work as their verdict needs: what a parent computed is reused, hard examples go first.

A rejection is certain: it counts only errors that were seen. An acceptance before the end is an estimate. A
measurement to the end is exact. The batches of a measurement follow from its `Question` alone, never from what is in
memory, so that a search that goes on after a kill measures the same bits.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import evaluating, masked
from hf_headprune.search.answers import Answers
from hf_headprune.search.compositions import Compositions
from hf_headprune.search.layers import LayerStack, digests_of
from hf_headprune.search.memory import StateMemory
from hf_headprune.search.problem import ROUND_OFF, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.answers import Scoring
    from hf_headprune.search.compositions import Batch, Composition
    from hf_headprune.search.problem import Question


@dataclass(frozen=True)
class Probing:
    """Settings of `Prober`.

    Attributes:
        cache_mib: Bound on the memory for hidden states that plans share.
        batch_size: Examples per batch, where they may be put together anew.
        tentative_share: Share of the examples, the hardest, that an estimate is made from.

    Raises:
        InvalidSettingError: A setting is out of range.
    """

    cache_mib: float = 1024
    batch_size: int = 16
    tentative_share: float = 0.25

    def __post_init__(self) -> None:
        """Checks every setting."""
        if not (self.cache_mib >= 0 and self.batch_size >= 1 and 0 < self.tentative_share <= 1):
            raise InvalidSettingError(
                f"Probing: cache_mib must be at least 0, batch_size at least 1 and tentative_share in (0, 1], received "
                f"{self.cache_mib}, {self.batch_size} and {self.tentative_share}. Leave them out for the defaults."
            )


@dataclass(frozen=True, eq=False)
class Route:
    """A plan, the plan whose hidden states it shares, and up to where.

    Attributes:
        plan: To be measured.
        base: Shares the layers below `first` with it.
        first: Layer at which the two first differ.
        shared: For each number of layers below, what identifies the units that the base keeps in them.
        own: The same of the plan itself.
    """

    plan: PruningPlan
    base: PruningPlan
    first: int
    shared: tuple[str, ...]
    own: tuple[str, ...]


class Prober:
    """Measures plans as far as a question needs.

    Attributes:
        memory: Hidden states of parents, under the bound given.
        examples_seen: Examples computed so far over all plans.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, torch.Tensor]],
        scoring: Scoring,
        settings: Probing,
    ) -> None:
        """Tries on one batch what the model allows.

        Args:
            model: Its weights must not change from now on.
            batches: With labels, as the plain evaluation takes them.
            scoring: Of the model's task.
            settings: Memory, batches, estimates.
        """
        self._model = model
        self._scoring = scoring
        self._share = settings.tentative_share
        self._weights = np.concatenate([scoring.weights(batch) for batch in batches])
        self._stack = LayerStack(model)
        self._closed: PruningPlan | None = None
        self._guessed: list[tuple[str, tuple[int, str]]] = []
        self.memory = StateMemory(settings.cache_mib)
        self.examples_seen = 0
        device = next(model.parameters()).device
        sample = scoring.inputs({name: tensor[:4].to(device) for name, tensor in batches[0].items()})
        with evaluating(model):
            self._is_resumable = self._stack.is_resumable(sample)
            in_full_precision = self._stack.computes_in_full_precision(sample)
            self._reads_first = in_full_precision and self._is_resumable and self._stack.reads_first_token(sample)
        self._compositions = Compositions(
            batches,
            batch_size=settings.batch_size,
            pad_token_id=getattr(model.config, "pad_token_id", None),
            device=device,
            memory=self.memory,
            recompose=in_full_precision and not scoring.is_continuous,
        )

    def __call__(self, plan: PruningPlan, question: Question[PruningPlan]) -> Measurement:
        """Measures a plan as far as the question needs; the model is left as it was.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        self._stack.check_fits(plan)
        self._stack.check_fits(question.base)
        composition = self._compositions.by(question.base_margins)
        known = composition.answers_of(plan)
        answers = Answers.unseen(len(self._weights), self._scoring.num_rows)
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.enter_context(self._stack.attached())
            if self._reads_first:
                stack.enter_context(self._stack.first_token_only())
            self._closed = None
            route = self._route(plan, question.base)
            self._guessed = []
            for place in composition.hardest_first(question.expected):
                if place not in known:
                    known[place] = self._answers(composition, place, route)
                answers.put(composition.batches[place].indices, known[place])
                measurement = self._verdict(answers, question)
                if measurement is not None:
                    self._forget_guesses(measurement)
                    return measurement
        return self._exact(plan, answers)

    def _verdict(self, answers: Answers, question: Question[PruningPlan]) -> Measurement | None:
        """Returns a rejection that is certain, an estimate that holds, or None."""
        if question.floor is None or not self._scoring.is_mean:
            return None
        total = self._weights.sum()
        lost = np.where(answers.are_certain, 1.0 - answers.scores, 0.0)
        bound = 1.0 - float((lost * self._weights).sum()) / total
        if bound < question.floor - ROUND_OFF:
            return Measurement(bound, answers.margins.copy(), kind="bound")
        seen = answers.seen
        if not question.tentative or seen.sum() < self._share * len(seen) or seen.all():
            return None
        scores = np.where(seen, answers.scores, self._scoring.predicted(question.expected))
        estimate = float((scores * self._weights).sum()) / total
        return Measurement(estimate, answers.margins.copy(), kind="estimate") if estimate >= question.floor else None

    def _exact(self, plan: PruningPlan, answers: Answers) -> Measurement:
        """Returns the measurement of all examples; near ties are decided as a plain evaluation decides them."""
        with masked(self._model, plan), evaluating(self._model):
            for batch in self._compositions.given() if self._compositions.are_recomposed else ():
                if not answers.are_certain[batch.indices].all():
                    outputs = self._model(**self._scoring.inputs(batch.entries))
                    answers.put(batch.indices, self._scoring.answers(outputs, batch.entries))
        return Measurement(self._scoring.value(answers, self._weights), answers.margins)

    def _route(self, plan: PruningPlan, base: PruningPlan) -> Route:
        kept, kept_base = self._stack.kept_per_layer(plan), self._stack.kept_per_layer(base)
        differing = [layer for layer in range(self._stack.depth) if kept[layer] != kept_base[layer]]
        first = differing[0] if differing and self._is_resumable else 0
        return Route(plan, base, first, digests_of(kept_base), digests_of(kept))

    def _answers(self, composition: Composition, place: int, route: Route) -> Answers:
        """Runs a plan on one batch, from the layer at which it leaves its base."""
        batch = composition.batches[place]
        self.examples_seen += len(batch.indices)
        first, state = self._state(composition.key, place, batch, route)
        self._close(route.plan)
        found: dict[int, torch.Tensor] | None = {} if self._is_resumable else None
        outputs = self._stack.outputs(self._scoring.inputs(batch.entries), first, state, found)
        for reached, own in (found or {}).items():
            key = (place, route.own[reached])
            if self.memory.guess(composition.key, key, own):
                self._guessed.append((composition.key, key))
        return self._scoring.answers(outputs, batch.entries)

    def _state(self, owner: str, place: int, batch: Batch, route: Route) -> tuple[int, torch.Tensor | None]:
        """Returns a layer to enter at and its input: from memory, or computed from the nearest one and remembered."""
        held = self.memory.of(owner)
        nearest = next((n for n in range(route.first, 0, -1) if (place, route.shared[n]) in held), 0)
        state = held.get((place, route.shared[nearest]))
        if nearest == route.first or not self.memory.has_room(owner):
            return nearest, state
        self._close(route.base)
        inputs = self._scoring.inputs(batch.entries)
        for reached, found in self._stack.states(inputs, nearest, route.first, state).items():
            self.memory.add(owner, (place, route.shared[reached]), found)
            state = found
        return route.first, state

    def _forget_guesses(self, measurement: Measurement) -> None:
        """Drops the states of a plan that was rejected: it becomes no parent."""
        for owner, key in self._guessed if measurement.kind == "bound" else ():
            if key in self.memory.of(owner):
                self.memory.forget(owner, key)

    def _close(self, plan: PruningPlan) -> None:
        if plan is not self._closed:
            self._stack.close(plan)
            self._closed = plan
