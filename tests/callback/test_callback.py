"""Training with a method through the Trainer: its features, its log, resuming, and what is refused before step 1."""

import logging
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.callback.trainer_compat import scoring_batches
from hf_headprune.errors import InvalidSettingError, TrainingStateError, UnsupportedModelError
from hf_headprune.latency import LatencySettings
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan
from hf_headprune.search.settings import AStarSearch
from tests.support.models import text_inputs, tiny_bert
from tests.support.settings import gates, second_order
from tests.support.trainers import GATES, InterruptAt, accuracy_of, trainer_of

CHECKPOINTING = (  # renamed within the supported range
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
SCORES = f"bert.{GatePruner.module_name()}.importance_bias"


def test_latency_is_measured_as_asked_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_headprune.latency.MOST_SECONDS", 60.0)
    asked = LatencySettings(batch_size=2, seq_len=5, runs=6, threads=1)
    callback = HeadPruneCallback(gates=GATES, latency=asked)
    trainer_of(tmp_path, callback).train()
    measured = callback.report.latency
    assert (measured.batch_size, measured.seq_len, measured.runs, measured.threads) == (2, 5, 6, 1)
    callback = HeadPruneCallback(gates=GATES, latency=None)
    trainer_of(tmp_path, callback).train()
    assert callback.report.latency is None
    assert "latency" not in callback.report.to_text()


def test_a_latency_that_cannot_be_measured_is_refused_before_training(tmp_path):
    with pytest.raises(InvalidSettingError, match="seq_len must be at most"):
        trainer_of(tmp_path, HeadPruneCallback(gates=GATES, latency=LatencySettings(seq_len=4096)))
    with pytest.raises(InvalidSettingError, match=r"latency=\.\.\.\) takes LatencySettings"):
        HeadPruneCallback(gates=GATES, latency=8)


PARTS = {
    "gates and units": lambda: {
        "gates": gates(kept_heads=4, scoring_examples=16),
        "movement": BlockMovement.ffn_units(0.5, width_multiple=8),
    },
    "hybrid_filled, teacher": lambda: {
        "movement": BlockMovement.hybrid_filled(density=0.5, attention_block=(8, 8), width_multiple=8),
        "distillation": Distillation(tiny_bert(seed=1)),
    },
    "second order": lambda: {"second_order": second_order(density=0.5, width_multiple=8, scoring_examples=16)},
}
ACCUMULATED, CHECKPOINTED, HALF = {"gradient_accumulation_steps": 2}, {CHECKPOINTING: True}, {"bf16": True}
FEATURES = [
    *(("gates and units", settings) for settings in (ACCUMULATED, CHECKPOINTED, HALF)),
    ("gates and units", {"max_grad_norm": 0.0}),
    ("gates and units", {"max_grad_norm": 0.1}),
    ("gates and units", {"label_smoothing_factor": 0.1}),
    ("gates and units", {"optim": "adafactor"}),
    ("gates and units", {"lr_scheduler_type": "cosine", "warmup_steps": 3}),
    ("gates and units", {"torch_empty_cache_steps": 2}),
    *(("hybrid_filled, teacher", settings) for settings in (ACCUMULATED, CHECKPOINTED, HALF)),
    *(("second order", settings) for settings in (ACCUMULATED, CHECKPOINTED, HALF, {"label_smoothing_factor": 0.1})),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "settings"), FEATURES, ids=str)
def test_methods_work_with_the_trainers_features(tmp_path, what, settings):
    callback = HeadPruneCallback(latency=None, **PARTS[what]())
    trainer = trainer_of(tmp_path, callback, **settings)
    learned = [bank for bank in callback._parts.banks if bank.learns_scores]
    start = [bank.scores.detach().clone() for bank in learned]
    trainer.train()
    assert 0.4 < linear_density(callback.plan, anatomy_of(tiny_bert())) <= 0.5
    assert anatomy_of(trainer.model).num_parameters == callback.report.after.parameters
    assert not any(torch.equal(before, bank.scores) for before, bank in zip(start, learned, strict=True))
    assert bool(torch.isfinite(trainer.model(**text_inputs()).logits).all())


@pytest.mark.parametrize("estimator", ["sigmoid", "dsp", "ste", "hard_concrete"])
def test_every_estimator_ends_with_exactly_the_budget(tmp_path, estimator):
    asked = gates(kept_heads=5, estimator=estimator, scoring_examples=8)
    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=asked, latency=None))
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == 5


def test_the_card_of_a_model_that_trains_twice_is_about_the_weights_at_the_end(tmp_path, caplog):
    asked = BlockMovement.hybrid_filled(density=0.5, attention_block=(8, 8), width_multiple=8)
    trainer = trainer_of(tmp_path, HeadPruneCallback(movement=asked, latency=None), save_strategy="steps", save_steps=6)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert "hf_headprune" in (tmp_path / "saved" / "README.md").read_text()
    assert "is about other weights" not in caplog.text


def test_pipelined_training_moves_the_scores_and_no_weight(tmp_path):
    model = tiny_bert()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    callback = HeadPruneCallback(gates=gates(kept_heads=8, mode="pipelined", scoring_examples=8))
    trainer = trainer_of(tmp_path, callback, model=model)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad


def test_pipelined_training_leaves_frozen_what_the_user_had_frozen(tmp_path):
    model = tiny_bert()
    model.bert.embeddings.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    asked = gates(kept_heads=8, mode="pipelined", scoring_examples=8)
    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=asked, latency=None), model=model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [SCORES]
    trainer.train()
    assert {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"estimator": "dsp", "mode": "pipelined"}, {"estimator": "hard_concrete"}], ids=str
)
def test_a_run_killed_and_resumed_ends_with_the_same_choice_and_weights(tmp_path, settings):
    def run(folder, *, stop_at=-1, resume=None):
        callback = HeadPruneCallback(gates=gates(kept_heads=3, scoring_examples=16, **settings), latency=None)
        extra = {"save_strategy": "steps", "save_steps": 4, "seed": 7}
        trainer = trainer_of(folder, callback, callbacks=[InterruptAt(stop_at)], **extra)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model, callback

    whole, whole_callback = run(tmp_path / "whole")
    for stop_at, checkpoint in ((6, 4), (11, 8)):
        folder = tmp_path / f"killed-{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop_at=stop_at)
        resumed, callback = run(folder, resume=str(folder / f"checkpoint-{checkpoint}"))
        assert callback.plan == whole_callback.plan
        for name, parameter in whole.named_parameters():
            assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_the_best_model_that_is_brought_back_meets_the_budget(tmp_path):
    callback = HeadPruneCallback(gates=GATES, latency=None)
    trainer = trainer_of(
        tmp_path,
        callback,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        compute_metrics=accuracy_of,
    )
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == 3
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(trainer.state.best_metric)


def test_a_trainer_subclass_with_its_own_loss_trains_the_scores(tmp_path):
    class Weighted(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = nn.functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 3.0]))
            return (loss, outputs) if return_outputs else loss

    callback = HeadPruneCallback(gates=GATES, latency=None)
    trainer = trainer_of(tmp_path, callback, trainer_class=Weighted)
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == 3
    assert float(callback._parts.banks[0].scores.detach().std()) > 0


def test_gates_are_logged_through_the_trainer_so_that_trackers_see_them(tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.extend(logs)

    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=GATES, latency=None), callbacks=[Tracker()])
    trainer.train()
    keys = {
        "headprune/temperature",
        "headprune/sample_overlap",
        "headprune/kth_gap",
        "headprune/expected_heads/encoder.layer.0.attention",
        "headprune/hard_heads/encoder.layer.1.attention",
    }
    assert keys <= set(seen)
    assert keys <= {key for entry in trainer.state.log_history for key in entry}


@pytest.mark.parametrize("settings", [{}, {"logging_strategy": "epoch"}], ids=str)
def test_the_trainers_own_log_stays_as_it_is_beside_that_of_the_gates(tmp_path, settings):
    def history(folder, callback):
        trainer = trainer_of(tmp_path / folder, callback, max_steps=20, logging_steps=4, **settings)
        trainer.train()
        return trainer.state.log_history

    plain = [(entry["step"], sorted(entry)) for entry in history("plain", None)]
    gated = history("gated", HeadPruneCallback(gates=GATES, latency=None))
    assert plain == [(entry["step"], sorted(entry)) for entry in gated if "headprune/temperature" not in entry]
    losses = [entry["step"] for entry in gated if "loss" in entry]
    assert losses == [entry["step"] for entry in gated if "headprune/temperature" in entry] != []


def test_evaluation_during_training_uses_the_hard_choice_without_noise(tmp_path):
    callback = HeadPruneCallback(gates=gates(kept_heads=3, freeze_at=1.0, scoring_examples=8))
    trainer = trainer_of(tmp_path, callback, compute_metrics=accuracy_of)
    checked = []

    class Check(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            model, bank = trainer.model.eval(), callback._parts.banks[0]
            parts = bank.hard_mask().split(bank.heads_per_site)
            sites = [site.name for site in anatomy_of(model).attention_sites]
            kept = {site: part.nonzero().flatten().tolist() for site, part in zip(sites, parts, strict=True)}
            with torch.no_grad():
                gated = model(**text_inputs()).logits
                bank.probe = torch.ones(8)
                with masked(model, PruningPlan.of(model).replace(kept_heads=kept)):
                    checked.append(torch.equal(gated, model(**text_inputs()).logits))
                bank.probe = None

    trainer.add_callback(Check())
    trainer.train()
    assert checked == [True] * 12


def test_weight_decay_stays_away_from_the_scores(tmp_path):
    callback = HeadPruneCallback(gates=GATES, latency=None)
    trainer = trainer_of(tmp_path, callback, weight_decay=0.5)
    trainer.create_optimizer()
    decays = {
        group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
        if parameter is callback._parts.banks[0].importance_bias
    }
    assert decays == {0.0}


def test_reentrant_checkpointing_is_refused_when_the_trainer_is_built(tmp_path):
    settings = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    with pytest.raises(TrainingStateError, match="reentrant checkpointing"):
        trainer_of(tmp_path, HeadPruneCallback(gates=GATES), **settings)


def test_a_run_too_short_to_score_heads_is_refused_before_it_trains(tmp_path):
    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=SubsetGates(kept_heads=3, warmup_ratio=0.6)), max_steps=1)
    with pytest.raises(TrainingStateError, match="1 optimizer steps, and everything is open in the first 1"):
        trainer.train()


def test_an_unknown_family_is_refused_when_the_trainer_is_built(tmp_path):
    model = tiny_bert()
    model.config.model_type = "unheard_of"
    with pytest.raises(UnsupportedModelError, match=r"unheard_of.*Supported: albert, bart, bert"):
        trainer_of(tmp_path, HeadPruneCallback(), model=model)


def test_a_callback_added_after_construction_is_refused_before_training(tmp_path):
    trainer = trainer_of(tmp_path, None)
    trainer.add_callback(HeadPruneCallback())
    with pytest.raises(TrainingStateError, match=r"after the Trainer was built.*callbacks="):
        trainer.train()


def test_an_optimizer_built_before_the_gates_is_refused(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(TrainingStateError, match="built before the gates or scores"):
        trainer_of(tmp_path, HeadPruneCallback(gates=GATES), model=model, optimizers=(optimizer, None))


@pytest.mark.parametrize("parts", [{}, {"density": 0.5}, {"gates": GATES}], ids=str)
def test_a_trainer_that_makes_its_models_itself_is_refused(tmp_path, parts):
    with pytest.raises(TrainingStateError, match=r"model_init=\.\.\.\) makes a new model at every train"):
        Trainer(
            model_init=lambda trial: tiny_bert(),
            args=TrainingArguments(str(tmp_path)),
            callbacks=[HeadPruneCallback(**parts)],
        )


def test_several_devices_in_one_process_are_refused_where_a_method_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(TrainingStateError, match="One process with 2 devices"):
        trainer_of(tmp_path, HeadPruneCallback(gates=GATES))


def test_costs_need_no_optimizer_of_the_trainers_own(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    callback = HeadPruneCallback(density=0.5, latency=None)
    trainer_of(tmp_path, callback, model=model, optimizers=(optimizer, None)).train()
    assert callback.plan.num_removed_heads > 0


def test_a_learning_rate_of_zero_is_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(TrainingStateError, match=r"learning_rate=0\.0.*must be above 0.*pipelined"):
        trainer_of(tmp_path, HeadPruneCallback(gates=GATES, latency=None), learning_rate=0.0)


def test_an_optimizer_without_the_scores_is_refused(tmp_path):
    class Head(Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.AdamW(self.model.classifier.parameters(), lr=1e-3)
            return self.optimizer

    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=GATES), trainer_class=Head)
    with pytest.raises(TrainingStateError, match="does not hold the learned scores"):
        trainer.train()


def test_training_again_after_pruning_is_refused_and_a_new_trainer_prunes_on(tmp_path):
    first = trainer_of(tmp_path, HeadPruneCallback(gates=gates(kept_heads=5, scoring_examples=8), latency=None))
    first.train()
    with pytest.raises(TrainingStateError, match=r"already pruned.*new Trainer"):
        first.train()
    second = trainer_of(
        tmp_path,
        HeadPruneCallback(gates=gates(kept_heads=2, scoring_examples=8), latency=None),
        model=first.model,
    )
    second.train()
    assert anatomy_of(second.model).num_heads == 2


def test_training_again_after_an_interrupt_amid_the_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_headprune.callback.finish.with_certificate", Mock(side_effect=KeyboardInterrupt))
    trainer = trainer_of(tmp_path, HeadPruneCallback(latency=None))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(TrainingStateError, match=r"already pruned.*new Trainer"):
        trainer.train()


def test_resuming_from_a_checkpoint_without_gates_is_refused(tmp_path):
    plain = trainer_of(tmp_path, None, save_strategy="steps", save_steps=4, max_steps=4)
    plain.train()
    gated = trainer_of(tmp_path, HeadPruneCallback(gates=GATES, latency=None))
    logging.disable(logging.WARNING)
    with pytest.raises(TrainingStateError, match="has 8 entries to choose by, the checkpoint holds none"):
        gated.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    logging.disable(logging.NOTSET)


def test_after_a_search_that_failed_a_resumed_run_finishes(tmp_path):
    def trainer(compute_metrics):
        callback = HeadPruneCallback(gates=GATES, search=AStarSearch(metric="matches", max_evaluations=3), latency=None)
        return trainer_of(tmp_path, callback, compute_metrics=compute_metrics), callback

    def breaks_once_trained(prediction):
        if failed.state.global_step:
            raise ZeroDivisionError
        return matches(prediction)

    def matches(prediction):
        return {"matches": accuracy_of(prediction)["accuracy"]}

    failed, _ = trainer(breaks_once_trained)
    with pytest.raises(ZeroDivisionError):
        failed.train()
    with pytest.raises(TrainingStateError, match=r"search or the cut did not finish.*resume_from_checkpoint"):
        failed.train()
    again, callback = trainer(matches)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert anatomy_of(again.model).num_heads == callback.plan.num_kept_heads


def test_a_search_of_another_run_in_the_same_folder_is_set_aside(tmp_path):
    for seed in (1, 2):
        callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3), latency=None)
        trainer = trainer_of(tmp_path, callback, seed=seed)
        trainer.train()
        assert callback.search_result.evaluations > 0
    assert len([*tmp_path.glob("_headprune_search.jsonl*")]) == 2


def test_scoring_follows_the_batch_size_that_the_trainer_found(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=GATES, latency=None))
    trainer.callback_handler.train_dataloader = trainer.get_train_dataloader()
    trainer.state.train_batch_size = 2  # what auto_find_batch_size arrived at
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    assert [len(batch["labels"]) for batch in scoring_batches(trainer, 4, seed=0)] == [2, 2]
    assert torch.equal(before, torch.get_rng_state())
    assert seeded == []


def test_memory_that_runs_out_after_training_does_not_begin_it_anew(tmp_path, monkeypatch):
    callback = HeadPruneCallback(gates=GATES, latency=None)
    trainer, steps = trainer_of(tmp_path, callback, auto_find_batch_size=True), []
    count = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: steps.append(1) or count(*args, **kwargs)

    def full(*args, **kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("hf_headprune.callback.hooks.finish", full)
    with pytest.raises(TrainingStateError, match=r"not enough memory for what follows.*resume_from_checkpoint"):
        trainer.train()
    assert len(steps) == trainer.state.max_steps


def test_a_search_keeps_the_trainers_checkpoints_and_goes_on_after_a_kill(tmp_path):
    def trainer():
        search = AStarSearch(metric="steady", max_evaluations=3)
        callback = HeadPruneCallback(gates=GATES, search=search, latency=None)
        settings = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "best", "save_total_limit": 1}
        settings |= {"metric_for_best_model": "falling", "load_best_model_at_end": True}
        steps = []

        def falling(_):
            steps.append(1)
            return {"falling": -len(steps), "steady": 0.5}

        return trainer_of(tmp_path, callback, compute_metrics=falling, **settings), callback

    killed, _ = trainer()
    evaluations = [{"falling": value, "steady": 0.5} for value in (4, 3, 2, 1)]  # the first proves that there are any
    killed.compute_metrics = Mock(side_effect=[*evaluations, KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-12"}
    resumed, callback = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert anatomy_of(resumed.model).num_heads == callback.plan.num_kept_heads
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4"}


def test_one_callback_serves_one_trainer(tmp_path):
    callback = HeadPruneCallback(gates=GATES, latency=None)
    trainer_of(tmp_path, callback)
    with pytest.raises(TrainingStateError, match="serves one Trainer"):
        trainer_of(tmp_path, callback)


def test_a_model_that_can_not_be_cut_is_refused_before_training(tmp_path):
    class Adapted(torch.nn.Linear):
        pass

    model = tiny_bert()
    model.bert.encoder.layer[0].output.dense.__class__ = Adapted
    with pytest.raises(UnsupportedModelError, match="can't be cut"):
        trainer_of(tmp_path, HeadPruneCallback(), model=model)


class _Drawing(list):
    """A data set that draws from the generator of the run, as one that augments does."""

    def __getitem__(self, index):
        torch.rand(1)
        return super().__getitem__(index)


def test_scoring_leaves_the_runs_randomness_alone_where_the_data_set_draws(tmp_path):
    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=GATES, latency=None))
    loader = trainer.get_train_dataloader()
    trainer.callback_handler.train_dataloader = SimpleNamespace(
        dataset=_Drawing(trainer.train_dataset), collate_fn=loader.collate_fn
    )
    trainer.state.train_batch_size = 2
    before = torch.get_rng_state()
    assert len([*scoring_batches(trainer, 4, seed=0)]) == 2
    assert torch.equal(before, torch.get_rng_state())


class _Prefetcher:
    """A loader that is none of torch's."""

    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        return iter(self.inner)

    def __len__(self):
        return len(self.inner)


class _WithPrefetcher(Trainer):
    def get_train_dataloader(self):
        """Returns what torch makes, in another form."""
        return _Prefetcher(super().get_train_dataloader())


@pytest.mark.parametrize("settings", [{"density": 0.5}, {"max_drop": 0.5}, {"density": 0.5, "recover_epochs": 1}])
def test_a_loader_that_is_none_of_torchs_trains_and_prunes(tmp_path, settings):
    callback = HeadPruneCallback(latency=None, **settings)
    trainer_of(tmp_path, callback, trainer_class=_WithPrefetcher).train()
    assert callback.report is not None


def test_a_loader_without_examples_is_refused_by_its_name(tmp_path):
    trainer = trainer_of(tmp_path, HeadPruneCallback(density=0.5, latency=None))
    trainer.callback_handler.train_dataloader = _Prefetcher(None)
    trainer.train_dataset = None
    with pytest.raises(TrainingStateError, match="get_train_dataloader returns a _Prefetcher without dataset"):
        next(scoring_batches(trainer, 4, seed=0))
