"""The report and the card say what chose the plan, what was asked for, how the model trained on, and on which data."""

import json

import pytest
from datasets import Dataset, DatasetInfo
from huggingface_hub import ModelCard

from hf_headprune import BlockMovement, HeadPruneCallback
from hf_headprune.callback.plain_recovery import PlainRecovery
from hf_headprune.cli.files import DataSource, read_file
from hf_headprune.pipeline import plan_for_budget, plan_ladder, search_plan
from hf_headprune.publish.measurements import Recipe, name_on_hub
from hf_headprune.publish.report import PruningReport
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.tasks.batches import Batching
from tests.support.command_line import called, save_classifier, sentences, write
from tests.support.models import tiny_bert
from tests.support.trainers import GATES, labelled_rows, trainer_of

TRAIN, UNSEEN = labelled_rows(48, 0), labelled_rows(40, 1)
SOURCE = "hf://datasets/stanfordnlp/sst2@bcdcba7/data/train-00000-of-00001.parquet"


def from_hub(rows):
    return Dataset.from_list(rows, info=DatasetInfo(download_checksums={SOURCE: {"num_bytes": 1, "checksum": None}}))


def recipe_of(result):
    report = PruningReport.from_json(result.report.to_json())
    assert report.recipe == result.report.recipe
    return report.recipe


def test_a_size_is_said_with_the_recovery_and_the_data():
    recover = PlainRecovery(TRAIN, Batching(), epochs=0.5, learning_rate=1e-4)
    result = plan_for_budget(tiny_bert(), from_hub(TRAIN), density=0.8, uniform=True, recover=recover)
    found = recipe_of(result)
    assert "second-order removal costs" in found.method
    assert found.budget == "density=0.8, uniform=True"
    assert found.recovery == "trained on for 0.5 epochs"
    assert found.dataset == "stanfordnlp/sst2"
    text = result.card(tiny_bert())
    for line in result.report.how():
        assert f"- {line}\n" in text
    assert ModelCard(text).data.datasets == ["stanfordnlp/sst2"]


def test_a_drop_is_said_with_what_decided():
    found = recipe_of(search_plan(tiny_bert(), UNSEEN, calibration=TRAIN, max_drop=0.2))
    assert (found.budget, found.recovery, found.dataset) == ("max_drop=0.2", "none", "")
    assert "the largest first" in found.method
    found = recipe_of(search_plan(tiny_bert(), UNSEEN, search=AStarSearch(max_drop=0.2, max_evaluations=3)))
    assert found.method == "A* search over heads and FFN units"


@pytest.mark.slow
def test_that_a_model_was_pruned_earlier_is_said_wherever_it_is_pruned_again(tmp_path):
    def cut():
        return prune_model_(tiny_bert(), plan_for_budget(tiny_bert(), TRAIN, kept_heads=4))

    callback = HeadPruneCallback(density=0.5, latency=None)
    trainer_of(tmp_path, callback, model=cut()).train()
    results = [
        plan_for_budget(cut(), TRAIN, density=0.5),
        search_plan(cut(), UNSEEN, calibration=TRAIN, max_drop=0.2),
        plan_ladder(cut(), TRAIN, (0.5,)).rungs[0],
        callback.result,
    ]
    for result in results:
        assert "pruned earlier: of the dense one it has 4 of 8 heads, 128 of 128 FFN units" in recipe_of(result).earlier
        assert result.report.how()[0].startswith("Before: the model was pruned earlier")
    assert recipe_of(plan_for_budget(tiny_bert(), TRAIN, density=0.5)).earlier == ""


def test_each_rung_of_a_ladder_says_its_own_density():
    ladder = plan_ladder(tiny_bert(), TRAIN, (0.7, 0.4))
    assert [rung.report.recipe.budget for rung in ladder.rungs] == ["density=0.7", "density=0.4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"kept_heads": 5}, ("removal costs", "kept_heads=5", "none")),
        ({"gates": GATES}, ("gates of heads were learned", "", "none")),
        ({"movement": BlockMovement.hybrid()}, ("blocks of weights were chosen", "", "none")),
        ({"density": 0.5, "recover_epochs": 0.5}, ("removal costs", "density=0.5", "trained on for 0.5 epochs")),
        ({}, ("the largest first", "max_drop=0.01", "none")),
    ],
    ids=["costs", "gates", "movement", "recovery", "default"],
)
def test_a_training_says_what_it_did(tmp_path, arguments, expected):
    callback = HeadPruneCallback(**arguments)
    trainer = trainer_of(tmp_path, callback, eval_dataset=from_hub(UNSEEN))
    trainer.train()
    found = recipe_of(callback.result)
    assert expected[0] in found.method
    assert (found.budget, found.recovery) == expected[1:]
    assert found.dataset == "stanfordnlp/sst2"
    trainer.save_model()
    assert f"- Method: {found.method}.\n" in (tmp_path / "README.md").read_text()


def test_a_data_set_of_the_hub_is_known_also_where_another_holds_it():
    class Holder:
        dataset = from_hub(TRAIN)

    assert name_on_hub(None, TRAIN, Holder()) == "stanfordnlp/sst2"
    assert name_on_hub(from_hub(TRAIN).map(lambda row: row)) == "stanfordnlp/sst2"
    assert name_on_hub(Dataset.from_list(TRAIN), None) == ""


@pytest.mark.parametrize(("name", "data"), [("owner/reviews", ["owner/reviews"]), ("./reviews", None)])
def test_the_command_writes_the_data_set_into_card_and_report(capsys, tmp_path, monkeypatch, name, data):
    save_classifier(tmp_path / "dense")
    rows = {split: write(tmp_path / f"{split}.csv", sentences(60, seed=size)) for size, split in ((1, "train"),)}
    monkeypatch.setattr(DataSource, "read", lambda self: {split: read_file(file) for split, file in rows.items()})
    words = ("prune", tmp_path / "dense", tmp_path / "out", "--dataset", name, "--kept-heads", 5, "--json")
    said = called(capsys, *words)
    assert said.code == 0, said.err
    assert json.loads(said.out)["report"]["recipe"]["dataset"] == (data[0] if data else "")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.datasets == data


def test_a_report_that_was_written_before_says_nothing_of_it():
    report = plan_for_budget(tiny_bert(), TRAIN, density=0.5).report
    content = json.loads(report.to_json())
    del content["recipe"]
    for cost in ("before", "after"):
        del content[cost]["embedding_parameters"], content[cost]["embedding_bytes"]
    old = PruningReport.from_json(json.dumps(content))
    assert (old.recipe, old.how()) == (Recipe(), [])
    assert "embeddings" not in old.to_text()
