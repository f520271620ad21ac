"""HeadPruneCallback: the Trainer's events, one short hook each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import search_metric, trainer_compat
from hf_headprune.callback.certification import NoPromise, Promise, known_when_training_begins, promise_of
from hf_headprune.callback.distillation import distil
from hf_headprune.callback.finish import finish
from hf_headprune.callback.parts import LearnedParts, take_off_earlier
from hf_headprune.callback.refill_run import let_second_run_follow, second_run_steps
from hf_headprune.callback.settings import DEFAULT_GATES, DEFAULT_SEARCH, Settings
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.latency import LatencySettings, try_latency
from hf_headprune.shrink.prunable import prunable_class
from hf_headprune.shrink.resize import check_can_cut

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.claim import Metric
    from hf_headprune.learn.distillation.distiller import Distillation
    from hf_headprune.learn.gates.settings import SubsetGates
    from hf_headprune.learn.movement.settings import BlockMovement
    from hf_headprune.plan import PruningPlan
    from hf_headprune.publish.report import PruningReport
    from hf_headprune.refit.settings import SecondOrder
    from hf_headprune.search.plans import PlanSearchResult
    from hf_headprune.search.settings import AStarSearch


class HeadPruneCallback(TrainerCallback):
    """Prunes a Transformer while the Trainer fine-tunes it: `Trainer(..., callbacks=[HeadPruneCallback()])`.

    Gates learn which heads matter while the model trains; from the decided choice on a plain model of K heads trains.
    After training an A* search looks for the smallest model that keeps its accuracy on `eval_dataset`; then the heads
    are cut out in place, so that `trainer.save_model()` writes the smaller checkpoint.

    With `density`, heads and FFN units leave in one run, where their removal costs least (`SecondOrder`).

    Attributes:
        settings: The parts as they were passed.
        plan: What stayed, in the numbering of the model that training began with; None until training has ended.
        search_result: What the search found; None without one.
        report: Sizes, metric and latency before and after; None until training has ended.
        certificate: What unseen data say about the cut; on the first process, None where there is none.

    Raises:
        InvalidSettingError: All parts are switched off, one is of another type, or two contradict each other. Later,
            when the Trainer is built: a budget that the model can't meet, a teacher that doesn't fit it, or no data to
            search on.
        DataLeakError: When the Trainer is built: training or search would see examples of `certification_dataset`.
        UnsupportedModelError: When the Trainer is built: nothing says where the heads of its model are, or they can't
            be cut, since their projections are adapters, quantized, or shared.
        TrainingStateError: The Trainer can't train the scores correctly; the message says what to change.
    """

    def __init__(  # noqa: PLR0913 - one argument for each part of a run
        self,
        gates: SubsetGates | None = DEFAULT_GATES,
        search: AStarSearch | None = DEFAULT_SEARCH,
        *,
        movement: BlockMovement | None = None,
        second_order: SecondOrder | None = None,
        density: float | None = None,
        distillation: Distillation | None = None,
        certification_dataset: Any = None,
        certification_metric: Metric | None = None,
        latency: LatencySettings | None = LatencySettings(),
    ) -> None:
        """Stores the settings; nothing happens before the Trainer is built.

        Args:
            gates: How heads are chosen during training, or None to leave them to the search. When left out, there are
                some unless `movement`, `second_order` or a density chooses heads.
            search: How the search after training goes, or None to cut exactly what training chose. When left out, there
                is one unless `second_order`, a density, or a `movement` that chooses heads or fills says what stays.
            movement: How blocks of weights and FFN units are chosen during training.
            second_order: How heads and FFN units are chosen without learned scores; in place of gates and movement.
            density: Share of the weights of all attention and FFN matrices that stays: short for
                `second_order=SecondOrder(density=...)`; for a share of the multiply-accumulates pass
                `SecondOrder.to_speedup(...)`. Where gates are passed too, they and movement scores of FFN units share
                this budget instead.
            distillation: What the model learns from a teacher.
            certification_dataset: Labelled examples like those of `eval_dataset`, for the certificate alone, as they
                are or as `CertificationData`. When left out, half of `eval_dataset` is held back for it.
            certification_metric: What the certificate is about, where it is not the accuracy of a single-label
                classifier: a `Metric` with a function that scores `certification_dataset`.
            latency: Batch, length and threads at which latency is measured before and after the cut, or None to
                measure none.
        """
        others: dict[str, Any] = {"distillation": distillation, "search": search, "latency": latency}
        self.settings = Settings.of(gates, movement, second_order, density, **others)
        if certification_dataset is not None and self.settings.search is None:
            raise InvalidSettingError(
                "HeadPruneCallback(certification_dataset=...): without a search there is nothing to certify. Leave it "
                "out, or pass search=AStarSearch()."
            )
        if certification_metric is not None and certification_dataset is None:
            raise InvalidSettingError(
                f"HeadPruneCallback(certification_metric={certification_metric!r}): it scores examples of their own, "
                "received none. Pass them as certification_dataset, too."
            )
        self.plan: PruningPlan | None = None
        self.search_result: PlanSearchResult | None = None
        self.report: PruningReport | None = None
        self.certificate: Certificate | None = None
        self._trainer: Trainer | None = None
        self._parts: LearnedParts | None = None
        self._promise: Promise | NoPromise | None = None
        self._unseen, self._certified_by = certification_dataset, certification_metric
        self._started = 0.0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks everything that can be checked now, and adds the scores to the model before the optimizer exists."""
        if self._trainer is not None:
            raise TrainingStateError("One HeadPruneCallback serves one Trainer. Make a new one for a second Trainer.")
        trainer = trainer_compat.calling_trainer(self)
        if sum(isinstance(callback, HeadPruneCallback) for callback in trainer.callback_handler.callbacks) > 1:
            raise TrainingStateError("A Trainer takes one HeadPruneCallback. Pass all that it should do to one.")
        take_off_earlier(trainer.model)
        trainer_compat.let_finished_runs_end(trainer)
        anatomy = anatomy_of(trainer.model)
        check_can_cut(trainer.model, anatomy.sites)
        prunable_class(trainer.model)
        settings = self.settings.resolved(anatomy)
        if settings.latency is not None:
            try_latency(trainer.model, settings.latency)  # what the model can't take fails now
        if settings.search is not None:
            search_metric.require_search_data(trainer)
            self._promise = promise_of(trainer, settings.search, self._unseen, self._certified_by)
        self._parts = LearnedParts(trainer, anatomy, settings)
        if settings.distillation is not None:
            distil(trainer, settings.distillation)
        if settings.movement is not None and settings.trains_twice:
            let_second_run_follow(trainer, self, settings.movement.refill_ratio)
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuses what would train without scores or past the cut."""
        if self._trainer is None or self._parts is None:
            raise TrainingStateError(
                "HeadPruneCallback was added after the Trainer was built, too late to add its scores to the optimizer. "
                "Pass it at construction: Trainer(..., callbacks=[HeadPruneCallback()])."
            )
        if self.plan is not None:
            raise TrainingStateError(
                "This Trainer's model was already cut; its optimizer still holds the uncut weights. To train on, build "
                "a new Trainer around the cut model (with a new HeadPruneCallback to prune it further)."
            )
        if self._parts.were_taken_off:
            raise TrainingStateError(
                "The scores were taken off this Trainer's model when its last training ended, but the search or the "
                "cut did not finish. Build the model, the Trainer and the callback anew; "
                "train(resume_from_checkpoint=...) from the last checkpoint in output_dir goes straight on to the "
                "search."
            )
        self._started = time.perf_counter()
        self._parts.begin_run(state.max_steps, state.global_step, kwargs["optimizer"])
        movement = self.settings.movement
        if movement is not None and self.settings.trains_twice:
            second_run_steps(movement.refill_ratio, state.max_steps)
        if self.settings.search is not None:
            closes_ffn = self.settings.second_order is not None  # movement's are gone for good
            search_metric.require_searchable(self._trainer, self.settings.search, start_cuts_ffn=closes_ffn)
        if self._promise is not None:
            self._promise = known_when_training_begins(self._promise, self._trainer)
            if state.is_world_process_zero:
                tqdm.write(self._promise.in_words())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets gates and masks for the coming optimizer step."""
        if self._parts is not None and self._trainer is not None:
            self._parts.begin_step(self._trainer)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Logs gates and masks whenever the Trainer logs, through the Trainer, so that every tracker gets them."""
        if self._parts is None or not self._parts.banks or not control.should_log or self._trainer is None:
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
        """Searches, cuts and reports."""
        if self._trainer is None or self._parts is None:
            return
        seconds = time.perf_counter() - self._started
        outcome = finish(self._trainer, self._parts, self.settings, self._promise, train_seconds=seconds)
        self.plan, self.search_result, self.report = outcome.plan, outcome.search_result, outcome.report
        self.certificate = outcome.certificate
