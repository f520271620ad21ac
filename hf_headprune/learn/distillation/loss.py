"""Distillation inside a training loop: wraps the function that computes the loss, and changes nothing else.

Neither the Trainer's class nor the user's code has to know. The wrapper works with what models, label smoothing, a
`compute_loss_func` or a subclass make of the loss, and with gradient accumulation over micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.distillation.stored_answers import device_of_batch

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import nn

    from hf_headprune.learn.distillation.distiller import Distiller


@dataclass(frozen=True)
class LossScaling:
    """How a Trainer wants the loss of a micro-batch scaled.

    Attributes:
        is_divided_later: The Trainer divides the loss by the number of micro-batches.
        is_declared_scaled: A subclass of the Trainer has said that its loss is normalised over the optimizer step.
        steps: Micro-batches of this optimizer step.
        processes: Processes that `num_items` was summed over, whose gradients are then averaged; 1 when it was not.
    """

    is_divided_later: bool
    is_declared_scaled: bool
    steps: int
    processes: int

    def share(self, items: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
        """Returns what to multiply the mean over a micro-batch with, so that an optimizer step sees its own mean.

        Args:
            items: Of this micro-batch.
            num_items: Of the optimizer step, or None when it does not count them.
        """
        if self.is_divided_later:
            return torch.tensor(1.0)
        return torch.tensor(1.0 / self.steps) if num_items is None else items * self.processes / num_items


def distilled(
    compute_loss: Callable[..., Any],
    distiller: Distiller,
    scaling: Callable[[torch.Tensor | int | None], LossScaling],
    alone: Callable[[], AbstractContextManager[None]],
) -> Callable[..., Any]:
    """Wraps a Trainer's bound `compute_loss`; evaluation passes through, without the teacher.

    The task's loss is asked for as if the micro-batch were all there is, because many models ignore the number of
    items that they are told, and the two losses must be means over the same thing to be mixed.

    Args:
        compute_loss: Bound method of the Trainer or of any subclass.
        distiller: Mixes the loss.
        scaling: Given the number of items of the optimizer step, says how this micro-batch is to be scaled.
        alone: Context in which `compute_loss` does not scale with the number of processes; a loss that is declared
            scaled is asked for outside of it.

    Raises:
        TrainingStateError: When called: `compute_loss` returns no outputs by name.
    """

    def compute_distilled_loss(
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - signature of the Trainer
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        told = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        if not model.training:
            return compute_loss(model, inputs, return_outputs=return_outputs, **told)
        scale = scaling(num_items_in_batch)
        is_counted = num_items_in_batch is not None and "labels" in inputs
        items = distiller.items(inputs) if is_counted else torch.tensor(1)
        if is_counted and not scale.is_declared_scaled:
            told = {"num_items_in_batch": items.clamp_min(1)}  # a row of padding alone adds zero
        # Before the student, whose activations are then still in the caches when its backward pass begins.
        taught = distiller.teach(inputs, device_of_batch(inputs))
        handed = {**inputs, **distiller.extra_inputs}  # label smoothing takes the labels out of what it gets
        # A loss declared scaled is told of all processes, so it has to hold their factor, which is divided out below.
        with nullcontext() if scale.is_declared_scaled else alone():
            found = compute_loss(model, handed, return_outputs=True, **told)
        task_loss, outputs = _loss_and_outputs(found)
        share = scale.share(items, num_items_in_batch if is_counted else None)
        if scale.is_declared_scaled:
            task_loss = task_loss / share.clamp_min(torch.finfo(share.dtype).tiny)
        loss = distiller(outputs, inputs, task_loss, taught) * share
        return (loss, outputs) if return_outputs else loss

    return compute_distilled_loss


def _loss_and_outputs(found: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Mapping):  # noqa: PLR2004
        raise TrainingStateError(
            f"Distillation: compute_loss(..., return_outputs=True) returned {type(found).__name__}, not the loss and "
            "the model's outputs by name. Return (loss, outputs) from an overridden compute_loss, and leave "
            "config.return_dict on."
        )
    return found
