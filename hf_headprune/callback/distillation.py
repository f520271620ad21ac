"""Ties distillation to a Trainer: its bound `compute_loss` is wrapped, nothing else changes."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.callback import trainer_compat
from hf_headprune.callback.evaluation import same_randomness
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.learn.distillation.distiller import Distiller
from hf_headprune.learn.distillation.embeddings import EmbeddingDistiller
from hf_headprune.learn.distillation.loss import LossScaling, distilled
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.learn.distillation.teachers import require_fitting_teacher
from hf_headprune.tasks.embeddings import embedded, texts_of
from hf_headprune.tasks.examples import embeds_texts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import nn
    from transformers import Trainer

logger = logging.getLogger(__name__)


def distil(trainer: Trainer, settings: Distillation) -> Distiller | EmbeddingDistiller:
    """Lets a Trainer's model learn from a teacher, in training alone; an embedding model has no other loss.

    Raises:
        InvalidSettingError: The teacher does not fit the model, or the model's loss shows no outputs to compare.
    """
    if embeds_texts(model_of(trainer)):
        return _distil_embeddings(trainer, settings)
    if model_of(trainer) is not trainer.model:
        raise InvalidSettingError(
            f"Distillation(teacher=...): the loss of a {type(trainer.model).__name__} runs the model on its own, so "
            "its outputs can't be compared with the teacher's. Let the teacher score the training pairs, and pass "
            "these as labels with a loss that learns them, such as MSELoss, without distillation."
        )
    # The student's forward pass brings its mixed precision along; the teacher's would not.
    told = partial(_autocast, trainer), partial(_repeated_examples, trainer)
    distiller = Distiller(settings, trainer.model, trainer.label_names, *told)
    wrapped = distilled(trainer.compute_loss, distiller, partial(_scaling, trainer), partial(_alone, trainer))
    trainer.compute_loss = wrapped
    return distiller


def require_teacher(trainer: Trainer, settings: Distillation) -> None:
    """Sees that a teacher fits before anything runs it; `distil` says what it can't be compared with.

    Raises:
        InvalidSettingError: It does not fit the model.
    """
    if model_of(trainer) is trainer.model and not embeds_texts(trainer.model):
        require_fitting_teacher(settings.teacher, trainer.model, compares_hidden=settings.alpha_hidden > 0)


@contextmanager
def taught_by(trainer: Trainer, dense: Any) -> Iterator[None]:
    """Lets a Trainer's model learn from the dense model for the length of a `with` block; from labels if it can't.

    It can't where labels do not exclude each other, or where a loss of the user's returns no outputs; one batch tells.
    """
    owner: Any = trainer
    before = owner.__dict__.get("compute_loss")
    try:
        try:
            distil(trainer, Distillation(dense))
            with same_randomness(trainer), torch.no_grad():
                examples, collate = trainer_compat.training_data(trainer, trainer.get_train_dataloader())
                batch = trainer_compat.prepared(trainer, collate([examples[0]]))
                owner.compute_loss(owner.model.train(), batch, **trainer_compat.counted_for(trainer, batch))
            _restore_loss(owner, before)
            distil(trainer, Distillation(dense))  # anew: how often examples come again is known once the run begins
        except HeadPruneError as error:
            _restore_loss(owner, before)
            logger.warning("The pruned model learns from labels alone, without the dense one as teacher. %s", error)
        yield
    finally:
        _restore_loss(owner, before)


def _restore_loss(owner: Any, before: Any) -> None:
    owner.__dict__.pop("compute_loss", None)
    if before is not None:
        owner.compute_loss = before


def _distil_embeddings(trainer: Trainer, settings: Distillation) -> EmbeddingDistiller:
    """Puts the distance to the teacher's embeddings in the place of the Trainer's loss."""
    owner: Any = trainer
    is_inside = model_of(trainer) is not trainer.model
    distiller = EmbeddingDistiller(settings, trainer.model, _embedded_inside if is_inside else _embedded)

    def compute_loss(
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - signature of the Trainer
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        texts = owner.collect_features(inputs)[0] if is_inside else [texts_of(inputs)]
        with _autocast(trainer):
            loss = distiller(model, texts)
        if model.training:
            loss = loss * _scaling(trainer, num_items_in_batch).share(torch.tensor(1), None)
        return (loss, {}) if return_outputs else loss

    owner.compute_loss = compute_loss
    return distiller


def _embedded(model: Any, texts: dict[str, torch.Tensor]) -> torch.Tensor:
    return embedded(model(**texts), texts)


def _embedded_inside(model: Any, texts: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(dict(texts))["sentence_embedding"]


def _autocast(trainer: Trainer) -> AbstractContextManager[None]:
    return trainer.accelerator.autocast()  # of the accelerator that it has then


def _repeated_examples(trainer: Trainer) -> int | None:
    """Returns how many training examples there are, if the run reads them more than once."""
    if trainer_compat.is_stream(trainer.train_dataset) or trainer.state.num_train_epochs <= 1:
        return None
    return len(trainer.train_dataset)


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
