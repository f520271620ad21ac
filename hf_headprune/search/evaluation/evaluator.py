"""Measures plans on a live model, exactly: closed units, every example, in the precision in which the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune._distributed import over_processes, sharing
from hf_headprune._fingerprints import sha256_of
from hf_headprune._offloaded import Weights, device_of
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import evaluating, masked
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.moments import record_moments, record_moments_by_gradient
from hf_headprune.refit.projections import Refit
from hf_headprune.search.evaluation.base import Evaluator
from hf_headprune.search.evaluation.early_stop import EarlyStopper
from hf_headprune.search.problem import Measurement, MetricFacts
from hf_headprune.tasks.answers import Answers
from hf_headprune.tasks.batches import running
from hf_headprune.tasks.classification import ClassScorer
from hf_headprune.tasks.registry import scorer_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from hf_headprune.anatomy import Site
    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.problem import Question
    from hf_headprune.tasks.scorer import Scorer

LABELS = "labels"


class ExampleEvaluator(Evaluator):
    """Measures plans on labelled batches, example by example.

    Attributes:
        scorer: How outputs become scores.
        num_examples: Examples in all batches.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, torch.Tensor]],
        *,
        metric: str | Scorer | None = None,
        calibration: Sequence[Mapping[str, torch.Tensor]] | None = None,
        share_processes: bool = False,
        where: str = "ExampleEvaluator",
    ) -> None:
        """Checks model and labels.

        Args:
            model: A classifier of sequences or tokens, a question answering or a sequence-to-sequence model.
            batches: Inputs of the model with the labels of its task, see `hf_headprune.tasks.registry`.
            metric: One that the task has, or its scorer; None takes the first.
            calibration: Labelled batches on which output projections are refitted, such as some of the training set;
                None takes `batches`, on which refitted plans then look a little better than they are.
            share_processes: Whether the processes of a distributed run share the batches of a measurement. All of them
                must then ask for the same measurements in the same order.
            where: The function that errors name.

        Raises:
            InvalidSettingError: There is no example, labels are missing or out of range, or the metric is unknown.
            UnsupportedModelError: The model has none of these tasks.
        """
        self._model, self._where = model, where
        self.scorer = scorer_for(model, metric, where=where)
        self._batches = self.scorer.with_references(model, batches)
        self._calibration = self._batches
        if calibration is not None:
            self._calibration = self.scorer.with_references(model, calibration)
        self._share_processes = share_processes
        self._stopper: EarlyStopper | None = None
        if not sum(len(next(iter(batch.values()))) for batch in self._batches):
            raise InvalidSettingError(
                f"{where}: at least one labelled example is needed, received none. Pass a non-empty data set."
            )
        self.scorer = self.scorer.check(self._batches, where=where)
        if calibration is not None:
            self.scorer.check(self._calibration, where=where)
        self._weights = np.concatenate([self.scorer.weights(batch) for batch in self._batches])
        self.num_examples = len(self._weights)
        self.facts = MetricFacts(
            num_examples=int(self._weights.sum() / max(self._weights.max(), 1.0)),
            without_input=_without_input(self.scorer, self._batches),
            is_bounded=self.scorer.is_mean,
        )

    def __call__(self, plan: PruningPlan) -> Measurement:
        """Measures a plan on all examples; the model is left as it was.

        Returns:
            The metric, and the margins `(num_examples,)` in the order of the batches.

        Raises:
            InvalidPlanError: The plan does not fit the model.
            UnsupportedModelError: The model returns something else than its task needs.
        """
        opened = masked(self._model, RefittedPlan(plan, self.refit))
        with opened, evaluating(self._model):
            found = over_processes(self._answers, self._batches, share=self._share_processes)
            answers = Answers.joined(found)
        return Measurement(self.scorer.value(answers, self._weights), answers.margins)

    def probe(self, plan: PruningPlan, question: Question) -> Measurement:
        """Measures a plan as far as a question needs; an exact answer has the verdict of a call.

        From the first probe on, the model's weights must stay as they are.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        if self.scorer.generates:
            return self(plan)
        return self._opened()(plan, question)

    def use_refit(self, start: PruningPlan, *, ffn: bool = False, apply: bool = True) -> Refit:
        """Records what removals cost on the calibration, and from now on refits output projections to each plan."""
        self._stopper = self.refit = None
        sites = _refitted_sites(self._model, ffn=ffn)
        world = sharing(self._share_processes)
        share = 1 < world <= len(self._calibration)  # else every process records all
        own = self._calibration[torch.distributed.get_rank() :: world] if share else self._calibration
        losses = (self.scorer.losses(*self._run(batch)).sum() for batch in own)
        with masked(self._model, start), evaluating(self._model):
            recorded = record_moments_by_gradient(self._model, sites, losses, over_processes=share)
        refit = Refit(self._model, start, recorded)
        self.refit = refit if apply else None
        return refit

    def fingerprint(self) -> str:
        """Returns the sha256 of the weights, the data and the metric."""
        read = [*self._batches, *([] if self._calibration is self._batches else self._calibration)]
        batches = {f"{i} {name}": tensor for i, batch in enumerate(read) for name, tensor in batch.items()}
        return sha256_of(self.scorer.metric, Weights(self._model), batches)

    def _answers(self, batch: Mapping[str, torch.Tensor]) -> Answers:
        entries = self._moved(batch)
        with running(self._model, entries, self._where):
            return self.scorer.answers_of(self._model, entries)

    def _run(self, batch: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
        """Returns the outputs for a batch, and the batch on the device of the model."""
        entries = self._moved(batch)
        with running(self._model, entries, self._where):
            return self._model(**self.scorer.inputs(entries)), entries

    def _moved(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns a batch on the device of the model."""
        device = device_of(self._model)
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def _opened(self) -> EarlyStopper:
        if self._stopper is None:
            self._stopper = EarlyStopper(
                self._model, self._batches, self.scorer, share_processes=self._share_processes, refit=self.refit
            )
        return self._stopper


class MetricEvaluator(Evaluator):
    """Measures plans by any function of the live model."""

    facts = MetricFacts(may_vary=True)

    def __init__(
        self,
        measure: Callable[[], float],
        model: nn.Module,
        *,
        higher_is_better: bool = True,
        data_fingerprint: str = "",
        share_processes: bool = False,
    ) -> None:
        """Stores the function.

        Args:
            measure: Measures the model as it is, without arguments; a deterministic function.
            model: The model that it measures.
            higher_is_better: Where false, the metric's sign is flipped in every `Measurement`.
            data_fingerprint: Identifies the data that it measures on.
            share_processes: Whether all processes of a distributed run measure, the function giving each its share of
                the examples.
        """
        self._measure = measure
        self._model = model
        self._sign = 1.0 if higher_is_better else -1.0
        self._data_fingerprint = data_fingerprint
        self._share_processes = share_processes

    def __call__(self, plan: PruningPlan) -> Measurement:
        """Measures a plan; the model is left as it was.

        Raises:
            InvalidPlanError: The plan does not fit the model.
            InvalidSettingError: The function returned no number.
        """
        with masked(self._model, RefittedPlan(plan, self.refit)), evaluating(self._model):
            value = self._measure()
        try:
            return Measurement(self._sign * float(value))
        except (TypeError, ValueError) as error:
            raise InvalidSettingError(
                f"MetricEvaluator: the function must return one number, received {type(value).__name__} {value!r}. "
                "Return the one metric that the search is to keep."
            ) from error

    def use_refit(self, start: PruningPlan, *, ffn: bool = False, apply: bool = True) -> Refit:
        """Records what the function gives the model, and from now on refits output projections to each plan."""
        sites = _refitted_sites(self._model, ffn=ffn)
        with masked(self._model, start), evaluating(self._model):
            recorded = record_moments(self._model, sites, self._measure, over_processes=self._share_processes)
        refit = Refit(self._model, start, recorded)
        self.refit = refit if apply else None
        return refit

    def fingerprint(self) -> str:
        """Returns the sha256 of the weights and of the data's own fingerprint."""
        return sha256_of(f"{self._sign} {self._data_fingerprint}", Weights(self._model), {})


def _without_input(scorer: Scorer, batches: Sequence[Mapping[str, torch.Tensor]]) -> float | None:
    """Returns the metric of a classifier that always gives the most common class; None for other tasks."""
    if not isinstance(scorer, ClassScorer):
        return None
    gold = np.concatenate([batch[LABELS].cpu().numpy() for batch in batches])
    common = np.full_like(gold, np.bincount(gold).argmax())
    return scorer.aggregate(np.stack([gold, common], axis=1).astype(np.float64))


def _refitted_sites(model: nn.Module, *, ffn: bool) -> list[Site]:
    return [site for site in anatomy_of(model).sites if site.is_attention or ffn]
