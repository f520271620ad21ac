"""Distiller: mixes the loss of one batch, of its labels and of what a teacher says of it.

How it enters a training loop: `hf_headprune.learn.distillation.loss`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.distillation.stored_answers import StoredAnswers
from hf_headprune.learn.distillation.teachers import (
    has_softmax,
    layer_pairs,
    require_fitting_teacher,
)
from hf_headprune.tasks.examples import IGNORED_LABEL, forward_arguments, predicts_next_token

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from hf_headprune.learn.distillation.settings import Distillation

SPAN_NAMES = ("start_logits", "end_logits")
LABEL_NAMES = frozenset({"label", "label_ids", "labels", "start_positions", "end_positions"})


def logits_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns T² KL(softmax(teacher / T) || softmax(student / T)) of every row.

    Args:
        student: Logits, shape `(..., num_classes)`, any floating dtype.
        teacher: The same shape.
        temperature: T; the factor T² keeps the size of gradients when it changes.

    Returns:
        Shape `(...)`, float32.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.1.
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return divergence.sum(dim=-1) * temperature**2


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the mean squared distance between hidden states, both `(batch, length, hidden)`, as float32.

    Args:
        student: Hidden states.
        teacher: The same shape.
        mask: Ones at the real positions, shape `(batch, length)`, or None when all are real.
    """
    squares = functional.mse_loss(student.float(), teacher.float(), reduction="none").mean(dim=-1)  # (batch, length)
    return squares.mean() if mask is None else _masked_mean(squares, mask)


class Distiller:
    """Mixes the loss of one batch; holds the teacher outside the student, so that nothing trains or saves it."""

    def __init__(
        self,
        settings: Distillation,
        student: nn.Module,
        label_names: Collection[str] = (),
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        repeated: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Checks that the teacher fits the student, before anything is trained.

        Args:
            settings: Of the distillation.
            student: The model in training, not wrapped.
            label_names: Inputs that are labels, beside the usual ones: the teacher does not get them.
            autocast: Makes the context that the teacher runs in: that of the student's forward pass.
            repeated: Returns, once training has begun, how many examples there are if they are read more than once; the
                teacher's logits are then stored. None asks the teacher every time.

        Raises:
            InvalidSettingError: The teacher does not fit the student.
        """
        require_fitting_teacher(settings.teacher, student, compares_hidden=settings.alpha_hidden > 0)
        self.settings = settings
        self._config: Any = student.config
        self.pairs = (
            layer_pairs(settings.teacher, student, settings.tuning.layer_map) if settings.alpha_hidden > 0 else {}
        )
        self.shifts = predicts_next_token(student)
        self._labels = LABEL_NAMES | set(label_names)
        self._accepted = _named_inputs(settings.teacher)
        self._autocast = autocast
        self._repeated = repeated
        self._stored: StoredAnswers | None = None
        settings.teacher.eval()

    @property
    def extra_inputs(self) -> dict[str, bool]:
        """What both models must be called with in addition."""
        return {"output_hidden_states": True} if self.pairs else {}

    def __call__(
        self, outputs: Any, inputs: Mapping[str, Any], task_loss: torch.Tensor, taught: Any = None
    ) -> torch.Tensor:
        """Returns the mixed loss of a batch, a mean over the batch as `task_loss` is.

        Args:
            outputs: Of the student in training, by name; with hidden states when those are compared.
            inputs: What the student was called with, labels included.
            task_loss: Mean over the batch.
            taught: From `teach`, for the same inputs; None asks the teacher now.

        Raises:
            TrainingStateError: Outputs or labels are missing, teacher and student disagree about a shape, or the
                student has found that its labels do not exclude each other.
        """
        settings = self.settings
        if not has_softmax(self._config):
            raise TrainingStateError(
                f"Distillation: the labels made the student's problem_type {self._config.problem_type!r}, and teachers "
                "are compared in a softmax. Give each example one class, a whole number, or train without a teacher."
            )
        taught = self.teach(inputs, task_loss.device) if taught is None else taught
        loss = settings.tuning.alpha_task * task_loss
        if settings.alpha_teacher > 0:
            loss = loss + settings.alpha_teacher * self._logits_loss(outputs, taught, inputs)
        if self.pairs:
            loss = loss + settings.alpha_hidden * self._hidden_loss(outputs, taught, inputs)
        return loss

    @torch.no_grad()
    def teach(self, inputs: Mapping[str, Any], device: torch.device) -> Any:
        """Returns the teacher's outputs for a batch: from the store where it has seen the examples before.

        Hidden states are not stored: they are too many.
        """
        given = self._given(inputs)
        if self._stored is None:
            self._stored = StoredAnswers(0 if self.pairs else self._repeated() or 0)
        if self._stored.is_on:
            return self._stored.answers(given, partial(self._ask, device=device))
        return self._ask(given, device)

    def _given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what of a batch the teacher is called with."""
        teacher = self.settings.teacher
        # An encoder-decoder makes its decoder's inputs of the labels, unless they were made already.
        needs_labels = _is_encoder_decoder(teacher) and "decoder_input_ids" not in inputs
        hidden = self._labels - {"labels"} if needs_labels else self._labels
        given = {name: value for name, value in inputs.items() if name not in hidden}
        if self._accepted is not None:
            given = {name: value for name, value in given.items() if name in self._accepted}
        return given

    def _ask(self, given: Mapping[str, Any], device: torch.device) -> Any:
        teacher = self.settings.teacher
        if teacher.training:  # somebody else may have used it in between
            teacher.eval()
        if next(teacher.parameters()).device != device:
            teacher.to(device)
        with self._autocast():
            return teacher(**given, **self.extra_inputs, return_dict=True)

    def items(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Returns how many items the labels of a batch hold: rows, or positions that count."""
        labels = inputs["labels"]
        return (labels[..., 1:] if self.shifts and labels.dim() > 1 else labels).ne(IGNORED_LABEL).sum()

    def _logits_loss(self, outputs: Any, taught: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        names = SPAN_NAMES if SPAN_NAMES[0] in outputs else ("logits",)
        losses = []
        for name in names:
            student, teacher = _same_shape(name, outputs, taught)
            losses.append(self._mean_divergence(student, teacher, inputs))
        return torch.stack(losses).mean()

    def _mean_divergence(self, student: torch.Tensor, teacher: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        is_per_row = student.dim() == 2  # noqa: PLR2004 - (batch, classes), or (batch, length) of spans
        if is_per_row:  # spans: over all positions of the padded batch, as their own loss
            return logits_divergence(student, teacher, self.settings.temperature).mean()
        if inputs.get("labels") is None:
            raise TrainingStateError(
                f"Distillation: logits of shape {tuple(student.shape)} hold one prediction per position, and the batch "
                f"has no 'labels' to tell real positions from padding, only {sorted(inputs)}. Pass labels, with "
                f"{IGNORED_LABEL} at padding."
            )
        mask = inputs["labels"].ne(IGNORED_LABEL)  # (batch, length)
        if self.shifts:
            student, teacher, mask = student[:, :-1], teacher[:, :-1], mask[:, 1:]
        return _masked_mean(logits_divergence(student, teacher, self.settings.temperature), mask)

    def _hidden_loss(self, outputs: Any, taught: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        distances = []
        for name, pairs in self.pairs.items():
            if outputs.get(name) is None:
                raise TrainingStateError(
                    f"Distillation(alpha_hidden=...): the student returned no {name!r}, although it was called with "
                    "output_hidden_states=True. Let compute_loss pass all its inputs to the model."
                )
            mask = _positions(name, inputs, outputs[name][0].shape[:2])
            # Entry 0 is the embedding.
            distances += [
                hidden_distance(outputs[name][i + 1], taught[name][j + 1].detach(), mask) for i, j in pairs.items()
            ]
        return torch.stack(distances).mean()


def _same_shape(name: str, outputs: Any, taught: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if name not in outputs or name not in taught or outputs[name].shape != taught[name].shape:
        shapes = [tuple(found[name].shape) if name in found else sorted(found) for found in (outputs, taught)]
        raise TrainingStateError(
            f"Distillation: teacher and student must both return {name!r} of one shape; the student's are {shapes[0]}, "
            f"the teacher's {shapes[1]}. Take a teacher that was trained for the same task."
        )
    return outputs[name], taught[name]


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / mask.sum().clamp_min(1)


def _positions(name: str, inputs: Mapping[str, Any], shape: torch.Size) -> torch.Tensor | None:
    """Returns which positions of some hidden states, `(batch, length, ...)`, are real; None where nothing tells."""
    mask = inputs.get("attention_mask")
    if name.startswith("decoder"):
        labels = inputs.get("labels")
        if labels is not None and labels.shape == shape and not labels.is_floating_point():
            return labels.ne(IGNORED_LABEL)
        mask = inputs.get("decoder_attention_mask", mask)  # a classifier's decoder reads what its encoder reads
    return mask if mask is not None and mask.shape == shape else None


def _named_inputs(teacher: nn.Module) -> set[str] | None:
    """Returns the inputs that a teacher's forward names, or None where a wrapper hides them."""
    names = set(forward_arguments(teacher))
    return names if getattr(teacher, "main_input_name", "input_ids") in names else None


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))
