"""Whose number decides after training: the user's, by compute_metrics or evaluate, comes before the library's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Trainer

from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import HeadPruneCallback, search_metric
from hf_headprune.callback.metric_choice import metric_of
from hf_headprune.callback.search_metric import metric_source
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.settings import AStarSearch
from tests.support.models import tiny_bert
from tests.support.rows import questions, tagged
from tests.support.searches import settings as search_settings
from tests.support.trainers import GATES, LEARNS, Stream, accuracy_of, attended_rows, labelled_rows, trainer_of

SHORT = {"max_evaluations": 3, "max_drop": 0.2}


def percent_accuracy(prediction):
    return {"accuracy": 100 * accuracy_of(prediction)["accuracy"]}


def right_sentences(prediction):
    """An accuracy of another meaning than the library's: sentences in which every token is right."""
    right = (prediction.predictions.argmax(-1) == prediction.label_ids) | (prediction.label_ids == -100)
    return {"accuracy": float(right.all(1).mean())}


@pytest.mark.slow
def test_a_number_that_equals_ours_changes_nothing(tmp_path):
    data = {"train_dataset": attended_rows(600, 0), "eval_dataset": attended_rows(300, 1)} | LEARNS
    plans = []
    for compute_metrics in (None, accuracy_of):
        callback = HeadPruneCallback(max_drop=0.03, latency=None)
        trainer_of(tmp_path, callback, compute_metrics=compute_metrics, **data).train()
        assert callback.certificate.claim.metric == "accuracy"
        plans.append(callback.plan)
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("parts", "times"), [({}, 0), ({"confidence": None}, 0), ({"search": AStarSearch(**SHORT)}, 1)]
)
def test_training_examples_are_read_again_only_for_a_search(tmp_path, monkeypatch, parts, times):
    calls, read = [], search_metric._calibration
    monkeypatch.setattr(search_metric, "_calibration", lambda *given: calls.append(1) or read(*given))
    trainer_of(tmp_path, HeadPruneCallback(**parts, latency=None), compute_metrics=accuracy_of).train()
    assert len(calls) == times


@pytest.mark.parametrize("parts", [{"max_drop": 1.0}, {"search": AStarSearch(max_drop=1.0, max_evaluations=3)}])
def test_a_metric_in_percent_decides_in_its_own_numbers(tmp_path, caplog, parts):
    trainer = trainer_of(
        tmp_path, callback := HeadPruneCallback(**parts, latency=None), compute_metrics=percent_accuracy
    )
    trainer.train()
    warned = " ".join(caplog.text.split())
    assert "does not run from 0 to 1. max_drop=1 is absolute: a drop from" in warned
    assert "For one percentage point of a metric from 0 to 100 pass max_drop=1.0" in warned
    assert "the Trainer's number decides" in warned
    metric = callback.report.metric
    assert metric.after == pytest.approx(trainer.evaluate()["eval_accuracy"])
    assert metric.before - metric.after <= 1.0 + 1e-6
    assert metric.before > 1.5
    assert callback.certificate is None
    assert "Trainer's evaluation returns" in callback.report.certificate


@pytest.mark.parametrize(
    "parts", [{"max_drop": 0.02}, {"search": AStarSearch(**SHORT, metric="accuracy")}, {}], ids=str
)
def test_a_number_of_another_meaning_decides_under_the_same_name(tmp_path, parts):
    data = {"train_dataset": tagged(64, 0), "eval_dataset": tagged(240, 1)}
    callback = HeadPruneCallback(**parts, latency=None)
    named = {} if parts else {"metric_for_best_model": "accuracy"}
    model = tiny_bert("TokenClassification")
    trainer = trainer_of(tmp_path, callback, model=model, compute_metrics=right_sentences, **data, **named)
    trainer.train()
    assert callback.report.metric.name == "accuracy"
    assert callback.report.metric.after == pytest.approx(trainer.evaluate()["eval_accuracy"])
    assert callback.report.metric.num_examples == 240
    assert callback.certificate is None


@pytest.mark.parametrize("parts", [{"max_drop": 0.5}, {"search": AStarSearch(max_drop=0.5, max_evaluations=3)}])
def test_a_confidence_refuses_a_metric_in_percent_before_training(tmp_path, parts):
    callback = HeadPruneCallback(**parts, confidence=0.6, latency=None)
    data = {"train_dataset": attended_rows(64, 0), "eval_dataset": attended_rows(1200, 1)}
    trainer = trainer_of(tmp_path, callback, compute_metrics=percent_accuracy, **data)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(InvalidSettingError, match="would mean two things"):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("parts", [{"max_drop": 0.2}, {"search": AStarSearch(**SHORT, metric="accuracy")}], ids=str)
def test_with_a_confidence_nothing_is_pruned_by_a_number_that_is_not_certified(tmp_path, parts):
    data = {"train_dataset": tagged(64, 0), "eval_dataset": tagged(240, 1)}
    callback = HeadPruneCallback(**parts, confidence=0.6, latency=None)
    model = tiny_bert("TokenClassification")
    trainer_of(tmp_path, callback, model=model, compute_metrics=right_sentences, **data).train()
    assert callback.plan == PruningPlan.full(anatomy_of(tiny_bert("TokenClassification")))
    assert callback.certificate is None
    assert "Nothing was pruned, since confidence=... prunes only what is certified" in callback.report.certificate


class Answers(Trainer):
    """Its evaluation makes answers of the outputs, as examples of question answering do."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        loader = self.get_eval_dataloader(eval_dataset)
        starts = self.evaluation_loop(loader, "Evaluation", prediction_loss_only=False).predictions[0].argmax(1)
        metrics = {"eval_f1": 90 + float(np.mean(1 / (1 + starts)))}
        self.log(metrics)
        return metrics


def without_positions(rows):
    return [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]


@pytest.mark.parametrize("parts", [{}, {"search": AStarSearch(metric="f1", **SHORT)}], ids=str)
@pytest.mark.parametrize("is_labelled", [True, False])
def test_answers_that_evaluate_makes_decide_with_and_without_labels(tmp_path, parts, is_labelled):
    rows = questions(24, 1) if is_labelled else without_positions(questions(24, 1))
    model = tiny_bert("QuestionAnswering")
    callback = HeadPruneCallback(**parts, latency=None)
    trainer = trainer_of(
        tmp_path, callback, model=model, trainer_class=Answers, train_dataset=questions(64, 0), eval_dataset=rows
    )
    trainer.train()
    assert callback.report.metric.name == "f1"
    assert callback.report.metric.after == pytest.approx(trainer.evaluate()["eval_f1"])
    assert callback.certificate is None


@pytest.mark.slow
def test_a_metric_that_is_no_number_leaves_the_decision_to_the_scores_of_examples(tmp_path, caplog):
    data = {"train_dataset": attended_rows(600, 0), "eval_dataset": attended_rows(300, 1)} | LEARNS
    callback = HeadPruneCallback(max_drop=0.1, latency=None)
    trainer_of(tmp_path, callback, compute_metrics=lambda _: {"accuracy": float("nan")}, **data).train()
    assert "returns nan as accuracy. If it does so after training, too, the examples scored one by one" in caplog.text
    assert callback.certificate.verdict == "PASS"
    assert callback.report.unseen.after > 0.8


def test_a_metric_of_ours_that_compute_metrics_lacks_is_ours(tmp_path):
    callback = HeadPruneCallback(search=AStarSearch(metric="macro_f1", **SHORT), latency=None)
    trainer_of(tmp_path, callback, compute_metrics=accuracy_of).train()
    assert callback.report.metric.name == "macro_f1"


@pytest.mark.slow
def test_the_metric_of_one_of_several_data_sets_can_decide(tmp_path):
    sets = {"easy": labelled_rows(24, 1), "hard": labelled_rows(16, 2)}
    settings = {"eval_dataset": sets, "metric_for_best_model": "hard_accuracy", "compute_metrics": accuracy_of}
    trainer = trainer_of(tmp_path, callback := HeadPruneCallback(latency=None), **settings)
    trainer.train()
    metric = callback.report.metric
    assert (metric.name, metric.num_examples) == ("hard_accuracy", 16)
    assert metric.after == pytest.approx(trainer.evaluate()["eval_hard_accuracy"])
    assert "Certificate: none" in callback.report.certificate


def test_a_stream_can_be_evaluated_on_where_evaluate_returns_the_metric(tmp_path):
    own = {"metric_for_best_model": "mine", "compute_metrics": lambda given: {"mine": accuracy_of(given)["accuracy"]}}
    trainer = trainer_of(tmp_path, callback := HeadPruneCallback(latency=None), eval_dataset=Stream(), **own)
    trainer.train()
    assert (callback.report.metric.name, callback.report.metric.num_examples) == ("mine", 4)


def test_a_metric_that_no_evaluation_returns_is_refused_before_the_first_step(tmp_path):
    callback = HeadPruneCallback(search=AStarSearch(metric="unheard_of"))
    trainer = trainer_of(tmp_path, callback, compute_metrics=accuracy_of)
    with pytest.raises(InvalidSettingError, match=r"unheard_of.*eval_accuracy"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(("named", "in_search"), [("errors", "errors"), ("eval_errors", None)])
def test_the_trainer_says_whether_a_metric_is_better_when_lower(tmp_path, named, in_search):
    trainer = trainer_of(tmp_path, None, metric_for_best_model=named, greater_is_better=False)
    assert metric_source(trainer, AStarSearch(metric=in_search)).sign == -1.0
    assert metric_source(trainer, AStarSearch(metric="terms")).sign == 1.0
    assert metric_source(trainer, search_settings(metric=in_search, greater_is_better=True)).sign == 1.0


@pytest.mark.parametrize("settings", [{}, {"metric_for_best_model": "eval_mean_error", "greater_is_better": True}])
def test_a_metric_called_like_an_error_is_not_taken_for_a_score(tmp_path, settings):
    callback = HeadPruneCallback(search=AStarSearch(metric="mean_error", max_evaluations=2))
    trainer = trainer_of(tmp_path, callback, compute_metrics=lambda _: {"mean_error": 0.5}, **settings)
    with pytest.raises(InvalidSettingError, match="better when it is lower"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_any_number_of_an_evaluation_can_be_followed_and_leaves_no_trace_in_the_log(tmp_path):
    search = AStarSearch(metric="shifted", max_drop=0.5, max_evaluations=4)
    callback = HeadPruneCallback(gates=GATES, search=search, latency=None)
    trainer = trainer_of(
        tmp_path, callback, compute_metrics=lambda prediction: {"shifted": 5 + accuracy_of(prediction)["accuracy"]}
    )
    trainer.train()
    assert 5.0 <= callback.report.metric.after <= 6.0
    assert not [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def test_the_first_metric_of_the_task_is_taken_where_none_is_named(tmp_path):
    models = {
        "accuracy": tiny_bert(),
        "closeness": tiny_bert(num_labels=1),
        "f1": tiny_bert("QuestionAnswering"),
        "loss": tiny_bert("MaskedLM"),
    }
    for name, model in models.items():
        rows = questions(4, 0) if name == "f1" else labelled_rows(4, 0)
        trainer = trainer_of(tmp_path, None, model=model, eval_dataset=rows)
        assert metric_of(trainer, None) == (name, name != "loss")
        trainer.args.metric_for_best_model = "eval_other"
        assert metric_of(trainer, None) == ("other", False)
        assert metric_of(trainer, "eval_loss").name == "loss"


@pytest.mark.slow
def test_without_a_drop_a_point_of_a_metric_in_percent_is_a_point(tmp_path, caplog):
    data = {"train_dataset": attended_rows(600, 0), "eval_dataset": attended_rows(300, 1)} | LEARNS
    plans = []
    for compute_metrics in (accuracy_of, percent_accuracy):
        trainer = trainer_of(
            tmp_path, callback := HeadPruneCallback(latency=None), compute_metrics=compute_metrics, **data
        )
        trainer.train()
        assert callback.certificate.verdict == "PASS"
        assert callback.certificate.claim.max_drop == 0.01
        plans.append(callback.plan)
    assert plans[0] == plans[1]
    assert caplog.text.count("accuracy runs from 0 to 100. A drop of 1.0, a point, is allowed") == 1


@pytest.mark.slow
def test_a_point_of_another_number_in_percent_is_one_of_that_number(tmp_path, caplog):
    def wrong_percent(prediction):
        return {"accuracy": 50.0 + percent_accuracy(prediction)["accuracy"] / 2}

    data = {"train_dataset": attended_rows(600, 0), "eval_dataset": attended_rows(300, 1)} | LEARNS
    trainer = trainer_of(
        tmp_path, callback := HeadPruneCallback(latency=None), compute_metrics=wrong_percent, **data | {"max_steps": 1}
    )
    trainer.train()
    assert callback.certificate is None
    assert "A drop of 1 of that number is allowed" in caplog.text
    assert callback.report.metric.before - callback.report.metric.after <= 1.0 + 1e-9
