"""HeadPruneCallback() without arguments: training is left alone, then the smallest certified model is pruned."""

from __future__ import annotations

import copy
import gc
import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_headprune import anatomy_of, certify
from hf_headprune.budgets import linear_density
from hf_headprune.callback import HeadPruneCallback, trainer_compat
from hf_headprune.callback.finish import REPORT_NAME
from hf_headprune.errors import CertificateError, DataLeakError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.pipeline.cost_path import DENSITIES
from hf_headprune.search.settings import AStarSearch
from tests.support.models import text_inputs, tiny_bert
from tests.support.trainers import (
    LEARNS,
    CountSteps,
    Stream,
    accuracy_of,
    assert_reloads_alike,
    attended_rows,
    labelled_rows,
    logits_of,
    trainer_of,
)


def learner(folder, callback, **settings):
    """A Trainer of a model that learns a task for which it needs attention, with enough examples for a certificate."""
    data = {"train_dataset": attended_rows(600, 0), "eval_dataset": attended_rows(400, 1)}
    return trainer_of(folder, callback, **(LEARNS | data | settings))


class _Trained(TrainerCallback):
    """Keeps the weights with which training ends; pass it before the callback that prunes."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with the default, and what it printed."""
    folder, written = tmp_path_factory.mktemp("default"), []
    callback, trained = HeadPruneCallback(), _Trained()
    trainer = learner(folder / "run", None, callbacks=[trained, callback])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqdm.auto.tqdm.write", written.append)
        trainer.train()
    return trainer, callback, trained, " ".join(" ".join(written).split())


@pytest.mark.slow
def test_training_goes_as_without_the_callback(tmp_path, finished):
    trainer, _, trained, _ = finished
    plain = learner(tmp_path, None)
    plain.train()
    assert trained.weights.keys() == plain.model.state_dict().keys()
    assert all(torch.equal(trained.weights[name], value) for name, value in plain.model.state_dict().items())
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (trainer, plain)]
    assert losses[0] == losses[1]


def test_the_model_is_smaller_certified_and_reloads_with_difference_zero(tmp_path, finished):
    trainer, callback, *_ = finished
    certificate = callback.certificate
    assert certificate.evidence.verdict == "PASS"
    assert (certificate.claim.max_drop, certificate.claim.alpha) == (0.01, pytest.approx(0.25))
    assert "Compared with the trained model before pruning" in callback.report.certificate
    assert linear_density(callback.plan, anatomy_of(tiny_bert())) < 0.8
    assert anatomy_of(trainer.model).num_bytes == callback.report.after.size_bytes < callback.report.before.size_bytes
    assert not any(GatePruner.module_name() in name for name in trainer.model.state_dict())
    assert_reloads_alike(trainer, tmp_path / "saved")
    assert Certificate.load(tmp_path / "saved") == certificate == Certificate.load(trainer.args.output_dir)


def test_the_result_holds_all_that_the_callback_names(finished):
    _, callback, *_ = finished
    result = callback.result
    assert (callback.plan, callback.report, callback.certificate) == (result.plan, result.report, result.certificate)
    assert callback.search_result is None
    assert result.path.certified_index is not None
    assert result.reference.num_removed_heads == result.reference.num_removed_ffn == 0
    assert result.refit is not None


def test_the_report_is_printed_and_written_and_no_spare_checkpoint_is_left(finished):
    trainer, callback, _, printed = finished
    folder = Path(trainer.args.output_dir)
    assert " ".join(callback.report.to_text().split()) in printed
    assert json.loads((folder / REPORT_NAME).read_text()) == json.loads(callback.report.to_json())
    assert not [path.name for path in folder.iterdir() if path.is_dir()]


def test_what_will_happen_is_said_before_training(finished):
    _, callback, _, printed = finished
    said, examples = printed.partition("Certificate")[0], callback.certificate.evidence.examples
    steps = LEARNS["max_steps"]
    assert (
        f"HeadPruneCallback: trains {steps} steps as without it; then prunes to the smallest of {len(DENSITIES)} plans"
        in said
    )
    assert re.search(rf"accuracy drops by less than 0\.01 on {examples} examples, about [\d.]+ minutes\.", said)
    assert f"To be certified: {examples} examples, 75 % confidence." in said


@pytest.mark.slow
def test_a_higher_confidence_prunes_no_more(tmp_path):
    densities = []
    for confidence in (0.6, 0.999):
        callback = HeadPruneCallback(max_drop=0.03, confidence=confidence, latency=None)
        learner(tmp_path, callback).train()
        assert callback.certificate is None or callback.certificate.claim.alpha == pytest.approx(1 - confidence)
        densities.append(callback.report.linear_density)
    assert densities[0] <= densities[1]


@pytest.mark.slow
def test_with_too_few_examples_the_drop_that_is_seen_decides(tmp_path):
    callback = HeadPruneCallback(latency=None)
    learner(tmp_path, callback, eval_dataset=attended_rows(40, 1)).train()
    assert callback.result.path is None
    assert callback.certificate.evidence.verdict == "INCONCLUSIVE"
    assert callback.report.unseen.before - callback.report.unseen.after <= 0.01
    assert callback.plan.num_removed_ffn > 0


def test_nothing_is_pruned_where_no_plan_passes(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.DENSITIES", (0.01,))
    trainer = learner(tmp_path, callback := HeadPruneCallback(latency=None))
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == 8
    assert callback.certificate is None
    assert "No candidate could be certified" in callback.report.certificate
    assert "so nothing was pruned" in callback.report.certificate


def test_without_a_confidence_nothing_is_certified_on_what_chose(tmp_path):
    trainer = learner(tmp_path, callback := HeadPruneCallback(max_drop=0.02, confidence=None, latency=None))
    trainer.train()
    assert callback.certificate is None
    assert callback.report.certificate == ""
    assert callback.report.metric.before - callback.report.metric.after <= 0.02 + 1e-9
    with pytest.raises(DataLeakError, match="search"):
        certify(tiny_bert(), trainer.model, trainer.eval_dataset)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"max_drop": 0.02, "confidence": 0.95}, r"confidence=0\.95\).* on 40 examples.* it takes 150"),
        ({"search": AStarSearch(), "confidence": 0.95}, r"confidence=\.\.\.\) asks for a certificate.*too few"),
    ],
    ids=["costs", "search"],
)
def test_a_confidence_that_is_asked_for_and_can_not_be_reached_is_refused_before_training(tmp_path, settings, rule):
    with pytest.raises(InvalidSettingError, match=rule):
        learner(tmp_path, HeadPruneCallback(**settings), eval_dataset=attended_rows(40, 1))


@pytest.mark.slow
@pytest.mark.parametrize("step", ["walk_down", "prune_model_", "PruningReport.of"])
def test_a_run_killed_after_training_goes_on_to_what_the_unbroken_one_gives(tmp_path, monkeypatch, step, finished):
    with monkeypatch.context() as patch:
        patch.setattr(f"hf_headprune.callback.finish.{step}", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            learner(tmp_path, HeadPruneCallback(latency=None)).train()
    steps = CountSteps()
    trainer = learner(tmp_path, callback := HeadPruneCallback(latency=None), callbacks=[steps])
    trainer.train(resume_from_checkpoint=True)
    assert steps.steps == 0
    assert callback.plan == finished[1].plan
    assert torch.equal(logits_of(trainer.model), logits_of(finished[0].model))
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_a_spare_checkpoint_that_is_half_written_is_never_resumed_from(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_compat.Trainer, "_save_rng_state", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, HeadPruneCallback(latency=None)).train()
    assert get_last_checkpoint(tmp_path) is None
    monkeypatch.undo()
    trainer = trainer_of(tmp_path, callback := HeadPruneCallback(latency=None))
    trainer.train()
    assert callback.result is not None
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def killed_before_it_is_cut(folder, **settings):
    trainer = trainer_of(folder, HeadPruneCallback(latency=None), **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_headprune.callback.finish.prune_model_", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer.model.bert.embeddings.word_embeddings.weight


@pytest.mark.slow
def test_the_spare_checkpoint_of_an_earlier_run_is_never_taken_for_that_of_this_one(tmp_path):
    killed_before_it_is_cut(tmp_path, learning_rate=1e-4)
    trained = killed_before_it_is_cut(tmp_path, learning_rate=1e-2)
    again = trainer_of(tmp_path, HeadPruneCallback(latency=None), learning_rate=1e-2)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.model.bert.embeddings.word_embeddings.weight, trained)


def test_a_checkpoint_that_another_run_has_kept_stays(tmp_path, caplog):
    trainer_of(tmp_path, None, save_strategy="steps", save_steps=12).train()
    kept = (tmp_path / "checkpoint-12" / "model.safetensors").read_bytes()
    trainer_of(tmp_path, callback := HeadPruneCallback(latency=None), learning_rate=1e-2).train()
    assert callback.result is not None
    assert (tmp_path / "checkpoint-12" / "model.safetensors").read_bytes() == kept
    assert "is of another run" in " ".join(caplog.text.split())


def test_a_disk_on_which_nothing_can_be_written_costs_no_model(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trainer_compat.Trainer, "_save_checkpoint", Mock(side_effect=OSError("No space left")))
    (tmp_path / f"{REPORT_NAME}.partial").mkdir()
    trainer = trainer_of(tmp_path, callback := HeadPruneCallback(latency=None))
    trainer.train()
    assert type(trainer.model).__name__ == "PrunableBertForSequenceClassification"
    assert callback.report is not None
    assert "the end of training could not be saved" in caplog.text
    assert "the report could not be written" in caplog.text


@pytest.mark.slow
def test_a_report_that_can_not_be_written_keeps_the_spare_checkpoint(tmp_path, caplog):
    (tmp_path / f"{REPORT_NAME}.partial").mkdir()
    trainer = trainer_of(tmp_path, callback := HeadPruneCallback(latency=None))
    trainer.train()
    assert callback.result is not None
    assert (tmp_path / "checkpoint-12" / "trainer_state.json").is_file()
    assert "The last checkpoint is kept" in " ".join(caplog.text.split())
    again = trainer_of(tmp_path, second := HeadPruneCallback(latency=None))
    again.train(resume_from_checkpoint=True)
    assert second.plan == callback.plan


@pytest.mark.parametrize("error", [CertificateError("rounding"), ZeroDivisionError("a metric of the user")])
def test_a_certificate_that_fails_costs_no_model(tmp_path, monkeypatch, error):
    monkeypatch.setattr("hf_headprune.callback.finish.certified", Mock(side_effect=error))
    trainer = trainer_of(tmp_path, callback := HeadPruneCallback(latency=None))
    trainer.train()
    assert callback.certificate is None
    assert callback.report.certificate == f"Certificate: none. {error}"
    assert_reloads_alike(trainer, tmp_path / "saved")


def models_alive():
    # By type: `isinstance` would ask deprecated objects of torch for their class, which warn.
    return sum(type(found).__name__.endswith("ForSequenceClassification") for found in gc.get_objects())


MODES = {
    "default": {},
    "seen drop": {"confidence": None},
    "A*": {"search": AStarSearch(max_drop=0.2, max_evaluations=6)},
    "reference": {"max_drop": 0.05, "reference": tiny_bert(seed=1)},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_at_most_two_copies_of_the_model_are_alive_after_training(tmp_path, monkeypatch, mode):
    alive = []
    trainer = learner(tmp_path, HeadPruneCallback(**MODES[mode]), max_steps=20)
    gc.collect()
    before = models_alive()

    def counted(model, shared):
        twin = copy.deepcopy(model, shared)
        gc.collect()
        alive.append(models_alive() - before)
        return twin

    monkeypatch.setattr("hf_headprune.masking.copy", SimpleNamespace(deepcopy=counted))
    trainer.train()
    assert 0 < max(alive) <= 2  # besides the model itself


@pytest.mark.parametrize("callback", [{}, {"search": AStarSearch()}, {"max_drop": 0.02}], ids=str)
@pytest.mark.parametrize(
    ("dataset", "rule"),
    [
        (None, "one non-empty data set with labels: there is none"),
        ([], "it is empty"),
        ({"a": labelled_rows(4, 0)}, r"it is a dict of 1 data sets.*metric_for_best_model='a_accuracy'"),
        (Stream(), "it is a Stream without a length"),
        ([{"input_ids": [5, 6], "attention_mask": [1, 1]}], r"hold \['attention_mask', 'input_ids'\], but none of"),
    ],
    ids=["none", "empty", "dict", "stream", "unlabelled"],
)
def test_data_that_nothing_can_be_measured_on_is_refused_at_construction(tmp_path, callback, dataset, rule):
    with pytest.raises(InvalidSettingError, match=f"(?s){rule}.*density=0.5"):
        trainer_of(tmp_path, HeadPruneCallback(**callback), eval_dataset=dataset)


@pytest.mark.slow
@pytest.mark.parametrize("compute_metrics", [None, accuracy_of])
def test_mixed_precision_and_accumulation_leave_the_default_working(tmp_path, compute_metrics):
    settings = {"bf16": True, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}
    trainer = learner(
        tmp_path, callback := HeadPruneCallback(latency=None), compute_metrics=compute_metrics, max_steps=20, **settings
    )
    trainer.train()
    assert callback.certificate is not None
    assert bool(torch.isfinite(trainer.model(**text_inputs()).logits).all())


@pytest.mark.slow
def test_examples_that_training_has_seen_certify_nothing(tmp_path):
    seen = attended_rows(600, 0)
    callback = HeadPruneCallback(latency=None)
    learner(tmp_path, callback, train_dataset=seen, eval_dataset=[*attended_rows(300, 1), *seen[:100]]).train()
    train = {tuple(row["input_ids"]) for row in seen}
    unseen = sum(tuple(row["input_ids"]) not in train for row in attended_rows(300, 1))
    assert callback.certificate.evidence.examples == unseen < 400
