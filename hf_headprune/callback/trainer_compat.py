"""What the callback needs of the Trainer, and how it gets it.

Names that the Trainer and accelerate keep to themselves are used here alone, each by one function that says what
happens in a version that lacks it; those of models are in `hf_headprune._compat`. `tests/test_compat.py` takes away
each.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import safe_open
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import IterableDataset, Subset
from transformers import EarlyStoppingCallback, PreTrainedModel, SchedulerType, Trainer

from hf_headprune._compat import is_dispatched, lent_forward
from hf_headprune._ownership import TRAINING, owned
from hf_headprune.errors import TrainingStateError, shown
from hf_headprune.masking import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import TrainerCallback

    from hf_headprune.learn.pruner import Pruner

logger = logging.getLogger(__name__)

RUN_EPOCH = "_run_epoch"
SAVE_CHECKPOINT = "_save_checkpoint"
LOAD_CHECKPOINT = "_load_from_checkpoint"
PREPARE_INPUTS = "_prepare_inputs"
COUNT_ITEMS = "_get_num_items_in_batch"
TAKES_NUM_ITEMS = "model_accepts_loss_kwargs"
MICRO_BATCHES = "current_gradient_accumulation_steps"
LOSS_SCALER = "scaler"
DDP_SETTINGS = "ddp_handler"
FSDP_VERSION = 2


def calling_trainer(callback: TrainerCallback) -> Trainer:
    """Returns the Trainer that is calling one of the callback's hooks.

    The host hands callbacks its state but not itself, and both its log (`Trainer.log`) and its loss live there. So
    the Trainer is looked up among the callers: the one whose callbacks contain this very object.

    Raises:
        TrainingStateError: No such Trainer is calling.
    """
    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and any(c is callback for c in candidate.callback_handler.callbacks):
            return candidate
        frame = frame.f_back
    raise TrainingStateError(
        f"{type(callback).__name__} was called by no Trainer that holds it. "
        "Pass it to the Trainer: Trainer(..., callbacks=[HeadPruneCallback()])."
    )


def model_of(trainer: Trainer) -> Any:
    """Returns the Transformers model that a Trainer trains, also inside of what saves it, as SentenceTransformer does.

    A module with `save_pretrained` around one model saves that model as it is then, so it may be pruned inside.
    """
    model: Any = trainer.model
    if isinstance(model, PreTrainedModel) or not hasattr(model, "save_pretrained"):
        return model
    inside: list[Any] = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    parts = {id(part) for whole in inside for part in whole.modules() if part is not whole}
    outermost = [module for module in inside if id(module) not in parts]
    return outermost[0] if len(outermost) == 1 else model


def require_whole_model(trainer: Trainer, *, in_training: bool, trains_twice: bool, learns_scores: bool) -> None:
    """Refuses ways to build a Trainer in which the model can't be pruned.

    Args:
        trainer: Of the run.
        in_training: Whether the model is pruned, or learns from a teacher, while it trains.
        trains_twice: Whether it is trained on after it was cut.
        learns_scores: Whether scores are trained beside the weights.

    Raises:
        TrainingStateError: The Trainer re-makes the model (`model_init`), or splits weights over processes in a way
            that can't be gathered when they are needed whole; or accelerate has spread the model over devices.
    """
    if trainer.model_init is not None:
        raise TrainingStateError(
            "Trainer(model_init=...) makes a new model at every train(), and HeadPruneCallback serves the one that the "
            "Trainer was built with. Pass Trainer(model=model_init(), ...) and one Trainer per trial."
        )
    if is_dispatched(model_of(trainer)):
        raise TrainingStateError(
            "The model is spread over devices (device_map, or offloading), and a training that prunes needs it in one "
            "place. Train it without the callback, or not at all, and prune it afterwards: search_plan and "
            "plan_for_budget take such a model."
        )
    if trainer.is_deepspeed_enabled and in_training:
        raise TrainingStateError(
            "DeepSpeed moves weights, gradients and optimizer into partitions of its own while the model trains, in "
            "which the scores and the removals of pruning in training are not written. Prune after training: "
            "HeadPruneCallback() or HeadPruneCallback(max_drop=...), which gather the weights once; or train with "
            "FSDP2 or plain data parallelism."
        )
    if not trainer.is_fsdp_enabled:
        return
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if getattr(plugin, "fsdp_version", 1) < FSDP_VERSION:
        raise TrainingStateError(
            "FSDP of version 1 flattens the weights of a block into one, which is not gathered here. Use version 2: "
            "fsdp_config={'version': 2}, or fsdp_version: 2 in the configuration of accelerate."
        )
    if trains_twice:
        raise TrainingStateError(
            "BlockMovement.hybrid_filled trains the cut model a second time, and FSDP gives it back whole when the "
            "first training ends. Take BlockMovement.hybrid, and train the pruned model in a Trainer of its own."
        )
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in model_of(trainer).parameters()}
    if learns_scores and dtypes != {"float32"} and trainer.accelerator.mixed_precision == "no":
        raise TrainingStateError(
            "FSDP takes one precision for all that trains, and scores are learned in float32, received a model in "
            f"{' and '.join(sorted(dtypes))}. Load it in float32 and train with bf16=True, or prune by costs: density=."
        )


def require_trainable_again(trainer: Trainer) -> None:
    """Refuses ways to build a Trainer in which it can't train the pruned model on.

    Raises:
        TrainingStateError: Its training set has no length, its optimizer was given, its model is inside another one, or
            its weights are split over processes.
    """
    reason = None
    if is_stream(trainer.train_dataset):
        reason = "epochs need a train_dataset with a length"
    elif trainer.optimizer is not None:
        reason = "the optimizer that it was given holds the weights of the larger model"
    elif model_of(trainer) is not trainer.model:
        reason = f"its {type(trainer.model).__name__} holds the model that is pruned inside of it"
    elif trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        reason = "the weights are split over the processes"
    if reason is not None:
        raise TrainingStateError(
            f"HeadPruneCallback(recover_epochs=...): this Trainer can't train the pruned model on, since {reason}. "
            "Leave recover_epochs out, and train on in a new Trainer around the pruned model."
        )


def require_one_loss(trainer: Trainer) -> None:
    """Refuses losses of which each belongs to one of several data sets: what is scored mixes their examples.

    Raises:
        TrainingStateError: A Trainer of sentence-transformers has them; it knows them once it is built.
    """
    if isinstance(getattr(trainer, "loss", None), dict):
        raise TrainingStateError(
            "The Trainer has a loss for each of several data sets, and units are scored on batches that mix them. "
            "Prune in a Trainer with one data set and one loss, or with the same loss for all: loss=..."
        )


def require_plain_passes(trainer: Trainer) -> None:
    """Refuses ways to train in which what was added to the model would get lost.

    Raises:
        TrainingStateError: The Trainer checkpoints activations reentrantly, or would replicate the model over several
            devices in one process.
    """
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # renamed in the supported range
        if (getattr(trainer.args, name, None) or {}).get("use_reentrant"):
            raise TrainingStateError(
                f"TrainingArguments({name}={getattr(trainer.args, name)!r}): reentrant checkpointing runs the backward "
                "pass of the gates once per layer, which torch refuses. Leave use_reentrant out, or set it to False."
            )
    if trainer.args.n_gpu > 1:
        raise TrainingStateError(
            f"One process with {trainer.args.n_gpu} devices replicates the model in every forward pass and loses the "
            "gates. Start one process per device (torchrun or accelerate launch)."
        )


def require_trainable_scores(trainer: Trainer) -> None:
    """Refuses ways to build a Trainer in which learned scores would not be trained.

    Raises:
        TrainingStateError: The Trainer was given a finished optimizer, or has no learning rate.
    """
    if trainer.optimizer is not None:
        raise TrainingStateError(
            "Trainer(optimizers=(optimizer, ...)) was given an optimizer that was built before the gates or scores "
            "existed, so they would never be trained. Leave the optimizer to the Trainer (optim=..., or override "
            "create_optimizer), or let costs choose, which are not trained: HeadPruneCallback(density=0.5)."
        )
    if not trainer.args.learning_rate > 0:
        raise TrainingStateError(
            f"TrainingArguments(learning_rate={trainer.args.learning_rate!r}): the scores have a learning rate of "
            "their own as a multiple of this one, so it must be above 0. To train scores alone, use "
            "SubsetGates(mode='pipelined')."
        )


def let_finished_runs_end(trainer: Trainer) -> None:
    """Keeps a run that is resumed at its last step from training one step more.

    The host asks whether training is over after each step, but not before the first one after resuming; where the last
    step was no epoch's last, a step too many would change what is searched and cut. Without the Trainer's method for an
    epoch: does nothing, and such a run takes that step.
    """
    run_epoch: Callable[..., None] | None = getattr(trainer, RUN_EPOCH, None)
    if run_epoch is None:
        return

    @wraps(run_epoch)
    def run_epoch_unless_finished(*args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
        else:
            run_epoch(*args, **kwargs)

    setattr(trainer, RUN_EPOCH, run_epoch_unless_finished)


def let_training_end_idle(trainer: Trainer, idle: Callable[[], None]) -> None:
    """Lets `trainer.train()` own the model, and calls a function whenever it ends, after an interrupt or an error too.

    Args:
        trainer: Whose bound `train` is wrapped.
        idle: Opens what training has closed.
    """
    train = trainer.train

    @wraps(train)
    def train_then_idle(*args: Any, **kwargs: Any) -> Any:
        with owned(model_of(trainer), TRAINING):
            try:
                return train(*args, **kwargs)
            finally:
                idle()

    trainer.train = train_then_idle


def let_ddp_miss_scores(trainer: Trainer) -> None:
    """Tells DDP that the scores take no part in the loss before and after the gates learn; it would wait for them.

    Without accelerate's settings of DDP: the Trainer's own arguments alone say so.
    """
    trainer.args.ddp_find_unused_parameters = True
    settings: Any = getattr(trainer.accelerator, DDP_SETTINGS, None)
    if settings is not None:
        settings.find_unused_parameters = True


def save_checkpoint(trainer: Trainer, folder: Path) -> bool:
    """Saves the Trainer's present state into a folder, below its usual name, beside all rules about checkpoints.

    No older checkpoint makes room for it, and it is not pushed to the Hub. Without the Trainer's method: saves nothing,
    says so, and returns False.
    """
    save = getattr(trainer, SAVE_CHECKPOINT, None)
    if save is None:
        logger.warning(
            "This version of Transformers lets nothing but the Trainer save a checkpoint. If the process ends before "
            "the model is pruned, training can be resumed from the last checkpoint of the Trainer alone."
        )
        return False
    args = trainer.args
    before = args.output_dir, args.save_total_limit, args.push_to_hub
    args.output_dir, args.save_total_limit, args.push_to_hub = str(folder), None, False
    try:
        save(trainer.model, trial=None)
    finally:
        args.output_dir, args.save_total_limit, args.push_to_hub = before
    return True


def let_loader_find(trainer: Trainer, parts: Sequence[Pruner[Any]]) -> None:
    """Lets a Trainer that reads checkpoints in its own way find the state of what learns beside the model.

    That of sentence-transformers makes a new model of the checkpoint and takes the weights of that one. Without the
    name, or where the Trainer is of Transformers' own way: does nothing.

    Args:
        trainer: Whose bound loader is wrapped.
        parts: That learn in it.
    """
    load = getattr(trainer, LOAD_CHECKPOINT, None)
    if load is None or getattr(type(trainer), LOAD_CHECKPOINT, None) is getattr(Trainer, LOAD_CHECKPOINT, None):
        return

    @wraps(load)
    def load_with_parts(checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(Path(checkpoint).rglob("*.safetensors")):
            with safe_open(file, framework="pt") as content:
                names = [name for name in content.keys() if any(part.module_name() in name for part in parts)]  # noqa: SIM118 - the file is no mapping
                tensors |= {name: content.get_tensor(name) for name in names}
        for part in parts:
            start = f"{part.module_name()}."
            part.elsewhere = {name.rpartition(start)[2]: it for name, it in tensors.items() if start in name}
        try:
            return load(checkpoint, *args, **kwargs)
        finally:
            for part in parts:
                part.elsewhere = {}

    setattr(trainer, LOAD_CHECKPOINT, load_with_parts)


def is_stream(dataset: Any) -> bool:
    """Tells whether a data set can only be read from its beginning; every torch data set has a `__getitem__`."""
    has_places = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return isinstance(dataset, IterableDataset) or not has_places


def evaluation_sets(trainer: Trainer) -> list[Any]:
    """Returns the data sets that the Trainer evaluates on: none, one, or those of a mapping."""
    dataset: Any = trainer.eval_dataset
    if dataset is None or isinstance(dataset, str):  # the name that sentence-transformers gives to none
        return []
    return list(dataset.values()) if isinstance(dataset, dict) else [dataset]


def eval_loader(trainer: Trainer, dataset: Any = None) -> Any:
    """Returns what reads a data set as evaluations do; `eval_dataset` when left out.

    The Trainer hands out the loader of an earlier call, whatever data set it is asked for, where workers persist.
    """
    persists, trainer.args.dataloader_persistent_workers = trainer.args.dataloader_persistent_workers, False
    try:
        return trainer.get_eval_dataloader(dataset)
    finally:
        trainer.args.dataloader_persistent_workers = persists


def has_own_numbers(trainer: Trainer) -> bool:
    """Tells whether evaluations may return numbers of the user's: by `compute_metrics`, or by a subclass."""
    is_overridden = not getattr(type(trainer).evaluate, "__module__", "").startswith("transformers.")
    return trainer.compute_metrics is not None or is_overridden


def chooses_by_evaluation(trainer: Trainer) -> bool:
    """Tells whether evaluations on `eval_dataset` choose the checkpoint, the end or the learning rates of training."""
    stops_early = any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks)
    is_lowered = trainer.args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    is_lowered = is_lowered or isinstance(trainer.lr_scheduler, ReduceLROnPlateau)
    return bool(trainer.args.load_best_model_at_end) or stops_early or is_lowered


def training_data(trainer: Trainer, loader: Any = None) -> tuple[Any, Any]:
    """Returns the training examples, and what makes a batch of some.

    Where a loader of the user's is none of torch's, they are those that the Trainer was given.

    Args:
        trainer: Of the run.
        loader: Of its training examples; that of the training that runs when left out.

    Raises:
        TrainingStateError: It was given none.
    """
    loader = trainer.callback_handler.train_dataloader if loader is None else loader
    if not (hasattr(loader, "dataset") and hasattr(loader, "collate_fn")):
        if trainer.train_dataset is None:
            raise TrainingStateError(
                f"HeadPruneCallback reads training examples, and {type(trainer).__name__}.get_train_dataloader returns "
                f"a {type(loader).__name__} without dataset and collate_fn. Pass train_dataset= to the Trainer, or "
                "return a torch DataLoader."
            )
        loader = Trainer.get_train_dataloader(trainer)
    return loader.dataset, loader.collate_fn


def scoring_batches(trainer: Trainer, count: int, seed: int) -> Iterator[Any]:
    """Yields batches of `count` training examples, drawn by `seed`, without touching torch's random state.

    Texts come the longest first, so that little is padded.
    """
    dataset, collate = training_data(trainer)
    size = trainer.state.train_batch_size  # smaller than set, with auto_find_batch_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        drawn: Any = drawn_examples(dataset, count, seed)
        if drawn is not None and hasattr(_tokens(drawn[0]), "__len__"):
            drawn = sorted(drawn, key=lambda example: -len(_tokens(example)))
        examples: Iterator[Any] = islice(iter(dataset if drawn is None else drawn), count)
        while chunk := list(islice(examples, size)):
            yield prepared(trainer, collate(chunk))


def _tokens(example: Any) -> Any:
    return example.get("input_ids") if isinstance(example, Mapping) else None


def prepared(trainer: Trainer, batch: Any) -> Any:
    """Returns a batch as the Trainer hands it to the model. Without its method: on the model's device."""
    prepare = getattr(trainer, PREPARE_INPUTS, None)
    return send_to_device(batch, trainer.args.device) if prepare is None else prepare(batch)


def items_of(trainer: Trainer, batch: Any) -> torch.Tensor | int | None:
    """Returns the items of an optimizer step of one batch. Without the Trainer's method: None, for unknown."""
    count = getattr(trainer, COUNT_ITEMS, None)
    return None if count is None else count([batch], trainer.args.device)


def drawn_examples(dataset: Any, count: int, seed: int) -> Subset[Any] | None:
    """Returns `count` examples of a data set, drawn by `seed`, or None where it is a stream."""
    if is_stream(dataset):
        return None
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[:count].tolist())


def batch_loss(trainer: Trainer, batch: Any) -> torch.Tensor:
    """Returns the loss that the Trainer would train on: of any subclass, with its precision."""
    with trainer.compute_loss_context_manager():
        return trainer.compute_loss(trainer.model, batch, **counted_for(trainer, batch))


def run_on(trainer: Trainer, batch: Any, model: Any) -> Any:
    """Makes the forward pass of a training step with another model, such as a copy, in that model's own precision."""
    with lent_forward(trainer.model, model):
        counted = counted_for(trainer, batch)
        return trainer.compute_loss(model, dict(batch) if isinstance(batch, Mapping) else batch, **counted)


def counted_for(trainer: Trainer, batch: Any) -> dict[str, Any]:
    """Returns what training tells a loss of the user's own, as a function or a method, of an optimizer step."""
    is_own = trainer.compute_loss_func is not None or type(trainer).compute_loss is not Trainer.compute_loss
    return {"num_items_in_batch": items_of(trainer, batch)} if is_own else {}


def summed_loss(trainer: Trainer, batch: Any) -> torch.Tensor:
    """Returns the loss times the examples of the batch, as fp16 training scales it."""
    count = _examples_in(batch)
    if count is None:
        raise TrainingStateError(
            f"HeadPruneCallback: the data collator returns neither tensors nor texts, received {shown(batch)}. Removal "
            "costs need batches of them, which may be nested in dicts or lists."
        )
    given = dict(batch) if isinstance(batch, Mapping) else batch  # some losses take labels out
    return batch_loss(trainer, given) * (count * loss_scale(trainer))


def _examples_in(batch: Any) -> int | None:
    """Returns how many examples a batch holds: the length of its first tensor, else of its first list of texts."""
    found = next(tensors(batch), None)
    if found is not None:
        return len(found[1])
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], str):
        return len(batch)
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for count in map(_examples_in, inner) if count is not None), None)


def loss_scale(trainer: Trainer) -> float:
    """Returns what fp16 training multiplies the loss with; 1 in any other precision, or without accelerate's scaler."""
    scaler = getattr(trainer.accelerator, LOSS_SCALER, None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def declared_scaled(trainer: Trainer) -> bool | None:
    """Tells whether a subclass has said that its loss is a mean over the optimizer step; None where it says nothing."""
    return getattr(trainer, "loss_is_scaled_for_ga", None)


def leaves_loss(trainer: Trainer, num_items: torch.Tensor | int | None) -> bool:
    """Tells whether the Trainer leaves the loss of a micro-batch unchanged, in place of dividing it by their number.

    Where the Trainer does not say whether a model takes the number of items, it counts as one that does, as most do.

    Args:
        trainer: Of the run.
        num_items: Of the optimizer step, or None where they can't be counted.
    """
    declared = declared_scaled(trainer)
    counted = getattr(trainer, TAKES_NUM_ITEMS, True) and num_items is not None
    return counted or trainer.compute_loss_func is not None if declared is None else declared


def means_per_micro_batch(trainer: Trainer) -> int:
    """Returns how many mean losses each micro-batch adds to an optimizer step; 0 where the step sees one mean.

    Where a loss takes the number of items of the step, the Trainer leaves the scaling to it; but most classifiers take
    the number and ignore it, and then the means of all micro-batches, and of all processes, add up. So the loss of some
    training examples is asked for with two numbers, in evaluation.
    """
    if trainer.args.gradient_accumulation_steps == trainer.accelerator.num_processes == 1:
        return 0  # one micro-batch is all there is, and nothing need be asked
    batch = next(scoring_batches(trainer, trainer.state.train_batch_size, trainer.args.seed))
    num_items = items_of(trainer, batch)
    if declared_scaled(trainer) is not None or not leaves_loss(trainer, num_items):
        return 0
    if num_items is None:
        return 1  # the user's own function is told nothing that it could divide by
    with evaluating(trainer.model), trainer.compute_loss_context_manager():
        once, half = (trainer.compute_loss(trainer.model, {**batch}, num_items_in_batch=num_items * k) for k in (1, 2))
    ignores = bool((once - half).abs() < once.abs() / 4)
    return ignores * (trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1)


def micro_batches(trainer: Trainer) -> int:
    """Returns how many micro-batches the current optimizer step has; where the Trainer does not say, what was set."""
    return getattr(trainer, MICRO_BATCHES, trainer.args.gradient_accumulation_steps)


def peak_learning_rate(scores: torch.nn.Parameter, optimizer: Any) -> float:
    """Returns the rate, before any schedule, at which an optimizer trains learned scores.

    It may differ from `args.learning_rate`: a user's own optimizer has a rate of its own, and a resumed run goes on
    with that of its checkpoint.

    Raises:
        TrainingStateError: The optimizer does not hold the scores, or trains them at no rate above 0.
    """
    groups = [group for group in optimizer.param_groups if any(p is scores for p in group["params"])]
    if not groups:
        raise TrainingStateError(
            "The optimizer does not hold the learned scores, so they would never be trained. If create_optimizer is "
            "overridden, let it include every parameter of the model that requires a gradient."
        )
    rate = groups[0].get("initial_lr", groups[0]["lr"])
    if rate is None or not float(rate) > 0:
        raise TrainingStateError(
            f"The optimizer trains the learned scores at a learning rate of {rate!r}; theirs is a multiple of it, so "
            "it must be above 0. Give their group of parameters a learning rate."
        )
    return float(rate)


def tensors(batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a batch by name; those nested in mappings and lists have the names of both, with a dot."""
    named = batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, list | tuple) else ()
    for name, value in named:
        if isinstance(value, torch.Tensor):
            yield str(name), value
        else:
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in tensors(value))


@contextmanager
def not_tried_again(trainer: Trainer) -> Iterator[None]:
    """Keeps `auto_find_batch_size` from training a trained model again where memory runs out after training.

    Raises:
        TrainingStateError: It does.
    """
    try:
        yield
    except RuntimeError as error:
        if not (trainer.args.auto_find_batch_size and should_reduce_batch_size(error)):
            raise
        raise TrainingStateError(
            "HeadPruneCallback: there was not enough memory for what follows training, with the error above. Training "
            "itself is over. Free memory, or lower per_device_eval_batch_size; then "
            "trainer.train(resume_from_checkpoint=True) goes on from the last checkpoint in output_dir."
        ) from error
