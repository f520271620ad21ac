"""The trainings of the arena: as many steps for every way, on the labels or with the dense model as teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from benchmarks.default_run import recipe_of
from benchmarks.training import build_trainer
from hf_headprune import Distillation
from hf_headprune.callback.plain_recovery import WARMUP_SHARE, PlainRecovery
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import TrainerCallback

    from benchmarks.tasks import Task

STEPS, EPOCHS = 300, 2.0
SMOKE_STEPS = 4
LEARNING_RATE = 2e-4  # of `headprune prune --recover`


@dataclass(frozen=True)
class Training:
    """What trains a pruned model, or one that is pruned meanwhile.

    Attributes:
        name: "300 steps" on the labels, or "2 epochs" with the dense model as teacher.
        task: Of both models.
        dense: Fine-tuned, in evaluation mode; it stays as it is.
        smoke: Whether four steps are enough.
    """

    name: str
    task: Task
    dense: Any
    smoke: bool = False

    @property
    def teacher(self) -> Any:
        """The dense model, or None where the labels alone teach."""
        return self.dense if self.name == "2 epochs" else None

    @property
    def distillation(self) -> Distillation | None:
        """What the library's own training learns from the teacher."""
        return None if self.teacher is None else Distillation(self.teacher)

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        if self.smoke or self.teacher is None:
            return SMOKE_STEPS if self.smoke else STEPS
        return ceil(EPOCHS * ceil(len(self.task.train) / Batching().batch_size))

    def after_cut(self, model: Any) -> None:
        """Trains a pruned model, in place."""
        if self.teacher is None:
            self.run(model, self.steps)
            return
        batching = Batching()
        epochs = SMOKE_STEPS * batching.batch_size / len(self.task.train) if self.smoke else EPOCHS
        PlainRecovery(self.task.train, batching, epochs, LEARNING_RATE)(model, self.dense)

    def run(
        self,
        model: Any,
        steps: int,
        *,
        callback: TrainerCallback | None = None,
        loss: Callable[[Any], Any] = lambda compute_loss: compute_loss,
    ) -> None:
        """Trains a model, in place, by the schedule of the whole training, and leaves it in evaluation mode.

        Args:
            model: Of the task.
            steps: Optimizer steps.
            callback: Of the Trainer.
            loss: Returns what takes the place of the Trainer's `compute_loss`.
        """
        recipe = replace(recipe_of(self.task, smoke=False), learning_rate=LEARNING_RATE, max_steps=steps)
        recipe = recipe if self.teacher is None else replace(recipe, warmup_steps=WARMUP_SHARE)
        trainer: Any = build_trainer(self.task, recipe, seed=0, callback=callback, model=model)
        trainer.compute_loss = loss(trainer.compute_loss)
        trainer.train()
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
