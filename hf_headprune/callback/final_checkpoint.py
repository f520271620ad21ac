"""A checkpoint of the trained state, for what happens after training: a kill must lose no training."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_headprune._distributed import from_first
from hf_headprune.callback import trainer_compat

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.callback.parts import LearnedParts

logger = logging.getLogger(__name__)

MARK = "headprune_spare"
STAGING = "headprune_unfinished"  # a checkpoint that is half written is never found by `resume_from_checkpoint=True`


def spare_folder(trainer: Trainer) -> Path:
    """Returns where a checkpoint of the Trainer's present state lies, if there is one."""
    return Path(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}")


def save_spare_checkpoint(trainer: Trainer, parts: LearnedParts) -> None:
    """Saves the end of training, where the Trainer kept no checkpoint of it.

    `trainer.train(resume_from_checkpoint=...)` from it goes straight on to what comes after training. That it can't be
    written is logged, and ends nothing.
    """
    folder = spare_folder(trainer)
    if from_first((folder / TRAINER_STATE_NAME).is_file()):  # the last file of a checkpoint
        return
    parts.mark_step(trainer.state.global_step)
    staging = folder.parent / STAGING
    try:
        is_saved = trainer_compat.save_checkpoint(trainer, staging)
        trainer.accelerator.wait_for_everyone()
        if is_saved and trainer.args.should_save:
            (staging / folder.name / MARK).touch()
            shutil.rmtree(folder, ignore_errors=True)
            (staging / folder.name).replace(folder)
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        logger.error(
            "HeadPruneCallback: the end of training could not be saved in %s (%s). Pruning goes on; if it is "
            "interrupted, the training is lost.",
            folder,
            error,
        )


def drop_spare_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Removes a checkpoint that only `save_spare_checkpoint` asked for; any other is kept."""
    if trainer.args.should_save and (folder / MARK).exists():
        shutil.rmtree(folder)
