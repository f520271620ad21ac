"""search_plan: the smallest model that keeps its metric, found without training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_headprune._checks import is_confidence, is_rising
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import DataLeakError, InvalidSettingError, shown
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.scored import CertificationData, with_windows
from hf_headprune.masking import plain_copy
from hf_headprune.pipeline.cost_path import CALIBRATION, by_metric, can_decide, check_removable, walk_down
from hf_headprune.pipeline.holdout import DECIDING, DEFAULT_DROP, Holdout, NotCertifiable
from hf_headprune.pipeline.recovery import (
    Recover,
    by_test_of_recovered,
    check_recover,
    halved,
    recovery_in_words,
    require_recoverable,
)
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.pipeline.run import (
    IN_ORDER,
    Job,
    MetricSource,
    asked_in_words,
    earlier_in_words,
    find,
    result_of,
    searched_in_words,
)
from hf_headprune.pipeline.seen import remember_examples_
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.measurements import Recipe, name_on_hub
from hf_headprune.refit.one_shot import ExampleLosses
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.search.plans import check_drop
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import check_can_prune
from hf_headprune.tasks.batches import Batching, length_sorted_batches
from hf_headprune.tasks.examples import ModelExamples
from hf_headprune.tasks.metrics import PredictionMetric, is_prediction_metric
from hf_headprune.tasks.registry import scorer_for

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import nn

    from hf_headprune.pipeline.cost_path import Decide

NO_ORDER = NotCertifiable("there are none; pass calibration=, and no search=")


def search_plan(  # noqa: PLR0913 - the public verb: what users of the Trainer know by these names
    model: nn.Module,
    dataset: Any,
    metric: Any = None,
    search: AStarSearch | None = None,
    *,
    max_drop: float | None = None,
    uniform: bool = False,
    calibration: Any = None,
    certify: Any = None,
    reference: Any = None,
    confidence: float | Literal["auto"] = "auto",
    recover: Recover | None = None,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    head_scores: np.ndarray | None = None,
    journal: str | Path | None = None,
    progress: bool = True,
) -> PruningResult:
    """Finds the smallest part of a fine-tuned model that keeps its metric, without training.

    Heads and FFN units are ordered by second-order removal costs on `calibration`; smaller and smaller plans of that
    order, with refitted weights, are tested on labelled examples until one fails. With `search`, an A* search over sets
    of units takes their place. The model is left as it was: prune it with
    `prune_model_(model, result)`. It remembers the examples that were searched, and `certify` refuses them.

    Args:
        model: Of a supported family: a classifier of sequences (one class, several labels, or a number) or of tokens, a
            question answering, a language model, or a model of texts without a head.
        dataset: Sized and indexable; tokenized examples with "labels" (or "label" for a class), or with
            "start_positions" and "end_positions"; for a model without a head, texts without labels, or pairs of them.
            Other columns are ignored. None beside a function as metric.
        metric: Name of a metric of the model's task, see `scorer_for`; None takes the first, and `search.metric` wins
            where it is set. Or a module of the package `evaluate`, or a function `(predictions, references) -> number`.
            Or any function of the model that returns one number, higher is better; it must be deterministic, and each
            plan is then measured on all that it looks at.
        search: Settings of an A* search, its `max_drop` among them; None tests the order of removal costs alone.
        max_drop: Drop of the metric that is allowed without a search, absolute; 0.01, one percentage point, when left
            out.
        uniform: Whether all layers keep equally many heads and FFN units, which costs some accuracy. Unmodified
            Transformers loads such a model once `export_model(model, path, mode="plain")` has written it. Where the
            family's configuration can't say fewer heads, all are kept.
        calibration: Training examples (a thousand are enough) for the removal costs and the refit; without labels as
            in `plan_for_budget`. None takes `dataset`, which can then certify nothing.
        certify: Labelled examples that neither training nor search has seen, or `CertificationData`. When left out
            and nothing is searched, `dataset` certifies: the order of plans comes from `calibration` alone.
        reference: Model that the certificate compares with, such as the one before its vocabulary was cut: alone, or as
            a pair with the examples that certify as its own tokenizer encodes them. None for `model`.
            Not with `search`, which measures plans against `model`.
        confidence: With which the drop on unseen data must be shown to be below the one allowed. "auto" is 0.75, and
            lets the drop that is seen decide where there are too few examples to show anything.
        recover: Function `(pruned, dense)` that trains a pruned model on, in place; the dense one may be its teacher.
            Without a search. The smallest plan that loses at most twice `max_drop` on `calibration` is trained on and
            tested; if it fails, plans are tested as without it. Each of the two has half of the error that
            `confidence` allows.
        processing_class: Tokenizer that pads the batches of a sequence classifier, and decodes what is generated for
            "chrf"; any other batches, and without one, are padded on the right.
        data_collator: Makes the batches instead.
        batch_size: Examples per batch.
        head_scores: For a search, importance per head, `(num_heads,)`, in the order of the sites; the lowest are tried
            first.
        journal: For a search, file that holds the state: one that was killed continues from it.
        progress: Whether to show a progress bar (on the first process).

    Raises:
        DataLeakError: Examples of `certify` are in `dataset` or in `calibration`.
        InvalidSettingError: A data set is empty, unlabelled or not tokenized, the metric or a setting is unknown, or a
            function as metric comes with data or returns no number.
        UnsupportedModelError: The model has none of these tasks, or its family is not supported.
        SearchStateError: The journal belongs to another search or is damaged.
    """
    anatomy = anatomy_of(model)
    check_can_prune(model)
    drop = _allowed(search, max_drop, reference, recover, head_scores=head_scores, journal=journal)
    check_removable(anatomy, search, uniform=uniform)
    batching = Batching(processing_class, data_collator, batch_size)
    settings = search or AStarSearch(max_drop=drop)
    source = _source(model, dataset, metric, settings, batching, searches=search is not None, calibration=calibration)
    if (measures_models := _measures_models(metric)) and search is None and calibration is None:
        raise InvalidSettingError(
            "search_plan: a function as metric needs labelled examples for the removal costs. Pass calibration=train, "
            "or search=AStarSearch(...), which refits on what the function runs."
        )
    is_ordered = search is None and calibration is not None  # without a look at `dataset`
    tested = dataset if is_ordered and certify is None and not measures_models else certify
    is_tested = tested is dataset or getattr(tested, "dataset", None) is dataset
    holdout = None
    if tested is not None:
        compared = Metric.of(None if measures_models else settings.metric or metric, model, where="search_plan")
        unseen = _unseen(tested, calibration if is_ordered else dataset, batching)
        holdout = _holdout(unseen, compared, drop, confidence, reference, is_shared=recover is not None)
        _rehearse(holdout, model, calibration if is_ordered else None)
    require_recoverable(holdout if is_ordered else NO_ORDER, is_asked=recover is not None, where="search_plan")
    remember_examples_(model, search=None if is_tested else dataset, calibration=calibration)
    full = PruningPlan.full(anatomy)
    if search is not None:
        job = Job(model, full, source, search, holdout, head_scores=head_scores, uniform=uniform, progress=progress)
        found = find(replace(job, journal=None if journal is None else Path(journal)))
    else:
        twin = source.model or plain_copy(model)  # another thread may run the model meanwhile
        examples = dataset if calibration is None else calibration
        losses = ExampleLosses(twin, examples, CALIBRATION, 0, data_collator, batch_size, where="search_plan")
        decide = _decide(source, drop, holdout, twin, recover, losses.drawn)
        found = walk_down(twin, full, losses, decide, runs=losses.runs(), uniform=uniform)
    recipe = Recipe(
        IN_ORDER if search is None else searched_in_words(search),
        asked_in_words({"max_drop": drop}, uniform=uniform),
        recovery_in_words(found.pruned.refit, getattr(recover, "epochs", None)),
        name_on_hub(certify, dataset, calibration),
        earlier_in_words(model),
    )
    return result_of(model, found, holdout, recipe)


def _decide(
    source: MetricSource, drop: float, holdout: Holdout | None, twin: nn.Module, recover: Recover | None, train: Any
) -> Decide:
    """Returns what decides between plans: exact tests where there are unseen examples, else the drop that is seen."""
    full = PruningPlan.full(anatomy_of(twin))
    if holdout is None:
        return by_metric(source, drop, full)
    return by_test_of_recovered(holdout, twin, full, recover, train)


def _measures_models(metric: Any) -> bool:
    """Tells whether a metric is a function of the model, rather than of predictions and references."""
    return callable(metric) and not is_prediction_metric(metric)


def _allowed(
    search: AStarSearch | None, max_drop: float | None, reference: Any, recover: Any, **of_search: Any
) -> float:
    """Returns the drop that is allowed.

    Raises:
        InvalidSettingError: It is out of range or stated twice, a search would measure it against another model, what
            is for a search comes without one, or `recover` is no function.
    """
    check_recover(recover, where="search_plan")
    silent = [name for name, value in of_search.items() if value is not None and search is None]
    if silent:
        raise InvalidSettingError(
            f"search_plan: {' and '.join(silent)} {'are' if len(silent) > 1 else 'is'} for an A* search. Pass search="
            "AStarSearch(...), or leave it out."
        )
    if reference is not None and search is not None:
        raise InvalidSettingError(
            "search_plan(reference=..., search=...): a search measures plans against the model that it prunes. Leave "
            "one of the two out."
        )
    if search is not None and max_drop is not None:
        raise InvalidSettingError(
            f"search_plan(max_drop={max_drop!r}, search=...): the search has a max_drop of its own. Pass "
            "search=AStarSearch(max_drop=...) alone."
        )
    if search is not None:
        return search.max_drop
    drop = DEFAULT_DROP if max_drop is None else max_drop
    if not is_rising(0, drop):
        raise InvalidSettingError(
            f"search_plan: max_drop must be a number of at least 0 (absolute: 0.01 is one percentage point), received "
            f"{shown(drop)}. Pass 0.01, or leave it out."
        )
    return drop


def _source(  # noqa: PLR0913 - the arguments of `search_plan` that say how plans are measured
    model: nn.Module,
    dataset: Any,
    metric: Any,
    search: AStarSearch,
    batching: Batching,
    *,
    searches: bool,
    calibration: Any,
) -> MetricSource:
    """Returns what measures plans: a scorer of single examples, or the user's function."""
    if _measures_models(metric):
        given = {"dataset": dataset, "AStarSearch(metric=...)": search.metric}
        given |= {"calibration": calibration} if searches else {}
        if any(value is not None for value in given.values()):
            raise InvalidSettingError(
                f"search_plan: a function as metric has examples of its own, received "
                f"{', '.join(name for name, value in given.items() if value is not None)} besides. Pass None for them."
            )
        own = MetricEvaluator(partial(metric, model), model)
        return MetricSource(own, PredictionMetric(metric).name, None, "its own")
    scorer = scorer_for(model, search.metric or metric, where="search_plan", tokenizer=batching.processing_class)
    check_drop(scorer.metric, search.max_drop, where="search_plan")
    twin = plain_copy(model)  # whatever interrupts the search leaves the model of the user as it was

    def batched(rows: Any) -> list[Any]:
        examples = ModelExamples(rows, model, collate=batching.data_collator)
        return length_sorted_batches(examples, batching.collate_for(model), batch_size=batching.batch_size)

    evaluator = ExampleEvaluator(
        twin,
        batched(dataset),
        metric=scorer,
        calibration=batched(calibration) if searches and calibration is not None else None,
        where="search_plan",
    )
    return MetricSource(evaluator, scorer.in_words, len(dataset), "searched examples", model=twin)


def _unseen(tested: Any, looked_at: Any, batching: Batching) -> CertificationData:
    """Returns examples with what they are compared with and how they are read, unless they say so themselves."""
    if isinstance(tested, CertificationData):
        return with_windows(tested)
    return with_windows(CertificationData(tested, search=looked_at, batching=batching))


def _rehearse(holdout: Holdout, model: nn.Module, calibration: Any) -> None:
    """Lets fail before the work what would fail after it; says so where examples that certify are in `calibration`.

    Raises:
        DataLeakError: They are, or training or an earlier search has seen them.
        InvalidSettingError: A number is out of range, or an example can't be scored.
    """
    try:
        holdout.rehearse(model)
    except DataLeakError as error:
        unseen = ExampleFingerprints.of(holdout.data.dataset, columns=holdout.data.columns)
        if calibration is None or not unseen.shares_with(ExampleFingerprints.of(calibration)):
            raise
        raise DataLeakError(
            "search_plan: no example that certifies may be in calibration= too, since it gives the order of plans. "
            f"{error}"
        ) from error


def _holdout(
    tested: CertificationData,
    metric: Metric,
    max_drop: float,
    confidence: float | Literal["auto"],
    reference: Any,
    *,
    is_shared: bool,
) -> Holdout:
    """Returns what must hold on examples that neither training nor the order of plans has looked at.

    The error that is allowed is shared by two procedures where a model is trained on.

    Raises:
        InvalidSettingError: The confidence is none, or one that so few examples can't reach.
    """
    if confidence != "auto" and not is_confidence(confidence):
        raise InvalidSettingError(
            f'search_plan: confidence must be "auto" or a number above 0.5 and below 1, received {shown(confidence)}. '
            "Pass 0.95."
        )
    required = None if confidence == "auto" else "search_plan"
    confidence = DECIDING if confidence == "auto" else confidence
    confidence = halved(confidence) if is_shared else confidence
    decides = can_decide(metric, tested, max_drop, confidence, required_by=required)
    return Holdout(tested, metric, max_drop, confidence, is_condition=decides, reference=reference)
