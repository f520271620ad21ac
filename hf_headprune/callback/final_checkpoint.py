"""A checkpoint of the trained state, for what happens after training: a kill must lose no training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_headprune.callback import trainer_compat

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.callback.parts import LearnedParts

MARK = "headprune_spare"


def spare_folder(trainer: Trainer) -> Path:
    """Returns where a checkpoint of the Trainer's present state lies, if there is one."""
    return Path(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}")


def save_spare_checkpoint(trainer: Trainer, parts: LearnedParts) -> None:
    """Saves the end of training, where the Trainer kept no checkpoint of it.

    `trainer.train(resume_from_checkpoint=...)` from it goes straight on to what comes after training.
    """
    folder = spare_folder(trainer)
    if not folder.is_dir():
        parts.mark_step(trainer.state.global_step)
        if trainer_compat.save_checkpoint(trainer) and trainer.args.should_save:
            (folder / MARK).touch()


def drop_spare_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Removes a checkpoint that nobody but `save_spare_checkpoint` asked for; any other stays."""
    if trainer.args.should_save and (folder / MARK).exists():
        shutil.rmtree(folder)
