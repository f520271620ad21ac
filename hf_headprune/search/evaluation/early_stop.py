"""Measures plans with as little work as their verdict needs: hard examples go first.

A rejection is certain: it counts only errors that were seen. An acceptance before the end is an estimate. A measurement
to the end is exact. The batches of a measurement follow from its `Question` alone, so that a search which was killed
continues with the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_headprune._distributed import over_processes, sharing
from hf_headprune._offloaded import device_of
from hf_headprune.masking import evaluating, masked
from hf_headprune.plan import RefittedPlan
from hf_headprune.search.evaluation.ordered_batches import OrderedBatches
from hf_headprune.search.evaluation.plan_runner import PlanRunner
from hf_headprune.search.problem import ROUND_OFF, Measurement
from hf_headprune.tasks.answers import TIE_BAND, Answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.evaluation.ordered_batches import Batch
    from hf_headprune.search.problem import Question
    from hf_headprune.tasks.scorer import Scorer

TENTATIVE_SHARE = 0.25  # of the examples, the hardest, that an estimate is made from


class EarlyStopper:
    """Measures plans as far as a question needs.

    Attributes:
        examples_seen: Examples computed so far over all plans.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, torch.Tensor]],
        scorer: Scorer,
        *,
        share_processes: bool = False,
        refit: Refit | None = None,
    ) -> None:
        """Tries on one batch what the model allows.

        Args:
            model: Its weights must not change from now on.
            batches: With labels, as the plain evaluation takes them.
            scorer: Of the model's task.
            share_processes: Whether the processes of a distributed run share the batches of a measurement. All of them
                must then ask for the same measurements in the same order.
            refit: Refits output projections to each plan.
        """
        self._refit = refit
        self._model = model
        self._scorer = scorer
        self._share_processes = share_processes
        self._world = sharing(self._share_processes)
        self.examples_seen = 0
        device = device_of(model)
        sample = {name: tensor[:4].to(device) for name, tensor in batches[0].items()}
        self._runner = PlanRunner(model, scorer, sample, refit=refit)
        weights = np.concatenate([scorer.weights(batch) for batch in batches])
        self._batches = OrderedBatches(batches, weights, device=device)

    def __call__(self, plan: PruningPlan, question: Question) -> Measurement:
        """Measures a plan as far as the question needs; the model is left as it was.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        self._runner.check_fits(plan)
        answers = Answers.unseen(len(self._batches.weights), self._scorer.num_rows)
        known = self._batches.answers_of(plan)
        places = self._batches.hardest_first(question.expected)
        with self._runner.open():
            for start in range(0, len(places), self._world):
                together = places[start : start + self._world]
                self._run(together, plan, known)
                for place in together:
                    answers.put(self._batches.batches[place].indices, known[place])
                    verdict = self._verdict(answers, question)
                    if verdict is not None:
                        return verdict
        return self._to_the_end(plan, answers)

    def _run(self, places: Sequence[int], plan: PruningPlan, known: dict[int, Answers]) -> None:
        """Has a plan answer the batches whose answers are not known; in place."""
        unknown = [place for place in places if place not in known]
        batches = self._batches.batches

        def answered(place: int) -> Answers:
            return self._runner.answers(batches[place].entries, plan)

        found = over_processes(answered, unknown, share=self._share_processes)
        for place, answers in zip(unknown, found, strict=True):
            self.examples_seen += len(batches[place].indices)
            known[place] = answers

    def _verdict(self, answers: Answers, question: Question) -> Measurement | None:
        """Returns a rejection, an estimate, or None; what rounding could turn counts as right."""
        if question.floor is None or not self._scorer.is_mean:
            return None
        weights = self._batches.weights
        seen = answers.seen
        lost = np.where(seen & (answers.gaps >= TIE_BAND), 1.0 - answers.scores, 0.0) * weights
        bound = 1.0 - float(lost.sum() / weights.sum())
        if bound < question.floor - ROUND_OFF:
            return Measurement(bound, answers.margins.copy(), kind="bound")
        if not question.tentative or seen.sum() < TENTATIVE_SHARE * len(seen) or seen.all():
            return None
        scores = np.where(seen, answers.scores, self._scorer.predicted(question.expected))
        estimate = float((scores * weights).sum() / weights.sum())
        return Measurement(estimate, answers.margins.copy(), kind="estimate") if estimate >= question.floor else None

    def _to_the_end(self, plan: PruningPlan, answers: Answers) -> Measurement:
        """Returns the measurement of all examples; near ties are decided as a plain evaluation decides them."""

        def plainly(batch: Batch) -> Answers:
            return self._scorer.answers(self._model(**self._scorer.inputs(batch.entries)), batch.entries)

        near = self._batches.some(answers.gaps < TIE_BAND) if self._runner.takes_out else []
        with masked(self._model, RefittedPlan(plan, self._refit)), evaluating(self._model):
            for batch, found in zip(near, over_processes(plainly, near, share=self._share_processes), strict=True):
                answers.put(batch.indices, found)
        return Measurement(self._scorer.value(answers, self._batches.weights), answers.margins)
