"""TrainingLoop: what pruners may ask of the loop that trains the model, so that they know no Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.errors import TrainingStateError

if TYPE_CHECKING:
    from torch import nn


def _no_batches(count: int, seed: int) -> Iterable[Any]:
    del count, seed
    return ()


def _no_loss(batch: Any) -> torch.Tensor:
    raise TrainingStateError(f"This training loop gives no loss of a batch, asked for that of {type(batch).__name__}.")


def _is_one(*_: Any) -> float:
    return 1.0


def _is_true() -> bool:
    return True


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


def _do_nothing() -> None:
    pass


@dataclass(frozen=True)
class TrainingLoop:
    """What only the loop that trains the model knows, as values and functions; the defaults are those of a plain loop.

    Attributes:
        seed: Of the run.
        learning_rate: Peak rate of the weights.
        batches: Returns batches of training examples: given their number and a seed.
        loss: Returns the loss of a batch, with gradient.
        summed_loss: Returns the loss of a batch, summed over its examples.
        loss_scale: Returns what half-precision training multiplies the loss with.
        penalty_scale: Returns what the gradients of this optimizer step are still multiplied with when it ends.
        is_last_micro_batch: Tells whether the backward pass that runs is the last of its optimizer step.
        peak_learning_rate: Returns the rate, before any schedule, at which the optimizer trains a parameter.
        from_first: Returns the first process's values in every process.
        forget_best_model: Says that no model before this step may be taken as the best one.
    """

    seed: int = 0
    learning_rate: float = 1.0
    batches: Callable[[int, int], Iterable[Any]] = _no_batches
    loss: Callable[[Any], torch.Tensor] = _no_loss
    summed_loss: Callable[[Any], torch.Tensor] = _no_loss
    loss_scale: Callable[[], float] = _is_one
    penalty_scale: Callable[[], float] = _is_one
    is_last_micro_batch: Callable[[], bool] = _is_true
    peak_learning_rate: Callable[[nn.Parameter], float] = _is_one
    from_first: Callable[[torch.Tensor], torch.Tensor] = _same
    forget_best_model: Callable[[], None] = _do_nothing
