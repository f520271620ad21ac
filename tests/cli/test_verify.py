"""`headprune verify` on the files that `headprune prune`, `certify` and `disagreements` have read."""

import csv
import json
import shutil

import pytest
from transformers import AutoModelForSequenceClassification

from hf_headprune.cli import main
from hf_headprune.cli.models import load_model
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.shrink.vocabulary import prune_vocabulary_
from tests.support.command_line import (
    called,
    questions,
    save_classifier,
    save_model,
    sentences,
    tokenizer_of_words,
    write,
)

COUNT = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a pruned one with a certificate, and the examples that both were compared on."""
    found = tmp_path_factory.mktemp("verify")
    model = save_classifier(found / "dense", steps=25)
    plan = PruningPlan.of(model)
    prune_model_(model, plan.replace(kept_ffn={site: units[:4] for site, units in plan.kept_ffn.items()}))
    model.save_pretrained(found / "small")
    tokenizer_of_words().save_pretrained(found / "small")
    rows = sentences(COUNT, seed=5)
    write(found / "dev.csv", rows)
    write(found / "texts.csv", [{"sentence": row["sentence"]} for row in rows])
    words = [found / "dense", found / "small", "--data", found / "dev.csv", "--max-drop", "0.9"]
    with pytest.raises(SystemExit) as end:
        main(["certify", *map(str, words)])
    assert end.value.code == 0
    return found


def content_of(capsys, *words):
    said = called(capsys, "verify", *words, "--json")
    assert said.code in (0, 1), said.err
    return json.loads(said.out), said.err


def test_the_texts_that_were_certified_on_are_read_as_certify_reads_them(capsys, folder):
    found, _ = content_of(capsys, folder / "small", "--dense", folder / "dense", "--data", folder / "dev.csv")
    assert found["holds"]
    for name in ("dense", "pruned"):
        assert f"models: the {name} model was run on {COUNT} examples" in found["checked"]
    found, _ = content_of(capsys, folder / "small", "--data", folder / "dev.csv")  # by the tokenizer beside it
    assert found["holds"]
    assert f"models: the pruned model was run on {COUNT} examples" in found["checked"]


def test_rows_that_the_certificate_does_not_use_are_left_out_and_others_are_missed(capsys, folder, tmp_path):
    rows = sentences(COUNT, seed=5)
    more = write(tmp_path / "more.csv", [*sentences(9, seed=77), *rows, {"sentence": "the film was", "label": ""}])
    found, said = content_of(capsys, folder / "small", "--dense", folder / "dense", "--data", more)
    assert found["holds"]
    assert "1 rows have no label and are left out." in said
    assert f"9 of {COUNT + 9} rows are not among the certificate's examples, and are left out." in said
    fewer = write(tmp_path / "fewer.csv", rows[1:])
    found, _ = content_of(capsys, folder / "small", "--data", fewer)
    assert not found["holds"]
    assert "1 examples of the certificate are not in the data" in [it["text"] for it in found["findings"]]
    turned = {"positive": "negative", "negative": "positive"}
    wrong = write(tmp_path / "wrong.csv", [{**rows[0], "label": turned[rows[0]["label"]]}, *rows[1:]])
    found, _ = content_of(capsys, folder / "small", "--data", wrong)
    assert "1 examples have another label (indices [0])" in [it["text"] for it in found["findings"]]
    other = write(tmp_path / "other.csv", sentences(20, seed=78))
    found, _ = content_of(capsys, folder / "small", "--data", other)
    assert f"{COUNT} examples of the certificate are not in the data" in [it["text"] for it in found["findings"]]


@pytest.mark.slow
def test_half_of_a_split_that_a_search_held_back_is_found_in_it(capsys, folder, tmp_path):
    dev = [*sentences(240, seed=9), *sentences(10, seed=8)]
    files = [write(tmp_path / "train.csv", sentences(60, seed=8)), write(tmp_path / "dev.csv", dev)]
    words = ["prune", folder / "dense", tmp_path / "out", "--train", files[0], "--validation", files[1]]
    said = called(capsys, *words, "--search", "--max-drop", "0.9")
    assert said.code == 0, said.err
    certificate = Certificate.load(tmp_path / "out")
    assert len(certificate.examples) < 130
    found, _ = content_of(capsys, tmp_path / "out", "--dense", folder / "dense", "--data", files[1])
    assert found["holds"]
    assert f"models: the dense model was run on {len(certificate.examples)} examples" in found["checked"]


@pytest.mark.slow
def test_a_vocabulary_of_its_own_and_a_few_labels(capsys, folder, tmp_path):
    dense, rows = AutoModelForSequenceClassification.from_pretrained(folder / "dense"), sentences(COUNT, seed=5)
    smaller = prune_vocabulary_(dense, tokenizer_of_words(), [row["sentence"] for row in rows[:20]])
    nothing = dict.fromkeys(PruningPlan.of(dense).kept_heads, ())
    prune_model_(dense, PruningPlan.of(dense).replace(kept_heads=nothing))
    for part in (dense, smaller):
        part.save_pretrained(tmp_path / "own")
    models = folder / "dense", tmp_path / "own"
    labels = tmp_path / "labels.csv"
    texts = "--data", folder / "texts.csv"
    assert called(capsys, "disagreements", *models, *texts, "--out", labels).code == 0
    with labels.open(encoding="utf-8", newline="") as opened:
        disputed = [{**row, "label": "positive"} for row in csv.DictReader(opened)]
    assert disputed
    write(labels, disputed)
    assert called(capsys, "certify", *models, *texts, "--labels", labels, "--max-drop", "0.9").code == 0
    words = [models[1], "--dense", models[0], *texts]
    found, _ = content_of(capsys, *words, "--labels", labels)
    assert found["holds"], found["findings"]
    assert f"models: the dense model was run on {COUNT} examples" in found["checked"]
    said = called(capsys, "verify", *words)
    assert (said.code, "Pass the file that certify was given, --labels" in said.problem) == (2, True)
    assert called(capsys, "certify", *models, *texts, "--metric", "agreement", "--max-drop", "0.95").code == 0
    assert content_of(capsys, *words)[0]["holds"]


def test_windows_of_questions_are_made_again(capsys, tmp_path):
    save_model(tmp_path / "dense", "QuestionAnswering")
    shutil.copytree(tmp_path / "dense", tmp_path / "pruned")
    data = write(tmp_path / "questions.jsonl", questions(30, seed=1))
    said = called(capsys, "certify", tmp_path / "dense", tmp_path / "pruned", "--data", data, "--max-drop", "0.9")
    assert said.code in (0, 1), said.err
    found, _ = content_of(capsys, tmp_path / "pruned", "--dense", tmp_path / "dense", "--data", data)
    assert found["holds"], found["findings"]
    assert any("the dense model was run on" in it for it in found["checked"])


def test_texts_need_a_model_that_tells_how_they_are_read(capsys, folder, tmp_path):
    shutil.copy(folder / "small" / "headprune_certificate.json", tmp_path)
    said = called(capsys, "verify", tmp_path, "--data", folder / "dev.csv")
    assert (said.code, "no model is given that tells how to read them. Pass --dense." in said.problem) == (2, True)
    load_model(folder / "small").save_pretrained(tmp_path)
    said = called(capsys, "verify", tmp_path, "--data", folder / "dev.csv")
    assert (said.code, "Name one with --tokenizer" in said.problem) == (2, True)
    found, _ = content_of(capsys, tmp_path, "--data", folder / "dev.csv", "--tokenizer", folder / "dense")
    assert found["holds"]


def test_options_that_nothing_would_read_and_rows_that_are_none_are_refused(capsys, folder, tmp_path):
    tokens = write(tmp_path / "tokens.jsonl", [{"input_ids": [1, 2], "labels": 1}])
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text("1\n2\n", encoding="utf-8")
    small, data = folder / "small", ("--data", folder / "dev.csv")
    for words, message in (
        (["--text-column", "sentence"], "--text-column would not be read, since no --data is given"),
        (["--data", tokens, "--tokenizer", small, "--max-length", 9], "--tokenizer and --max-length would not be read"),
        ([*data, "--dense-data", tokens], f"--dense-data would not be read, since {data[1]} holds texts"),
        (["--data", tokens, "--dense-data", tokens], "no model reads it. Pass --dense"),
        (["--data", numbers], "examples must be mappings"),
    ):
        said = called(capsys, "verify", small, *words)
        assert (said.code, message in said.problem) == (2, True), said.err
