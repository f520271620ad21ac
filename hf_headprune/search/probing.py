"""Measures plans with as little work as their verdict needs: what a parent computed is reused, hard examples go first.

A rejection is certain: it counts only errors that were seen. An acceptance before the end is an estimate. A
measurement to the end is exact. The batches of a measurement follow from its `Question` alone, never from what is in
memory, so that a search that goes on after a kill measures the same bits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune.collation import LABEL_NAMES
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import evaluating, masked
from hf_headprune.search.layers import LayerStack, StateMemory
from hf_headprune.search.metrics import CLASSIFICATION_METRICS, confusion_of, margins_of
from hf_headprune.search.problem import ROUND_OFF, Measurement
from hf_headprune.search.rows import Rows, can_be_taken_apart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.layers import Kept
    from hf_headprune.search.problem import Question

COMPOSITIONS = 8  # orders of the examples whose states and answers stay in memory
ANSWERS = 32  # plans whose answers so far stay in memory, for a confirmation
STRATA = 8  # groups of equal hardness; examples of like length share a batch within them
TIE_BAND = 1e-3  # margins that round-off of another batch could turn are decided by the batches given
MEAN_OF_RIGHT = "accuracy"  # the metric that is a mean of 0/1 scores, so that errors seen decide


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


@dataclass(frozen=True)
class Batch:
    """Examples that are computed together."""

    indices: np.ndarray
    inputs: dict[str, torch.Tensor]


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


@dataclass(frozen=True, eq=False)
class Composition:
    """Batches in the order in which a parent finds them hard, and the answers that plans gave in them so far."""

    key: str
    batches: list[Batch]
    answers: OrderedDict[PruningPlan, dict[int, np.ndarray]] = field(default_factory=OrderedDict)


class Prober:
    """Measures plans of a classifier as far as a question needs.

    Attributes:
        memory: Hidden states of parents, under the bound given.
        examples_seen: Examples computed so far over all plans.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, torch.Tensor]],
        *,
        metric: str,
        settings: Probing,
    ) -> None:
        """Tries on one batch what the model allows.

        Args:
            model: Single-label classifier; its weights must not change from now on.
            batches: Inputs with "labels", as the plain evaluation takes them.
            metric: One of `CLASSIFICATION_METRICS`.
            settings: Memory, batches, estimates.
        """
        self._model = model
        self._given = list(batches)
        self._metric = metric
        self._batch_size = settings.batch_size
        self._share = settings.tentative_share
        self._device = next(model.parameters()).device
        self._gold = torch.cat([_labels(batch) for batch in self._given]).cpu().numpy()
        self._places = np.split(np.arange(len(self._gold)), np.cumsum([len(_labels(b)) for b in self._given])[:-1])
        self._stack = LayerStack(model)
        self._rows: Rows | None = None
        self._closed: PruningPlan | None = None
        self._guessed: list[tuple[str, tuple[int, str]]] = []
        self._compositions: OrderedDict[str, Composition] = OrderedDict()
        self.memory = StateMemory(settings.cache_mib)
        self.examples_seen = 0
        probe = {name: tensor[:4].to(self._device) for name, tensor in _inputs(self._given[0]).items()}
        with evaluating(model):
            self._is_resumable = self._stack.is_resumable(probe)
            in_full_precision = self._stack.computes_in_full_precision(probe)
            self._reads_first = in_full_precision and self._is_resumable and self._stack.reads_first_token(probe)
        if in_full_precision and can_be_taken_apart(self._given):
            self._rows = Rows(self._given, getattr(model.config, "pad_token_id", None))

    def __call__(self, plan: PruningPlan, question: Question[PruningPlan]) -> Measurement:
        """Measures a plan as far as the question needs; the model is left as it was.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        self._stack.check_fits(plan)
        self._stack.check_fits(question.base)
        composition = self._composition(question.base_margins)
        answers = self._answers(composition, plan)
        logits = np.full((len(self._gold), self._num_labels), np.nan, dtype=np.float32)
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.enter_context(self._stack.attached())
            if self._reads_first:
                stack.enter_context(self._stack.first_token_only())
            self._closed = None
            route = self._route(plan, question.base)
            self._guessed = []
            for place in self._hardest_first(composition, question.expected):
                batch = composition.batches[place]
                if place not in answers:
                    answers[place] = self._logits(composition, place, route)
                logits[batch.indices] = answers[place]
                measurement = self._verdict(logits, question)
                if measurement is not None:
                    self._forget_guesses(measurement)
                    return measurement
        return self._exact(plan, logits)

    @property
    def _num_labels(self) -> int:
        return int(self._model.config.num_labels)  # type: ignore[union-attr, arg-type]

    def _verdict(self, logits: np.ndarray, question: Question[PruningPlan]) -> Measurement | None:
        """Returns a rejection that is certain, an estimate that holds, or None."""
        if question.floor is None or self._metric != MEAN_OF_RIGHT:
            return None
        margins = margins_of(logits, self._gold)  # NaN where not seen
        seen = ~np.isnan(margins)
        bound = 1.0 - float((margins < -self._tie_band(logits[seen])).sum()) / len(margins)
        if bound < question.floor - ROUND_OFF:
            return Measurement(bound, margins, kind="bound")
        if not question.tentative or seen.sum() < self._share * len(margins) or seen.all():
            return None
        estimate = float((np.where(seen, margins, question.expected) > 0).mean())
        return Measurement(estimate, margins, kind="estimate") if estimate >= question.floor else None

    def _exact(self, plan: PruningPlan, logits: np.ndarray) -> Measurement:
        """Returns the measurement of all examples; near ties are decided as a plain evaluation decides them."""
        margins = margins_of(logits, self._gold)
        near = ~(np.abs(margins) >= self._tie_band(logits))
        with masked(self._model, plan), evaluating(self._model):
            for batch, places in zip(self._given, self._places, strict=True):
                if self._rows is not None and near[places].any():
                    inputs = {name: tensor.to(self._device) for name, tensor in _inputs(batch).items()}
                    logits[places] = self._model(**inputs).logits.float().cpu().numpy()
        value = CLASSIFICATION_METRICS[self._metric](confusion_of(self._gold, logits))
        return Measurement(value, margins_of(logits, self._gold))

    @staticmethod
    def _tie_band(logits: np.ndarray) -> float:
        return TIE_BAND * max(1.0, float(np.nanmax(np.abs(logits), initial=0.0)) / 10)

    def _route(self, plan: PruningPlan, base: PruningPlan) -> Route:
        kept, kept_base = self._stack.kept_per_layer(plan), self._stack.kept_per_layer(base)
        differing = [layer for layer in range(self._stack.depth) if kept[layer] != kept_base[layer]]
        first = differing[0] if differing and self._is_resumable else 0
        return Route(plan, base, first, _digests(kept_base), _digests(kept))

    def _logits(self, composition: Composition, place: int, route: Route) -> np.ndarray:
        """Runs a plan on one batch, from the layer at which it leaves its base."""
        batch = composition.batches[place]
        self.examples_seen += len(batch.indices)
        first, state = self._state(composition.key, place, batch, route)
        self._close(route.plan)
        found: dict[int, torch.Tensor] | None = {} if self._is_resumable else None
        logits = self._stack.logits(batch.inputs, first, state, found)
        for reached, own in (found or {}).items():
            key = (place, route.own[reached])
            if self.memory.guess(composition.key, key, own):
                self._guessed.append((composition.key, key))
        return logits.float().cpu().numpy()

    def _state(self, owner: str, place: int, batch: Batch, route: Route) -> tuple[int, torch.Tensor | None]:
        """Returns a layer to enter at and its input: from memory, or computed from the nearest one and remembered."""
        held = self.memory.of(owner)
        nearest = next((n for n in range(route.first, 0, -1) if (place, route.shared[n]) in held), 0)
        state = held.get((place, route.shared[nearest]))
        if nearest == route.first or not self.memory.has_room(owner):
            return nearest, state
        self._close(route.base)
        for reached, found in self._stack.states(batch.inputs, nearest, route.first, state).items():
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

    def _composition(self, margins: np.ndarray) -> Composition:
        key = hashlib.sha256(np.ascontiguousarray(margins).tobytes()).hexdigest()
        if key not in self._compositions:
            self._compositions[key] = Composition(key, list(self._batches(margins)))
        self._compositions.move_to_end(key)
        while len(self._compositions) > COMPOSITIONS:
            old, _ = self._compositions.popitem(last=False)
            self.memory.drop(old)
        return self._compositions[key]

    def _batches(self, margins: np.ndarray) -> Any:
        """Yields batches: strata of like hardness, and within each the examples by their length."""
        if self._rows is None:
            for batch, places in zip(self._given, self._places, strict=True):
                yield Batch(places, {name: tensor.to(self._device) for name, tensor in _inputs(batch).items()})
            return
        order = np.argsort(margins, kind="stable")
        size = max(4 * self._batch_size, -(-len(order) // STRATA))
        for start in range(0, len(order), size):
            stratum = order[start : start + size]
            stratum = stratum[np.argsort(-self._rows.lengths[stratum], kind="stable")]
            for first in range(0, len(stratum), self._batch_size):
                indices = stratum[first : first + self._batch_size]
                yield Batch(indices, self._rows.batch(indices.tolist(), self._device))

    @staticmethod
    def _hardest_first(composition: Composition, expected: np.ndarray) -> list[int]:
        """Orders batches by the share of errors that is expected in them."""
        doubt = 1 / (1 + np.exp(np.clip(expected, -30, 30)))
        shares = [-float(doubt[batch.indices].mean()) for batch in composition.batches]
        return sorted(range(len(shares)), key=lambda place: (shares[place], place))

    @staticmethod
    def _answers(composition: Composition, plan: PruningPlan) -> dict[int, np.ndarray]:
        answers = composition.answers.setdefault(plan, {})
        composition.answers.move_to_end(plan)
        while len(composition.answers) > ANSWERS:
            composition.answers.popitem(last=False)
        return answers


def _digests(kept: Sequence[Kept]) -> tuple[str, ...]:
    """Returns what identifies the units kept in the first 0, 1, ... layers."""
    digest, found = hashlib.sha256(), [""]
    for units in kept:
        digest.update(repr(units).encode())
        found.append(digest.hexdigest())
    return tuple(found)


def _inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name not in LABEL_NAMES}


def _labels(batch: Mapping[str, Any]) -> torch.Tensor:
    return next(batch[name] for name in LABEL_NAMES if name in batch)
