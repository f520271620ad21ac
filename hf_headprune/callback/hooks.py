"""HeadPruneCallback: the Trainer's events, one short hook each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast
from transformers import TrainerCallback

from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import bridge
from hf_headprune.callback.finish import finish
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.learn.gates import GateBank, gate_quantities
from hf_headprune.learn.importance import gradient_importance, standardised
from hf_headprune.learn.settings import SubsetGates
from hf_headprune.search.settings import AStarSearch

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.learn.schedules import GateSchedule
    from hf_headprune.plan import PruningPlan
    from hf_headprune.publish.report import PruningReport
    from hf_headprune.search.plans import PlanSearchResult


class HeadPruneCallback(TrainerCallback):
    """Prunes a Transformer while the Trainer fine-tunes it: `Trainer(..., callbacks=[HeadPruneCallback()])`.

    Gates learn which heads matter while the model trains; from the decided choice on a plain model of K heads trains.
    After training an A* search looks for the smallest model that keeps its accuracy on `eval_dataset`; then the heads
    are cut out in place, so that `trainer.save_model()` writes the smaller checkpoint.

    Attributes:
        gates: How heads are chosen during training, or None to train a plain model and only search.
        search: How the search after training goes, or None to cut exactly what the gates chose.
        plan: What stayed, in the numbering of the model that training began with; None until training has ended.
        search_result: What the search found; None without one.
        report: Sizes, metric and latency before and after; None until training has ended.

    Raises:
        InvalidSettingError: Both parts are switched off, or a part is of another type. Later, when the Trainer is
            built: a budget that the model can't meet, or no data to search on.
        UnsupportedModelError: When the Trainer is built: nothing says where the heads of its model are.
        TrainingStateError: The Trainer can't train the gates correctly; the message says what to change.
    """

    def __init__(self, gates: SubsetGates | None = SubsetGates(), search: AStarSearch | None = AStarSearch()) -> None:
        """Stores the settings; nothing happens before the Trainer is built."""
        for name, value, kind in (("gates", gates, SubsetGates), ("search", search, AStarSearch)):
            if value is not None and not isinstance(value, kind):
                raise InvalidSettingError(
                    f"HeadPruneCallback({name}=...) takes {kind.__name__}(...) or None, received {value!r}."
                )
        if gates is None and search is None:
            raise InvalidSettingError(
                "HeadPruneCallback(gates=None, search=None) would prune nothing. Leave one of them on."
            )
        self.gates = gates
        self.search = search
        self.plan: PruningPlan | None = None
        self.search_result: PlanSearchResult | None = None
        self.report: PruningReport | None = None
        self._trainer: Trainer | None = None
        self._anatomy: Anatomy | None = None
        self._bank: GateBank | None = None
        self._schedule: GateSchedule | None = None
        self._started = 0.0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks everything that can be checked now, and adds the gates to the model before the optimizer exists."""
        if self._trainer is not None:
            raise TrainingStateError("One HeadPruneCallback serves one Trainer. Make a new one for a second Trainer.")
        trainer = bridge.calling_trainer(self)
        anatomy = anatomy_of(trainer.model)
        if self.search is not None:
            bridge.require_search_data(trainer)
        if self.gates is not None:
            bridge.require_plain_construction(trainer)
            bridge.let_ddp_miss_scores(trainer)
            self._bank = self._attach(trainer, anatomy, self.gates)
        self._trainer, self._anatomy = trainer, anatomy

    def _attach(self, trainer: Trainer, anatomy: Anatomy, gates: SubsetGates) -> GateBank:
        bank = GateBank(
            gates.budget_groups(anatomy),
            gates,
            multiplier=gates.score_learning_rate / trainer.args.learning_rate,
            seed=trainer.args.seed if gates.seed is None else gates.seed,
        )
        bank.attach(trainer.model, anatomy)
        return bank

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses what would train without gates or past the cut."""
        if self._trainer is None:
            raise TrainingStateError(
                "HeadPruneCallback was added after the Trainer was built, too late to add its gates to the optimizer. "
                "Pass it at construction: Trainer(..., callbacks=[HeadPruneCallback()])."
            )
        if self.plan is not None:
            raise TrainingStateError(
                "This Trainer's model was already cut; its optimizer still holds the uncut weights. To train on, build "
                "a new Trainer around the cut model (with a new HeadPruneCallback to prune it further)."
            )
        if self._bank is not None and not self._bank.handles:
            raise TrainingStateError(
                "The gates were taken off this Trainer's model when its last training ended, but the search or the cut "
                "did not finish. Build the model, the Trainer and the callback anew; train(resume_from_checkpoint=...) "
                "from the last checkpoint in output_dir goes straight on to the search."
            )
        self._started = time.perf_counter()
        if self._bank is not None and self.gates is not None:
            self._schedule = self.gates.schedule(state.max_steps)
            bridge.require_steps_to_learn(self._schedule, state.max_steps)
            self._check_bank(self._bank, state, kwargs["optimizer"])
        if self.search is not None:
            bridge.require_search_metric(self._trainer, self.search.metric)

    def _check_bank(self, bank: GateBank, state: TrainerState, optimizer: Any) -> None:
        if not bridge.in_optimizer(bank.importance_bias, optimizer):
            raise TrainingStateError(
                "The optimizer does not hold the gates' scores, so they would never be trained. If create_optimizer is "
                "overridden, let it include every parameter of the model that requires a gradient."
            )
        if state.global_step == 0:
            bank.reset()
        elif int(bank.steps) != state.global_step:
            raise TrainingStateError(
                f"Resumed at step {state.global_step}, but the gates in the checkpoint have seen {int(bank.steps)} "
                "steps. Resume from a checkpoint that was written with this callback and the same settings."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the gates' phase, temperature and noise for the coming optimizer step."""
        if self._bank is None or self._schedule is None or self._trainer is None:
            return
        if state.global_step == self._schedule.open_steps:
            self._score_heads(self._bank)
        loss_scale = bridge.loss_scale(self._trainer)
        self._bank.begin_step(state.global_step, self._schedule, loss_scale=loss_scale)

    def _score_heads(self, bank: GateBank) -> None:
        trainer, gates = self._trainer, bank.settings
        if trainer is None or gates.initial_scores != "gradient":
            return
        batches = bridge.scoring_batches(trainer, gates.scoring_examples, bank.seed)
        importance = gradient_importance(trainer.model, bank, batches, lambda batch: bridge.batch_loss(trainer, batch))
        # Processes that stream have seen different examples, but must choose the same heads.
        bank.set_scores(standardised(broadcast(importance)) * gates.initial_spread)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds the gradient of the estimator's penalty, if it has one, after the Trainer's clipping."""
        if self._bank is not None and self._trainer is not None:
            self._bank.add_penalty_grad(loss_scale=bridge.gradient_scale(self._trainer))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Logs the gates whenever the Trainer logs, through the Trainer, so that every tracker gets them."""
        if self._bank is None or not control.should_log or self._trainer is None or self._anatomy is None:
            return
        names = [site.name for site in self._anatomy.attention_sites]
        quantities = gate_quantities(self._bank, names)
        self._trainer.log({f"headprune/{key}": value for key, value in quantities.items()})
        control.should_log = True  # the Trainer takes its own turn to log as done, but it has yet to log the loss

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the gates when the Trainer logs once per epoch."""
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Searches, cuts and reports."""
        if self._trainer is None or self._anatomy is None:
            return
        outcome = finish(
            self._trainer,
            self._anatomy,
            self._bank,
            self.search,
            train_seconds=time.perf_counter() - self._started,
        )
        self.plan, self.search_result, self.report = outcome.plan, outcome.search_result, outcome.report
