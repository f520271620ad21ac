import json
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.callback.finish import REPORT_NAME
from hf_headprune.callback.search_metric import metric_source
from hf_headprune.callback.trainer_compat import require_whole_model, scoring_batches
from hf_headprune.errors import InvalidSettingError, TrainingStateError, UnsupportedModelError
from hf_headprune.latency import LatencySettings
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.gates.settings import GateTuning, SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning
from hf_headprune.search.settings import AStarSearch, SearchTuning
from tests.support.models import text_inputs, tiny_bert
from tests.support.trainers import labelled_rows as _examples
from tests.support.trainers import trainer_of as _trainer

CHECKPOINTING = (  # renamed within the supported range
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
SCORES = f"bert.{GatePruner.module_name()}.importance_bias"
GATES = SubsetGates(kept_heads=3, estimator="sigmoid", tuning=GateTuning(scoring_examples=16))


class _Stream(IterableDataset):
    def __iter__(self):
        return iter(_examples(4, 0))


def _accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_without_arguments_it_trains_searches_cuts_and_saves_a_smaller_model_that_reloads(tmp_path, capsys):
    callback = HeadPruneCallback()
    trainer = _trainer(tmp_path / "run", callback)
    dense_bytes = anatomy_of(tiny_bert()).num_bytes
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        here = trainer.model.eval()(**text_inputs()).logits
        assert torch.equal(here, reloaded.eval()(**text_inputs()).logits)
    assert type(trainer.model).__name__ == "PrunableBertForSequenceClassification"
    assert callback.plan.num_kept_heads <= 4
    assert anatomy_of(reloaded).num_bytes == callback.report.after.size_bytes < dense_bytes
    assert GatePruner.module_name() not in "".join(reloaded.state_dict())
    assert callback.report.to_text() in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / REPORT_NAME).read_text()) == json.loads(callback.report.to_json())


def test_latency_is_measured_as_asked_or_not_at_all(tmp_path):
    asked = LatencySettings(batch_size=2, seq_len=5, runs=6, threads=1)
    callback = HeadPruneCallback(gates=GATES, search=None, latency=asked)
    _trainer(tmp_path, callback).train()
    measured = callback.report.latency
    assert (measured.batch_size, measured.seq_len, measured.runs, measured.threads) == (2, 5, 6, 1)
    callback = HeadPruneCallback(gates=GATES, search=None, latency=None)
    _trainer(tmp_path, callback).train()
    assert callback.report.latency is None
    assert "latency" not in callback.report.to_text()


def test_a_latency_that_cannot_be_measured_is_refused_before_training(tmp_path):
    with pytest.raises(InvalidSettingError, match="seq_len must be at most"):
        _trainer(tmp_path, HeadPruneCallback(gates=GATES, search=None, latency=LatencySettings(seq_len=4096)))
    with pytest.raises(InvalidSettingError, match=r"latency=\.\.\.\) takes LatencySettings"):
        HeadPruneCallback(gates=GATES, search=None, latency=8)


FEATURES = pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {CHECKPOINTING: True},
        {"bf16": True},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": 0.1},
        {"label_smoothing_factor": 0.1},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"torch_empty_cache_steps": 2},
    ],
    ids=str,
)


@FEATURES
def test_it_works_with_the_trainers_features(tmp_path, settings):
    callback = HeadPruneCallback(gates=GATES, search=None)
    trainer = _trainer(tmp_path, callback, **settings)
    start = callback._parts.banks[0].scores.detach().clone()
    trainer.train()
    assert callback.plan.num_kept_heads == 3
    assert anatomy_of(trainer.model).num_heads == 3
    assert not torch.equal(start, callback._parts.banks[0].scores.detach())
    assert bool(torch.isfinite(trainer.model(**text_inputs()).logits).all())


@FEATURES
@pytest.mark.parametrize("what", ["hybrid_filled, teacher", "gates and units", "second order"])
def test_ffn_units_go_with_the_trainers_features(tmp_path, settings, what):
    parts = {
        "hybrid_filled, teacher": {
            "gates": None,
            "movement": BlockMovement.hybrid_filled(density=0.5, attention_block=(8, 8), width_multiple=8),
            "distillation": Distillation(tiny_bert(seed=1)),
        },
        "gates and units": {
            "gates": SubsetGates(kept_heads=4, tuning=GateTuning(scoring_examples=16)),
            "movement": BlockMovement.ffn_units(0.5, width_multiple=8),
        },
        "second order": {
            "second_order": SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8, scoring_examples=16))
        },
    }[what]
    trainer = _trainer(tmp_path, callback := HeadPruneCallback(search=None, latency=None, **parts), **settings)
    trainer.train()
    assert 0.4 < linear_density(callback.plan, anatomy_of(tiny_bert())) <= 0.5
    assert anatomy_of(trainer.model).num_parameters == callback.report.after.parameters
    assert bool(torch.isfinite(trainer.model(**text_inputs()).logits).all())


@pytest.mark.parametrize("estimator", ["sigmoid", "dsp", "ste", "hard_concrete"])
def test_every_estimator_ends_with_exactly_the_budget(tmp_path, estimator):
    gates = SubsetGates(kept_heads=5, estimator=estimator, tuning=GateTuning(scoring_examples=8))
    trainer = _trainer(tmp_path, HeadPruneCallback(gates=gates, search=None))
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == 5


def test_the_papers_setting_runs_and_meets_the_budget(tmp_path):
    trainer = _trainer(tmp_path, HeadPruneCallback(gates=SubsetGates.paper_mnli(2), search=None))
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == 2


def test_pipelined_training_moves_the_scores_and_no_weight(tmp_path):
    model = tiny_bert()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    callback = HeadPruneCallback(
        gates=SubsetGates(kept_heads=8, mode="pipelined", tuning=GateTuning(scoring_examples=8)), search=None
    )
    trainer = _trainer(tmp_path, callback, model=model)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad


def test_pipelined_training_leaves_frozen_what_the_user_had_frozen(tmp_path):
    model = tiny_bert()
    model.bert.embeddings.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    gates = SubsetGates(kept_heads=8, mode="pipelined", tuning=GateTuning(scoring_examples=8))
    trainer = _trainer(tmp_path, HeadPruneCallback(gates=gates, search=None), model=model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [SCORES]
    trainer.train()
    assert {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()} == before


@pytest.mark.parametrize(
    "gates",
    [
        SubsetGates(kept_heads=3, tuning=GateTuning(scoring_examples=16)),
        SubsetGates(3, "sigmoid", tuning=GateTuning(scoring_examples=16)),
        SubsetGates(3, "dsp", mode="pipelined", tuning=GateTuning(scoring_examples=16)),
        SubsetGates(3, "hard_concrete", tuning=GateTuning(scoring_examples=16)),
    ],
    ids=["ste", "sigmoid", "dsp, pipelined", "hard_concrete"],
)
def test_a_run_killed_and_resumed_ends_with_the_same_choice_and_weights(tmp_path, gates):
    def run(folder, *, stop_at=None, resume=None):
        class Kill(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == stop_at:
                    raise KeyboardInterrupt

        callback = HeadPruneCallback(gates=gates, search=None, latency=None)
        extra = {"save_strategy": "steps", "save_steps": 4, "seed": 7}
        trainer = _trainer(folder, callback, callbacks=[Kill()], **extra)
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


def test_the_best_model_that_the_trainer_brings_back_meets_the_budget_and_is_the_one_that_was_measured(tmp_path):
    callback = HeadPruneCallback(gates=GATES, search=None)
    trainer = _trainer(
        tmp_path,
        callback,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        compute_metrics=_accuracy,
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

    callback = HeadPruneCallback(gates=GATES, search=None)
    trainer = _trainer(tmp_path, callback, trainer_class=Weighted)
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == 3
    assert float(callback._parts.banks[0].scores.detach().std()) > 0


def test_the_gates_are_logged_through_the_trainer_so_that_trackers_see_them(tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.extend(logs)

    trainer = _trainer(tmp_path, HeadPruneCallback(gates=GATES, search=None), callbacks=[Tracker()])
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
        trainer = _trainer(tmp_path / folder, callback, max_steps=20, logging_steps=4, **settings)
        trainer.train()
        return trainer.state.log_history

    plain = [(entry["step"], sorted(entry)) for entry in history("plain", None)]
    gated = history("gated", HeadPruneCallback(gates=GATES, search=None))
    assert plain == [(entry["step"], sorted(entry)) for entry in gated if "headprune/temperature" not in entry]
    losses = [entry["step"] for entry in gated if "loss" in entry]
    assert losses == [entry["step"] for entry in gated if "headprune/temperature" in entry] != []


def test_evaluation_during_training_uses_the_hard_choice_without_noise(tmp_path):
    callback = HeadPruneCallback(
        gates=SubsetGates(kept_heads=3, freeze_at=1.0, tuning=GateTuning(scoring_examples=8)), search=None
    )
    trainer = _trainer(tmp_path, callback, compute_metrics=_accuracy)
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
    callback = HeadPruneCallback(gates=GATES, search=None)
    trainer = _trainer(tmp_path, callback, weight_decay=0.5)
    trainer.create_optimizer()
    decays = {
        group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
        if parameter is callback._parts.banks[0].importance_bias
    }
    assert decays == {0.0}


def test_searching_only_leaves_training_alone_and_still_cuts(tmp_path):
    callback = HeadPruneCallback(gates=None, search=AStarSearch(max_drop=0.99, max_evaluations=20))
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    assert callback.search_result is not None
    assert anatomy_of(trainer.model).num_heads == callback.plan.num_kept_heads < 8


def test_the_search_can_follow_any_metric_of_the_trainers_evaluation(tmp_path):
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(metric="shifted", max_drop=0.5, max_evaluations=6))
    trainer = _trainer(
        tmp_path, callback, compute_metrics=lambda prediction: {"shifted": 5 + _accuracy(prediction)["accuracy"]}
    )
    trainer.train()
    assert 5.0 <= callback.report.metric.after <= 6.0


@pytest.mark.parametrize(("named", "in_search"), [("errors", "errors"), ("eval_errors", None)])
def test_the_trainer_says_whether_a_metric_is_better_when_lower(tmp_path, named, in_search):
    trainer = _trainer(tmp_path, None, metric_for_best_model=named, greater_is_better=False)
    assert metric_source(trainer, AStarSearch(metric=in_search)).sign == -1.0
    assert metric_source(trainer, AStarSearch(metric="terms")).sign == 1.0
    higher = SearchTuning(greater_is_better=True)
    assert metric_source(trainer, AStarSearch(metric=in_search, tuning=higher)).sign == 1.0


@pytest.mark.parametrize("settings", [{}, {"metric_for_best_model": "eval_mean_error", "greater_is_better": True}])
def test_a_metric_called_like_an_error_is_not_taken_for_a_score(tmp_path, settings):
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(metric="mean_error", max_evaluations=2))
    trainer = _trainer(tmp_path, callback, compute_metrics=lambda _: {"mean_error": 0.5}, **settings)
    with pytest.raises(InvalidSettingError, match="better when it is lower"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert metric_source(trainer, AStarSearch(metric="terms")).sign == 1.0


def test_the_search_measures_with_the_evaluate_of_a_trainer_subclass_and_logs_nothing(tmp_path):
    class Answers(Trainer):
        def evaluate(self, *args, **kwargs):
            metrics = super().evaluate(*args, **kwargs)
            return metrics | {"eval_exact_match": 100.0 - metrics["eval_loss"]}

    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(metric="exact_match", max_drop=5, max_evaluations=3))
    trainer = _trainer(tmp_path, callback, trainer_class=Answers)
    trainer.train()
    assert 90.0 < callback.report.metric.after < 100.0
    assert not [entry for entry in trainer.state.log_history if "eval_loss" in entry]


@pytest.mark.parametrize("removed", [{"gates": 5}, {"search": "astar"}, {"density": 2.0}, {"max_drop": -1}])
def test_wrong_parts_are_refused_at_construction(removed):
    HeadPruneCallback(gates=GATES, search=None)
    with pytest.raises(InvalidSettingError, match="HeadPruneCallback"):
        HeadPruneCallback(**removed)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"eval_dataset": None}, "must be one non-empty data set with labels: there is none"),
        ({"eval_dataset": []}, "non-empty data set with labels: it is empty"),
        ({"eval_dataset": {"a": _examples(4, 0)}}, "with labels: it is a dict of 1 data sets"),
        ({"eval_dataset": _Stream()}, "with labels: it is a _Stream without a length or an index"),
    ],
)
def test_a_search_without_data_is_refused_when_the_trainer_is_built(tmp_path, settings, rule):
    with pytest.raises(InvalidSettingError, match=rule):
        _trainer(tmp_path, HeadPruneCallback(), **settings)


def test_unlabelled_search_data_is_refused_when_the_trainer_is_built(tmp_path):
    unlabelled = [{"input_ids": [5, 6], "attention_mask": [1, 1]}]
    with pytest.raises(InvalidSettingError, match=r"\['attention_mask', 'input_ids'\], but none of .*'labels'"):
        _trainer(tmp_path, HeadPruneCallback(), eval_dataset=unlabelled)


def test_reentrant_checkpointing_is_refused_when_the_trainer_is_built(tmp_path):
    settings = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    with pytest.raises(TrainingStateError, match="reentrant checkpointing"):
        _trainer(tmp_path, HeadPruneCallback(gates=GATES), **settings)


def test_a_run_too_short_to_score_heads_is_refused_before_it_trains(tmp_path):
    trainer = _trainer(tmp_path, HeadPruneCallback(gates=SubsetGates(warmup_ratio=0.6)), max_steps=1)
    with pytest.raises(TrainingStateError, match="1 optimizer steps, and everything is open in the first 1"):
        trainer.train()


def test_a_budget_out_of_range_is_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(InvalidSettingError, match="9 heads are to stay, but the model has 8"):
        _trainer(tmp_path, HeadPruneCallback(gates=SubsetGates(kept_heads=9)))


def test_an_unknown_family_is_refused_when_the_trainer_is_built(tmp_path):
    model = tiny_bert()
    model.config.model_type = "unheard_of"
    with pytest.raises(UnsupportedModelError, match=r"unheard_of.*Supported: bart, bert"):
        _trainer(tmp_path, HeadPruneCallback(), model=model)


def test_a_callback_added_after_construction_is_refused_before_training(tmp_path):
    trainer = _trainer(tmp_path, None)
    trainer.add_callback(HeadPruneCallback())
    with pytest.raises(TrainingStateError, match=r"after the Trainer was built.*callbacks="):
        trainer.train()


def test_an_optimizer_built_before_the_gates_is_refused(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(TrainingStateError, match="built before the gates or scores"):
        _trainer(tmp_path, HeadPruneCallback(gates=GATES), model=model, optimizers=(optimizer, None))


def test_a_trainer_that_makes_its_models_itself_or_replicates_them_is_refused(tmp_path, monkeypatch):
    with pytest.raises(TrainingStateError, match=r"model_init=\.\.\.\) makes a new model at every train"):
        Trainer(
            model_init=lambda trial: tiny_bert(),
            args=TrainingArguments(str(tmp_path)),
            callbacks=[HeadPruneCallback(gates=GATES)],
        )
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(TrainingStateError, match="One process with 2 devices"):
        _trainer(tmp_path, HeadPruneCallback(gates=GATES))


def test_costs_need_no_optimizer_of_the_trainers_own(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    callback = HeadPruneCallback(density=0.5, latency=None)
    _trainer(tmp_path, callback, model=model, optimizers=(optimizer, None)).train()
    assert callback.plan.num_removed_heads > 0


def test_a_learning_rate_of_zero_is_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(TrainingStateError, match=r"learning_rate=0\.0.*must be above 0.*pipelined"):
        _trainer(tmp_path, HeadPruneCallback(gates=GATES, search=None), learning_rate=0.0)


def test_an_optimizer_without_the_scores_is_refused(tmp_path):
    class Head(Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.AdamW(self.model.classifier.parameters(), lr=1e-3)
            return self.optimizer

    trainer = _trainer(tmp_path, HeadPruneCallback(gates=GATES), trainer_class=Head)
    with pytest.raises(TrainingStateError, match="does not hold the learned scores"):
        trainer.train()


def test_training_again_after_the_cut_is_refused_and_a_new_trainer_prunes_further(tmp_path):
    first = _trainer(
        tmp_path, HeadPruneCallback(gates=SubsetGates(kept_heads=5, tuning=GateTuning(scoring_examples=8)), search=None)
    )
    first.train()
    with pytest.raises(TrainingStateError, match=r"already pruned.*new Trainer"):
        first.train()
    second = _trainer(
        tmp_path,
        HeadPruneCallback(gates=SubsetGates(kept_heads=2, tuning=GateTuning(scoring_examples=8)), search=None),
        model=first.model,
    )
    second.train()
    assert anatomy_of(second.model).num_heads == 2


def test_resuming_from_a_checkpoint_without_gates_is_refused(tmp_path):
    plain = _trainer(tmp_path, None, save_strategy="steps", save_steps=4, max_steps=4)
    plain.train()
    gated = _trainer(tmp_path, HeadPruneCallback(gates=GATES, search=None))
    logging.disable(logging.WARNING)
    with pytest.raises(TrainingStateError, match="has 8 entries to choose by, the checkpoint holds none"):
        gated.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    logging.disable(logging.NOTSET)


def test_training_again_after_a_search_that_failed_is_refused_and_a_resumed_run_finishes(tmp_path):
    def trainer(compute_metrics):
        callback = HeadPruneCallback(gates=GATES, search=AStarSearch(metric="matches", max_evaluations=3))
        return _trainer(tmp_path, callback, compute_metrics=compute_metrics), callback

    def breaks_once_trained(prediction):
        if failed.state.global_step:
            raise ZeroDivisionError
        return matches(prediction)

    def matches(prediction):
        return {"matches": _accuracy(prediction)["accuracy"]}

    failed, _ = trainer(breaks_once_trained)
    with pytest.raises(ZeroDivisionError):
        failed.train()
    with pytest.raises(TrainingStateError, match=r"search or the cut did not finish.*resume_from_checkpoint"):
        failed.train()
    again, callback = trainer(matches)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert anatomy_of(again.model).num_heads == callback.plan.num_kept_heads


def test_a_metric_that_no_evaluation_returns_is_refused_before_the_first_step(tmp_path):
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(metric="unheard_of"))
    trainer = _trainer(tmp_path, callback, compute_metrics=_accuracy)
    with pytest.raises(InvalidSettingError, match=r"unheard_of.*eval_accuracy"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("flag", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_weights_split_over_processes_are_refused(tmp_path, flag):
    trainer = _trainer(tmp_path, None)
    setattr(trainer, flag, True)
    with pytest.raises(TrainingStateError, match=r"DeepSpeed and FSDP.*whole"):
        require_whole_model(trainer)


def test_a_search_of_another_run_in_the_same_folder_is_set_aside(tmp_path):
    for seed in (1, 2):
        callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3))
        trainer = _trainer(tmp_path, callback, seed=seed)
        trainer.train()
        assert callback.search_result.evaluations > 0
    assert len([*tmp_path.glob("headprune_search.jsonl*")]) == 2


def test_scoring_follows_the_batch_size_that_the_trainer_found_and_no_devices_random_state(tmp_path, monkeypatch):
    trainer = _trainer(tmp_path, HeadPruneCallback(gates=GATES, search=None))
    trainer.callback_handler.train_dataloader = trainer.get_train_dataloader()
    trainer.state.train_batch_size = 2  # what auto_find_batch_size arrived at
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    assert [len(batch["labels"]) for batch in scoring_batches(trainer, 4, seed=0)] == [2, 2]
    assert torch.equal(before, torch.get_rng_state())
    assert seeded == []


def test_a_search_keeps_the_trainers_checkpoints_and_goes_on_after_a_kill(tmp_path):
    def trainer(kill_at=None):
        callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3))
        settings = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "best", "save_total_limit": 1}
        settings |= {"metric_for_best_model": "falling", "load_best_model_at_end": True}
        calls = []

        def falling(_):
            calls.append(1)
            if len(calls) == kill_at:
                raise KeyboardInterrupt
            return {"falling": -made.state.global_step}

        made = _trainer(tmp_path, callback, compute_metrics=falling, **settings)
        return made, callback

    killed, _ = trainer(kill_at=5)  # one evaluation before training, three during it
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-12"}
    resumed, callback = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert anatomy_of(resumed.model).num_heads == callback.plan.num_kept_heads
    assert {path.name for path in tmp_path.glob("checkpoint-*")} >= {"checkpoint-4"}


def test_one_callback_serves_one_trainer(tmp_path):
    callback = HeadPruneCallback(gates=GATES, search=None)
    _trainer(tmp_path, callback)
    with pytest.raises(TrainingStateError, match="serves one Trainer"):
        _trainer(tmp_path, callback)


def test_a_model_that_can_not_be_cut_is_refused_before_training(tmp_path):
    class Adapted(torch.nn.Linear):
        pass

    model = tiny_bert()
    model.bert.encoder.layer[0].output.dense.__class__ = Adapted
    with pytest.raises(UnsupportedModelError, match="can't be cut"):
        _trainer(tmp_path, HeadPruneCallback(), model=model)
