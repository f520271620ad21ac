"""Ties distillation to a Trainer: its bound `compute_loss` is wrapped, nothing else changes."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from hf_headprune.callback import trainer_compat
from hf_headprune.learn.distillation.distiller import Distiller
from hf_headprune.learn.distillation.loss import LossScaling, distilled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import torch
    from transformers import Trainer

    from hf_headprune.learn.distillation.settings import Distillation


def distil(trainer: Trainer, settings: Distillation) -> Distiller:
    """Lets a Trainer's model learn from a teacher, in training alone.

    Raises:
        InvalidSettingError: The teacher does not fit the model.
    """
    # The student's forward pass brings its mixed precision along; the teacher's would not.
    distiller = Distiller(settings, trainer.model, trainer.label_names, partial(_autocast, trainer))
    wrapped = distilled(trainer.compute_loss, distiller, partial(_scaling, trainer), partial(_alone, trainer))
    trainer.compute_loss = wrapped
    return distiller


def _autocast(trainer: Trainer) -> AbstractContextManager[None]:
    return trainer.accelerator.autocast()  # of the accelerator that it has then


def _scaling(trainer: Trainer, num_items: torch.Tensor | int | None) -> LossScaling:
    return LossScaling(
        is_divided_later=not trainer_compat.leaves_loss(trainer, num_items),
        is_declared_scaled=bool(trainer_compat.declared_scaled(trainer)),
        steps=trainer_compat.micro_batches(trainer),
        processes=trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1,
    )


@contextmanager
def _alone(trainer: Trainer) -> Iterator[None]:
    before = trainer.args.average_tokens_across_devices
    trainer.args.average_tokens_across_devices = False
    try:
        yield
    finally:
        trainer.args.average_tokens_across_devices = before
