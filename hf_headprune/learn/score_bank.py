"""ScoreBank: learned scores that live inside the base model, so that the Trainer trains, saves and resumes them."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.errors import TrainingStateError

if TYPE_CHECKING:
    from collections.abc import Callable


class _ScaleWithoutGradient(torch.autograd.Function):
    """`multiplier * raw` whose backward passes the gradient unmultiplied.

    A step of any optimizer on `raw` is then `multiplier` times larger on the product: a learning rate of its own for
    one parameter, without a parameter group of its own.
    """

    @staticmethod
    def forward(ctx: Any, raw: torch.Tensor, multiplier: float) -> torch.Tensor:
        del ctx
        return raw * multiplier

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        del ctx
        return grad_outputs[0], None


def _is_same(multiplier: float, other: float) -> bool:
    """Tells whether two multipliers differ by no more than a checkpoint rounds them."""
    return math.isclose(multiplier, other, rel_tol=1e-6)


def checksum(budget: object) -> torch.Tensor:
    """Returns a number for the settings that say how much stays, as a checkpoint carries it."""
    return torch.tensor(zlib.crc32(repr(budget).encode()))


def check_same_budget(bank: nn.Module, state_dict: Any, prefix: str) -> None:
    """Refuses a checkpoint of a run that was to keep something else: its choice would be kept silently.

    Raises:
        TrainingStateError: It was written with another budget.
    """
    saved = state_dict.get(f"{prefix}budget")
    if saved is None or int(saved) != int(bank.get_buffer("budget")):
        raise TrainingStateError(
            f"{prefix}budget: the checkpoint was written by a run with another budget. Resume with the settings that "
            "it was trained with, or train anew."
        )


class ScoreBank(nn.Module):
    """Scores with a learning rate of their own, in float32 whatever the model is cast to, and the choice made by them.

    Attributes:
        importance_bias: Scores divided by `multiplier`, shape `(num_scores,)`, always float32. ("bias" in the name is
            what keeps the Trainer's weight decay away.)
        kept: The decided choice, ones and zeros of shape `(num_scores,)`.
        decided: Whether `kept` holds.
        steps: Optimizer steps begun; tells whether a resumed checkpoint carried this bank.
        written_with: The multiplier, as a checkpoint carries it, since it holds scores divided by it.
        is_idle: Whether training is yet to begin, so that evaluation leaves everything open.
    """

    importance_bias: nn.Parameter
    kept: torch.Tensor
    decided: torch.Tensor
    steps: torch.Tensor
    written_with: torch.Tensor

    def __init__(self, num_scores: int, *, multiplier: float, budget: object) -> None:
        """Starts with scores of zero.

        Args:
            num_scores: How many.
            multiplier: Learning rate of the scores over that of the run.
            budget: Settings that say how much stays; a resumed run must have the same.
        """
        super().__init__()
        self.multiplier = multiplier  # of a device's copy, every forward pass would wait for it
        self.importance_bias = nn.Parameter(torch.zeros(num_scores))
        self.register_buffer("kept", torch.ones(num_scores))
        self.register_buffer("decided", torch.tensor(False))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("budget", checksum(budget))
        self.register_buffer("written_with", torch.tensor(multiplier))
        self.is_idle = True

    @property
    def num_scores(self) -> int:
        """Scores of the model."""
        return self.importance_bias.numel()

    @property
    def scores(self) -> torch.Tensor:
        """All scores, shape `(num_scores,)`, float32, with gradient."""
        return _ScaleWithoutGradient.apply(self.importance_bias, self.multiplier)

    def learn_at(self, multiplier: float) -> None:
        """Sets how many times faster than the weights the scores learn; the scores themselves stay as they are."""
        scores, is_same = self.scores.detach(), _is_same(multiplier, self.multiplier)
        self.multiplier = multiplier
        self.written_with.fill_(multiplier)
        if not is_same:  # else not even their last bit may change
            self.set_scores(scores)

    def set_scores(self, scores: torch.Tensor) -> None:
        """Overwrites the scores, shape `(num_scores,)`."""
        with torch.no_grad():
            self.importance_bias.copy_(scores / self.multiplier)

    def reset(self) -> None:
        """Starts over: scores of zero, nothing decided, no step begun."""
        self.is_idle = True
        self.set_scores(torch.zeros_like(self.importance_bias))
        self.kept.fill_(1.0)
        self.decided.fill_(False)
        self.steps.fill_(0)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Refuses weights without scores: a resumed run would silently choose anew.

        Raises:
            TrainingStateError: The scores are missing or belong to another model or other settings.
        """
        saved = state_dict.get(f"{prefix}importance_bias")
        if saved is None or saved.shape != self.importance_bias.shape:
            found = "none" if saved is None else f"{saved.numel()} of them"
            raise TrainingStateError(
                f"{prefix}importance_bias: this model learns {self.num_scores} scores, the checkpoint holds {found}. "
                "Resume from a checkpoint that was written with this callback on the same model."
            )
        check_same_budget(self, state_dict, prefix)
        self.is_idle = False
        written_with = float(state_dict.get(f"{prefix}written_with", self.multiplier))
        if not _is_same(written_with, self.multiplier):
            self.multiplier = written_with
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ScoreBank:  # noqa: FBT001, FBT002 - signature of nn.Module
        """Moves between devices, but keeps every dtype when the model is cast to half precision."""
        exact = [tensor.detach().clone() for tensor in (*self.parameters(), *self.buffers())]
        super()._apply(fn, recurse)
        for tensor, before in zip((*self.parameters(), *self.buffers()), exact, strict=True):
            if tensor.dtype != before.dtype:
                tensor.data = before.to(tensor.device)
        return self
