"""Distillation of embedding models: the student's embeddings are drawn to the teacher's; no labels are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from hf_headprune.errors import InvalidSettingError
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.tasks.embeddings import signs_like

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

Texts = dict[str, torch.Tensor]


class EmbeddingDistiller:
    """The loss of a batch of texts; holds the teacher outside the student, so that nothing trains or saves it."""

    def __init__(self, settings: Distillation, student: nn.Module, embed: Callable[[Any, Texts], torch.Tensor]) -> None:
        """Checks the settings and the teacher.

        Args:
            settings: Of the distillation.
            student: The model in training.
            embed: Runs a model on texts, and returns their embeddings, `(texts, embedding_size)`.

        Raises:
            InvalidSettingError: A setting mixes other losses, or the teacher shares weights with the student.
        """
        if settings != Distillation(settings.teacher):
            raise InvalidSettingError(
                f"Distillation(...): a {type(student).__name__} learns from the teacher's embeddings alone, without "
                "another loss. Pass Distillation(teacher) without other settings."
            )
        if {id(p) for p in settings.teacher.parameters()} & {id(p) for p in student.parameters()}:
            raise InvalidSettingError(
                "Distillation(teacher=...): the teacher shares weights with the model in training, so it would change "
                "with every step. Load it a second time, or pass copy.deepcopy(model)."
            )
        self._teacher: Any = settings.teacher
        self._embed = embed
        self._drawn = torch.Generator().manual_seed(0)
        self._teacher.eval()

    def __call__(self, model: nn.Module, batches: Sequence[Texts]) -> torch.Tensor:
        """Returns the mean over texts of the squared distance between both embeddings, each at length 1.

        In evaluation with gradients, which removal costs are taken from, random projections of the student's embeddings
        take its place: the distance itself has no gradient where nothing was removed.

        Args:
            model: The student, perhaps wrapped.
            batches: Inputs of texts; several for losses of pairs.
        """
        losses = []
        for texts in batches:
            found = functional.normalize(self._embed(model, texts).float(), dim=-1)
            if not model.training and torch.is_grad_enabled():
                losses.append((found * signs_like(found, self._drawn)).sum(dim=-1).mean())
            else:
                losses.append((found - self._taught(texts, found)).square().sum(dim=-1).mean())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _taught(self, texts: Texts, like: torch.Tensor) -> torch.Tensor:
        self._teacher.eval().to(like.device)
        taught = functional.normalize(self._embed(self._teacher, texts).float(), dim=-1)
        if taught.shape != like.shape:
            raise InvalidSettingError(
                f"Distillation(teacher={type(self._teacher).__name__}): its embeddings have {taught.shape[-1]} "
                f"entries, the student's {like.shape[-1]}. Take a teacher with embeddings of the student's size."
            )
        return taught
