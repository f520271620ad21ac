"""What the search after training measures plans with: the Trainer's data, and its metric."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import set_seed

from hf_headprune._distributed import from_first, number_of_processes
from hf_headprune._fingerprints import sha256_of
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback.trainer_compat import drawn_examples, is_stream, tensors
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import evaluating, plain_copy
from hf_headprune.pipeline.run import MetricSource
from hf_headprune.search.evaluation.early_stop import EvaluatorSettings
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.search.plans import check_drop, check_searchable
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.registry import metrics_of, scoring_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import Trainer

    from hf_headprune.search.settings import AStarSearch

ERRORS = frozenset(
    ("error", "errors", "mse", "rmse", "mae", "mape", "perplexity", "ppl", "wer", "cer", "ter", "nll", "bpc", "eer")
)
logger = logging.getLogger(__name__)

FAR_ABOVE_ONE = 1.5  # what no metric between 0 and 1 is
CALIBRATION = 1024  # training examples on which output projections are refitted


def require_search_data(trainer: Trainer) -> None:
    """Refuses a search without one labelled data set to search on.

    Raises:
        InvalidSettingError: `eval_dataset` is missing, empty, a stream, or a mapping of several.
    """
    dataset: Any = trainer.eval_dataset
    is_sized = not is_stream(dataset)
    if not is_sized or isinstance(dataset, dict) or len(dataset) == 0:
        entries = f" with {len(dataset)} entries" if is_sized else ", which has no length or no index"
        received = "none" if dataset is None else type(dataset).__name__ + entries
        raise InvalidSettingError(
            "HeadPruneCallback(search=...): the search after training needs one non-empty eval_dataset with labels, "
            f"received {received}. Pass Trainer(eval_dataset=...), or HeadPruneCallback(search=None) to cut exactly "
            "what the gates learned."
        )
    labels = {*trainer.label_names, "label", "label_ids"}
    example = dataset[0]
    if isinstance(example, Mapping) and not labels & (example.keys() | _first_batch(trainer).keys()):
        raise InvalidSettingError(
            f"HeadPruneCallback(search=...): the examples of eval_dataset hold {sorted(example)}, but none of "
            f"{sorted(labels)}. Pass an eval_dataset with labels, or HeadPruneCallback(search=None)."
        )


def _first_batch(trainer: Trainer) -> Mapping[str, Any]:
    """Returns the first example as evaluation reads it: a collator may make labels, as for masked tokens."""
    loader = trainer.get_eval_dataloader()
    with _same_randomness(trainer):
        return loader.collate_fn([loader.dataset[0]])


def scored_metric(trainer: Trainer, metric: str | None) -> str | None:
    """Returns the name of the metric by which examples are scored one by one, or None where they are not."""
    name, by_example = _metric_name(trainer, metric)
    return name if by_example else None


def metric_source(trainer: Trainer, search: AStarSearch, examples: Any = None) -> MetricSource:
    """Makes the function that measures a plan on `eval_dataset`.

    Unless another metric is named, a model is measured by the first one of its task (`metrics_of`), example by example,
    in the precision of the weights, which is that of the model when it is loaded again. Any other metric, and any of a
    task without one, is measured by the Trainer's own `evaluate`, that is by its `compute_metrics`, or by the loss.

    Args:
        trainer: With an `eval_dataset`.
        search: Settings: the metric, else the Trainer's `metric_for_best_model`; how plans are measured with less work;
            and whether output projections will be refitted, which takes training examples where examples are scored.
        examples: In place of `eval_dataset`.

    Raises:
        InvalidSettingError: The metric is not among those that an evaluation returns.
    """
    loader = trainer.get_eval_dataloader(examples)
    name, by_example = _metric_name(trainer, search.metric)
    settings = _evaluator_settings(trainer, search)
    if by_example:
        batches = _batches(trainer, loader.dataset, loader.collate_fn)
        calibration = _calibration(trainer, loader.collate_fn)
        evaluator = ExampleEvaluator(
            plain_copy(trainer.model), batches, metric=name, settings=settings, calibration=calibration
        )
        return MetricSource(evaluator, evaluator.scoring.in_words, len(loader.dataset), "searched examples")
    higher = _higher_is_better(trainer, name, search)

    def measure() -> float:
        return _evaluate(trainer, name)

    with _same_randomness(trainer):  # a collator may draw, such as the tokens that it masks
        data = sha256_of(name, {f"{i} {key}": value for i, batch in enumerate(loader) for key, value in tensors(batch)})
    by_metric = MetricEvaluator(
        measure,
        trainer.model,
        higher_is_better=higher,
        data_fingerprint=data,
        share_processes=settings.share_processes,
    )
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else None
    split = "searched examples" + ("" if precision is None else f", in {precision}")
    return MetricSource(by_metric, name, len(loader.dataset), split, 1.0 if higher else -1.0)


def _evaluator_settings(trainer: Trainer, search: AStarSearch) -> EvaluatorSettings:
    """Returns how plans are measured, alike in every process; several share the examples."""
    tuning = search.tuning
    settings = EvaluatorSettings(tuning.activation_cache_mib, bf16_screening=tuning.bf16_screening)
    if number_of_processes() == 1:
        return settings
    rounds = from_first(settings.rounds(trainer.model))  # a process tries how fast bf16 is by itself
    return replace(settings, bf16_screening=rounds, share_processes=True)


def _batches(trainer: Trainer, dataset: Any, collate: Any) -> list[dict[str, torch.Tensor]]:
    """Returns examples in batches as an evaluator takes them."""
    return length_sorted_batches(dataset, collate, batch_size=trainer.args.per_device_eval_batch_size)


def _calibration(trainer: Trainer, collate: Any) -> list[dict[str, torch.Tensor]] | None:
    """Returns batches of training examples to refit on, or None where the training set is a stream."""
    drawn = drawn_examples(trainer.callback_handler.train_dataloader.dataset, CALIBRATION, trainer.args.seed)
    return None if drawn is None else _batches(trainer, drawn, collate)


def require_searchable(trainer: Trainer, search: AStarSearch, *, start_cuts_ffn: bool) -> float:
    """Sees that the search will find its units and its metric, before hours of training rest on it.

    Where examples are scored, they are read; any other metric but the loss is looked for in an evaluation.

    Args:
        trainer: Of the run.
        search: Settings.
        start_cuts_ffn: Whether training will have closed FFN units, but left their weights, when the search begins.

    Returns:
        Seconds to measure one plan on all examples, about.

    Raises:
        InvalidSettingError: The metric is not among those that an evaluation returns, or nothing says whether it is an
            error; or an example has no tokens, or a label that is no class; or the drop allowed allows anything; or the
            settings do not fit the model.
    """
    check_searchable(anatomy_of(trainer.model), search, start_cuts_ffn=start_cuts_ffn)
    name, by_example = _metric_name(trainer, search.metric)
    if by_example:
        check_drop(name, search.max_drop, where="AStarSearch")
        if search.tuning.greater_is_better is False:
            raise InvalidSettingError(
                f"SearchTuning(greater_is_better=False): {name} is better when it is higher. Leave it out."
            )
        loader = trainer.get_eval_dataloader()
        batches = _batches(trainer, loader.dataset, loader.collate_fn)
        try:
            scoring_for(trainer.model, name, where="HeadPruneCallback(search=...)").check(batches)
        except InvalidSettingError as error:
            raise InvalidSettingError(
                f"HeadPruneCallback(search=...) scores the examples of eval_dataset by {name}. {error} Or let the "
                'search follow the loss: AStarSearch(metric="loss").'
            ) from error
        return _seconds_per_plan(trainer, batches)
    _higher_is_better(trainer, name, search)
    started = time.perf_counter()
    value = _evaluate(trainer, name)
    if abs(value) > FAR_ABOVE_ONE and name != "loss":
        logger.warning(
            "HeadPruneCallback: %s is %.4g before training, so it does not run from 0 to 1. max_drop=%g is absolute: a "
            "drop from %.4g to %.4g is allowed. For one percentage point of a metric from 0 to 100 pass max_drop=1.0.",
            name,
            value,
            search.max_drop,
            value,
            value - search.max_drop,
        )
    return time.perf_counter() - started


def _seconds_per_plan(trainer: Trainer, batches: Sequence[Mapping[str, torch.Tensor]]) -> float:
    """Times a forward pass of the middle batch, once to warm up, for the length of all."""
    inputs = trainer._prepare_inputs(dict(batches[len(batches) // 2]))
    with evaluating(trainer.model) as model:
        model(**inputs)
        started = time.perf_counter()
        model(**inputs)
    return len(batches) * (time.perf_counter() - started)


def _metric_name(trainer: Trainer, metric: str | None) -> tuple[str, bool]:
    """Returns the name of the search's metric without its prefix, and whether examples are scored by it."""
    name = (metric or trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
    known = metrics_of(trainer.model)
    if known and metric is None and name == "loss":
        return known[0], True
    # What the Trainer computes goes first, but for the accuracy: everybody's is the same.
    return name, name in known and (name == "accuracy" or trainer.compute_metrics is None)


def _higher_is_better(trainer: Trainer, name: str, search: AStarSearch) -> bool:
    """Tells whether a metric of the Trainer's is better when it is higher.

    Raises:
        InvalidSettingError: It is called like an error, and nobody says so: that it got worse would pass for a gain.
    """
    is_best_metric = name == (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    said = trainer.args.greater_is_better if is_best_metric else None
    if search.tuning.greater_is_better is not None:
        return search.tuning.greater_is_better
    higher = not name.endswith("loss") if said is None else said
    if higher and ERRORS & set(re.split(r"[^a-z0-9]+", name.lower())):
        raise InvalidSettingError(
            f"AStarSearch(metric={name!r}): by its name it is better when it is lower, but nothing says so"
            f"{', TrainingArguments.greater_is_better is True' if said else ''}. Pass "
            "SearchTuning(greater_is_better=False), or True."
        )
    return higher


def _evaluate(trainer: Trainer, name: str) -> float:
    with _quiet(trainer), _same_randomness(trainer):
        metrics = trainer.evaluate()
    if f"eval_{name}" not in metrics:
        raise InvalidSettingError(
            f"AStarSearch(metric={name!r}): an evaluation returns {sorted(metrics)}. Name one of them, or pass "
            "the Trainer a compute_metrics that returns it."
        )
    return float(metrics[f"eval_{name}"])


@contextmanager
def _same_randomness(trainer: Trainer) -> Iterator[None]:
    """Lets whatever draws, such as a collator that masks tokens, draw the same each time, and restores all states."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(trainer.args.seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _quiet(trainer: Trainer) -> Iterator[None]:
    """Keeps the log, progress bars and trackers out of the many evaluations of a search."""
    callbacks, trainer.callback_handler.callbacks = trainer.callback_handler.callbacks, []
    history, trainer.state.log_history = trainer.state.log_history, []
    try:
        yield
    finally:
        trainer.callback_handler.callbacks = callbacks
        trainer.state.log_history = history
