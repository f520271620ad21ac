"""ScorePruner: a pruner that learns scores, which the Trainer trains, saves and resumes beside the weights."""

from __future__ import annotations

import math
import weakref
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune._distributed import is_part, own_part, part_like, whole
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.pruner import Pruner, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch.utils.hooks import RemovableHandle

    from hf_headprune.learn.training_loop import TrainingLoop


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


def check_steps_to_learn(part: str, open_steps: float, max_steps: int) -> None:
    """Refuses a run that ends while everything is still open: nothing would be scored.

    Raises:
        TrainingStateError: No step is left after the open ones.
    """
    if open_steps >= max_steps:
        raise TrainingStateError(
            f"{part}: the run has {max_steps} optimizer steps, and everything is open in the first {open_steps:.0f} of "
            "them, so nothing would be scored. Train longer, or lower warmup_ratio."
        )


class ScorePruner(Pruner[Settings]):
    """Scores with a learning rate of their own, in float32 whatever the model is cast to, and the choice made by them.

    Attributes:
        importance_bias: Scores divided by `multiplier`, shape `(num_scores,)`, always float32. ("bias" in the name is
            what keeps the Trainer's weight decay away.)
        decided: Whether `kept` holds.
        written_with: The multiplier, as a checkpoint carries it, since it holds scores divided by it.
        multiplier: Learning rate of the scores over that of the weights.
    """

    importance_bias: nn.Parameter
    decided: torch.Tensor
    written_with: torch.Tensor

    def __init__(self, settings: Settings, *, num_scores: int, multiplier: float, budget: object) -> None:
        """Starts with scores of zero.

        Args:
            settings: What is asked for.
            num_scores: How many.
            multiplier: Learning rate of the scores over that of the run.
            budget: What says how much is kept, by which method and when; a resumed run must have the same.
        """
        super().__init__(settings, num_kept=num_scores, budget=budget)
        self.multiplier = multiplier  # of a device's copy, every forward pass would wait for it
        self.importance_bias = nn.Parameter(torch.zeros(num_scores))
        self.register_buffer("decided", torch.tensor(False))
        self.register_buffer("written_with", torch.tensor(multiplier))
        self._whole: torch.Tensor | None = None  # of the scores, where FSDP splits them; see `gather`
        self._penalty_due: float | None = None
        self._penalty_handle: RemovableHandle | None = None
        self.seal()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles watch for no gradient, as the hook is that of the original."""
        return {**vars(self), "_penalty_due": None, "_penalty_handle": None, "_whole": None}

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """Peak learning rate of the scores."""

    @property
    @abstractmethod
    def has_penalty(self) -> bool:
        """Whether something beside the loss has a gradient for the scores."""

    @abstractmethod
    def add_penalty_grad(self, *, loss_scale: float = 1.0) -> None:
        """Adds the penalty's gradient to the scores' gradient; call it once per optimizer step.

        Args:
            loss_scale: What the gradients that are there are still multiplied with.
        """

    def add_grad(self, slope: torch.Tensor) -> None:
        """Adds to the gradient of the scores, if there is one, shape `(num_scores,)`; the same in every process."""
        grad = self.importance_bias.grad
        if grad is not None:
            grad.add_(own_part(slope, grad))

    @property
    def num_scores(self) -> int:
        """Scores of the model."""
        return self.importance_bias.numel()

    @property
    def scores(self) -> torch.Tensor:
        """All scores, shape `(num_scores,)`, float32, with gradient; split ones, only inside a forward pass."""
        raw: torch.Tensor = self.importance_bias
        if self._whole is not None:
            # Inside a pass FSDP has gathered them, perhaps rounded: the gradient goes there, the values stay exact.
            raw = self._whole if is_part(raw) else self._whole + (raw - raw.detach()).float()
        return _ScaleWithoutGradient.apply(raw, self.multiplier)

    @torch.no_grad()
    def gather(self) -> None:
        """Reads the scores anew where FSDP splits them; every process calls it whenever they have changed."""
        if is_part(self.importance_bias):
            self._whole = whole(self.importance_bias).detach().clone()

    def learn_at(self, multiplier: float) -> None:
        """Sets how many times faster than the weights the scores learn; the scores themselves do not change."""
        scores, is_same = self.scores.detach(), _is_same(multiplier, self.multiplier)
        self.multiplier = multiplier
        self.written_with.fill_(multiplier)
        if not is_same:  # else not even their last bit may change
            self.set_scores(scores)

    def set_scores(self, scores: torch.Tensor) -> None:
        """Overwrites the scores, shape `(num_scores,)`."""
        with torch.no_grad():
            self.importance_bias.copy_(part_like(scores / self.multiplier, self.importance_bias))
            self.gather()

    def reset(self) -> None:
        """Starts over: scores of zero, nothing decided, no step begun."""
        self.decided.fill_(False)
        super().reset()
        self.set_scores(torch.zeros(self.num_scores, device=self.importance_bias.device))

    @property
    def stage(self) -> int:
        """How often a choice was made."""
        return int(self.decided)

    def begin_run(self, max_steps: int, step: int, loop: TrainingLoop) -> None:
        """See `Pruner.begin_run`; also lets the scores learn at their own rate, and watches for their gradient."""
        self.gather()
        self.learn_at(self.learning_rate / loop.peak_learning_rate(self.importance_bias))
        super().begin_run(max_steps, step, loop)
        self._remove_penalty_hook()
        hook = _AtLastMicroBatch(self, loop.is_last_micro_batch)
        self._penalty_handle = self.importance_bias.register_post_accumulate_grad_hook(hook)

    def begin_step(self, model: nn.Module, step: int, loop: TrainingLoop) -> None:
        """See `Pruner.begin_step`; the penalty is due in its last backward pass."""
        self.gather()
        super().begin_step(model, step, loop)
        self._penalty_due = loop.penalty_scale() if self.has_penalty else None

    def add_due_penalty(self) -> None:
        """Adds the penalty's gradient, once per optimizer step, before the Trainer clips: as if the loss held it."""
        if self._penalty_due is not None:
            scale, self._penalty_due = self._penalty_due, None
            self.add_penalty_grad(loss_scale=scale)

    def idle(self) -> None:
        """See `Pruner.idle`; nothing is added to gradients any more."""
        self._remove_penalty_hook()
        super().idle()

    def detach(self, model: nn.Module) -> None:
        """See `Pruner.detach`."""
        self._remove_penalty_hook()
        super().detach(model)

    def _remove_penalty_hook(self) -> None:
        self._penalty_due = None
        if self._penalty_handle is not None:
            self._penalty_handle.remove()
            self._penalty_handle = None

    def problems(self) -> Iterable[str]:
        """Yields what is wrong with the state, in words."""
        yield from super().problems()
        bad = int((~self.scores.detach().isfinite()).sum())
        if bad:
            yield (
                f"{bad} of {self.num_scores} scores are not finite, since the loss or its gradient was not (look at "
                "the data, lower the learning rate, or train in a higher precision)"
            )
        elif not bool(self.decided) and not bool(self.kept.all()):
            yield "the choice is marked as open, but some units are closed for good"
        elif bool(self.decided):
            yield from self.choice_problems()

    @abstractmethod
    def choice_problems(self) -> Iterable[str]:
        """Yields what is wrong with a choice that is decided."""

    def before_loading(self, state: Mapping[str, torch.Tensor]) -> None:
        """Reads scores that were written with another multiplier with that."""
        written_with = float(state["written_with"])
        if not written_with > 0:
            raise TrainingStateError(
                f"{self.part}: written_with must be a number above 0, the checkpoint holds {written_with}. It is "
                "damaged: resume from an earlier one."
            )
        if not _is_same(written_with, self.multiplier):
            self.multiplier = written_with

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ScorePruner[Settings]:  # noqa: FBT001, FBT002 - signature of nn.Module
        """Moves between devices, but keeps every dtype when the model is cast to half precision."""
        exact = [tensor.detach().clone() for tensor in (*self.parameters(), *self.buffers())]
        super()._apply(fn, recurse)
        for tensor, before in zip((*self.parameters(), *self.buffers()), exact, strict=True):
            if tensor.dtype != before.dtype:
                tensor.data = before.to(tensor.device)
        return self


class _AtLastMicroBatch:
    """Hook of the scores' gradient. It must hold neither the pruner nor the loop: torch hides the cycle from Python."""

    def __init__(self, pruner: ScorePruner[Any], is_last: Callable[[], bool]) -> None:
        self._pruner, self._is_last = weakref.ref(pruner), is_last

    def __call__(self, scores: torch.Tensor) -> None:
        """Adds the penalty that is due."""
        del scores
        pruner = self._pruner()
        if pruner is not None and self._is_last():
            pruner.add_due_penalty()
