"""Measures plans with as little work as their verdict needs: what a parent computed is reused, hard examples go first.

A rejection in the model's own precision is certain: it counts only errors that were seen. One in bf16 counts errors
that rounding can't explain, and has the others looked at again in the model's own precision; it is an estimate, as is
any acceptance before the end. A measurement to the end is exact: what rounding in bf16 could have decided is decided in
the model's own precision. Wherever both are known their difference is checked, and where it is too large nothing is
taken from bf16. The batches of a measurement follow from its `Question` alone, never from what is in memory, so that
a search that goes on after a kill measures the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

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


class _RoundingError(Exception):
    """The twin in bf16 moves answers further than its band of doubt allows."""


@dataclass(frozen=True)
class Probing:
    """Settings of `Prober`.

    Attributes:
        cache_mib: Bound on the memory for hidden states that plans share.
        batch_size: Examples per batch, where they may be put together anew.
        tentative_share: Share of the examples, the hardest, that an estimate is made from.
        half_precision: Whether answers far from a tie may come from a twin of the model in bf16; verdicts before the
            end are not certain then. None leaves it to the hardware and to the size of the model.
        share_processes: Whether the processes of a distributed run share the batches of a measurement. All of them must
            then ask for the same measurements in the same order.

    Raises:
        InvalidSettingError: A setting is out of range.
    """

    cache_mib: float = 1024
    batch_size: int = 16
    tentative_share: float = 0.25
    half_precision: bool | None = None
    share_processes: bool = False

    def __post_init__(self) -> None:
        """Checks every setting."""
        holds = is_rising(0, self.cache_mib) and is_whole(self.batch_size, at_least=1)
        if not (holds and is_above(self.tentative_share, 0) and self.tentative_share <= 1):
            raise InvalidSettingError(
                f"Probing: cache_mib must be at least 0, batch_size a whole number of at least 1 and tentative_share "
                f"in (0, 1], received {self.cache_mib!r}, {self.batch_size!r} and {self.tentative_share!r}. Leave them "
                "out for the defaults."
            )
        if self.half_precision not in (None, True, False) or self.share_processes not in (True, False):
            raise InvalidSettingError(
                f"Probing: half_precision must be True, False or None, and share_processes True or False, received "
                f"{self.half_precision!r} and {self.share_processes!r}. Leave them out for the defaults."
            )

    def rounds(self, model: nn.Module) -> bool:
        """Tells whether a twin in bf16 is wanted for a model."""
        return gains_by_half_precision(model) if self.half_precision is None else self.half_precision


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

    def __call__(self, plan: PruningPlan, question: Question[PruningPlan]) -> Measurement:
        """Measures a plan as far as the question needs; the model is left as it was.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        for given in (question.base, plan):
            self._exact.check_fits(given)
        composition = self._compositions.by(question.base_margins)
        if self._rough is not None:
            band = rough_band(self._scoring, question.base_margins)
            try:
                return self._walk(self._rough, composition, plan, question, band)
            except _RoundingError:
                pass
        return self._walk(self._exact, composition, plan, question, TIE_BAND)

    def _walk(
        self, lane: Lane, composition: Composition, plan: PruningPlan, question: Question[PruningPlan], band: float
    ) -> Measurement:
        """Looks at the hardest examples first, until there is a verdict, which all of them give at last.

        Raises:
            _RoundingError: The rounded twin misleads.
        """
        answers = Answers.unseen(len(self._weights), self._scoring.num_rows)
        known = composition.answers_of(plan, is_exact=lane.is_exact)
        route = lane.route(plan, question.base)
        order = composition.hardest_first(question.expected)
        with lane.open():
            for start in range(0, len(order), self._world):
                places = order[start : start + self._world]
                self._look(lane, composition, places, route, known)
                for place in places:
                    answers.put(composition.batches[place].indices, known[place].with_ties_below(band))
                    if not lane.is_exact and question.floor is not None:
                        self._settle_errors(answers, plan, question.floor - ROUND_OFF, band)
                    verdict = self._verdict(answers, question, is_exact=lane.is_exact)
                    if verdict is not None:
                        if question.floor is not None and verdict.metric < question.floor:
                            lane.forget_guesses()
                        return verdict
        if not lane.is_exact:
            self._settle(np.flatnonzero(answers.gaps < TIE_BAND), answers, plan, band)
        return self._to_the_end(plan, answers)

    def _look(
        self, lane: Lane, composition: Composition, places: Sequence[int], route: Route, known: dict[int, Answers]
    ) -> None:
        """Has a plan answer the batches whose answers are not known; in place."""
        unknown = [place for place in places if place not in known]
        found = over_processes(
            lambda place: lane.answers(composition, place, route), unknown, share=self._share_processes
        )
        for place, answers in zip(unknown, found, strict=True):
            self.examples_seen += len(composition.batches[place].indices)
            known[place] = answers

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
