"""Measures plans with as little work as their verdict needs: what a parent computed is reused, hard examples go first.

A rejection in the model's own precision is certain: it counts only errors that were seen. One in bf16 counts errors
that rounding can't explain, and has the others looked at again in the model's own precision; it is an estimate, as is
any acceptance before the end. A measurement to the end is exact: what rounding in bf16 could have decided is decided in
the model's own precision. Wherever both are known their difference is checked, and where it is too large nothing is
taken from bf16. The batches of a measurement follow from its `Question` alone, never from what is in memory, so that
a search that goes on after a kill measures the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, cast

import numpy as np

from hf_headprune._checks import is_above, is_rising, is_whole
from hf_headprune._distributed import over_processes, sharing
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import evaluating, masked
from hf_headprune.plan import RefittedPlan
from hf_headprune.search.evaluation.compositions import Compositions
from hf_headprune.search.evaluation.lanes import Lane, gains_by_half_precision, half_precision_twin, rough_band
from hf_headprune.search.evaluation.memory import StateMemory
from hf_headprune.search.problem import ROUND_OFF, Measurement
from hf_headprune.tasks.answers import TIE_BAND, Answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.evaluation.compositions import Batch, Composition
    from hf_headprune.search.evaluation.lanes import Route
    from hf_headprune.search.problem import Question
    from hf_headprune.tasks.answers import Scoring

# Share of the band of doubt beyond which bf16 is taken to turn nothing. What is rejected rests on that, as an estimate;
# what is accepted has the whole band looked at again; where an answer beyond was turned, nothing is taken from bf16.
TRUSTED = 0.5
SIBLINGS = 8  # children of a set that A* asks about at once are seven by default


class _RoundingError(Exception):
    """The twin in bf16 moves answers further than its band of doubt allows."""


@dataclass(eq=False)
class _Walk:
    """A plan on its way through the examples to a verdict."""

    plan: PruningPlan
    question: Question[PruningPlan]
    answers: Answers
    known: dict[int, Answers] = field(default_factory=dict)  # by the place of their batch
    route: Route = field(init=False)
    verdict: Measurement | None = None
    is_misled: bool = False

    @property
    def is_going(self) -> bool:
        return self.verdict is None and not self.is_misled

    def enter(self, lane: Lane, composition: Composition, *, alone: bool) -> None:
        """Starts with what the plan answered before; those measured together start anew, and tell nobody.

        What a plan answers alone must not depend on those that it was measured with, to the last bit.
        """
        self.known = composition.answers_of(self.plan, is_exact=lane.is_exact) if alone else {}
        self.route = lane.route(self.plan, self.question.base)


@dataclass(frozen=True)
class Probing:
    """Settings of `Prober`.

    Attributes:
        cache_mib: Bound on the memory for hidden states that plans share.
        batch_size: Examples per batch, where they may be put together anew.
        tentative_share: Share of the examples, the hardest, that an estimate is made from.
        half_precision: Whether answers far from a tie may come from a twin of the model in bf16; verdicts before the
            end are not certain then. None leaves it to the hardware and to the size of the model.
        siblings: Plans that are run in one pass at most, where a search asks about several at once. None: one on a CPU,
            which loses by more, and `SIBLINGS` elsewhere.
        share_processes: Whether the processes of a distributed run share the batches of a measurement. All of them must
            then ask for the same measurements in the same order.

    Raises:
        InvalidSettingError: A setting is out of range.
    """

    cache_mib: float = 1024
    batch_size: int = 16
    tentative_share: float = 0.25
    half_precision: bool | None = None
    siblings: int | None = None
    share_processes: bool = False

    def __post_init__(self) -> None:
        """Checks every setting."""
        counts = (self.batch_size, 1 if self.siblings is None else self.siblings)
        holds = is_rising(0, self.cache_mib) and all(is_whole(count, at_least=1) for count in counts)
        if not (holds and is_above(self.tentative_share, 0) and self.tentative_share <= 1):
            raise InvalidSettingError(
                f"Probing: cache_mib must be at least 0, batch_size and siblings whole numbers of at least 1 and "
                f"tentative_share in (0, 1], received {self.cache_mib!r}, {self.batch_size!r}, {self.siblings!r} and "
                f"{self.tentative_share!r}. Leave them out for the defaults."
            )
        if self.half_precision not in (None, True, False) or self.share_processes not in (True, False):
            raise InvalidSettingError(
                f"Probing: half_precision must be True, False or None, and share_processes True or False, received "
                f"{self.half_precision!r} and {self.share_processes!r}. Leave them out for the defaults."
            )

    def rounds(self, model: nn.Module) -> bool:
        """Tells whether a twin in bf16 is wanted for a model."""
        return gains_by_half_precision(model) if self.half_precision is None else self.half_precision

    def siblings_of(self, model: nn.Module) -> int:
        """Returns how many plans are run in one pass at most."""
        if self.siblings is not None:
            return self.siblings
        return 1 if next(model.parameters()).device.type == "cpu" else SIBLINGS


class Prober:
    """Measures plans as far as a question needs.

    Attributes:
        memory: Hidden states of parents, under the bound given.
        examples_seen: Examples computed so far over all plans.
        siblings: Plans that are run in one pass at most; one where the model or the metric allows no more.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, torch.Tensor]],
        scoring: Scoring,
        settings: Probing,
        *,
        refit: Refit | None = None,
    ) -> None:
        """Tries on one batch what the model allows.

        Args:
            model: Its weights must not change from now on.
            batches: With labels, as the plain evaluation takes them.
            scoring: Of the model's task.
            settings: Memory, batches, estimates, precision.
            refit: Refits output projections to each plan.
        """
        self._refit = refit
        self._model = model
        self._scoring = scoring
        self._tentative_share = settings.tentative_share
        self._share_processes = settings.share_processes
        self._world = sharing(self._share_processes)
        self._weights = np.concatenate([scoring.weights(batch) for batch in batches])
        self.memory = StateMemory(settings.cache_mib)
        self.examples_seen = 0
        device = next(model.parameters()).device
        sample = {name: tensor[:4].to(device) for name, tensor in batches[0].items()}
        lane = partial(Lane, scoring=scoring, memory=self.memory, sample=sample, refit=refit)
        self._exact = lane(model, is_exact=True)
        recompose = self._exact.in_full_precision and not scoring.is_continuous
        self._rough: Lane | None = None
        if settings.rounds(model) and recompose and scoring.is_mean:
            self._rough = lane(half_precision_twin(model), is_exact=False)
        self._compositions = Compositions(
            batches,
            batch_size=settings.batch_size,
            pad_token_id=getattr(model.config, "pad_token_id", None),
            device=device,
            memory=self.memory,
            recompose=recompose,
        )
        stacks = settings.siblings_of(model) > 1 and self._compositions.are_recomposed and self._exact.can_stack(sample)
        everywhere = over_processes(lambda _: stacks, range(self._world), share=self._share_processes)
        self.siblings = settings.siblings_of(model) if all(everywhere) else 1

    def __call__(self, plan: PruningPlan, question: Question[PruningPlan]) -> Measurement:
        """Measures a plan as far as the question needs; the model is left as it was.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        return self._measured([(plan, question)])[0]

    def together(self, asked: Sequence[tuple[PruningPlan, Question[PruningPlan]]]) -> list[Measurement]:
        """Measures several plans, each as far as its question needs, in one pass where they are children of one set.

        Up to `siblings` at once. Children of different sets follow one another.

        Raises:
            InvalidPlanError: A plan does not fit the model.
        """
        found: list[Measurement] = []
        for start in range(0, len(asked), self.siblings):
            group = asked[start : start + self.siblings]
            first = group[0][1]
            alike = all(
                question.base == first.base and np.array_equal(question.base_margins, first.base_margins)
                for _, question in group
            )
            found += self._measured(group) if alike else [self(*one) for one in group]
        return found

    def _measured(self, asked: Sequence[tuple[PruningPlan, Question[PruningPlan]]]) -> list[Measurement]:
        first = asked[0][1]
        for plan in (first.base, *(plan for plan, _ in asked)):
            self._exact.check_fits(plan)
        composition = self._compositions.by(first.base_margins)
        walks = [_Walk(plan, question, self._unseen()) for plan, question in asked]
        if self._rough is not None:
            self._walk(self._rough, composition, walks, rough_band(self._scoring, first.base_margins))
        again = [walk for walk in walks if walk.verdict is None]
        for walk in again:
            walk.answers, walk.is_misled = self._unseen(), False
        if again:
            self._walk(self._exact, composition, again, TIE_BAND)
        return [cast("Measurement", walk.verdict) for walk in walks]

    def _unseen(self) -> Answers:
        return Answers.unseen(len(self._weights), self._scoring.num_rows)

    def _walk(self, lane: Lane, composition: Composition, walks: Sequence[_Walk], band: float) -> None:
        """Looks at the hardest examples first, until there are verdicts, which all of them give at last.

        A walk that the rounded twin misleads ends without.
        """
        for walk in walks:
            walk.enter(lane, composition, alone=len(walks) == 1)
        order = composition.hardest_first(np.mean([walk.question.expected for walk in walks], axis=0))
        with lane.open():
            for start in range(0, len(order), self._world):
                places, going = order[start : start + self._world], [walk for walk in walks if walk.is_going]
                if not going:
                    break
                self._look(lane, composition, places, going)
                for place, walk in product(places, going):
                    self._judge(lane, walk, composition.batches[place].indices, walk.known[place], band)
        for walk in walks:
            self._end(lane, walk, band)

    def _look(self, lane: Lane, composition: Composition, places: Sequence[int], going: Sequence[_Walk]) -> None:
        """Has every plan answer some batches, where its answers are not known; in place."""
        unknown = [place for place in places if place not in going[0].known]
        answers = partial(lane.answers_together, composition, routes=[walk.route for walk in going])
        for place, found in zip(unknown, over_processes(answers, unknown, share=self._share_processes), strict=True):
            self.examples_seen += len(composition.batches[place].indices) * len(going)
            for walk, own in zip(going, found, strict=True):
                walk.known[place] = own

    def _judge(self, lane: Lane, walk: _Walk, indices: np.ndarray, answers: Answers, band: float) -> None:
        """Takes answers in, and gives a verdict where they allow one; in place."""
        if not walk.is_going:
            return
        walk.answers.put(indices, answers.with_ties_below(band))
        floor = walk.question.floor
        try:
            if not lane.is_exact and floor is not None:
                self._settle_errors(walk.answers, walk.plan, floor - ROUND_OFF, band)
        except _RoundingError:
            walk.is_misled = True
            return
        walk.verdict = self._verdict(walk.answers, walk.question, is_exact=lane.is_exact)
        if walk.verdict is not None and floor is not None and walk.verdict.metric < floor:
            lane.forget_guesses()

    def _end(self, lane: Lane, walk: _Walk, band: float) -> None:
        """Gives the verdict of all examples to a walk that came so far; in place."""
        if not walk.is_going:
            return
        try:
            if not lane.is_exact:
                self._settle(np.flatnonzero(walk.answers.gaps < TIE_BAND), walk.answers, walk.plan, band)
        except _RoundingError:
            walk.is_misled = True
            return
        walk.verdict = self._to_the_end(walk.plan, walk.answers)

    def _verdict(self, answers: Answers, question: Question[PruningPlan], *, is_exact: bool) -> Measurement | None:
        """Returns a rejection, an estimate, or None; what rounding could turn counts as right.

        A rejection is certain in the model's own precision, and an estimate in another.
        """
        if question.floor is None or not self._scoring.is_mean:
            return None
        bound = self._bound(answers, band=TIE_BAND if is_exact else TRUSTED * TIE_BAND)
        if bound < question.floor - ROUND_OFF:
            return Measurement(bound, answers.margins.copy(), kind="bound" if is_exact else "estimate")
        seen = answers.seen
        if not question.tentative or seen.sum() < self._tentative_share * len(seen) or seen.all():
            return None
        scores = np.where(seen, answers.scores, self._scoring.predicted(question.expected))
        estimate = float((scores * self._weights).sum() / self._weights.sum())
        return Measurement(estimate, answers.margins.copy(), kind="estimate") if estimate >= question.floor else None

    def _bound(self, answers: Answers, *, band: float) -> float:
        """Returns what the metric can be at most, given the errors whose next answer is at least so far away."""
        is_certain = answers.seen & (answers.gaps >= band)
        lost = np.where(is_certain, 1.0 - answers.scores, 0.0) * self._weights
        return 1.0 - float(lost.sum() / self._weights.sum())

    def _settle_errors(self, answers: Answers, plan: PruningPlan, floor: float, band: float) -> None:
        """Where all errors seen in bf16 would reject, has as many of the doubtful settled as that takes; in place."""
        near = TRUSTED * TIE_BAND
        doubtful = np.flatnonzero((answers.scores < 1.0) & (answers.gaps < near))
        doubtful = doubtful[np.argsort(-answers.gaps[doubtful], kind="stable")]  # the surest first
        while len(doubtful) and self._bound(answers, band=0.0) < floor <= self._bound(answers, band=near):
            lost = (1.0 - answers.scores[doubtful]) * self._weights[doubtful] / self._weights.sum()
            enough = 1 + int((lost.cumsum() <= self._bound(answers, band=near) - floor).sum())
            self._settle(doubtful[:enough], answers, plan, band)
            doubtful = doubtful[enough:]

    def _settle(self, doubtful: np.ndarray, answers: Answers, plan: PruningPlan, band: float) -> None:
        """Has the model itself give answers in place of its twin in bf16; in place.

        Raises:
            _RoundingError: The twin had moved one by more than the band, or turned one beyond `TRUSTED` of it.
        """
        with self._exact.open():
            batches = list(self._compositions.some(doubtful))  # those of like length together
            alone = over_processes(
                lambda batch: self._exact.answers_alone(batch.entries, plan), batches, share=self._share_processes
            )
            for batch, found in zip(batches, alone, strict=True):
                self.examples_seen += len(batch.indices)
                is_turned = found.scores != answers.scores[batch.indices]
                moved = np.abs(found.margins - answers.margins[batch.indices])
                is_far = is_turned & (answers.gaps[batch.indices] > TRUSTED * TIE_BAND)
                if is_far.any() or (moved > band).any():
                    raise _RoundingError
                answers.put(batch.indices, found)

    def _to_the_end(self, plan: PruningPlan, answers: Answers) -> Measurement:
        """Returns the measurement of all examples; near ties are decided as a plain evaluation decides them."""

        def plainly(batch: Batch) -> Answers:
            return self._scoring.answers(self._model(**self._scoring.inputs(batch.entries)), batch.entries)

        given = self._compositions.given() if self._compositions.are_recomposed else ()
        near = [batch for batch in given if (answers.gaps[batch.indices] < TIE_BAND).any()]
        with masked(self._model, RefittedPlan(plan, self._refit)), evaluating(self._model):
            for batch, found in zip(near, over_processes(plainly, near, share=self._share_processes), strict=True):
                answers.put(batch.indices, found)
        return Measurement(self._scoring.value(answers, self._weights), answers.margins)
