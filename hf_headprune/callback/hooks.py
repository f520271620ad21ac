"""HeadPruneCallback: the Trainer's events, one short hook each."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import metric_choice, search_metric, trainer_compat
from hf_headprune.callback.announcement import announcement
from hf_headprune.callback.card import let_card_tell_of_pruning
from hf_headprune.callback.certification import Certification, Splits, known_when_training_begins, splits_of
from hf_headprune.callback.distillation import distil, require_teacher
from hf_headprune.callback.final_checkpoint import let_resume_skip_halves, save_spare_checkpoint
from hf_headprune.callback.finish import attach_card, finish, with_certificate, write_results
from hf_headprune.callback.parts import LearnedParts, take_off_earlier
from hf_headprune.callback.rehearsal import rehearse
from hf_headprune.callback.rewinding import rewind_
from hf_headprune.callback.second_run import let_recovery_follow, let_second_run_follow, second_run_steps
from hf_headprune.callback.settings import AUTO, Settings
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.latency import LatencySettings, try_latency
from hf_headprune.pipeline.holdout import Holdout
from hf_headprune.pipeline.recovery import require_recoverable
from hf_headprune.shrink.surgery import check_can_prune

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_headprune.budgets import Budget
    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.claim import Metric
    from hf_headprune.learn.distillation.settings import Distillation
    from hf_headprune.learn.gates.settings import SubsetGates
    from hf_headprune.learn.movement.settings import BlockMovement
    from hf_headprune.pipeline.recovery import Recover
    from hf_headprune.pipeline.result import PruningResult
    from hf_headprune.plan import PruningPlan
    from hf_headprune.publish.report import PruningReport
    from hf_headprune.refit.settings import SecondOrder
    from hf_headprune.search.results import PlanSearchResult
    from hf_headprune.search.settings import AStarSearch


class HeadPruneCallback(TrainerCallback):
    """Prunes the model that a Trainer fine-tunes: `Trainer(..., callbacks=[HeadPruneCallback()])`.

    Without arguments it leaves training alone. Afterwards it orders attention heads and FFN units by second-order
    removal costs on training examples, tests smaller and smaller models with refitted weights on `eval_dataset`, and
    prunes, in place, to the last one that is shown to lose less than one percentage point on unseen data, so that
    `trainer.save_model()` writes the smaller checkpoint.

    Attributes:
        settings: The parts of the run.
        result: What was pruned and what is known about it; None until training has ended.

    Raises:
        InvalidSettingError: Two budgets are given, a part is of another type, or two contradict each other. Later, when
            the Trainer is built: a budget that the model can't meet, a teacher or a reference that doesn't fit it, or
            no data to search on.
        DataLeakError: When the Trainer is built: training or search would see examples of `certification_dataset`.
        UnsupportedModelError: When the Trainer is built: the model's family is not declared, or it can't be cut, since
            its projections are adapters, quantized, or shared.
        TrainingStateError: The Trainer can't train what was asked for; the message says what to change.
    """

    def __init__(  # noqa: PLR0913 - one argument for each part of a run
        self,
        *,
        max_drop: float | None = None,
        density: float | None = None,
        speedup: float | None = None,
        size_mb: float | None = None,
        kept_heads: Budget | None = None,
        recover_epochs: float | None = None,
        gates: SubsetGates | None = None,
        movement: BlockMovement | None = None,
        second_order: SecondOrder | None = None,
        distillation: Distillation | None = None,
        search: AStarSearch | None = None,
        uniform: bool = False,
        confidence: float | Literal["auto"] | None = AUTO,
        certification_dataset: Any = None,
        certification_metric: Metric | None = None,
        reference: nn.Module | None = None,
        latency: LatencySettings | Literal["auto"] | None = AUTO,
    ) -> None:
        """Stores the settings; nothing happens before the Trainer is built.

        Pass at most one size: `density`, `speedup`, `size_mb` or `kept_heads`. Without any, and without `gates`,
        `movement` or `second_order`, the smallest model that loses less than `max_drop` is looked for.

        Args:
            max_drop: Drop of the metric that is allowed, absolute: 0.01 is one percentage point of a metric that runs
                from 0 to 1. When nothing is passed it is one percentage point, also where `compute_metrics` returns a
                metric that examples are scored by from 0 to 100; of any other number it is 0.01. With a size, and no
                `search`, the drop that the certificate is about; it does not change what is pruned.
            density: Share of the weights of all attention and FFN matrices that is kept. Units whose removal costs
                least are removed after 60 % of the steps; the pruned model trains on. Of at most a third, after half of
                the steps, and the learning rate's schedule then starts over, at twice the rate.
            speedup: In the same way, multiply-accumulates of all attention and FFN blocks before, over those after.
            size_mb: In the same way, size of the saved `model.safetensors` in MB, embeddings included.
            kept_heads: In the same way, number or share of the attention heads that are kept; of groups of heads, where
                heads share keys and values.
            recover_epochs: Epochs for which the pruned model trains on, by the Trainer's arguments and data, with the
                dense model as teacher; labels alone teach it where they do not exclude each other. Training itself is
                then left alone. With a size, the model is pruned to it, trains on, is certified. With `max_drop`,
                the smallest plan that loses at most twice as much on training examples trains on and is tested; if it
                fails, plans are tested as without it. Each of the two has half of the error that `confidence` allows.
            gates: Learns during training which heads to keep (differentiable subset pruning). With `density`, gates and
                movement scores of FFN units share that budget.
            movement: Learns during training which blocks of weights and FFN units to keep (block movement pruning).
            second_order: Removal costs during training with settings of their own.
            distillation: Teacher of the model during training.
            search: An A* search after training over sets of heads and FFN units, in place of the order of removal
                costs; it has a `max_drop` of its own. None: with `gates`, `movement` or a budget of size, exactly what
                training chose is pruned.
            uniform: Whether all layers keep equally many heads and FFN units, which costs some accuracy. Unmodified
                Transformers loads such a model once `export_model(model, path, mode="plain")` has written it. Where the
                family's configuration can't say fewer heads, all are kept.
            confidence: With which the drop must be shown to be below `max_drop` on unseen data, by an exact test of
                `eval_dataset`. "auto" is 0.75, and 0.95 where the certificate decides nothing; where there are too few
                examples to show anything, the drop that is seen decides then. With a number, only what is certified is
                pruned. None lets the drop that is seen decide in any case, and certifies nothing.
            certification_dataset: Labelled examples like those of `eval_dataset`, for the certificate alone, as they
                are or as `CertificationData`. When left out, `eval_dataset` is taken; with a search, half of it, which
                the search then does not see.
            certification_metric: What the certificate is about, where it is not the metric that decides: a `Metric`
                with a function that scores each example of `certification_dataset`.
            reference: Dense model that the certificate compares with, such as one fine-tuned without pruning. When left
                out, the trained model before pruning; where training itself prunes, the teacher of `distillation`.
            latency: Batch, length and threads at which latency is measured before and after pruning, or None to measure
                none.
        """
        sizes = {"density": density, "speedup": speedup, "size_mb": size_mb, "kept_heads": kept_heads}
        self.settings = Settings.of(
            max_drop,
            sizes,
            recover_epochs=recover_epochs,
            search=search,
            uniform=uniform,
            gates=gates,
            movement=movement,
            second_order=second_order,
            distillation=distillation,
            confidence=confidence,
            latency=latency,
        )
        if certification_metric is not None and certification_dataset is None:
            raise InvalidSettingError(
                f"HeadPruneCallback(certification_metric={certification_metric!r}): it scores examples of its own, "
                "received none. Pass them as certification_dataset, too."
            )
        is_condition = confidence not in (AUTO, None)
        asks = {
            "reference": reference is not None,
            "confidence": is_condition,
            "max_drop": self.settings.claimed_drop is not None,
        }
        required = next((name for name, is_passed in asks.items() if is_passed), None)
        asked = Certification(
            certification_dataset, certification_metric, reference, required_by=required, is_condition=is_condition
        )
        if reference is None and distillation is not None and self.settings.prunes_in_training:
            asked = replace(asked, reference=distillation.teacher, reference_name="the teacher")
        self.result: PruningResult | None = None
        self._trainer: Trainer | None = None
        self._parts: LearnedParts | None = None
        self._asked = asked
        self._splits = Splits()
        self._started = self._train_seconds = 0.0
        self._is_rehearsed = self._has_own_schedule = False

    @property
    def plan(self) -> PruningPlan | None:
        """What was kept, in the numbering of the model that training began with; None until training has ended."""
        return None if self.result is None else self.result.plan

    @property
    def report(self) -> PruningReport | None:
        """Sizes, metric and latency before and after; None until training has ended."""
        return None if self.result is None else self.result.report

    @property
    def certificate(self) -> Certificate | None:
        """What held-out examples show about unseen data; on the first process, None where there is none."""
        return None if self.result is None else self.result.certificate

    @property
    def search_result(self) -> PlanSearchResult | None:
        """Course of the search; None without one."""
        return None if self.result is None else self.result.search

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks everything that can be checked now, and adds the scores to the model before the optimizer exists."""
        if self._trainer is not None:
            raise TrainingStateError("One HeadPruneCallback serves one Trainer. Make a new one for a second Trainer.")
        trainer = trainer_compat.calling_trainer(self)
        if sum(isinstance(callback, HeadPruneCallback) for callback in trainer.callback_handler.callbacks) > 1:
            raise TrainingStateError("A Trainer takes one HeadPruneCallback. Pass all that it should do to one.")
        self._has_own_schedule = trainer.lr_scheduler is not None  # that the user passed
        take_off_earlier(model_of(trainer))
        trainer_compat.let_finished_runs_end(trainer)
        let_resume_skip_halves(trainer)
        let_card_tell_of_pruning(trainer)
        self.settings = self._checked(trainer)
        self._parts = LearnedParts(trainer, anatomy_of(model_of(trainer)), self.settings)
        trainer_compat.let_training_end_idle(trainer, self._parts.idle)
        trainer_compat.let_loader_find(trainer, self._parts.banks)
        if self.settings.distillation is not None:
            distil(trainer, self.settings.distillation)
        if self.settings.movement is not None and self.settings.trains_twice:
            let_second_run_follow(trainer, self, self.settings.movement.refill_ratio, self._finish_second_run)
        if self.settings.recover_epochs is not None:
            has_teacher = self.settings.distillation is not None
            let_recovery_follow(trainer, self, self.settings.recover_epochs, self._prune, has_teacher=has_teacher)
        self._trainer = trainer

    def _checked(self, trainer: Trainer) -> Settings:
        """Returns the settings for the Trainer's model, after every check that needs no training."""
        in_training = self.settings.prunes_in_training or self.settings.distillation is not None
        if self.settings.recovers:
            trainer_compat.require_trainable_again(trainer)
        learns_scores = self.settings.gates is not None or self.settings.movement is not None
        trainer_compat.require_whole_model(
            trainer, in_training=in_training, trains_twice=self.settings.trains_twice, learns_scores=learns_scores
        )
        anatomy = anatomy_of(model_of(trainer))
        check_can_prune(model_of(trainer))
        if self.settings.distillation is not None:  # a reference, too, which is run on examples below
            require_teacher(trainer, self.settings.distillation)
        settings = self.settings.resolved(anatomy, model_of(trainer))
        if settings.latency is not None:
            try_latency(model_of(trainer), settings.latency)  # what the model can't take fails now
        if settings.follows:
            metric_choice.require_search_data(trainer, settings.search)
        self._splits = splits_of(trainer, settings, self._asked)
        if settings.recovers and settings.follows:
            if self._asked.metric is not None:
                raise InvalidSettingError(
                    "HeadPruneCallback(recover_epochs=..., certification_metric=...): with max_drop, training examples "
                    "decide what trains on, and this metric scores certification_dataset. Pass a size, such as density."
                )
            require_recoverable(self._splits.holdout, is_asked=True, where="HeadPruneCallback(recover_epochs=...)")
        return settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses what would train without scores or past pruning; says what is going to happen."""
        trainer, parts = self._ready()
        trainer_compat.require_one_loss(trainer)
        self._started = time.perf_counter()
        parts.begin_run(state.max_steps, state.global_step, kwargs["optimizer"])
        rewinds = self._rewind(kwargs["lr_scheduler"], state.max_steps)
        if self.settings.movement is not None and self.settings.trains_twice:
            second_run_steps(self.settings.movement.refill_ratio, state.max_steps)
        seconds = None
        if self.settings.follows:
            needs = self._asked.is_condition and self._asked.metric is None
            seconds = search_metric.require_searchable(trainer, self.settings, needs_certificate=needs)
        self._splits = known_when_training_begins(self._splits, trainer)
        if state.is_world_process_zero:
            tqdm.write(announcement(self.settings, self._splits, trainer, seconds_per_plan=seconds, rewinds=rewinds))

    def _rewind(self, scheduler: Any, max_steps: int) -> bool:
        """Lets a schedule that the Trainer has made start over when units are removed; tells whether it does."""
        costs = self.settings.second_order
        if costs is None or costs.rewinds_to is None or self._has_own_schedule:
            return False
        return rewind_(scheduler, round(costs.last_round_at * max_steps), max_steps, costs.rewinds_to)

    def _ready(self) -> tuple[Trainer, LearnedParts]:
        """Returns Trainer and parts of a run that may begin.

        Raises:
            TrainingStateError: It may not.
        """
        if self._trainer is None or self._parts is None:
            raise TrainingStateError(
                "HeadPruneCallback was added after the Trainer was built, which is when it looks at the model and its "
                "examples, and adds its scores to the optimizer. "
                "Pass it at construction: Trainer(..., callbacks=[HeadPruneCallback()])."
            )
        if self.result is not None or self._parts.were_pruned(model_of(self._trainer)):
            raise TrainingStateError(
                "This Trainer's model was already pruned; its optimizer still holds the weights before. To train on, "
                "build a new Trainer around the pruned model (with a new HeadPruneCallback to prune it further)."
            )
        if self._parts.were_taken_off:
            raise TrainingStateError(
                "The scores were taken off this Trainer's model: its last training ended, and the search or the cut "
                "did not finish; or another Trainer was built around the model since. Build the model, the Trainer and "
                "the callback anew; "
                "train(resume_from_checkpoint=...) from the last checkpoint in output_dir goes straight on to the "
                "search."
            )
        return self._trainer, self._parts

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets gates and masks for the coming optimizer step."""
        if self._parts is not None and self._trainer is not None:
            self._parts.begin_step(self._trainer)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Logs gates and masks whenever the Trainer logs, through the Trainer, so that every tracker gets them.

        After the first step of a process, what follows the last one is rehearsed.
        """
        if self._parts is None or self._trainer is None:
            return
        self._parts.end_step()
        if not self._is_rehearsed:
            self._is_rehearsed = True
            rehearse(self._trainer, self.settings, self._splits)
        if not control.should_log:
            return
        if not self._parts.banks:
            self._parts.check_finite()
            return
        self._trainer.log({f"headprune/{key}": value for key, value in self._parts.quantities().items()})
        control.should_log = True  # the Trainer takes its own turn to log as done, but it has yet to log the loss

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the gates when the Trainer logs once per epoch."""
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Searches, prunes and reports; with a recovery, `trainer.train()` does so when this run has ended."""
        if self._trainer is None or self._parts is None:
            return
        self._train_seconds = time.perf_counter() - self._started
        if self.settings.recovers:
            save_spare_checkpoint(self._trainer, self._parts)
        else:
            self._prune()

    def _prune(self, recover: Recover | None = None) -> bool:
        """Prunes the trained model; returns whether all that was found is written."""
        if self._trainer is None or self._parts is None:
            return False
        run = self._trainer, self._parts, self.settings, self._splits
        with trainer_compat.not_tried_again(self._trainer):
            self.result = finish(*run, asked=self._asked, train_seconds=self._train_seconds, recover=recover)
        twice = self.settings.trains_twice
        keeps_spare = twice or self.settings.recovers
        return write_results(self._trainer, self.result, keeps_spare=keeps_spare, has_card=not twice)

    def _finish_second_run(self) -> None:
        """Certifies the refilled model, where that was asked for, and gives it its card."""
        trainer, holdout = self._trainer, self._splits.holdout
        if trainer is None or self.result is None or not trainer.is_world_process_zero():
            return
        if isinstance(holdout, Holdout):
            self.result = with_certificate(trainer, self.result, holdout, self._asked)
            write_results(trainer, self.result, keeps_spare=True)
        else:
            attach_card(trainer, self.result)
