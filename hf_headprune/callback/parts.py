"""What chooses during training, tied to a Trainer: the pruners of one run, and when they do what."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate.logging import get_logger
from accelerate.utils import broadcast, gather_object

from hf_headprune._distributed import whole
from hf_headprune._finite import are_finite
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import trainer_compat
from hf_headprune.callback.gathering import is_split
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.registry import PRUNERS, detach_pruners
from hf_headprune.learn.training_loop import TrainingLoop
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.folding import fold_dead_units_

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from transformers import Trainer

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.callback.settings import Settings
    from hf_headprune.learn.pruner import Pruner

logger = get_logger(__name__)  # of the first process alone


class Learned(NamedTuple):
    """What training leaves.

    Attributes:
        plan: What is kept.
        restorable: All units whose weights are left: a search may restore those of them that the plan removes. What
            movement removed is zero.
        head_scores: Of the gates, `(num_heads,)`, if they have learned them.
    """

    plan: PruningPlan
    restorable: PruningPlan
    head_scores: np.ndarray | None


class LearnedParts:
    """The pruners of one run, or none: gates of heads, scores of blocks and FFN units, or second-order costs.

    Attributes:
        banks: The pruners, in the order in which they joined the model.
    """

    def __init__(self, trainer: Trainer, anatomy: Anatomy, settings: Settings) -> None:
        """Adds the pruners to the model, before the optimizer exists.

        Raises:
            InvalidSettingError: A budget, or blocks, that the model can't meet.
            TrainingStateError: The Trainer was built in a way that would lose the scores.
        """
        self.banks: list[Pruner[Any]] = []
        self._given: list[Any] = []
        self._anatomy = anatomy
        # Torch hides from Python what the hook of a parameter holds: nothing here may keep the Trainer alive.
        self._trainer = weakref.ref(trainer)
        # A distilled loss is a mean over the optimizer step, whatever the task's loss makes of the number of items.
        self._loop = training_loop(trainer, has_mean_loss=settings.distillation is not None)
        given = [value for kind in PRUNERS for value in vars(settings).values() if type(value) is kind]
        if not given:
            return
        trainer_compat.require_plain_passes(trainer)
        if any(PRUNERS[type(value)].learns_scores for value in given):
            trainer_compat.require_trainable_scores(trainer)
            trainer_compat.let_ddp_miss_scores(trainer)
        self._given = given
        model: Any = model_of(trainer)
        for value in given:
            self.banks.append(PRUNERS[type(value)].of(model, anatomy, value, self._loop))

    def move(self, trainer: Trainer) -> None:
        """Moves the pruners from a model that was split to the whole copy of it, with all that they know.

        Args:
            trainer: Of the run; its model is the copy.
        """
        model: Any = model_of(trainer)
        before, self.banks = self.banks, []
        for value, pruner in zip(self._given, before, strict=True):
            state = {name: whole(tensor).detach() for name, tensor in pruner.state_dict().items()}
            moved = PRUNERS[type(value)].of(model, self._anatomy, value, self._loop)
            moved.prepare(trainer.state.max_steps)
            moved.load_state_dict(state)
            pruner.handles = []  # nobody runs the split model any more
            self.banks.append(moved)

    @property
    def were_taken_off(self) -> bool:
        """Whether an earlier training has ended, and its pruners with it."""
        return any(not pruner.handles for pruner in self.banks)

    def were_pruned(self, model: Any) -> bool:
        """Tells whether the model has lost units since the pruners joined it."""
        return [site.units for site in anatomy_of(model).sites] != [site.units for site in self._anatomy.sites]

    def begin_run(self, max_steps: int, step: int, optimizer: Any) -> None:
        """Makes the schedules and checks the pruners.

        Args:
            max_steps: Optimizer steps of the run.
            step: At which it begins: above zero when it was resumed.
            optimizer: That will train the scores.

        Raises:
            TrainingStateError: The run is too short, the optimizer lacks the scores or trains them at no rate, or the
                checkpoint has others.
        """
        loop = replace(self._loop, peak_learning_rate=lambda p: trainer_compat.peak_learning_rate(p, optimizer))
        for pruner in self.banks:
            pruner.begin_run(max_steps, step, loop)

    def begin_step(self, trainer: Trainer) -> None:
        """Sets what the coming optimizer step needs: gates, masks, and the second-order rounds that are due."""
        model: Any = model_of(trainer)
        for pruner in self.banks:
            pruner.begin_step(model, trainer.state.global_step, self._loop)

    def end_step(self) -> None:
        """Reads what the optimizer has changed, where it is split over processes."""
        for pruner in self.banks:
            pruner.gather()

    def quantities(self) -> dict[str, float]:
        """Returns what a training log should show.

        Raises:
            TrainingStateError: Weights or scores are no longer finite: what would be chosen from now on means nothing.
        """
        self.check_finite()
        found: dict[str, float] = {}
        for pruner in self.banks:
            pruner.check_state()
            found |= pruner.quantities()
        return found

    def check_finite(self) -> None:
        """Checks what the model is made of.

        Raises:
            TrainingStateError: A weight holds NaN or infinity.
        """
        trainer: Any = self._trainer()
        found = are_finite(trainer.model)
        parts = gather_object([found]) if is_split(trainer.model) else [found]  # what one process finds, all refuse
        bad = [name for name in found if not all(part[name] for part in parts)]
        if bad:
            raise TrainingStateError(
                f"After {trainer.state.global_step} optimizer steps {len(bad)} of {len(found)} tensors hold NaN or "
                f"infinity, {bad[0]} among them, so pruning would choose by nothing. The loss or a gradient was not "
                "finite: look at the data, lower the learning rate, or train in a higher precision, and resume from an "
                "earlier checkpoint."
            )

    def mark_step(self, step: int) -> None:
        """Says that the pruners have seen this number of steps: the best model may be that of an earlier one."""
        for pruner in self.banks:
            pruner.steps.fill_(step)

    def warn_of_early_end(self, max_steps: int) -> None:
        """Warns if what is to be cut was not chosen yet: training ended early, or the best model is an early one.

        Args:
            max_steps: Optimizer steps that the run was to have.
        """
        for pruner in self.banks:
            step = pruner.undecided_until()
            if step is not None and int(pruner.steps) < step:
                logger.warning(
                    "HeadPruneCallback: what is kept is chosen now, and nothing trains on afterwards; expect lower "
                    "accuracy. The model has seen %d of %d optimizer steps, and the choice was due at step %d (%s). "
                    "Let early stopping, or the choice of the best model, begin after that step, or choose earlier, by "
                    "a smaller freeze_at, or ramp_end of movement.",
                    int(pruner.steps),
                    max_steps,
                    step,
                    pruner.part,
                )

    def idle(self) -> None:
        """Opens everything that training closed; call it whenever no run is in progress, after an error too.

        The model then computes what a reload of what is saved computes. Pruners that have finished are not concerned.
        """
        for pruner in self.banks:
            if pruner.handles:
                pruner.idle()

    def take_off(self, trainer: Trainer) -> Learned:
        """Takes the pruners off the model, with zeros where blocks were masked.

        Choices that the best model has not seen are made now.

        Raises:
            TrainingStateError: A choice is not what was asked for.
        """
        model: Any = model_of(trainer)
        plan = restorable = PruningPlan.full(self._anatomy)
        scores, wrote_zeros = None, False
        for pruner in self.banks:
            pruner.check_state()
        for pruner in self.banks:
            choice = pruner.finish(model, self._loop)
            plan, wrote_zeros = _kept_by_both(plan, choice.plan), wrote_zeros or choice.wrote_zeros
            scores = scores if choice.head_scores is None else choice.head_scores.numpy()
        if wrote_zeros:
            with masked(model, plan):  # what a closed head would contribute must not be folded
                restorable = fold_dead_units_(model)
        return Learned(_kept_by_both(plan, restorable), restorable, scores)


def _kept_by_both(one: PruningPlan, other: PruningPlan) -> PruningPlan:
    heads = {site: set(units) & set(other.kept_heads[site]) for site, units in one.kept_heads.items()}
    ffn = {site: set(units) & set(other.kept_ffn[site]) for site, units in one.kept_ffn.items()}
    return one.replace(kept_heads=heads, kept_ffn=ffn)


def take_off_earlier(model: Any) -> None:
    """Frees a model of the pruners of a Trainer that was built around it before, and did not train to its end.

    Raises:
        TrainingStateError: Units of it were removed already, and the others refitted: it is not the model that it was.
    """
    detach_pruners(model)


def training_loop(trainer: Trainer, *, has_mean_loss: bool) -> TrainingLoop:
    """Returns what pruners may ask of a Trainer, by functions that do not keep it alive.

    Args:
        trainer: Of the run.
        has_mean_loss: Whether the loss of an optimizer step is known to be a mean over it.
    """
    held = weakref.ref(trainer)
    # How many mean losses each micro-batch adds is measured once, when a penalty first has to weigh as much.
    means: list[int] = [0] if has_mean_loss else []

    def of(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: function(held(), *given)

    def penalty_scale(alive: Trainer) -> float:
        if not means:
            means.append(trainer_compat.means_per_micro_batch(alive))
        return trainer_compat.loss_scale(alive) * max(means[0] * trainer_compat.micro_batches(alive), 1)

    return TrainingLoop(
        seed=trainer.args.seed,
        learning_rate=trainer.args.learning_rate,
        batches=of(trainer_compat.scoring_batches),
        loss=of(trainer_compat.batch_loss),
        summed_loss=of(trainer_compat.summed_loss),
        loss_scale=of(trainer_compat.loss_scale),
        penalty_scale=of(penalty_scale),
        is_last_micro_batch=of(lambda alive: alive.accelerator.sync_gradients),
        from_first=broadcast,
        forget_best_model=of(_forget_best_model),
    )


def _forget_best_model(trainer: Trainer) -> None:
    trainer.state.best_metric = trainer.state.best_model_checkpoint = trainer.state.best_global_step = None
