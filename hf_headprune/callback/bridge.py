"""What the callback needs of the Trainer, and how it gets it."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import IterableDataset, Subset
from transformers import EarlyStoppingCallback, SchedulerType, Trainer, set_seed

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.fingerprints import sha256_of
from hf_headprune.masking import plain_copy
from hf_headprune.processes import from_first, number_of_processes
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator, length_sorted_batches
from hf_headprune.search.evaluation.probing import Probing
from hf_headprune.search.evaluation.scorings import classifies, metrics_of, scoring_for
from hf_headprune.search.plans import check_drop, check_searchable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import TrainerCallback

    from hf_headprune.search.settings import AStarSearch

ERRORS = frozenset(
    ("error", "errors", "mse", "rmse", "mae", "mape", "perplexity", "ppl", "wer", "cer", "ter", "nll", "bpc", "eer")
)
CALIBRATION = 1024  # training examples on which output projections are refitted


def calling_trainer(callback: TrainerCallback) -> Trainer:
    """Returns the Trainer that is calling one of the callback's hooks.

    The host hands callbacks its state but not itself, and both its log (`Trainer.log`) and its loss live there. So
    the Trainer is looked up among the callers: the one whose callbacks contain this very object.

    Raises:
        TrainingStateError: No such Trainer is calling.
    """
    frame = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and any(c is callback for c in candidate.callback_handler.callbacks):
            return candidate
        frame = frame.f_back  # type: ignore[assignment]
    raise TrainingStateError(
        f"{type(callback).__name__} was called by no Trainer that holds it. "
        "Pass it to the Trainer: Trainer(..., callbacks=[HeadPruneCallback()])."
    )


def require_plain_construction(trainer: Trainer) -> None:
    """Refuses ways to build a Trainer in which scores added to the model would get lost.

    Raises:
        TrainingStateError: The Trainer re-makes the model (`model_init`), was given a finished optimizer, has no
            learning rate, checkpoints activations reentrantly, splits weights over processes, or would replicate the
            model over several devices in one process.
    """
    if trainer.model_init is not None:
        raise TrainingStateError(
            "Trainer(model_init=...) makes a new model at every train(), without the gates that were added to the "
            "first one. Pass Trainer(model=model_init(), ...) and one Trainer per trial."
        )
    if trainer.optimizer is not None:
        raise TrainingStateError(
            "Trainer(optimizers=(optimizer, ...)) was given an optimizer that was built before the gates existed, so "
            "their scores would never be trained. Leave the optimizer to the Trainer (optim=..., or override "
            "create_optimizer), or use HeadPruneCallback(gates=None)."
        )
    if not trainer.args.learning_rate > 0:
        raise TrainingStateError(
            f"TrainingArguments(learning_rate={trainer.args.learning_rate!r}): the scores have a learning rate of "
            "their own as a multiple of this one, so it must be above 0. To train scores alone, use "
            "SubsetGates(mode='pipelined')."
        )
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # renamed in the supported range
        if (getattr(trainer.args, name, None) or {}).get("use_reentrant"):
            raise TrainingStateError(
                f"TrainingArguments({name}={getattr(trainer.args, name)!r}): reentrant checkpointing runs the backward "
                "pass of the gates once per layer, which torch refuses. Leave use_reentrant out, or set it to False."
            )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise TrainingStateError(
            "DeepSpeed and FSDP split every weight over the processes; scoring heads and cutting them needs whole "
            "ones. Train with plain data parallelism (torchrun or accelerate launch without them)."
        )
    if trainer.args.n_gpu > 1:
        raise TrainingStateError(
            f"One process with {trainer.args.n_gpu} devices replicates the model in every forward pass and loses the "
            "gates. Start one process per device (torchrun or accelerate launch)."
        )


def require_steps_to_learn(open_steps: float, max_steps: int) -> None:
    """Refuses a run that ends while everything is still open: nothing would be scored.

    Raises:
        TrainingStateError: No step is left after the open ones.
    """
    if open_steps >= max_steps:
        raise TrainingStateError(
            f"The run has {max_steps} optimizer steps, and everything is open in the first {open_steps:.0f} of them, "
            "so nothing would be scored. Train longer, or lower open_until."
        )


def let_finished_runs_end(trainer: Trainer) -> None:
    """Keeps a run that is resumed at its last step from training one step more.

    The host asks whether training is over after each step, but not before the first one after resuming; where the last
    step was no epoch's last, a step too many would change what is searched and cut.
    """
    run_epoch: Callable[..., None] = trainer._run_epoch

    @wraps(run_epoch)
    def run_epoch_unless_finished(*args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
        else:
            run_epoch(*args, **kwargs)

    trainer._run_epoch = run_epoch_unless_finished


def let_ddp_miss_scores(trainer: Trainer) -> None:
    """Tells DDP that the scores take no part in the loss before and after the gates learn; it would wait for them."""
    trainer.args.ddp_find_unused_parameters = True
    if trainer.accelerator.ddp_handler is not None:
        trainer.accelerator.ddp_handler.find_unused_parameters = True


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


def is_stream(dataset: Any) -> bool:
    """Tells whether a data set can only be read from its beginning; every torch data set has a `__getitem__`."""
    has_places = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return isinstance(dataset, IterableDataset) or not has_places


def chooses_by_evaluation(trainer: Trainer) -> bool:
    """Tells whether evaluations on `eval_dataset` choose the checkpoint, the end or the learning rates of training."""
    stops_early = any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks)
    is_lowered = trainer.args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    is_lowered = is_lowered or isinstance(trainer.lr_scheduler, ReduceLROnPlateau)
    return bool(trainer.args.load_best_model_at_end) or stops_early or is_lowered


def scoring_batches(trainer: Trainer, count: int, seed: int) -> Iterator[Any]:
    """Yields batches of `count` training examples, drawn by `seed`, without touching the run's random state."""
    loader = trainer.callback_handler.train_dataloader
    size = trainer.state.train_batch_size  # smaller than set, with auto_find_batch_size
    drawn = _drawn(loader.dataset, count, seed)
    examples: Iterator[Any] = islice(iter(loader.dataset if drawn is None else drawn), count)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        while chunk := list(islice(examples, size)):
            yield trainer._prepare_inputs(loader.collate_fn(chunk))


def _drawn(dataset: Any, count: int, seed: int) -> Subset[Any] | None:
    """Returns `count` examples of a data set, drawn by `seed`, or None where it is a stream."""
    if is_stream(dataset):
        return None
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[:count].tolist())


def batch_loss(trainer: Trainer, batch: Any) -> torch.Tensor:
    """Returns the loss that the Trainer would train on: of any subclass, with its precision."""
    counted = {}
    if trainer.compute_loss_func is not None:  # a loss of the user's own is given what training gives it
        counted["num_items_in_batch"] = trainer._get_num_items_in_batch([batch], trainer.args.device)
    with trainer.compute_loss_context_manager():
        return trainer.compute_loss(trainer.model, batch, **counted)


def summed_loss(trainer: Trainer, batch: Any) -> torch.Tensor:
    """Returns the loss times the examples of the batch, as fp16 training scales it."""
    examples = len(next(value for _, value in tensors(batch)))
    return batch_loss(trainer, batch) * (examples * loss_scale(trainer))


def loss_scale(trainer: Trainer) -> float:
    """Returns what fp16 training multiplies the loss with; 1 in any other precision."""
    scaler = trainer.accelerator.scaler
    return 1.0 if scaler is None else float(scaler.get_scale())


def gradient_scale(trainer: Trainer) -> float:
    """Returns what gradients are still multiplied with just before the optimizer's step: clipping takes it off."""
    return 1.0 if trainer.args.max_grad_norm > 0 else loss_scale(trainer)


def in_optimizer(parameter: torch.nn.Parameter, optimizer: Any) -> bool:
    """Tells whether an optimizer trains a parameter."""
    return any(p is parameter for group in optimizer.param_groups for p in group["params"])


@dataclass(frozen=True)
class MetricSource:
    """What a search measures plans with.

    Attributes:
        evaluator: Function of a plan, with a `fingerprint()` of what it measures.
        metric: Name of the metric.
        num_examples: Examples that it is computed on.
        sign: -1 where the evaluator returns the metric negated, because lower is better.
        precision: Name of the lower precision that the Trainer evaluates in, or None for that of the weights.
    """

    evaluator: ExampleEvaluator | MetricEvaluator
    metric: str
    num_examples: int
    sign: float
    precision: str | None = None


def searches_accuracy(trainer: Trainer, metric: str | None) -> bool:
    """Tells whether a search would count right answers, one per example."""
    return classifies(trainer.model) and _metric_name(trainer, metric) == ("accuracy", True)


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
    probing = _probing(trainer, search)
    if by_example:
        batches = _batches(trainer, loader.dataset, loader.collate_fn)
        calibration = _calibration(trainer, loader.collate_fn) if search.reconstruct else None
        evaluator = ExampleEvaluator(
            plain_copy(trainer.model), batches, metric=name, probing=probing, calibration=calibration
        )
        return MetricSource(evaluator, evaluator.scoring.in_words, len(loader.dataset), 1.0)
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
        cache_mib=probing.cache_mib,
        share_processes=probing.share_processes,
    )
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else None
    return MetricSource(by_metric, name, len(loader.dataset), 1.0 if higher else -1.0, precision)


def _probing(trainer: Trainer, search: AStarSearch) -> Probing:
    """Returns how plans are measured, alike in every process; several share the examples."""
    probing = Probing(cache_mib=search.cache_mib, half_precision=search.half_precision, siblings=search.siblings)
    if number_of_processes() == 1:
        return probing
    rounds = from_first(probing.rounds(trainer.model))  # a process tries how fast bf16 is by itself
    return replace(probing, half_precision=rounds, share_processes=True)


def _batches(trainer: Trainer, dataset: Any, collate: Any) -> list[dict[str, torch.Tensor]]:
    """Returns examples in batches as an evaluator takes them."""
    return length_sorted_batches(dataset, collate, batch_size=trainer.args.per_device_eval_batch_size)


def _calibration(trainer: Trainer, collate: Any) -> list[dict[str, torch.Tensor]] | None:
    """Returns batches of training examples to refit on, or None where the training set is a stream."""
    drawn = _drawn(trainer.callback_handler.train_dataloader.dataset, CALIBRATION, trainer.args.seed)
    return None if drawn is None else _batches(trainer, drawn, collate)


def require_searchable(trainer: Trainer, search: AStarSearch, *, start_cuts_ffn: bool) -> None:
    """Sees that the search will find its units and its metric, before hours of training rest on it.

    Where examples are scored, they are read; any other metric but the loss is looked for in an evaluation.

    Args:
        trainer: Of the run.
        search: Settings.
        start_cuts_ffn: Whether training will have cut FFN units when the search begins.

    Raises:
        InvalidSettingError: The metric is not among those that an evaluation returns, or nothing says whether it is an
            error; or an example has no tokens, or a label that is no class; or the drop allowed allows anything; or the
            settings do not fit the model.
    """
    check_searchable(anatomy_of(trainer.model), search, start_cuts_ffn=start_cuts_ffn)
    name, by_example = _metric_name(trainer, search.metric)
    if by_example:
        check_drop(name, search.max_drop, where="AStarSearch")
        if search.greater_is_better is False:
            raise InvalidSettingError(
                f"AStarSearch(greater_is_better=False): {name} is better when it is higher. Leave it out."
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
        return
    _higher_is_better(trainer, name, search)
    if name != "loss":
        _evaluate(trainer, name)


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
    if search.greater_is_better is not None:
        return search.greater_is_better
    higher = not name.endswith("loss") if said is None else said
    if higher and ERRORS & set(re.split(r"[^a-z0-9]+", name.lower())):
        raise InvalidSettingError(
            f"AStarSearch(metric={name!r}): by its name it is better when it is lower, but nothing says so"
            f"{', TrainingArguments.greater_is_better is True' if said else ''}. Pass "
            "AStarSearch(greater_is_better=False), or True."
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


def tensors(batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a batch by name."""
    return ((name, value) for name, value in batch.items() if isinstance(value, torch.Tensor))
