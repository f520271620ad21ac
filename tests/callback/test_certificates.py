"""What a run certifies: against which model, on which examples, and what the report says where nothing can be."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback

from hf_headprune import PruningPlan, anatomy_of, verify_certificate
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.callback.certification import Certification, splits_of
from hf_headprune.callback.settings import Settings
from hf_headprune.callback.trainer_compat import eval_loader
from hf_headprune.errors import DataLeakError, InvalidSettingError, UnsupportedModelError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.splits import SplitSettings, three_way_split
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.pipeline.search import search_plan
from hf_headprune.refit.plans_between import plans_between
from hf_headprune.search.settings import AStarSearch
from tests.support.models import tiny_bert
from tests.support.settings import gates, movement
from tests.support.trainers import GATES, LEARNS, attended_rows, labelled_rows, trainer_of

WIDE = {"max_drop": 0.2, "max_evaluations": 12}
SIX_HEADS = gates(kept_heads=6, scoring_examples=8)
FILLED = movement(attention_block=(8, 8), density=0.6, refill_ratio=0.5, width_multiple=8)


NOTHING_PASSES = SimpleNamespace(certified_index=None, dense_metric=1.0, steps=())  # of a path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A model that was fine-tuned without pruning, for others to be compared with."""
    trainer = learner(tmp_path_factory.mktemp("dense"), None)
    trainer.train()
    return trainer.model.eval()


def learner(folder, callback, *, count=300, **settings):
    data = {"train_dataset": attended_rows(600, 0), "eval_dataset": attended_rows(count, 1)}
    return trainer_of(folder, callback, **(LEARNS | data | settings))


def certifying(folder, callback, *, count=400, **settings):
    """A Trainer that learns little: what its model answers hardly depends on what is pruned."""
    return trainer_of(folder, callback, eval_dataset=labelled_rows(count, 1), max_steps=40, **settings)


METHODS = {"density": {"density": 0.6}, "gates": {"gates": GATES}, "refilled": {"movement": FILLED}}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_reference_certifies_what_training_chose_and_is_named(tmp_path, dense, method):
    callback = HeadPruneCallback(**METHODS[method], reference=dense, confidence=0.9, latency=None)
    trainer = learner(tmp_path / "run", callback)
    trainer.train()
    certificate = callback.certificate
    assert certificate.reference == "the model passed as reference"
    assert "Compared with the model passed as reference" in callback.report.certificate
    assert (certificate.claim.alpha, certificate.claim.num_candidates) == (pytest.approx(0.1), 1)
    trainer.save_model(tmp_path / "saved")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    rows = [trainer.eval_dataset[i] for i in unseen(trainer)]
    assert verify_certificate(tmp_path / "saved", reloaded, rows, dense=dense).holds


def unseen(trainer):
    """Places of the evaluation examples that are not in the training set."""
    train = {tuple(row["input_ids"]) for row in trainer.train_dataset}
    return [i for i, row in enumerate(trainer.eval_dataset) if tuple(row["input_ids"]) not in train]


@pytest.mark.slow
def test_the_teacher_is_the_reference_where_training_prunes(tmp_path, dense):
    callback = HeadPruneCallback(density=0.6, distillation=Distillation(dense), latency=None)
    learner(tmp_path, callback).train()
    assert callback.certificate.reference == "the teacher"
    assert "Compared with the teacher" in callback.report.certificate


@pytest.mark.slow
def test_the_default_compares_with_the_trained_model_beside_a_teacher(tmp_path, dense):
    callback = HeadPruneCallback(max_drop=0.1, distillation=Distillation(dense), latency=None)
    learner(tmp_path, callback).train()
    assert callback.certificate.reference == "the trained model before pruning"
    assert callback.certificate.path is not None


@pytest.mark.slow
def test_a_reference_beside_a_drop_pays_for_the_choice_among_the_plans(tmp_path, dense):
    callback = HeadPruneCallback(max_drop=0.1, reference=dense, latency=None)
    learner(tmp_path, callback).train()
    assert callback.result.path.certified_index is not None
    assert callback.certificate.path is None
    assert callback.certificate.claim.num_candidates == callback.result.path.planned + 1
    assert "Compared with the model passed as reference" in callback.report.certificate


def test_a_method_alone_certifies_nothing_and_says_how_it_could(tmp_path, capsys):
    callback = HeadPruneCallback(gates=GATES, latency=None)
    trainer_of(tmp_path, callback).train()
    said = "Certificate: none, since training and pruning are one run, so there is no model before pruning"
    assert said in " ".join(capsys.readouterr().out.split())
    assert callback.report.certificate.startswith(said)
    with pytest.raises(InvalidSettingError, match=r"Pass HeadPruneCallback\(reference=...\)"):
        trainer_of(tmp_path, HeadPruneCallback(gates=GATES, certification_dataset=labelled_rows(24, 5)))


@pytest.mark.parametrize(
    ("settings", "error", "rule"),
    [
        ({"reference": tiny_bert(num_labels=5)}, UnsupportedModelError, "logits of shape"),
        ({"reference": tiny_bert(), "rows": [{"input_ids": [5, 6]}] * 3}, InvalidSettingError, "label"),
    ],
    ids=["other classes", "unlabelled"],
)
def test_a_reference_that_can_not_be_compared_with_is_refused_before_training(tmp_path, settings, error, rule):
    rows = settings.pop("rows", labelled_rows(24, 1))
    with pytest.raises(error, match=rule):
        trainer_of(tmp_path, HeadPruneCallback(density=0.5, **settings), eval_dataset=rows)


def test_a_search_leaves_half_of_the_examples_to_the_certificate(tmp_path, capsys):
    callback = HeadPruneCallback(gates=SIX_HEADS, search=AStarSearch(**WIDE), latency=None)
    trainer = certifying(tmp_path / "run", callback)
    trainer.train()
    certificate, printed = callback.certificate, " ".join(capsys.readouterr().out.split())
    assert certificate.evidence.verdict == "PASS"
    assert {record.name for record in certificate.disjointness} == {"train", "search"}
    assert callback.plan.num_kept_heads <= 6
    assert "To be certified: 200 examples, 75 % confidence" in printed
    assert " ".join(certificate.statement.split()) in printed
    assert (callback.report.metric.num_examples, callback.report.unseen.num_examples) == (200, 200)
    assert callback.search_result.threshold == pytest.approx(callback.search_result.reference_metric - 0.1)
    trainer.save_model(tmp_path / "saved")
    assert Certificate.load(tmp_path / "saved") == certificate == Certificate.load(tmp_path / "run")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    report = verify_certificate(tmp_path / "saved", reloaded, labelled_rows(400, 1))
    assert not report.holds  # the whole of eval_dataset is not the certification split
    split = three_way_split(labelled_rows(400, 1), trainer.train_dataset, SplitSettings(seed=42, on_leak="drop"))
    assert verify_certificate(tmp_path / "saved", reloaded, split.certify).holds


def test_windows_of_one_example_stay_on_one_side_and_count_once(tmp_path, capsys):
    rows = [{**row, "example_id": f"number {i // 2}"} for i, row in enumerate(labelled_rows(400, 1))]
    callback = HeadPruneCallback(gates=SIX_HEADS, search=AStarSearch(**WIDE), latency=None)
    trainer = trainer_of(tmp_path / "run", callback, eval_dataset=rows, max_steps=40)
    trainer.train()
    printed = " ".join(capsys.readouterr().out.split())
    assert "To be certified: the drop of accuracy on 100 groups of examples" in printed
    certificate = callback.certificate
    assert certificate.claim.kind == "bounded"
    assert certificate.examples.scores("bounded").groups.tolist().count(0) == 2
    split = three_way_split(rows, trainer.train_dataset, SplitSettings(seed=42, on_leak="drop"))
    assert verify_certificate(certificate, trainer.model, split.certify).holds


def test_below_200_examples_a_search_sees_all_and_the_report_says_why(tmp_path):
    callback = HeadPruneCallback(search=AStarSearch(max_evaluations=4), latency=None)
    trainer_of(tmp_path, callback, eval_dataset=labelled_rows(190, 1)).train()
    assert callback.certificate is None
    assert "too few to hold some back (at least 200)" in callback.report.certificate
    assert callback.report.metric.num_examples == 190


def test_the_examples_are_read_once_to_be_split(tmp_path, monkeypatch):
    read, of = [], ExampleFingerprints.of

    def counted(_, dataset, **options):
        if not isinstance(dataset, ExampleFingerprints):
            read.append(len(dataset))
        return of(dataset, **options)

    monkeypatch.setattr(ExampleFingerprints, "of", classmethod(counted))
    certifying(tmp_path, HeadPruneCallback(search=AStarSearch(**WIDE)))
    assert sorted(read) == [64, 200, 200, 400]  # the training set, both halves, and the evaluation set


EVALUATED = {"eval_strategy": "steps", "eval_steps": 20, "save_strategy": "steps", "save_steps": 20}
BEST = EVALUATED | {"load_best_model_at_end": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "callbacks", "has_own_split", "is_said"),
    [
        (BEST, (), False, True),
        (EVALUATED | {"metric_for_best_model": "loss"}, (EarlyStoppingCallback(9),), False, True),
        (EVALUATED | {"lr_scheduler_type": "reduce_lr_on_plateau"}, (), False, True),
        (BEST, (), True, False),
        (EVALUATED, (), False, False),
    ],
    ids=["best model", "early stopping", "plateau", "own examples", "evaluated alone"],
)
def test_that_evaluations_steered_training_is_said_before_and_after(
    tmp_path, capsys, settings, callbacks, has_own_split, is_said
):
    own = {"certification_dataset": labelled_rows(200, 5)} if has_own_split else {}
    callback = HeadPruneCallback(max_drop=0.2, **own, latency=None)
    trainer = certifying(tmp_path, callback, **settings)
    for other in callbacks:
        trainer.add_callback(other)  # after the Trainer was built, as one may
    trainer.train()
    printed = " ".join(capsys.readouterr().out.split())
    assert callback.certificate.steered_training == is_said
    assert ("certification_dataset=...) keeps examples out of it" in printed) == is_said
    assert ("by these examples too" in callback.report.certificate) == is_said


def test_weights_that_train_on_lose_their_certificate(tmp_path, caplog):
    trainer = certifying(tmp_path / "run", callback := HeadPruneCallback(max_drop=0.2, latency=None))
    trainer.train()
    assert callback.certificate is not None
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "headprune_certificate.json").exists()
    with torch.no_grad():
        trainer.model.classifier.bias += 1.0
    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved" / "headprune_certificate.json").exists()
    assert "weights are not those that were certified" in caplog.text


@pytest.mark.parametrize("decides", [True, False])
def test_what_loses_too_much_on_the_searched_half_is_no_candidate(tmp_path, monkeypatch, decides):
    search = AStarSearch(**(WIDE if decides else WIDE | {"max_drop": 0.005}))
    callback = HeadPruneCallback(gates=SIX_HEADS, search=AStarSearch(**WIDE), latency=None)
    trainer = certifying(tmp_path, callback)
    trainer.train()
    result, tried = callback.search_result, []
    between = plans_between(result.start, result.plan, result.refit, None)
    assert len(between) > 1
    monkeypatch.setattr("hf_headprune.pipeline.holdout.CANDIDATES", len(between))
    monkeypatch.setattr("hf_headprune.pipeline.holdout.MEASURED", len(between))
    found = {
        "certify_path": NOTHING_PASSES,
        "furthest_within": (None, ()),
    }
    for name, outcome in found.items():
        monkeypatch.setattr(
            f"hf_headprune.pipeline.holdout.{name}",
            lambda _, plans, *__, outcome=outcome, **___: tried.extend(plan.plan for plan in plans) or outcome,
        )
    fresh = certifying(tmp_path, None)
    settings = Settings.of(None, {}, search=search, confidence="auto", latency=None)
    holdout = splits_of(fresh, settings, Certification()).holdout
    assert holdout.is_condition == decides
    missing = between[0]

    def measure(plan):
        assert plan != result.plan  # the search has measured it
        return result.threshold - (0.01 if plan == missing else 1e-12)  # equal, but for rounding

    chosen = holdout.choose(tiny_bert(), result.start, result, None, measure)
    assert tried == between[1:]
    assert chosen.plan == result.start
    assert chosen.num_candidates == len(between) - 1
    assert "so nothing more was pruned than training chose" in holdout.nothing_certified(chosen)


def test_what_training_kept_is_pruned_where_the_holdout_supports_nothing_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_headprune.pipeline.holdout.certify_path",
        Mock(return_value=NOTHING_PASSES),
    )
    callback = HeadPruneCallback(gates=SIX_HEADS, search=AStarSearch(**WIDE), latency=None)
    trainer = certifying(tmp_path, callback)
    trainer.train()
    assert callback.search_result.plan != callback.result.reference == callback.plan
    assert anatomy_of(trainer.model).num_heads == 6
    assert callback.certificate is None
    assert callback.report.metric.before == callback.report.metric.after


def test_nothing_is_certified_on_what_an_earlier_search_of_the_model_has_seen(tmp_path):
    model, search = tiny_bert(), AStarSearch(max_drop=0.2, max_evaluations=4)
    search_plan(model, labelled_rows(400, 1), search=search, progress=False)
    for parts in ({"max_drop": 0.2}, {"search": search}):
        callback = HeadPruneCallback(**parts, latency=None)
        certifying(tmp_path, callback, model=model, per_device_train_batch_size=2)
        assert "an earlier search of this model has seen" in callback._splits.holdout.in_words()
    with pytest.raises(DataLeakError, match="search"):
        certifying(tmp_path, HeadPruneCallback(certification_dataset=labelled_rows(400, 1)), model=model)


def test_examples_of_its_own_leave_all_of_the_evaluation_set_to_the_search(tmp_path):
    own = labelled_rows(120, 5)
    callback = HeadPruneCallback(search=AStarSearch(**WIDE), certification_dataset=own, latency=None)
    trainer_of(tmp_path, callback, max_steps=40).train()
    assert callback.report.metric.num_examples == 24
    assert callback.certificate.evidence.examples == 120
    assert {record.name for record in callback.certificate.disjointness} == {"train", "search"}


@pytest.mark.parametrize(
    ("parts", "seen", "rule"),
    [
        ({}, 0, "train"),
        ({"search": AStarSearch()}, 0, "train"),
        ({"search": AStarSearch()}, 1, "search"),
    ],
    ids=["trained on", "trained on, searched", "searched"],
)
def test_examples_that_were_seen_are_refused_for_the_certificate(tmp_path, parts, seen, rule):
    with pytest.raises(DataLeakError, match=rule):
        trainer_of(tmp_path, HeadPruneCallback(**parts, certification_dataset=labelled_rows(24, seen)))


def test_examples_for_a_certificate_that_is_not_made_are_refused(tmp_path):
    callback = HeadPruneCallback(confidence=None, certification_dataset=labelled_rows(24, 5))
    with pytest.raises(InvalidSettingError, match="certification_dataset"):
        trainer_of(tmp_path, callback)


@pytest.mark.slow
def test_a_run_without_a_certificate_leaves_none_of_an_earlier_one(tmp_path):
    for callback, is_there in (
        (HeadPruneCallback(max_drop=0.1, latency=None), True),
        (HeadPruneCallback(density=0.5), False),
    ):
        learner(tmp_path, callback).train()
        assert (callback.certificate is not None) == is_there
        assert (tmp_path / "headprune_certificate.json").exists() == is_there


def test_a_teacher_is_refused_before_it_is_run(tmp_path):
    teacher = tiny_bert(vocab_size=50)  # which knows no id from 50 on
    callback = HeadPruneCallback(density=0.5, distillation=Distillation(teacher))
    with pytest.raises(InvalidSettingError, match="the teacher's vocabulary size is 50, the student's"):
        trainer_of(tmp_path, callback, eval_dataset=labelled_rows(24, 1))


def test_where_all_examples_were_trained_on_the_reason_says_so(tmp_path):
    rows = labelled_rows(60, 0)
    trainer = trainer_of(tmp_path, callback := HeadPruneCallback(latency=None), train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert "all examples of eval_dataset are in train_dataset, too" in callback.report.certificate


class Redrawn(list):
    """Rows of which a random transform makes others each time they are read."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {**row, "input_ids": [*row["input_ids"][:-1], int(torch.randint(5, 50, ()))]}


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
def test_examples_of_a_random_transform_are_compared_with_none(tmp_path, which):
    callback = HeadPruneCallback(latency=None)
    trainer_of(
        tmp_path, callback, **{"eval_dataset": labelled_rows(240, 1), which: Redrawn(labelled_rows(240, 2))}
    ).train()
    if which == "eval_dataset":
        assert "examples of eval_dataset differ each time they are read" in callback.report.certificate
    else:
        assert all(record.name != "train" for record in callback.certificate.disjointness)


def test_examples_that_can_not_be_compared_with_the_training_set_certify_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ExampleFingerprints, "compared_with", lambda *_: ())
    callback = HeadPruneCallback(latency=None)
    trainer_of(tmp_path, callback, eval_dataset=labelled_rows(240, 1)).train()
    assert "can't be compared with those of train_dataset" in callback.report.certificate


def test_the_plan_that_is_certified_is_the_one_that_is_pruned(tmp_path):
    trainer = learner(tmp_path, callback := HeadPruneCallback(max_drop=0.1, latency=None))
    trainer.train()
    path = callback.certificate.path
    own = path.steps[path.own_index]
    assert f"{callback.plan.num_removed_heads} heads and {callback.plan.num_removed_ffn} FFN units" in own.name
    assert (own.regressions, own.improvements) == (
        callback.certificate.evidence.regressions,
        callback.certificate.evidence.improvements,
    )
    assert PruningPlan.of(trainer.model).num_kept_heads == callback.plan.num_kept_heads


def test_a_loader_that_the_trainer_keeps_is_not_read_in_the_place_of_the_searched_half(tmp_path):
    search = AStarSearch(max_drop=0.05, max_evaluations=3)
    trainer = certifying(
        tmp_path,
        HeadPruneCallback(search=search, latency=None),
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
    )
    assert len(trainer.get_eval_dataloader().dataset) == 400  # kept by the Trainer from now on
    searched = list(range(3))
    assert eval_loader(trainer, searched).dataset == searched
    assert trainer.args.dataloader_persistent_workers


@pytest.mark.parametrize("reference", [None, "dense"])
def test_a_confidence_is_a_condition_with_a_reference_too(tmp_path, dense, reference):
    callback = HeadPruneCallback(confidence=0.95, latency=None, reference=reference and dense)
    with pytest.raises(InvalidSettingError, match=r"confidence=0\.95"):
        certifying(tmp_path, callback, count=40)
