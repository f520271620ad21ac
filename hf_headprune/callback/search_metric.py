"""What plans are measured with after training: the Trainer's data, and its metric."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_headprune._distributed import from_first, number_of_processes
from hf_headprune._fingerprints import sha256_of
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback.evaluation import contents, evaluate
from hf_headprune.callback.metric_choice import agree, higher_is_better, metric_of
from hf_headprune.callback.trainer_compat import (
    drawn_examples,
    eval_loader,
    has_own_numbers,
    model_of,
    prepared,
    training_data,
)
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.masking import evaluating, masked, plain_copy
from hf_headprune.pipeline.cost_path import CALIBRATION, check_removable
from hf_headprune.pipeline.run import MetricSource
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.search.plans import check_drop
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.registry import scorer_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import Trainer

    from hf_headprune.callback.settings import Settings
    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.settings import AStarSearch

logger = logging.getLogger(__name__)

FAR_ABOVE_ONE = 1.5  # what no metric between 0 and 1 is
PERCENT = 100.0


def scored_metric(trainer: Trainer, metric: str | None) -> str | None:
    """Returns the name of the metric by which examples are scored one by one, or None where they are not."""
    name, is_scored = metric_of(trainer, metric)
    return name if is_scored else None


class OwnNumber(NamedTuple):
    """A number of the Trainer's that decides in place of ours.

    Attributes:
        reason: Why ours can't decide, in words.
        max_drop: Drop that is allowed, in the Trainer's numbers.
    """

    reason: str
    max_drop: float


def own_number(
    trainer: Trainer,
    search: AStarSearch,
    reference: PruningPlan,
    *,
    is_one_point: bool = False,
    ours: float | None = None,
) -> OwnNumber | None:
    """Compares, once after training, what the Trainer's evaluation returns under the metric's name with ours.

    Args:
        trainer: Its model is trained.
        search: Settings: the metric, and the drop that is allowed.
        reference: What is open in the model.
        is_one_point: Whether one percentage point is allowed, in whatever numbers: of a metric that runs from 0 to 100
            it is 1.0, and a number that is a hundred times ours is the same metric.
        ours: Ours on all of `eval_dataset`, where it was measured already.

    Returns:
        The Trainer's number where the two differ; else None.
    """
    name, is_scored = metric_of(trainer, search.metric)
    if not (is_scored and has_own_numbers(trainer)):
        return None
    with masked(model_of(trainer), reference):
        theirs = from_first(evaluate(trainer).get(name))
    if theirs is None:
        return None
    theirs = float(theirs)
    if not math.isfinite(theirs):
        logger.warning(
            "HeadPruneCallback: the Trainer's evaluation returns %s as %s of the trained model, with which nothing can "
            "be compared: its examples scored one by one decide.",
            theirs,
            name,
        )
        return None
    scale = PERCENT if is_one_point and runs_to_100(name, theirs) else 1.0
    if ours is None:
        ours = _by_example(trainer, name, search).evaluator(reference).metric
    ours = from_first(ours)
    if agree(trainer, theirs / scale, ours):
        return None
    max_drop = scale * search.max_drop
    reason = (
        f"the Trainer's evaluation returns {theirs:.4g} as {name} of the trained model, and its examples scored one by "
        f"one give {ours:.4g}: the Trainer's number decides, and can't be certified"
    )
    logger.warning("HeadPruneCallback: %s. A drop of %g of that number is allowed.", reason, max_drop)
    return OwnNumber(reason, max_drop)


def metric_source(
    trainer: Trainer, search: AStarSearch, examples: Any = None, *, is_own: bool = False, refits: bool = False
) -> MetricSource:
    """Makes the function that measures a plan on `eval_dataset`.

    Unless another metric is named, a model is measured by the first one of its task (`metrics_of`), example by example,
    in the precision of the weights, which is that of the model when it is loaded again. Any other metric, and any of a
    task without one, is measured by the Trainer's own `evaluate`, that is by its `compute_metrics`, or by the loss.

    Args:
        trainer: With an `eval_dataset`.
        search: Settings: the metric, else the Trainer's `metric_for_best_model`; and how plans are measured with less
            work.
        examples: Scored in place of `eval_dataset`.
        is_own: Whether the Trainer's own number decides, also where ours has its name; see `own_number`.
        refits: Whether what measures is to record moments of training examples, too, as a search lets it.

    Raises:
        InvalidSettingError: The metric is not among those that an evaluation returns.
    """
    name, is_scored = metric_of(trainer, search.metric)
    if is_scored and not is_own:
        return _by_example(trainer, name, search, examples, refits=refits)
    higher = higher_is_better(trainer, name, search)
    read, count = contents(trainer, name)
    evaluator = MetricEvaluator(
        lambda: _own(trainer, name),
        model_of(trainer),
        higher_is_better=higher,
        data_fingerprint=sha256_of(name, read),
        share_processes=number_of_processes() > 1,
    )
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else None
    split = ("searched examples" if count else "of the evaluator") + ("" if precision is None else f", in {precision}")
    return MetricSource(evaluator, name, count or None, split, 1.0 if higher else -1.0)


def _by_example(
    trainer: Trainer, name: str, search: AStarSearch, examples: Any = None, *, refits: bool = False
) -> MetricSource:
    """Returns what scores examples one by one; training examples are read only where they refit projections."""
    loader = eval_loader(trainer, examples)
    model = plain_copy(model_of(trainer))
    evaluator = ExampleEvaluator(
        model,
        _batches(trainer, loader.dataset, loader.collate_fn),
        metric=scorer_for(model, name, where="HeadPruneCallback", tokenizer=trainer.processing_class),
        share_processes=number_of_processes() > 1,
        calibration=_calibration(trainer, loader.collate_fn) if refits else None,
        where="HeadPruneCallback",
    )
    return MetricSource(evaluator, evaluator.scorer.in_words, len(loader.dataset), "searched examples", model=model)


def _own(trainer: Trainer, name: str) -> float:
    """Returns a number of the Trainer's evaluation.

    Raises:
        InvalidSettingError: It returns none of that name.
    """
    metrics = evaluate(trainer)
    if name not in metrics:
        raise InvalidSettingError(
            f"HeadPruneCallback: models are compared by {name!r}, and an evaluation returns "
            f"{[f'eval_{other}' for other in sorted(metrics)]}. Name one of them in AStarSearch(metric=...) or "
            "metric_for_best_model, or pass the Trainer a compute_metrics that returns it."
        )
    return float(metrics[name])


def _batches(trainer: Trainer, dataset: Any, collate: Any) -> list[dict[str, torch.Tensor]]:
    """Returns examples in batches as an evaluator takes them."""
    return length_sorted_batches(dataset, collate, batch_size=trainer.args.per_device_eval_batch_size)


def _calibration(trainer: Trainer, collate: Any) -> list[dict[str, torch.Tensor]] | None:
    """Returns batches of training examples to refit on, or None where the training set is a stream."""
    drawn = drawn_examples(training_data(trainer)[0], CALIBRATION, trainer.args.seed)
    return None if drawn is None else _batches(trainer, drawn, collate)


def runs_to_100(name: str, value: float) -> bool:
    """Tells whether a metric is in percent, by a value that it has; losses have no such scale."""
    return FAR_ABOVE_ONE < abs(value) <= PERCENT and name != "loss"


def require_searchable(trainer: Trainer, settings: Settings, *, needs_certificate: bool = False) -> float:
    """Sees that plans will find their units and their metric, before hours of training rest on it.

    Where examples are scored, they are read; numbers of the user's are looked for in an evaluation.

    Args:
        trainer: Of the run.
        settings: Of the run.
        needs_certificate: Whether only what is certified may be pruned, by our own score of each example.

    Returns:
        Seconds to measure one plan on all examples, about.

    Raises:
        InvalidSettingError: The metric is not among those that an evaluation returns, or nothing says whether it is an
            error; or an example has no tokens, or a label that is no class; or the drop allowed allows anything; or the
            settings do not fit the model; or a number in percent stands in the way of the certificate.
    """
    search = settings.measured
    closes_ffn = settings.second_order is not None  # movement's are gone for good
    anatomy = anatomy_of(model_of(trainer))
    check_removable(anatomy, settings.search, uniform=settings.uniform, start_cuts_ffn=closes_ffn)
    name, is_scored = metric_of(trainer, search.metric)
    value, seconds = None, 0.0
    if not is_scored:
        higher_is_better(trainer, name, search)
        started = time.perf_counter()
        value = _own(trainer, name)
        seconds = time.perf_counter() - started
    elif has_own_numbers(trainer):
        value = evaluate(trainer).get(name)
    if value is not None:
        higher_is_better(trainer, name, search)
        _check_number(name, value, is_scored=is_scored)
        if settings.is_one_point and is_scored and runs_to_100(name, value):
            logger.warning("HeadPruneCallback: %s runs from 0 to 100. A drop of 1.0, a point, is allowed.", name)
        elif needs_certificate and is_scored and runs_to_100(name, value):
            raise InvalidSettingError(
                f"HeadPruneCallback(confidence=...) prunes what is certified, from 0 to 1, and compute_metrics returns "
                f"{value:.4g} as {name}: a drop of {search.max_drop:g} would mean two things. Let compute_metrics "
                "return it from 0 to 1, or leave confidence out; then the number that compute_metrics returns decides."
            )
        else:
            _warn_of_scale(name, value, search.max_drop)
    elif is_scored:
        check_drop(name, search.max_drop, where="HeadPruneCallback")
        if search.tuning.greater_is_better is False:
            raise InvalidSettingError(
                f"SearchTuning(greater_is_better=False): {name} is better when it is higher. Leave it out."
            )
    return _seconds_per_plan(trainer, _checked_batches(trainer, name)) if is_scored else seconds


def _check_number(name: str, value: float, *, is_scored: bool) -> None:
    """Says what becomes of a metric that is not finite, as a correlation with constant answers is before training.

    Raises:
        InvalidSettingError: It is a text.
    """
    if isinstance(value, str):
        raise InvalidSettingError(
            f"HeadPruneCallback: {name} decides what is pruned, and compute_metrics returns {shown(value)}. Let it "
            "return a number."
        )
    if not math.isfinite(value):
        then = "the examples scored one by one decide" if is_scored else "nothing can be compared, nor pruned"
        logger.warning(
            "HeadPruneCallback: the Trainer's evaluation returns %s as %s. If it does so after training, too, %s.",
            value,
            name,
            then,
        )


def _warn_of_scale(name: str, value: float, max_drop: float) -> None:
    """Says what is allowed in a metric's own numbers, where it can't run from 0 to 1."""
    if abs(value) > FAR_ABOVE_ONE and name != "loss":
        logger.warning(
            "HeadPruneCallback: %s is %.4g before training, so it does not run from 0 to 1. max_drop=%g is absolute: a "
            "drop from %.4g to %.4g is allowed. For one percentage point of a metric from 0 to 100 pass max_drop=1.0.",
            name,
            value,
            max_drop,
            value,
            value - max_drop,
        )


def _checked_batches(trainer: Trainer, name: str) -> list[dict[str, torch.Tensor]]:
    """Returns all examples in batches.

    Raises:
        InvalidSettingError: One can't be scored.
    """
    loader = eval_loader(trainer)
    batches = _batches(trainer, loader.dataset, loader.collate_fn)
    try:
        model = model_of(trainer)
        scorer = scorer_for(model, name, where="HeadPruneCallback", tokenizer=trainer.processing_class)
        scorer.check(scorer.with_references(model, batches), where="HeadPruneCallback")
    except InvalidSettingError as error:
        raise InvalidSettingError(
            f"HeadPruneCallback scores the examples of eval_dataset by {name}. {error} Or let the loss decide: "
            'HeadPruneCallback(search=AStarSearch(metric="loss")).'
        ) from error
    return batches


def _seconds_per_plan(trainer: Trainer, batches: Sequence[Mapping[str, torch.Tensor]]) -> float:
    """Times a forward pass of the middle batch, once to warm up, for the length of all."""
    inputs = prepared(trainer, dict(batches[len(batches) // 2]))
    with evaluating(model_of(trainer)) as model:
        model(**inputs)
        started = time.perf_counter()
        model(**inputs)
    return len(batches) * (time.perf_counter() - started)
