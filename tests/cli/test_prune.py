"""`headprune prune`, from files to a saved folder, for every kind of input; and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, OPTConfig, OPTForSequenceClassification

from hf_headprune.anatomy import anatomy_of
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.records import record_of
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.latency import LatencyChange, LatencySample, LatencySettings
from hf_headprune.pipeline import speed
from hf_headprune.plan import PruningPlan
from tests.support.command_line import (
    WORDS,
    called,
    in_columns,
    labelled,
    questions,
    save_classifier,
    save_model,
    scored,
    sentences,
    tagged,
    tokenizer_of_words,
    write,
)
from tests.support.models import tiny_bart, tiny_bert, tiny_bert_decoder

SEVERAL = {"labels": ("good", "about a film", "long"), "problem_type": "multi_label_classification"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folder of a model that tells good from bad, with files of sentences beside it."""
    folder = tmp_path_factory.mktemp("classifier")
    save_classifier(folder / "model")
    for name, size in (("train", 160), ("dev", 220), ("test", 120)):
        write(folder / f"{name}.csv", sentences(size, seed=size))
    write(folder / "few.csv", sentences(60, seed=7))
    return folder


def pairs(size, *, seed):
    rows = sentences(size, seed=seed)
    return [
        {"premise": a["sentence"], "hypothesis": b["sentence"], "label": i % 3}
        for i, (a, b) in enumerate(zip(rows, rows[1:] + rows[:1], strict=True))
    ]


KINDS = {
    "classes": (lambda f: save_model(f, labels=("negative", "positive")), "a.csv", sentences),
    "pairs": (lambda f: save_model(f, num_labels=3), "a.tsv", pairs),
    "tokens": (lambda f: save_model(f, "TokenClassification", labels=("O", "THING", "VIEW")), "a.jsonl", tagged),
    "questions": (lambda f: save_model(f, "QuestionAnswering"), "a.jsonl", questions),
    "scores": (lambda f: save_model(f, num_labels=1), "a.jsonl", scored),
    "lists of labels": (lambda f: save_model(f, **SEVERAL), "a.jsonl", labelled),
    "columns of labels": (
        lambda f: save_model(f, **SEVERAL),
        "a.csv",
        lambda size, *, seed: in_columns(labelled(size, seed=seed), SEVERAL["labels"]),
    ),
}


@pytest.mark.slow
def test_plan_only_finds_the_plan_that_prune_saves_and_writes_no_weights(capsys, classifier, tmp_path):
    data = ["--train", classifier / "train.csv", "--validation", classifier / "dev.csv", "--max-drop", "0.2"]
    found, pruned = tmp_path / "found", tmp_path / "pruned"
    said = called(capsys, "prune", classifier / "model", found, *data, "--plan-only")
    assert said.code == 0, said.err
    assert "plan, frontier, report; no weights." in said.out
    assert called(capsys, "prune", classifier / "model", pruned, *data).code == 0
    plan = (found / "headprune_plan.json").read_text()
    assert plan == (pruned / "headprune_plan.json").read_text()
    frontier = json.loads((found / "headprune_frontier.json").read_text())
    assert [it["density"] for it in frontier] == sorted((it["density"] for it in frontier), reverse=True)
    assert json.loads(plan) in [it["plan"] for it in frontier]
    assert json.loads((found / "headprune_report.json").read_text())["plan"] == json.loads(plan)
    assert not [*found.glob("*.safetensors"), *found.glob("config.json")]
    again = called(capsys, "prune", classifier / "model", found, *data, "--plan-only", "--overwrite", "--json")
    assert json.loads(again.out)["output"] == str(found)
    words = ["--plan-only", "--density", "0.5,0.25"]
    said = called(capsys, "prune", classifier / "model", tmp_path / "no", *data[:2], *words)
    assert (said.code, "--plan-only saves one plan" in said.problem) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_is_pruned_to_a_size(capsys, tmp_path, kind):
    save, name, rows = KINDS[kind]
    dense = save(tmp_path / "dense")
    train = write(tmp_path / name, rows(24, seed=1))
    said = called(capsys, "prune", tmp_path / "dense", tmp_path / "out", "--train", train, "--kept-heads", 5, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["holds"], found["reload_difference"]) == (True, 0.0)
    plan = PruningPlan.from_json((tmp_path / "out" / "headprune_plan.json").read_text())
    assert plan.num_kept_heads == 5
    assert json.loads((tmp_path / "out" / "headprune_report.json").read_text()) == found["report"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [f"Prunable{type(dense).__name__}"]
    test = write(tmp_path / f"test{train.suffix}", rows(40, seed=2))
    said = called(capsys, "prune", tmp_path / "dense", tmp_path / "more", "--train", train, "--test", test, "--json")
    assert said.code in (0, 1), said.err
    found = json.loads(said.out)
    assert found["examples"]["certify"] == 40
    assert ": none" in found["report"]["certificate"] or found["certificate"]["verdict"] in ("PASS", "INCONCLUSIVE")


def test_the_smallest_model_within_the_drop_is_saved_with_its_certificate(capsys, classifier, tmp_path):
    files = ["--train", classifier / "train.csv", "--validation", classifier / "dev.csv"]
    said = called(capsys, "prune", classifier / "model", tmp_path / "out", *files, "--max-drop", "0.05")
    assert said.code == 0, said.err
    assert "reads sentence, label; 160 training, 220 unseen examples" in said.err
    assert "accuracy (unseen examples)" in said.out
    assert "loaded again, it differs by 0." in said.out
    certificate = json.loads((tmp_path / "out" / "headprune_certificate.json").read_text())
    assert {record["name"] for record in certificate["disjointness"]} == {"train", "search"}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.num_parameters() < tiny_bert().num_parameters()
    rows = sentences(60, seed=9)
    with torch.no_grad():
        inputs = tokenizer([row["sentence"] for row in rows], return_tensors="pt", padding=True)
        answers = model(**inputs).logits.argmax(dim=1).tolist()
    right = [model.config.id2label[answer] == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) > 50


def test_a_search_holds_half_of_the_validation_examples_back(capsys, classifier, tmp_path):
    words = ["prune", classifier / "model", "--train", classifier / "train.csv", "--search", "--max-drop", "0.1"]
    said = called(capsys, *words, tmp_path / "out", "--validation", classifier / "dev.csv", "--json")
    assert said.code == 0, said.err
    assert "of 220 examples are held back from the search" in said.err
    found = json.loads(said.out)
    assert sum(found["examples"][name] for name in ("validation", "certify")) == 220
    assert found["certificate"]["verdict"] == "PASS"
    assert found["report"]["effort"]["evaluations"] > 1
    few = ["--validation", classifier / "few.csv", "--confidence", "0.95"]
    assert "there are no unseen examples to certify on" in called(capsys, *words, tmp_path / "new", *few).problem


@pytest.mark.slow
def test_only_what_is_certified_at_a_level_is_saved(capsys, classifier, tmp_path, monkeypatch):
    out = tmp_path / "out"
    files = ["--train", classifier / "train.csv", "--validation", classifier / "dev.csv"]
    words = ["prune", classifier / "model", out, *files, "--confidence", "0.95", "--json"]
    assert "it takes 3,015" in called(capsys, *words, "--max-drop", "0.001").problem  # no 220 exclude so small a drop
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.DENSITIES", (0.01,))
    said = called(capsys, *words, "--max-drop", "0.02")
    assert said.code == 1, said.err
    found = json.loads(said.out)
    assert (found["holds"], found["output"]) == (False, None)
    assert found["certificate"] is None or found["certificate"]["verdict"] != "PASS"
    assert not out.exists()
    monkeypatch.undo()
    said = called(capsys, *words, "--max-drop", "0.1")
    assert said.code == 0, said.err
    assert json.loads(said.out)["certificate"]["verdict"] == "PASS"


def test_a_size_is_certified_on_request_and_else_reported(capsys, classifier, tmp_path):
    words = ["prune", classifier / "model", tmp_path / "out", "--train", classifier / "train.csv", "--speedup", "1.5"]
    few = ["--validation", classifier / "few.csv"]
    said = called(capsys, *words, *few, "--confidence", "0.95")
    assert said.code == 1, said.err
    assert "the verdict is INCONCLUSIVE. Nothing was saved." in said.out
    assert not (tmp_path / "out").exists()
    said = called(capsys, *words, *few, "--metric", "macro_f1")
    assert said.code == 0, said.err
    assert "INCONCLUSIVE" in said.out
    assert "macro_f1 (unseen examples)" in said.out


def test_a_speed_up_is_that_of_this_machine(capsys, classifier, tmp_path, monkeypatch):
    dense = {site.name: site.units for site in anatomy_of(tiny_bert()).sites}

    def table(model, settings, progress):
        return {site.name: {0: 0.0, site.units: 4.0 if site.is_attention else 1.0} for site in anatomy_of(model).sites}

    def measured(before, after, settings):
        assert settings == LatencySettings()
        kept = {site.name: site.units / dense[site.name] for site in anatomy_of(after).sites}
        ms = 2.0 + sum(share * (4.0 if "attention" in name else 1.0) for name, share in kept.items())
        samples = [LatencySample(each, each, each) for each in (12.0, ms)]
        return LatencyChange(*samples, device="cpu", dtype="float32", batch_size=8, seq_len=128, threads=1, runs=5)

    monkeypatch.setattr(speed, "measure_latency_table", table)
    monkeypatch.setattr(speed, "measure_latency", measured)
    words = ["prune", classifier / "model", tmp_path / "out", "--train", classifier / "train.csv", "--speedup", "2"]
    said = called(capsys, *words, "--measured")
    assert said.code == 0, said.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert measured(None, model, LatencySettings()).after.median_ms == pytest.approx(6.0, rel=0.1)


def test_a_size_in_megabytes_is_that_of_the_file(capsys, classifier, tmp_path):
    words = ["prune", classifier / "model", tmp_path / "out", "--train", classifier / "train.csv"]
    said = called(capsys, *words, "--size-mb", "0.07", "--json")
    assert said.code == 0, said.err
    size = (tmp_path / "out" / "model.safetensors").stat().st_size / 1e6
    assert 0.06 < size <= 0.07
    assert json.loads(said.out)["size_mb"] == size


@pytest.mark.slow
def test_the_vocabulary_is_cut_and_certified_with_the_rest(capsys, classifier, tmp_path):
    """The dense model reads the texts by its own tokenizer, the pruned one by its smaller one."""
    out, train, dev = tmp_path / "out", classifier / "train.csv", classifier / "dev.csv"
    words = ["prune", classifier / "model", out, "--train", train, "--validation", dev, "--json"]
    corpus = tmp_path / "corpus.txt"
    few = [word for word in WORDS if word not in ("song", "w3", "w4", "w5")]
    corpus.write_text("\n".join(few), encoding="utf-8")
    for given, count in ((corpus, len(few)), ("train", len(WORDS) - 1)):  # no training text asks "what"
        shutil.rmtree(out, ignore_errors=True)
        said = called(capsys, *words, "--vocabulary", given, "--max-drop", "0.1")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert f"Vocabulary: {count + 4} of {len(WORDS) + 4} pieces" in found["notes"][0]
        assert (found["certificate"]["verdict"], found["reload_difference"]) == ("PASS", 0.0)
        model, tokenizer = (it.from_pretrained(out) for it in (AutoModelForSequenceClassification, AutoTokenizer))
        assert len(tokenizer) == model.config.vocab_size == count + 4
        dense = AutoModelForSequenceClassification.from_pretrained(classifier / "model")
        assert found["report"]["before"]["parameters"] == dense.num_parameters()
        assert found["report"]["after"]["parameters"] == model.num_parameters()
        rows = sentences(220, seed=220)  # of dev.csv
        own = encoded(tokenizer, rows)
        pair = dense, encoded(tokenizer_of_words(), rows)
        certificate = Certificate.load(out)
        assert certificate.dense.weights == record_of(dense).weights
        assert verify_certificate(certificate, model, own, dense=pair).holds
    said = called(
        capsys, "prune", *words[1:2], tmp_path / "sized", *words[3:], "--vocabulary", "train", "--size-mb", "0.07"
    )
    assert said.code == 0, said.err
    assert json.loads(said.out)["size_mb"] <= 0.07
    assert PruningPlan.of(AutoModelForSequenceClassification.from_pretrained(tmp_path / "sized")).num_kept_ffn > 64


@pytest.mark.slow
def test_several_densities_give_a_folder_each_and_one_table(capsys, classifier, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ["prune", classifier / "model", out, "--train", classifier / "train.csv", "--density", "0.25,0.75"]
    said = called(capsys, *words, "--test", classifier / "dev.csv", "--vocabulary", "train")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["weights", "whole"]
    assert lines[-1] == f"Saved in {out}: 0.75, 0.25."
    kept = [PruningPlan.of(AutoModelForSequenceClassification.from_pretrained(out / it)) for it in ("0.75", "0.25")]
    assert kept[0].num_kept_ffn > kept[1].num_kept_ffn
    assert len(AutoTokenizer.from_pretrained(out / "0.25")) == len(WORDS) - 1 + 4
    rungs = json.loads((out / "headprune_ladder.json").read_text())["rungs"]
    assert [rung["density"] for rung in rungs] == [0.75, 0.25]
    for rung in rungs:
        assert (out / f"{rung['density']:g}" / "headprune_certificate.json").exists() == rung["certified"]
    said = called(capsys, *words, "--test", classifier / "few.csv", "--confidence", "0.99", "--overwrite", "--json")
    assert said.code == 1, said.err
    assert json.loads(said.out)["saved"] == []
    assert (out / "headprune_ladder.json").exists()


def encoded(tokenizer, rows):
    labels = [int(row["label"] == "positive") for row in rows]
    texts = [row["sentence"] for row in rows]
    return [
        {"input_ids": ids, "text": text, "labels": label}
        for ids, text, label in zip(tokenizer(texts)["input_ids"], texts, labels, strict=True)
    ]


def test_what_splits_share_is_dropped_and_counted_before_anything_runs(capsys, classifier, tmp_path):
    train, dev = sentences(160, seed=160), sentences(100, seed=3)
    repeated = [{**row, "sentence": f"  {row['sentence'].upper()}"} for row in train[:7]]
    files = ["--train", classifier / "train.csv", "--validation", write(tmp_path / "dev.csv", dev + repeated)]
    test = write(tmp_path / "test.csv", sentences(50, seed=4) + train[:2] + dev[:3])
    words = ["prune", classifier / "model", tmp_path / "out", *files, "--test", test, "--density", "0.9", "--json"]
    said = called(capsys, *words)
    assert said.code == 0, said.err
    notes = json.loads(said.out)["notes"]
    assert notes == [
        "validation: 7 of 107 examples are in train too and are left out.",
        "test: 5 of 55 examples are in train or validation too and are left out.",
    ]
    assert json.loads(said.out)["examples"] == {"train": 160, "certify": 50}
    assert "validation: 7 of 107" in said.err
    about = json.loads(said.out)["report"]["certificate"]
    beside = json.loads(called(capsys, *words[:2], tmp_path / "at_7", *words[3:], "--max-drop", "0.07").out)
    assert "less than 1 percentage point" in about
    assert "less than 7 percentage points" in beside["report"]["certificate"]
    out = tmp_path / "new"
    said = called(capsys, *words[:2], out, "--train", test, "--validation", test, "--density", "0.9")
    assert "validation: all of its examples are in train too" in said.problem


def test_rows_without_a_label_are_left_out_and_counted(capsys, classifier, tmp_path):
    rows = [{**row, "label": label} for row, label in zip(sentences(9, seed=5), ["-1", "", "0"] * 3, strict=True)]
    train = write(tmp_path / "train.csv", rows)
    said = called(capsys, "prune", classifier / "model", tmp_path / "out", "--train", train, "--density", "0.9")
    assert said.code == 0, said.err
    assert "train: 6 of 9 rows have no label and are left out." in said.err
    write(train, [{**row, "label": "-1"} for row in rows])
    said = called(capsys, "prune", classifier / "model", tmp_path / "new", "--train", train, "--density", "0.9")
    assert "train: no row has a label in 'label'" in said.problem


def test_a_folder_that_holds_something_is_left_alone(capsys, classifier, tmp_path):
    shutil.copytree(classifier / "model", tmp_path / "out")
    words = ["prune", classifier / "model", tmp_path / "out", "--train", classifier / "few.csv", "--kept-heads", "4"]
    said = called(capsys, *words)
    assert said.code == 2
    assert "not empty. Choose another, or pass --overwrite" in said.problem
    said = called(capsys, *words, "--overwrite")
    assert said.code == 0, said.err
    assert (tmp_path / "out" / "headprune_plan.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_can_not_be_made_is_said_before_a_file_is_read(capsys, classifier, tmp_path):
    (tmp_path / "file").touch()
    for others in ([], ["--plan-only"]):
        words = [
            "prune",
            classifier / "model",
            tmp_path / "file" / "out",
            "--train",
            "nowhere.csv",
            "--kept-heads",
            "4",
            *others,
        ]
        problem = called(capsys, *words).problem
        assert f"{tmp_path / 'file' / 'out'}: it can't be made: {tmp_path / 'file'} is no folder" in problem


def test_a_pruned_model_is_pruned_further(capsys, classifier, tmp_path):
    files = ["--train", classifier / "train.csv"]
    called(capsys, "prune", classifier / "model", tmp_path / "first", *files, "--kept-heads", "6")
    said = called(capsys, "prune", tmp_path / "first", tmp_path / "second", *files, "--kept-heads", "3")
    assert said.code == 0, said.err
    said = called(capsys, "show", tmp_path / "second")
    assert sum(map(int, said.out.splitlines()[1].removeprefix("heads: ").split())) == 3


TWO_TEXTS = [{"text": "the film was good", "topic": "film", "label": "positive"}] * 3
LABELS = [{"text": f"the film was {view}", "label": view} for view in ("good", "bad")]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ([{"a": "x", "b": "y"}] * 3, [], "train: no column is named label or labels, among the columns 'a', 'b'"),
        (TWO_TEXTS, [], "'text', 'topic' all hold text. Name what the model reads: --text-column text"),
        (LABELS, [], "received 'bad', 'good'. The model knows 'negative', 'positive'"),
        ([{"text": "x", "label": 2}] * 3, [], "all numbers from 0 to 1; received '2'"),
        (None, ["--label-column", "nope", "--density", "0.5"], "there is no column 'nope'"),
        (None, ["--question-column", "q"], "--question-column q is for question answering"),
        (None, ["--max-length", "100"], "--max-length must be from 2 to 64 for this model, received 100"),
        (None, ["--density", "0.5", "--speedup", "2"], "takes one budget, received density=0.5 and speedup=2.0"),
        (None, ["--density", "0.5", "--max-drop", "2"], "--max-drop must be above 0 and below 1, received 2.0"),
        (None, ["--density", "1.5"], "density must be"),
        (None, ["--density", "0.5,half"], "--density must be a number such as 0.5, or several with commas"),
        (
            None,
            ["--density", "0.5,1.5", "--train", "no.csv"],
            "densities must be different numbers above 0 and below 1",
        ),
        (
            None,
            ["--density", "0.5,0.5", "--train", "no.csv"],
            "densities must be different numbers above 0 and below 1",
        ),
        (None, ["--size-mb", "5"], "Pass a size above"),
        (None, ["--kept-heads", "many"], "--kept-heads must be a number of heads, or a share such as 0.5"),
        (None, ["--kept-heads", "9"], "9"),
        (None, ["--max-drop", "1"], "--max-drop must be above 0 and below 1, received 1.0. A point is 0.01"),
        (None, ["--max-drop", "x"], "Invalid value for '--max-drop'"),
        (None, ["--density", "0.5", "--confidence", "5"], "--confidence must be above 0.5 and below 1, received 5.0"),
        (None, ["--density", "0.5", "--confidence", "0.9"], "there are no unseen examples to certify on. Pass --test"),
        (None, [], "there are no examples for validation. Pass --validation"),
        (None, ["--max-dorp", "1"], "No such option"),
        (None, ["--tokenizer", "./nowhere"], "./nowhere: there is no such folder"),
        (None, ["--metric", "nonsense"], "--metric nonsense: evaluate can't load it"),
        (None, ["--measured", "--density", "0.5"], "--measured says what --speedup counts"),
        (
            None,
            ["--vocabulary", "nowhere.txt", "--density", "0.5"],
            "--vocabulary nowhere.txt: there is no such file. Pass a text file",
        ),
        (None, ["--vocabulary", "train", "--search"], "--vocabulary makes another one of it first"),
        (None, ["--search", "--density", "0.5"], "--search is for --max-drop, which measures plans"),
        (
            None,
            ["--metric", "accuracy", "--density", "0.5"],
            "--metric accuracy: there are no unseen examples to certify on. Pass --test",
        ),
    ],
)
def test_bad_options_and_data_are_refused_in_one_line(capsys, classifier, tmp_path, rows, words, message):
    train = classifier / "train.csv" if rows is None else write(tmp_path / "train.jsonl", rows)
    budget = [] if rows is None else ["--density", "0.5"]
    said = called(capsys, "prune", classifier / "model", tmp_path / "out", "--train", train, *budget, *words)
    assert said.code == 2
    assert message in said.problem
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def _nothing(folder):
    folder.mkdir()


def _damaged(folder):
    save_model(folder)
    (folder / "model.safetensors").write_bytes(b"12345")


def _without_head(folder):
    save_model(folder, None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))


def _another_family(folder):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    }
    config = OPTConfig(vocab_size=80, max_position_embeddings=64, pad_token_id=0, **sizes)
    OPTForSequenceClassification(config).save_pretrained(folder)
    tokenizer_of_words().save_pretrained(folder)


def _without_tokenizer(folder):
    tiny_bert().save_pretrained(folder)


def _large_tokenizer(folder):
    save_model(folder, vocab_size=20)


def translated(size, *, seed):
    """Sentences with the last words of each as its reference."""
    return [
        {"source": row["sentence"], "target": " ".join(row["sentence"].split()[3:])}
        for row in sentences(size, seed=seed)
    ]


def _translator(folder):
    model = tiny_bart()
    model.save_pretrained(folder)
    tokenizer_of_words().save_pretrained(folder)
    return model


def save_decoder(folder):
    tiny_bert_decoder(add_cross_attention=False).save_pretrained(folder)
    tokenizer_of_words().save_pretrained(folder)


@pytest.mark.parametrize("metric", ["likelihood", "chrf"])
def test_a_translator_is_pruned_and_certified_by_its_references(capsys, tmp_path, metric):
    _translator(tmp_path / "dense")
    train, test = (write(tmp_path / f"{size}.csv", translated(size, seed=size)) for size in (24, 30))
    words = ("--train", train, "--test", test, "--kept-heads", "0.5", "--metric", metric, "--json")
    said = called(capsys, "prune", tmp_path / "dense", tmp_path / "out", *words)
    assert said.code == 0, said.err
    name = {"likelihood": "likelihood of references", "chrf": "sentence chrF"}[metric]
    assert f"the {name} of the pruned model" in json.loads(said.out)["report"]["certificate"]
    again = ("--data", test, "--metric", metric, "--max-drop", "0.9")
    assert called(capsys, "certify", tmp_path / "dense", tmp_path / "out", *again).code in (0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "no model can be read from this folder"),
        (_damaged, "no model can be read from this folder"),
        (_without_head, "its checkpoint lacks 'classifier.bias', 'classifier.weight', so it is no fine-tuned"),
        (_another_family, "opt"),
        (_without_tokenizer, "there is no tokenizer. Name one with --tokenizer"),
        (_large_tokenizer, "the model 20 embeddings"),
        (lambda folder: save_model(folder, "MaskedLM"), "this command prunes ...ForSequenceClassification"),
        (save_decoder, "it reads labels, tags, answers and references from files"),
    ],
)
def test_a_model_that_can_not_be_pruned_is_refused_in_one_line(capsys, classifier, tmp_path, make, message):
    make(tmp_path / "model")
    train = classifier / "train.csv"
    said = called(capsys, "prune", tmp_path / "model", tmp_path / "out", "--train", train, "--density", "0.5")
    assert said.code == 2
    assert message in said.problem
    assert not (tmp_path / "out").exists()


def test_the_help_fits_one_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = called(capsys, "prune", "--help").out.splitlines()
    assert len(lines) <= 34
    assert max(map(len, lines)) <= 100
    assert called(capsys).out.count("\n") < 24


def test_a_pruned_model_trains_on_before_it_is_certified(capsys, classifier, tmp_path):
    files = ["--train", classifier / "train.csv", "--test", classifier / "test.csv", "--kept-heads", 1, "--json"]
    bare = called(capsys, "prune", classifier / "model", tmp_path / "bare", *files)
    said = called(
        capsys, "prune", classifier / "model", tmp_path / "out", *files, "--recover", 2, "--learning-rate", 1e-3
    )
    assert (bare.code, said.code) == (0, 0), said.err
    assert "2 epochs of training of a pruned model" in said.err
    assert json.loads(said.out)["reload_difference"] == 0.0
    assert (tmp_path / "out" / "headprune_certificate.json").exists()  # it is written beside the weights it is about
    weights = [
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name).classifier.weight
        for name in ("bare", "out")
    ]
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--recover", 0], "--recover takes a number of epochs above 0"),
        (["--recover", "inf"], "--recover takes a number of epochs above 0"),
        (["--recover", 1, "--search"], "measures plans that do not train on"),
        (["--learning-rate", 0.001], "--learning-rate is for --recover"),
    ],
)
def test_a_recovery_that_makes_no_sense_is_refused(capsys, classifier, tmp_path, words, problem):
    given = ["prune", classifier / "model", tmp_path / "out", "--train", classifier / "train.csv"]
    assert problem in called(capsys, *given, *words).problem


def test_equal_layers_are_pruned_and_exported_for_transformers_alone(capsys, classifier, tmp_path):
    words = (classifier / "model", tmp_path / "out", "--train", classifier / "train.csv", "--uniform")
    said = called(capsys, "prune", *words, "--density", 0.8)
    assert said.code == 0, said.err
    assert called(capsys, "export", tmp_path / "out", tmp_path / "plain", "--mode", "plain").code == 0
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert (type(read).__name__, read.config.intermediate_size) == ("BertForSequenceClassification", 32)
    refused = called(capsys, "prune", *words, "--kept-heads", 4, "--overwrite")
    assert "bert has no field that says fewer heads" in refused.problem
