"""search_plan: the smallest model that keeps its metric, found without training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import DataCollatorWithPadding

from hf_headprune._seen_splits import remember_seen_
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.scoring import Batching
from hf_headprune.masking import plain_copy
from hf_headprune.pipeline.holdout import REPORTED_CONFIDENCE, Holdout
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.pipeline.run import Job, MetricSource, certified, find, pruned_copy, unseen_change
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.report import PruningReport
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator, length_sorted_batches
from hf_headprune.search.evaluation.probing import Probing
from hf_headprune.search.plans import check_drop, check_searchable
from hf_headprune.search.settings import REPORT, AStarSearch
from hf_headprune.tasks.examples import ModelExamples, PadRight
from hf_headprune.tasks.registry import scoring_for

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import nn


def search_plan(  # noqa: PLR0913 - the public verb: what users of the Trainer know by these names
    model: nn.Module,
    dataset: Any,
    metric: str | Callable[[nn.Module], float] | None = None,
    search: AStarSearch = AStarSearch(),
    *,
    calibration: Any = None,
    certify: Any = None,
    confidence: float | Literal["report"] = REPORT,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    head_scores: np.ndarray | None = None,
    journal: str | Path | None = None,
    progress: bool = True,
) -> PruningResult:
    """Finds the smallest part of a fine-tuned model that keeps its metric, without training.

    Heads and FFN units are ordered by second-order removal costs on `calibration`; an A* search over sets of them
    starts there and measures plans on `dataset`; output projections are refitted to each plan. With `certify`, the
    result is held against examples that the search has not seen. The model is left as it was: prune it with
    `prune_model_(model, result)`. It remembers the examples that were searched, and `certify` refuses them.

    Args:
        model: Of a supported family: a single-label classifier of sequences or tokens, a question answering or a
            sequence-to-sequence model.
        dataset: Sized and indexable; tokenized examples with "labels" (or "label" for a class), or with
            "start_positions" and "end_positions". Other columns are ignored. None beside a function as metric.
        metric: "accuracy", "macro_f1" or "matthews_correlation" of classes; "accuracy" of tokens; "f1" or
            "exact_match" of spans; "likelihood" of references. None takes the first of the task; `search.metric` wins
            where it is set. Or any function of the model that returns one number, higher is better; it must be
            deterministic, and each plan is then measured on all that it looks at.
        search: Settings, the allowed drop among them.
        calibration: Labelled training examples (a thousand are enough) for the removal costs and the refit. None takes
            `dataset`, on which the result then looks better than it is.
        certify: Labelled examples that neither training nor search has seen, or `CertificationData`; None certifies
            nothing.
        confidence: A level, such as 0.95, prunes only what is certified at it to lose less than `search.max_drop`.
            "report" prunes the smallest candidate whose metric on `certify` drops by at most that, and the certificate
            states what can be concluded at 95 % confidence.
        processing_class: Tokenizer that pads the batches of a sequence classifier; any other, and without one, are
            padded on the right.
        data_collator: Makes the batches instead.
        batch_size: Examples per batch.
        head_scores: Importance per head, `(num_heads,)`, in the order of the sites; the lowest are tried first.
        journal: File that holds the state: a search that was killed continues from it.
        progress: Whether to show a progress bar (on the first process).

    Raises:
        DataLeakError: Examples of `certify` are in `dataset` or in `calibration`.
        InvalidSettingError: A data set is empty, unlabelled or not tokenized, the metric or a setting is unknown, or a
            function as metric comes with data or returns no number.
        UnsupportedModelError: The model has none of these tasks, or its family is not supported.
        SearchStateError: The journal belongs to another search or is damaged.
    """
    anatomy = anatomy_of(model)
    check_searchable(anatomy, search)
    collate = data_collator or _collate(model, processing_class)
    source = _source(model, dataset, metric, search, calibration=calibration, collate=collate, batch_size=batch_size)
    holdout = None
    if certify is not None:
        holdout = _holdout(certify, search, confidence, Batching(processing_class, data_collator, batch_size))
        remember_seen_(model, search=dataset, calibration=calibration)
        holdout.rehearse(model)
    full = PruningPlan.full(anatomy)
    job = Job(
        model,
        full,
        source,
        search,
        holdout,
        head_scores=head_scores,
        journal=None if journal is None else Path(journal),
        progress=progress,
    )
    remember_seen_(model, search=dataset, calibration=calibration)
    found = find(job)
    certificate, words = None, ""
    if holdout is not None:
        pruned = pruned_copy(model, found.pruned)
        certificate, words = certified(holdout, found.chosen, plain_copy(model), pruned)
    report = PruningReport.of(
        found.pruned.plan,
        anatomy,
        metric=found.metric,
        unseen=unseen_change(certificate, "the whole model"),
        effort=found.effort,
    )
    return PruningResult(
        found.pruned.plan,
        found.pruned.refit,
        reference=full,
        report=replace(report, certificate=words),
        certificate=certificate,
        path=None if found.chosen is None else found.chosen.path,
        search=found.search,
    )


def _source(  # noqa: PLR0913 - the arguments of `search_plan` that say how plans are measured
    model: nn.Module,
    dataset: Any,
    metric: str | Callable[[nn.Module], float] | None,
    search: AStarSearch,
    *,
    calibration: Any,
    collate: Callable[[list[Any]], Any],
    batch_size: int,
) -> MetricSource:
    """Returns what measures plans: a scorer of single examples, or the user's function."""
    if callable(metric):
        given = {"dataset": dataset, "calibration": calibration, "AStarSearch(metric=...)": search.metric}
        if any(value is not None for value in given.values()):
            raise InvalidSettingError(
                f"search_plan: a function as metric has examples of its own, received "
                f"{', '.join(name for name, value in given.items() if value is not None)} besides. Pass None for them."
            )
        return MetricSource(MetricEvaluator(partial(metric, model), model), "metric", 1, "the examples of the metric")
    scoring = scoring_for(model, search.metric or metric, where="search_plan")
    check_drop(scoring.metric, search.max_drop, where="search_plan")
    batched = partial(length_sorted_batches, collate=collate, batch_size=batch_size)
    evaluator = ExampleEvaluator(
        model,
        batched(ModelExamples(dataset, model)),
        metric=scoring.metric,
        probing=Probing(cache_mib=search.cache_mib, half_precision=search.half_precision),
        calibration=None if calibration is None else batched(ModelExamples(calibration, model)),
    )
    return MetricSource(evaluator, scoring.in_words, len(dataset), "searched examples")


def _holdout(certify: Any, search: AStarSearch, confidence: float | Literal["report"], batching: Batching) -> Holdout:
    data = certify if isinstance(certify, CertificationData) else CertificationData(certify, batching=batching)
    level = REPORTED_CONFIDENCE if isinstance(confidence, str) else confidence
    return Holdout(data, Metric(), search.max_drop, level, is_condition=confidence != REPORT)


def _collate(model: Any, processing_class: Any) -> Callable[[list[Any]], Any]:
    if processing_class is not None and "ForSequenceClassification" in type(model).__name__:
        return DataCollatorWithPadding(processing_class)
    return PadRight(getattr(model.config, "pad_token_id", None))
