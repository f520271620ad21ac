"""What chooses during training: banks of scores, or second-order costs; and when they do what."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate.logging import get_logger
from accelerate.utils import broadcast

from hf_headprune.anatomy import base_model
from hf_headprune.callback import trainer_compat
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.gates.bank import GateBank, gate_quantities
from hf_headprune.learn.gates.importance import gradient_importance, standardised
from hf_headprune.learn.movement.bank import MovementBank, movement_quantities
from hf_headprune.learn.score_bank import ScoreBank
from hf_headprune.learn.second_order.bank import SecondOrderBank, second_order_quantities
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.folding import fold_dead_units_

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch
    from transformers import Trainer

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.callback.settings import Settings
    from hf_headprune.learn.schedules import GateSchedule, MovementSchedule


logger = get_logger(__name__)  # of the first process alone


class Learned(NamedTuple):
    """What training leaves.

    Attributes:
        plan: What stays.
        alive: All units whose weights are left. A search may put back those of them that the plan closes; what
            movement removed is zero.
        head_scores: Of the gates, `(num_heads,)`, where they have learned them.
    """

    plan: PruningPlan
    alive: PruningPlan
    head_scores: np.ndarray | None


class LearnedParts:
    """The banks of one run: gates of heads, scores of blocks and FFN units, both, or second-order costs; or none.

    Attributes:
        gates: Of the heads, or None.
        movement: Of blocks and FFN units, or None.
        second_order: Of heads and FFN units, or None.
    """

    def __init__(self, trainer: Trainer, anatomy: Anatomy, settings: Settings) -> None:
        """Adds the banks to the model, before the optimizer exists.

        Raises:
            InvalidSettingError: A budget, or blocks, that the model can't meet.
            TrainingStateError: The Trainer was built in a way that would lose the scores.
        """
        self.gates: GateBank | None = None
        self.movement: MovementBank | None = None
        self.second_order: SecondOrderBank | None = None
        self._anatomy = anatomy
        self._gate_schedule: GateSchedule | None = None
        self._movement_schedule: MovementSchedule | None = None
        self._penalties_due: set[ScoreBank] = set()
        # A distilled loss is a mean over the optimizer step, whatever the task's loss makes of the number of items.
        self._means: int | None = None if settings.distillation is None else 0
        if settings.gates is None and settings.movement is None and settings.second_order is None:
            return
        trainer_compat.require_plain_construction(trainer)
        model: Any = trainer.model
        if settings.second_order is None:
            trainer_compat.require_trainable_scores(trainer)
        else:
            self.second_order = SecondOrderBank(anatomy, settings.second_order)
            self.second_order.attach(model)
            return
        trainer_compat.let_ddp_miss_scores(trainer)
        if settings.gates is not None:
            self.gates = GateBank(
                settings.gates.budget_groups(anatomy),
                settings.gates,
                multiplier=settings.gates.peak_score_learning_rate / trainer.args.learning_rate,
                seed=trainer.args.seed if settings.gates.seed is None else settings.gates.seed,
            )
            self.gates.attach(model, anatomy)
        if settings.movement is not None:  # after the gates, which may freeze all that they find
            rate = trainer.args.learning_rate
            self.movement = MovementBank.of(model, anatomy, settings.movement, learning_rate=rate)
        for bank in self._score_banks:
            bank.importance_bias.register_post_accumulate_grad_hook(partial(self._add_penalty, trainer, bank))

    @property
    def _score_banks(self) -> list[GateBank | MovementBank]:
        return [bank for bank in (self.gates, self.movement) if bank is not None]

    @property
    def banks(self) -> list[ScoreBank | SecondOrderBank]:
        """All banks of the run."""
        return [bank for bank in (self.gates, self.movement, self.second_order) if bank is not None]

    @property
    def were_taken_off(self) -> bool:
        """Whether an earlier training has ended, and its banks with it."""
        return any(not bank.handles for bank in self.banks)

    def begin_run(self, max_steps: int, step: int, optimizer: Any) -> None:
        """Makes the schedules and checks the banks.

        Args:
            max_steps: Optimizer steps of the run.
            step: At which it begins: above zero when it was resumed.
            optimizer: That will train the scores.

        Raises:
            TrainingStateError: The run is too short, the optimizer lacks the scores or trains them at no rate, or the
                checkpoint has others.
        """
        if self.gates is not None:
            self._gate_schedule = self.gates.settings.schedule(max_steps)
            trainer_compat.require_steps_to_learn(self._gate_schedule.open_steps, max_steps)
        if self.movement is not None:
            self._movement_schedule = self.movement.schedule(max_steps)
            trainer_compat.require_steps_to_learn(self._movement_schedule.open_steps, max_steps)
        for scored in self._score_banks:
            scored.learn_at(scored.learning_rate / trainer_compat.peak_learning_rate(scored.importance_bias, optimizer))
        for bank in self.banks:
            _check_bank(bank, step)

    def begin_step(self, trainer: Trainer) -> None:
        """Sets what the coming optimizer step needs: gates, masks, and the second-order rounds that are due."""
        self._penalties_due.clear()  # what is measured here has gradients, too
        step = trainer.state.global_step
        if self._means is None:
            has_penalty = any(bank.has_penalty for bank in self._score_banks)
            self._means = trainer_compat.means_per_micro_batch(trainer) if has_penalty else 0
        if self.second_order is not None:
            due = self.second_order.settings.rounds_due(step, trainer.state.max_steps)
            _remove(trainer, self.second_order, due)
            self.second_order.steps.fill_(step + 1)
        if self.movement is not None and self._movement_schedule is not None:
            self.movement.begin_step(step, self._movement_schedule)
        if self.gates is not None and self._gate_schedule is not None:
            starts = step == self._gate_schedule.open_steps and self.gates.has_no_scores
            if starts and self.gates.settings.initial_scores == "gradient":  # a longer run goes on with what it has
                _score_heads(trainer, self.gates)
            self.gates.begin_step(step, self._gate_schedule, loss_scale=trainer_compat.loss_scale(trainer))
        self._penalties_due.update(self._score_banks)

    def _add_penalty(self, trainer: Trainer, bank: GateBank | MovementBank, _: torch.Tensor) -> None:
        """Adds a penalty's gradient once per optimizer step, before the Trainer clips: as if the loss contained it."""
        if bank in self._penalties_due and trainer.accelerator.sync_gradients:
            self._penalties_due.remove(bank)
            added_up = (self._means or 0) * trainer_compat.micro_batches(trainer)
            bank.add_penalty_grad(loss_scale=trainer_compat.loss_scale(trainer) * max(added_up, 1))

    def quantities(self) -> dict[str, float]:
        """Returns what a training log should show."""
        names = [site.name for site in self._anatomy.attention_sites]
        found = {} if self.gates is None else gate_quantities(self.gates, names)
        found |= {} if self.movement is None else movement_quantities(self.movement)
        return found | ({} if self.second_order is None else second_order_quantities(self.second_order))

    def mark_step(self, step: int) -> None:
        """Says that the banks have seen so many steps: the best model may be that of an earlier one."""
        for bank in self.banks:
            bank.steps.fill_(step)

    def warn_of_early_end(self, max_steps: int) -> None:
        """Warns where what is to be cut was not chosen yet: training ended early, or the best model is an early one.

        Args:
            max_steps: Optimizer steps that the run was to have.
        """
        for name, bank, step in self._undecided(max_steps):
            if int(bank.steps) < step:
                logger.warning(
                    "HeadPruneCallback(%s=...): the model that is cut has seen %d of %d optimizer steps, but what "
                    "stays was to be chosen at step %d. It is chosen now, by what little was learned, and nothing "
                    "trains on without the rest: expect a worse model. Let early stopping, or the choice of the best "
                    "model, begin after that step, or choose earlier (freeze_at, or ramp_end of movement).",
                    name,
                    int(bank.steps),
                    max_steps,
                    step,
                )

    def _undecided(self, max_steps: int) -> Iterator[tuple[str, ScoreBank | SecondOrderBank, int]]:
        """Yields each bank that has not chosen, its name, and the optimizer step at which it was to."""
        if self.gates is not None and self._gate_schedule is not None and not self.gates.decided:
            yield "gates", self.gates, self._gate_schedule.decided_step
        if self.movement is not None and self._movement_schedule is not None and not self.movement.decided:
            yield "movement", self.movement, round(self._movement_schedule.reached_step)
        if self.second_order is not None and self.second_order.rounds_done < self.second_order.settings.rounds:
            yield "second_order", self.second_order, round(self.second_order.settings.freeze_at * max_steps)

    def take_off(self, trainer: Trainer) -> Learned:
        """Takes the banks off the model, with zeros where blocks were masked.

        Second-order rounds that the best model has not seen are done now.
        """
        model: Any = trainer.model
        plan = whole = PruningPlan.full(self._anatomy)
        head_scores = None
        if self.second_order is not None:
            _remove(trainer, self.second_order, self.second_order.settings.rounds)
            plan = self.second_order.plan()
            self.second_order.detach(model)
        if self.gates is not None:
            if self.gates.has_no_scores:
                logger.warning(
                    "Training ended before the gates had learned anything; heads are chosen by the gradient of their "
                    "gates. Train longer, or let the gates learn earlier (SubsetGates(warmup_ratio=...))."
                )
                _score_heads(trainer, self.gates)
            self.gates.decide()
            kept = self.gates.kept_per_site()
            plan = plan.replace(kept_heads={s.name: kept[i] for i, s in enumerate(self._anatomy.attention_sites)})
            self.gates.detach(model)
            head_scores = self.gates.scores.detach().cpu().numpy()
        if self.movement is None:
            return Learned(plan, whole, head_scores)
        self.movement.apply_(model)
        with masked(model, plan):  # what a closed head would contribute must not be folded
            alive = fold_dead_units_(model)
        heads = {site: sorted({*units} & {*plan.kept_heads[site]}) for site, units in alive.kept_heads.items()}
        return Learned(plan.replace(kept_heads=heads, kept_ffn=alive.kept_ffn), alive, head_scores)


def take_off_earlier(model: Any) -> None:
    """Frees a model of the banks of a Trainer that was built around it before, and did not train to its end.

    Raises:
        TrainingStateError: Units of it were closed already, and the others refitted: it is not the model that it was.
    """
    found: list[Any] = [
        module for module in base_model(model).children() if isinstance(module, (ScoreBank, SecondOrderBank))
    ]
    if any(isinstance(bank, SecondOrderBank) and bank.rounds_done for bank in found):
        raise TrainingStateError(
            "An earlier Trainer has closed heads and FFN units of this model and refitted the others, but did not "
            "train to its end. Resume it (resume_from_checkpoint), or load the model anew."
        )
    for bank in found:
        bank.detach(model)


def _check_bank(bank: ScoreBank | SecondOrderBank, step: int) -> None:
    if step == 0:
        bank.reset()
    elif int(bank.steps) != step:
        raise TrainingStateError(
            f"Resumed at step {step}, but the choice in the checkpoint has seen {int(bank.steps)} steps. Resume from "
            "a checkpoint that was written with this callback and the same settings."
        )


def _score_heads(trainer: Trainer, bank: GateBank) -> None:
    batches = trainer_compat.scoring_batches(trainer, bank.settings.scoring_examples, bank.seed)
    importance = gradient_importance(
        trainer.model, bank, batches, lambda batch: trainer_compat.batch_loss(trainer, batch)
    )
    # Processes that stream have seen different examples, but must choose the same heads.
    bank.set_scores(standardised(broadcast(importance)) * bank.settings.initial_spread)


def _remove(trainer: Trainer, bank: SecondOrderBank, rounds: int) -> None:
    """Does the rounds that are due and not done yet."""
    if rounds <= bank.rounds_done:
        return
    seed = trainer.args.seed if bank.settings.seed is None else bank.settings.seed
    batches = trainer_compat.scoring_batches(trainer, bank.settings.scoring_examples, seed + rounds)
    bank.remove(trainer.model, (trainer_compat.summed_loss(trainer, batch) for batch in batches), rounds)
    # What was evaluated before was the model with more units: no checkpoint of it is the best one.
    trainer.state.best_metric = trainer.state.best_model_checkpoint = trainer.state.best_global_step = None
    # Processes that stream have seen different examples, and rounding may differ between devices.
    for values in (bank.kept, *bank.refitted(trainer.model)):
        values.data.copy_(broadcast(values.data))
