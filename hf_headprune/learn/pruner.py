"""Pruner: what chooses, during training, which heads and FFN units a model keeps. One contract for every method."""

from __future__ import annotations

import logging
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from hf_headprune.errors import TrainingStateError
from hf_headprune.masking import TemporaryPart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.learn.training_loop import TrainingLoop
    from hf_headprune.plan import PruningPlan

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Choice:
    """What a pruner leaves when it has chosen.

    Attributes:
        plan: What is kept. Units that were masked by zeros in the weights are still in it.
        wrote_zeros: Whether such zeros are in the weights, so that dead units are to be found in them.
        head_scores: `(num_heads,)`, where scores of heads were learned.
    """

    plan: PruningPlan
    wrote_zeros: bool = False
    head_scores: torch.Tensor | None = None


class Pruner(TemporaryPart, ABC, Generic[Settings]):
    """A method that chooses during training. It lives inside the base model, so that checkpoints carry its state.

    Its life: `of` (made and attached), `begin_run`, `begin_step` in every optimizer step, `finish`. Outside of a run it
    is idle: everything is open, and the model computes what its weights say.

    Attributes:
        learns_scores: Whether the optimizer has to train parameters of it.
        settings: What is asked for.
        kept: The choice, ones and zeros; all ones until something was chosen.
        steps: Optimizer steps begun; tells whether a resumed checkpoint carried this pruner.
        budget: Checksum of what a resumed run must have in common with the one that wrote its checkpoint.
        choice: Checksum of the choice when it was last made.
        is_idle: Whether everything is open.
        handles: Of the hooks; empty when it is not attached.
        elsewhere: State of a checkpoint that is being loaded, for a loader that knows nothing of this module.
    """

    learns_scores = True
    kept: torch.Tensor
    steps: torch.Tensor
    choice: torch.Tensor

    def __init__(self, settings: Settings, *, num_kept: int, budget: object) -> None:
        """Starts idle, with everything kept.

        Args:
            settings: What is asked for.
            num_kept: Entries of the choice.
            budget: What says how much is kept, by which method and when.
        """
        super().__init__()
        self.settings = settings
        self.register_buffer("kept", torch.ones(num_kept))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("budget", torch.tensor(zlib.crc32(repr(budget).encode())))
        self.register_buffer("choice", torch.tensor(0))
        self.is_idle = True
        self.handles: list[RemovableHandle] = []
        self.elsewhere: dict[str, torch.Tensor] = {}
        self._was_interrupted = False
        self._chosen: list[tuple[int, ...]] | None = None

    @classmethod
    @abstractmethod
    def of(cls, model: nn.Module, anatomy: Anatomy, settings: Settings, loop: TrainingLoop) -> Pruner[Settings]:
        """Makes the pruner of a model and attaches it.

        Raises:
            InvalidSettingError: The model can't meet what is asked for.
        """

    @abstractmethod
    def attach(self, model: nn.Module) -> None:
        """Joins the base model as a submodule and hooks what it masks."""

    def detach(self, model: nn.Module) -> None:
        """Leaves the modules of the model as they were before `attach`; the weights keep what they learned."""
        self._open()
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.leave(model)

    @abstractmethod
    def prepare(self, max_steps: int) -> None:
        """Makes the schedule of a run.

        Raises:
            TrainingStateError: The run is too short.
        """

    @abstractmethod
    def reset(self) -> None:
        """Starts over: nothing chosen, no step begun."""
        self.is_idle = True
        self.kept.fill_(1.0)
        self.steps.fill_(0)
        self.seal()

    @property
    @abstractmethod
    def stage(self) -> int:
        """How often a choice was made."""

    def seal(self) -> None:
        """Notes what was chosen, so that a checkpoint that was damaged is refused."""
        self._chosen = None
        self.choice.fill_(self._checksum())

    def chosen(self, parts: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
        """Returns the places of the ones in parts of `kept`, which are read once per choice."""
        if self._chosen is None:
            self._chosen = [tuple(part.nonzero().flatten().tolist()) for part in parts]
        return self._chosen

    def _checksum(self) -> int:
        return zlib.crc32(
            self.kept.detach().float().cpu().numpy().tobytes() + self.stage.to_bytes(8, "little", signed=True)
        )

    def begin_run(self, max_steps: int, step: int, loop: TrainingLoop) -> None:
        """Makes the schedule, and starts over or goes on with what a checkpoint brought along.

        Args:
            max_steps: Optimizer steps of the run.
            step: At which it begins: above zero when it was resumed.
            loop: That trains the model.

        Raises:
            TrainingStateError: The run is too short, or the checkpoint is of another run.
        """
        del loop
        self._was_interrupted = False
        self.prepare(max_steps)
        if step == 0:
            self.reset()
            return
        if int(self.steps) != step:
            raise TrainingStateError(
                f"Resumed at step {step}, but the choice of {self.part} in the checkpoint has seen {int(self.steps)} "
                "steps. Resume from a checkpoint that was written with this callback and the same settings."
            )
        self.check_state()
        self.is_idle = False

    def begin_step(self, model: nn.Module, step: int, loop: TrainingLoop) -> None:
        """Does what is due before an optimizer step: gates, masks, removals; the same for all its micro-batches.

        Args:
            model: With this pruner attached.
            step: Counted from zero.
            loop: That trains the model.
        """
        del model, loop
        self.is_idle = False
        self.steps.fill_(step + 1)

    def gather(self) -> None:
        """Reads anew what the optimizer changes, where FSDP splits it over processes; nothing where nothing learns."""

    @abstractmethod
    def quantities(self) -> dict[str, float]:
        """Returns what a training log should show, as scalars."""

    @abstractmethod
    def undecided_until(self) -> int | None:
        """Returns the optimizer step at which the choice is made, or None if it was made."""

    @abstractmethod
    def finish(self, model: nn.Module, loop: TrainingLoop) -> Choice:
        """Makes the choice if it is still to be made, checks it, detaches and returns it.

        Raises:
            TrainingStateError: It is not what was asked for.
        """

    def idle(self) -> None:
        """Opens everything until the next run begins, so that the model computes what a reload of it does."""
        self._was_interrupted = bool(self.handles) and int(self.steps) > 0
        self._open()

    def _open(self) -> None:
        self.is_idle = True
        self.refresh()

    @abstractmethod
    def refresh(self) -> None:
        """Hands every hooked module what the next forward pass needs."""

    def check_state(self) -> None:
        """Checks that the state is one that this method can have reached.

        Raises:
            TrainingStateError: It is not: the message lists what is wrong.
        """
        problems = [*self.problems()]
        if problems:
            raise TrainingStateError(
                f"{self.part}, after {int(self.steps)} optimizer steps: {'; '.join(problems)}. Nothing was cut. "
                "Resume from an earlier checkpoint of this run, or train anew."
            )

    def problems(self) -> Iterable[str]:
        """Yields what is wrong with the state, in words."""
        if not bool(((self.kept == 0) | (self.kept == 1)).all()):
            yield "the choice must be ones and zeros, and holds other values"
        elif int(self.choice) != self._checksum():
            yield "the choice is not the one that was made"
        if int(self.steps) < 0:
            yield f"the number of steps is {int(self.steps)}"

    def _save_to_state_dict(self, *args: Any) -> None:
        """Warns of a choice that was interrupted: what is saved is not what was being trained."""
        if self._was_interrupted:
            logger.warning(
                "The training that %s takes part in was interrupted after %d steps. What is saved now holds the whole "
                "model with nothing pruned, and the unfinished choice, which loading ignores. To finish it, resume "
                "from a checkpoint: trainer.train(resume_from_checkpoint=True).",
                self.part,
                int(self.steps),
            )
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Refuses what does not belong to this run, or can't be its state: a run would silently choose otherwise.

        Raises:
            TrainingStateError: The choice is missing, of another model, of a run with other settings, or damaged.
        """
        if f"{prefix}budget" not in state_dict:
            state_dict |= {prefix + name: tensor for name, tensor in self.elsewhere.items()}
        state = {name: tensor for name, tensor in self.named_buffers() if name not in self._non_persistent_buffers_set}
        for name, mine in {**dict(self.named_parameters()), **state}.items():
            self._check_comparable(prefix + name, mine, state_dict.get(prefix + name))
        if int(state_dict[f"{prefix}budget"]) != int(self.get_buffer("budget")):
            raise TrainingStateError(
                f"{prefix}budget: the checkpoint was written by a run with another budget, method or schedule. Resume "
                "with the settings that it was trained with, or train anew."
            )
        self.before_loading({name: state_dict[prefix + name] for name in state})
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._chosen = None
        self.gather()
        self.check_state()

    @abstractmethod
    def before_loading(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over what is remembered beside the tensors from those that will be loaded."""

    def _check_comparable(self, name: str, mine: torch.Tensor, saved: torch.Tensor | None) -> None:
        if saved is None or saved.shape != mine.shape:
            found = "none" if saved is None else f"{saved.numel()} of them"
            raise TrainingStateError(
                f"{name}: this model has {mine.numel()} entries to choose by, the checkpoint holds {found}. Resume "
                "from a checkpoint that was written with this callback on the same model."
            )
        if not isinstance(mine, nn.Parameter) and not bool(saved.isfinite().all()):
            raise TrainingStateError(
                f"{name}: the checkpoint holds a value that is not finite. It is damaged: resume from an earlier one."
            )
