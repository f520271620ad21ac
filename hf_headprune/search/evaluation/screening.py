"""A copy of the model in bf16 answers first, where its rounding can't decide.

A rejection counts errors that rounding can't explain, and has the others looked at again in the model's own precision;
it is an estimate. A measurement to the end is exact: what rounding in bf16 could have decided is decided in the model's
own precision. Wherever both answers are known their difference is checked, and where it is too large nothing is taken
from bf16.
"""

from __future__ import annotations

import math
import time
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_headprune._distributed import over_processes
from hf_headprune.masking import plain_copy
from hf_headprune.search.problem import ROUND_OFF
from hf_headprune.tasks.answers import TIE_BAND

if TYPE_CHECKING:
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.evaluation.ordered_batches import OrderedBatches
    from hf_headprune.search.evaluation.precision_runner import PrecisionRunner
    from hf_headprune.search.problem import MeasurementKind
    from hf_headprune.tasks.answers import Answers
    from hf_headprune.tasks.scorer import Scorer

# Share of the band of doubt beyond which bf16 is taken to turn nothing. What is rejected rests on that, as an estimate;
# what is accepted has the whole band looked at again; where an answer beyond was turned, nothing is taken from bf16.
TRUSTED = 0.5
ROUGH_SHARE = 0.06  # of the root mean square of margins; bf16 turns nothing beyond 0.02 of it, see benchmarks.rounding
ROUGH_BAND = 0.2  # of the logits, where their size is not known from the margins
LEAST_WEIGHTS = 5_000_000  # of a model that gains by half precision
CLEARLY = 1.25  # times as fast
TRIES = 6  # of a product; the fastest counts
HOPELESS = 8.0  # times as slow: without instructions for bf16 a product takes 60 times as long


class RoundingError(Exception):
    """The twin in bf16 moves answers further than its band of doubt allows."""


class OwnPrecision:
    """Takes the answers of the model itself as they are.

    Attributes:
        runner: Runs the model.
        certain: Gap beyond which an answer counts as certain.
        rejection: Kind of measurement that a rejection is.
    """

    certain = TIE_BAND
    rejection: MeasurementKind = "bound"

    def __init__(self, runner: PrecisionRunner) -> None:
        """Takes what runs the model."""
        self.runner = runner

    def band(self, margins: np.ndarray) -> float:
        """Returns how near to the next one an answer must be to be doubted, in logits."""
        del margins
        return TIE_BAND

    def check_errors(self, answers: Answers, plan: PruningPlan, floor: float, band: float) -> None:
        """Has doubtful errors answered again where they would decide; here nothing is doubtful."""

    def check_ties(self, answers: Answers, plan: PruningPlan, band: float) -> None:
        """Has all doubtful answers answered again; here nothing is doubtful."""


class Screening(OwnPrecision):
    """Takes answers from a copy of the model in bf16, and doubtful ones from the model itself."""

    certain = TRUSTED * TIE_BAND
    rejection = "estimate"

    def __init__(
        self, runner: PrecisionRunner, exact: PrecisionRunner, batches: OrderedBatches, scorer: Scorer, *, share: bool
    ) -> None:
        """Takes what runs both models.

        Args:
            runner: Runs the copy in bf16.
            exact: Runs the model itself.
            batches: To answer again.
            scorer: Of the model's task.
            share: Whether the processes of a distributed run share batches.
        """
        super().__init__(runner)
        self._exact = exact
        self._batches = batches
        self._scorer = scorer
        self._share = share
        self.examples_checked = 0

    def band(self, margins: np.ndarray) -> float:
        """Returns how near to the next one an answer in bf16 must be to be doubted, in logits; see `rough_band`."""
        return rough_band(self._scorer, margins)

    def check_errors(self, answers: Answers, plan: PruningPlan, floor: float, band: float) -> None:
        """Where all errors seen would reject, has as many of the doubtful answered again as that takes; in place.

        Raises:
            RoundingError: See the class.
        """
        limit, weights = floor - ROUND_OFF, self._batches.weights
        doubtful = np.flatnonzero((answers.scores < 1.0) & (answers.gaps < self.certain))
        doubtful = doubtful[np.argsort(-answers.gaps[doubtful], kind="stable")]  # the surest first
        while len(doubtful) and upper_bound(answers, weights, 0.0) < limit <= upper_bound(
            answers, weights, self.certain
        ):
            lost = (1.0 - answers.scores[doubtful]) * weights[doubtful] / weights.sum()
            enough = 1 + int((lost.cumsum() <= upper_bound(answers, weights, self.certain) - limit).sum())
            self._answer_again(doubtful[:enough], answers, plan, band)
            doubtful = doubtful[enough:]

    def check_ties(self, answers: Answers, plan: PruningPlan, band: float) -> None:
        """Has all answers within the band answered again; in place.

        Raises:
            RoundingError: See the class.
        """
        self._answer_again(np.flatnonzero(answers.gaps < TIE_BAND), answers, plan, band)

    def _answer_again(self, doubtful: np.ndarray, answers: Answers, plan: PruningPlan, band: float) -> None:
        """Has the model itself give answers; raises an error where the twin had moved or turned one too far."""
        with self._exact.open():
            marked = np.zeros(len(answers.gaps), dtype=bool)
            marked[doubtful] = True
            some = [batch.only(marked) for batch in self._batches.some(marked)]
            again = over_processes(
                lambda batch: self._exact.answers_alone(batch.entries, plan), some, share=self._share
            )
            for batch, found in zip(some, again, strict=True):
                self.examples_checked += len(batch.indices)
                is_turned = found.scores != answers.scores[batch.indices]
                moved = np.abs(found.margins - answers.margins[batch.indices])
                is_far = is_turned & (answers.gaps[batch.indices] > self.certain)
                if is_far.any() or (moved > band).any():
                    raise RoundingError
                answers.put(batch.indices, found)


def upper_bound(answers: Answers, weights: np.ndarray, certain: float) -> float:
    """Returns what a mean of scores can be at most, given the errors whose next answer is at least so far away."""
    is_certain = answers.seen & (answers.gaps >= certain)
    lost = np.where(is_certain, 1.0 - answers.scores, 0.0) * weights
    return 1.0 - float(lost.sum() / weights.sum())


def rough_band(scorer: Scorer, margins: np.ndarray) -> float:
    """Returns how near to the next one an answer in bf16 must be to be doubted, in logits.

    Its errors grow and shrink with the logits, those of a pruned model often being much smaller; see
    `benchmarks.rounding`.

    Args:
        scorer: Of the model's task.
        margins: Of a plan like the one that answers, `(num_examples,)`.
    """
    return max(ROUGH_SHARE * float(np.sqrt(np.mean(margins**2))), TIE_BAND) if scorer.margins_are_gaps else ROUGH_BAND


def half_precision_twin(model: nn.Module) -> nn.Module:
    """Returns a copy of a model in bf16."""
    return plain_copy(model).to(torch.bfloat16)


def gains_by_half_precision(model: nn.Module) -> bool:
    """Tells whether the device of a model is clearly faster in bf16, and the model is large enough to gain by that."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return weights >= LEAST_WEIGHTS and bf16_is_faster(next(model.parameters()).device)


@cache
def bf16_is_faster(device: torch.device) -> bool:
    """Tries whether products of matrices take clearly less time in bf16 than in fp32.

    That a processor has instructions for bf16 does not say so: without matrix tiles some take twice as long.
    """
    single = _seconds(device, torch.float32)
    return single > CLEARLY * _seconds(device, torch.bfloat16, limit=HOPELESS * single)


def _seconds(device: torch.device, dtype: torch.dtype, *, limit: float = math.inf) -> float:
    """Returns the least seconds of some products; of two where not even the second comes below a limit."""
    left, right = (torch.ones(rows, 1024, device=device, dtype=dtype) for rows in (256, 1024))
    tries: list[float] = []
    while len(tries) < TRIES and (len(tries) < 2 or min(tries) < limit):  # noqa: PLR2004 - the first warms up
        started = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        tries.append(time.perf_counter() - started)
    return min(tries)
