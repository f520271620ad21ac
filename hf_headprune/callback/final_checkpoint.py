"""A checkpoint of the trained state, for what happens after training: a kill must lose no training."""

from __future__ import annotations

import json
import logging
import re
import shutil
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_headprune._beside_weights import written_at
from hf_headprune._distributed import from_first
from hf_headprune.callback import trainer_compat
from hf_headprune.errors import TrainingStateError
from hf_headprune.masking import temporary_parts

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.callback.parts import LearnedParts

logger = logging.getLogger(__name__)

MARK = "headprune_spare"
TRAINED = "headprune_trained"  # the trained weights alone, where optimizer and weights were split over processes
OF_PART = re.compile(r"(?:^|\.)(headprune_\w+)\.")
_BEFORE: WeakKeyDictionary[Any, dict[Path, int | None]] = WeakKeyDictionary()  # checkpoints that a run has found
STAGING = "headprune_unfinished"  # a checkpoint that is half written is never found by `resume_from_checkpoint=True`


def spare_folder(trainer: Trainer) -> Path:
    """Returns where a checkpoint of the Trainer's present state lies, if there is one."""
    return Path(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}")


def save_spare_checkpoint(trainer: Trainer, parts: LearnedParts | None = None) -> None:
    """Saves the end of training, where the Trainer kept no checkpoint of it.

    `trainer.train(resume_from_checkpoint=...)` from it goes straight on to what comes after training. That it can't be
    written is logged, and ends nothing. One that an earlier run asked for is replaced, and any other stays.

    Args:
        trainer: Of the run.
        parts: What learned in it.
    """
    folder = spare_folder(trainer)
    stamp = from_first(written_at(folder / TRAINER_STATE_NAME))
    if stamp is not None:
        if stamp != _BEFORE.get(trainer, {}).get(folder.resolve()):  # this run has written it, or went on from it
            return
        if not from_first((folder / MARK).exists()):
            logger.error(
                "HeadPruneCallback: the end of training is not saved, since %s is of another run. Pruning goes on; if "
                "it is interrupted, the training is lost. Give each run an output_dir of its own.",
                folder,
            )
            return
    if parts is not None:
        parts.mark_step(trainer.state.global_step)
    staging = folder.parent / STAGING
    try:
        try:
            is_saved = trainer_compat.save_checkpoint(trainer, staging)
        finally:  # the others wait where one has failed
            trainer.accelerator.wait_for_everyone()
        if is_saved and trainer.args.should_save:
            (staging / folder.name / MARK).touch()
            shutil.rmtree(folder, ignore_errors=True)
            (staging / folder.name).replace(folder)
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        logger.error(
            "HeadPruneCallback: the end of training could not be saved in %s (%s). Pruning goes on; if it is "
            "interrupted, the training is lost.",
            folder,
            error,
        )


def let_resume_skip_halves(trainer: Trainer) -> None:
    """Lets `train(resume_from_checkpoint=True)` go on from the last checkpoint that is whole.

    The Trainer takes the one of the highest step, also where a kill or a full disk has left half of it. Without a whole
    one the run begins anew; nothing is deleted.

    Args:
        trainer: Whose bound `train` is wrapped.
    """
    train = trainer.train

    @wraps(train)
    def train_from_whole(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        folder = Path(trainer.args.output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = from_first(last_whole(folder))
            resume_from_checkpoint = resume_from_checkpoint or (None if checkpoints_in(folder) else True)  # as asked
        _BEFORE[trainer] = {path.resolve(): written_at(path / TRAINER_STATE_NAME) for path in checkpoints_in(folder)}
        if isinstance(resume_from_checkpoint, str | Path):
            _BEFORE[trainer].pop(Path(resume_from_checkpoint).resolve(), None)
            _check_parts(trainer, Path(resume_from_checkpoint))
        return train(resume_from_checkpoint, *args, **kwargs)

    trainer.train = train_from_whole


def _check_parts(trainer: Trainer, checkpoint: Path) -> None:
    """Checks that a checkpoint was written by a run that chose as this one does.

    Raises:
        TrainingStateError: It holds what another method has learned.
    """
    found: set[str] = set()
    for file in checkpoint.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            found |= {name for key in content.keys() for name in OF_PART.findall(key)}  # noqa: SIM118 - no mapping
    others = found - {part.module_name() for part in temporary_parts(trainer_compat.model_of(trainer))}
    if others:
        raise TrainingStateError(
            f"{checkpoint}: it holds {', '.join(sorted(others))}, by which another run chose what to remove, and this "
            "HeadPruneCallback asks for something else. Resume with the arguments of that run, or train anew."
        )


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the folders of checkpoints, whole or not, the last step first."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdecimal()]
    found = [path for path in found if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def last_whole(folder: Path) -> str | None:
    """Returns the last whole checkpoint in a folder, None where there is none; halves are named."""
    for path in checkpoints_in(folder):
        if _is_whole(path):
            return str(path)
        logger.warning("%s is half of a checkpoint: the run that wrote it ended meanwhile. It is passed by.", path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Tells whether the state of the Trainer, the last file that it writes, and the weights can be read."""
    try:
        if not isinstance(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")), dict):
            return False
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, framework="pt") as content:
                content.keys()
    except (OSError, ValueError, RecursionError, SafetensorError):
        return False
    return True


def save_trained(trainer: Trainer) -> None:
    """Saves the trained weights, where they were split over processes and are whole now, until pruning has ended.

    If it does not end, load the folder and call `search_plan`. That it can't be written is logged, and ends nothing.
    """
    if not trainer.args.should_save:
        return
    folder, staging = Path(trainer.args.output_dir, TRAINED), Path(trainer.args.output_dir, STAGING)
    model: Any = trainer.model
    try:
        model.save_pretrained(staging)
        shutil.rmtree(folder, ignore_errors=True)
        staging.replace(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        logger.error("HeadPruneCallback: the trained weights could not be saved in %s (%s).", folder, error)


def drop_spare_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Removes a checkpoint that only `save_spare_checkpoint` asked for; any other is kept."""
    if trainer.args.should_save:
        shutil.rmtree(Path(trainer.args.output_dir, TRAINED), ignore_errors=True)
    if trainer.args.should_save and (folder / MARK).exists():
        shutil.rmtree(folder)
        if folder.parent != Path(trainer.args.output_dir):
            with suppress(OSError):  # other checkpoints are in it
                folder.parent.rmdir()
