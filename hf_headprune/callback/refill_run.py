"""The second training run of a recipe that refills: of the pruned model, with the zeros inside it refilled."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import enable_full_determinism, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_headprune._fingerprints import sha256_of
from hf_headprune.callback.final_checkpoint import drop_spare_checkpoint, spare_folder
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.errors import TrainingStateError
from hf_headprune.shrink.folding import refill_zeros_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import Trainer, TrainerCallback

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
        with _as_second_run(trainer, callback, steps) as folder:
            last = get_last_checkpoint(folder) if resume_from_checkpoint and Path(folder).is_dir() else None
            output = train_once(last, *args, **kwargs)
        when_done()
        drop_spare_checkpoint(trainer, first_end)
        return output

    trainer.train = train_twice


@contextmanager
def _as_second_run(trainer: Trainer, callback: TrainerCallback, steps: int) -> Iterator[str]:
    """Readies the Trainer for the second run and yields the folder of its checkpoints.

    The folder is named by the weights that the run begins with, so that no other run's checkpoint is taken up.
    """
    args, handler, model = trainer.args, trainer.callback_handler, trainer.model
    weights = sha256_of("", model.state_dict())
    before = args.output_dir, args.max_steps, handler.callbacks
    args.output_dir, args.max_steps = str(Path(args.output_dir, FOLDER.format(weights=weights[:12]))), steps
    handler.callbacks = [other for other in handler.callbacks if other is not callback]
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # its precision is wrapped around it anew
    trainer.model_wrapped, trainer.optimizer, trainer.lr_scheduler = model, None, None
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    try:
        yield args.output_dir
    finally:
        args.output_dir, args.max_steps, handler.callbacks = before
