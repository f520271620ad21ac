"""The second training run: of the pruned model, after a recipe that refills, or to recover from the cut."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import enable_full_determinism, set_seed

from hf_headprune._compat import lent_forward
from hf_headprune._distributed import from_first
from hf_headprune._fingerprints import sha256_of
from hf_headprune.callback.distillation import taught_by
from hf_headprune.callback.final_checkpoint import (
    drop_spare_checkpoint,
    last_whole,
    save_spare_checkpoint,
    spare_folder,
)
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.errors import TrainingStateError
from hf_headprune.shrink.folding import refill_zeros_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import Trainer, TrainerCallback

    from hf_headprune.pipeline.recovery import Recover

FOLDER = "second_run_{weights}"


def second_run_steps(refill_ratio: float, max_steps: int) -> int:
    """Returns the optimizer steps of the second run.

    Args:
        refill_ratio: Steps of the second run over those of the first.
        max_steps: Of the first.

    Raises:
        TrainingStateError: Not a single step.
    """
    steps = round(refill_ratio * max_steps)
    if steps < 1:
        raise TrainingStateError(
            f"BlockMovement(refill_ratio={refill_ratio!r}) of a run of {max_steps} optimizer steps leaves no step for "
            "the second run. Train longer, or raise refill_ratio."
        )
    return steps


def let_second_run_follow(
    trainer: Trainer, callback: TrainerCallback, refill_ratio: float, when_done: Callable[[], None]
) -> None:
    """Makes `trainer.train()` train twice: the second time the pruned model, refilled, with a fresh optimizer.

    The second run is an ordinary one of the same Trainer: same data, arguments, loss (of a teacher too) and other
    callbacks, and the whole learning rate schedule once more. Its checkpoints have a folder of their own in
    `output_dir`, and a call that resumes goes on there.

    Args:
        trainer: Whose bound `train` is wrapped.
        callback: That cuts at the end of the first run; it takes no part in the second.
        refill_ratio: Optimizer steps of the second run over those of the first.
        when_done: Called when the second run has ended.
    """
    train_once = trainer.train

    @wraps(train_once)
    def train_twice(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        train_once(resume_from_checkpoint, *args, **kwargs)
        steps = second_run_steps(refill_ratio, trainer.state.max_steps)
        first_end = spare_folder(trainer)
        count = refill_zeros_(model_of(trainer), seed=trainer.args.seed)
        if trainer.is_world_process_zero():
            tqdm.write(f"Second run: {count:,} zeros inside the pruned model refilled; {steps} optimizer steps.")
        with as_second_run(trainer, callback, trainer.model, max_steps=steps) as folder:
            output = train_once(
                from_first(last_whole(Path(folder))) if resume_from_checkpoint else None, *args, **kwargs
            )
        when_done()
        drop_spare_checkpoint(trainer, first_end)
        return output

    trainer.train = train_twice


def let_recovery_follow(
    trainer: Trainer, callback: TrainerCallback, epochs: float, finish: Callable[[Recover], bool], *, has_teacher: bool
) -> None:
    """Makes `trainer.train()` prune after training, with a second run that trains the pruned model on.

    That run is an ordinary one of the same Trainer: same data, arguments and other callbacks, and the whole learning
    rate schedule once more. Its checkpoints have a folder of their own in `output_dir`, and a call that resumes goes on
    there; the last one stays until pruning has ended.

    Args:
        trainer: Whose bound `train` is wrapped.
        callback: That prunes; it takes no part in the second run.
        epochs: Of the second run.
        finish: Prunes the trained model, is given what trains a pruned copy on, and returns whether nothing more needs
            the checkpoints.
        has_teacher: Whether a teacher of the user's is in the loss already; else the dense model is one, where it can.
    """
    train_once = trainer.train

    @wraps(train_once)
    def train_then_prune(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        outputs = [train_once(resume_from_checkpoint, *args, **kwargs)]
        spares: list[Path] = [spare_folder(trainer)]

        def recover(pruned: Any, dense: Any) -> None:
            changes = {"num_train_epochs": epochs, "max_steps": -1}
            with as_second_run(trainer, callback, pruned, **changes) as folder:
                last = from_first(last_whole(Path(folder))) if resume_from_checkpoint else None
                with nullcontext() if has_teacher else taught_by(trainer, dense):
                    outputs.append(train_once(last, *args, **kwargs))
                spares.append(spare_folder(trainer))
                save_spare_checkpoint(trainer)
            pruned.eval()

        is_done = finish(recover)
        for spare in spares if is_done else ():
            drop_spare_checkpoint(trainer, spare)
        return outputs[-1]

    trainer.train = train_then_prune


@contextmanager
def as_second_run(trainer: Trainer, callback: TrainerCallback, model: Any, **changes: Any) -> Iterator[str]:
    """Readies the Trainer to train a model in a second run, and yields the folder of its checkpoints.

    The folder is named by the weights that the run begins with, so that no other run's checkpoint is taken up.

    Args:
        trainer: Has trained.
        callback: That takes no part.
        model: The Trainer's own, or another one that takes its place for the length of the run.
        **changes: Arguments of the Trainer, for the length of the run.
    """
    args, handler, owner = trainer.args, trainer.callback_handler, trainer.model
    weights = sha256_of("", model.state_dict())
    changes = {"output_dir": str(Path(args.output_dir, FOLDER.format(weights=weights[:12]))), **changes}
    before = {name: getattr(args, name) for name in changes}, handler.callbacks
    vars(args).update(changes)
    handler.callbacks = [other for other in handler.callbacks if other is not callback]
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # its precision is wrapped around it anew
    _give_model(trainer, model)
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    try:
        with lent_forward(owner, model):
            yield args.output_dir
    finally:
        vars(args).update(before[0])
        handler.callbacks = before[1]
        if model is not owner:
            _give_model(trainer, owner)


def _give_model(trainer: Any, model: Any) -> None:
    """Lets a Trainer train and evaluate a model, with an optimizer of its own."""
    trainer.model = trainer.model_wrapped = trainer.callback_handler.model = model
    trainer.optimizer = trainer.lr_scheduler = None
