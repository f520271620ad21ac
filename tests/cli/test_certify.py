"""`headprune disagreements` and `certify`, from files to a certificate beside the weights."""

import copy
import csv
import json
import shutil
import sys

import pytest
from transformers import AutoModelForSequenceClassification

from hf_headprune.cli import duration
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.shrink.vocabulary import prune_vocabulary_
from tests.cli.test_duration import Bar
from tests.guarantee.test_format_2 import FILE
from tests.support.command_line import (
    called,
    questions,
    save_classifier,
    save_model,
    scored,
    sentences,
    tokenizer_of_words,
    write,
)

COUNT = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that tells good from bad, two pruned ones, and sentences with and without labels."""
    found = tmp_path_factory.mktemp("certify")
    model = save_classifier(found / "dense", steps=25)
    plan = PruningPlan.of(model)
    for name, keep in (("small", 1), ("smaller", 0)):
        kept = {site: units[:keep] for site, units in plan.kept_heads.items()}
        ffn = {site: units[: 4 * keep] for site, units in plan.kept_ffn.items()}
        prune_model_(copy.deepcopy(model), plan.replace(kept_heads=kept, kept_ffn=ffn)).save_pretrained(found / name)
        tokenizer_of_words().save_pretrained(found / name)
    rows = sentences(COUNT, seed=5)
    write(found / "labelled.csv", rows)
    write(found / "texts.csv", [{"sentence": row["sentence"]} for row in rows])
    write(found / "train.csv", sentences(50, seed=6))
    return found


def read(file):
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def fill_in(file, labels):
    rows = read(file)
    for row in rows:
        row["label"] = labels(row)
    write(file, rows)


def truth(row):
    return "positive" if set(row["text"].split()) & {"good", "fine", "great"} else "negative"


@pytest.mark.slow
def test_a_few_labels_give_the_verdict_of_all(capsys, folder, tmp_path):
    out = tmp_path / "to_label.csv"
    words = "disagreements", folder / "dense", folder / "smaller", "--data", folder / "texts.csv", "--out"
    said = called(capsys, *words, out)
    assert said.code == 0, said.err
    rows = read(out)
    content = json.loads(called(capsys, *words, tmp_path / "again.csv", "--json").out)
    assert content == {"disagreements": len(rows), "texts": COUNT, "file": str(tmp_path / "again.csv")}
    assert 0 < len(rows) < COUNT
    assert f"{len(rows)} of {COUNT} texts need a label" in said.out
    assert {row["answers"] for row in rows} == {"negative | positive"}
    assert {row["label"] for row in rows} == {""}
    fill_in(out, truth)
    words = [folder / "dense", folder / "smaller", "--max-drop", "0.9"]
    few = called(
        capsys, "certify", *words, "--data", folder / "texts.csv", "--labels", out, "--train", folder / "train.csv"
    )
    assert few.code == 0, few.err
    assert f"examples {len(rows)} have a label" in few.out
    of_few = Certificate.load(folder / "smaller")
    assert [record.name for record in of_few.disjointness] == ["train"]
    whole = called(capsys, "certify", *words, "--data", folder / "labelled.csv", "--json")
    assert (whole.code, json.loads(whole.out)["verdict"]) == (0, "PASS"), whole.err
    of_all = Certificate.load(folder / "smaller")
    for name in ("regressions", "improvements", "p_value", "upper_bound", "changed"):
        assert getattr(of_few.evidence, name) == getattr(of_all.evidence, name)
    strict = called(capsys, "certify", *words[:2], "--data", folder / "labelled.csv", "--max-drop", "0.0001")
    assert strict.code == 1
    assert strict.out.startswith(("FAIL.", "INCONCLUSIVE."))
    kept = [Certificate.load(folder / "smaller" / f"headprune_certificate.json.bak{end}") for end in ("", "2")]
    assert [certificate.evidence.p_value for certificate in kept] == [of_few.evidence.p_value] * 2
    assert f"the earlier certificate is now {folder / 'smaller' / 'headprune_certificate.json.bak2'}" in strict.out


def test_bars_count_the_examples_that_the_models_read(capsys, folder, tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(duration, "tqdm", lambda **settings: bars.append(Bar(**settings)) or bars[-1])
    models = folder / "dense", folder / "small"
    data = "--data", folder / "labelled.csv"
    assert called(capsys, "disagreements", *models, *data, "--out", tmp_path / "to_label.csv").code == 0
    assert called(capsys, "certify", *models, *data, "--max-drop", "0.9").code == 0
    encoded = tokenizer_of_words()([row["sentence"] for row in read(folder / "labelled.csv")])["input_ids"]
    labels = [int(row["label"] == "positive") for row in read(folder / "labelled.csv")]
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, labels, strict=True)]
    tokenized = write(tmp_path / "tokenized.jsonl", rows)
    called(capsys, "verify", models[1], "--dense", models[0], "--data", tokenized)
    assert [(bar.title, bar.n, bar.total) for bar in bars] == [
        (f"Comparing with {models[1]}", 2 * COUNT, 2 * COUNT),
        ("Certifying", 2 * COUNT, 2 * COUNT),
        ("Verifying", 2 * COUNT, 2 * COUNT),
    ]


def test_a_certificate_that_can_not_be_written_leaves_the_earlier_one(capsys, folder, monkeypatch):
    words = ["certify", folder / "dense", folder / "small", "--data", folder / "labelled.csv"]
    assert called(capsys, *words, "--max-drop", "0.9").code == 0
    before = sorted((it.name, it.read_bytes()) for it in (folder / "small").iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Certificate, "save", full)
    said = called(capsys, *words, "--max-drop", "0.8")
    assert (said.code, "it can't be written: No space left on device" in said.problem) == (2, True)
    assert "It would say: PASS." in said.problem
    assert sorted((it.name, it.read_bytes()) for it in (folder / "small").iterdir()) == before


def test_questions_on_one_context_count_once(capsys, tmp_path):
    save_model(tmp_path / "dense", "QuestionAnswering")
    save_model(tmp_path / "pruned", "QuestionAnswering")
    each = [(row, f"w{number}") for row in questions(6, seed=1) for number in range(9)]
    rows = [{**row, "id": f"{row['id']}-{word}", "question": f"{word} {row['question']}"} for row, word in each]
    data = write(tmp_path / "questions.jsonl", rows)
    said = called(capsys, "certify", tmp_path / "dense", tmp_path / "pruned", "--data", data, "--max-drop", "0.2")
    assert said.code == 1, said.out + said.err
    evidence = Certificate.load(tmp_path / "pruned").evidence
    assert (evidence.verdict, evidence.regressions, evidence.improvements) == ("INCONCLUSIVE", 0, 0)
    train = write(tmp_path / "train.jsonl", questions(6, seed=2))
    words = ["--data", data, "--train", train, "--max-drop", "0.2"]
    said = called(capsys, "certify", tmp_path / "dense", tmp_path / "pruned", *words)
    assert said.code == 1, said.err
    assert [it.name for it in Certificate.load(tmp_path / "pruned").disjointness] == ["train"]
    said = called(capsys, "certify", tmp_path / "dense", tmp_path / "pruned", "--data", data, "--train", data)
    assert "no example may be in the train split too" in said.problem


def test_several_models_share_one_file_of_labels(capsys, folder, tmp_path):
    files = {}
    for name, models in {"one": ["small"], "two": ["smaller"], "both": ["small", "smaller"]}.items():
        out = tmp_path / f"{name}.csv"
        given = [folder / model for model in models]
        assert (
            called(capsys, "disagreements", folder / "dense", *given, "--data", folder / "texts.csv", "--out", out).code
            == 0
        )
        files[name] = {row["id"] for row in read(out)}
    assert files["both"] == files["one"] | files["two"]


def test_no_labels_at_all_bound_the_changed_answers(capsys, folder):
    words = [folder / "dense", folder / "small", "--data", folder / "labelled.csv", "--metric", "agreement"]
    said = called(capsys, "certify", *words, "--max-drop", "0.95")
    assert said.code == 0, said.err
    assert "No label was used" in said.out


@pytest.mark.slow
def test_a_model_with_a_vocabulary_of_its_own_reads_the_texts_by_it(capsys, folder, tmp_path):
    dense = AutoModelForSequenceClassification.from_pretrained(folder / "dense")
    rows = sentences(COUNT, seed=5)
    smaller = prune_vocabulary_(dense, tokenizer_of_words(), [row["sentence"] for row in rows])
    for part in (dense, smaller):
        part.save_pretrained(tmp_path / "own")
    words = [folder / "dense", tmp_path / "own", "--data", folder / "labelled.csv", "--metric", "agreement"]
    said = called(capsys, "certify", *words, "--max-drop", "0.05")  # a change of any answer would show
    assert said.code == 0, said.out + said.err
    certificate = Certificate.load(tmp_path / "own")
    assert (certificate.evidence.changed, certificate.evidence.examples) == (0, COUNT)
    texts = [row["sentence"] for row in rows]
    for name, tokenizer in (("own", smaller), ("dense", tokenizer_of_words())):
        encoded = [{"input_ids": it} for it in tokenizer(texts)["input_ids"]]
        write(tmp_path / f"{name}.jsonl", [{**row, "text": text} for row, text in zip(encoded, texts, strict=True)])
    models = ["verify", tmp_path / "own", "--dense", folder / "dense", "--data", tmp_path / "own.jsonl"]
    said = called(capsys, *models, "--dense-data", tmp_path / "dense.jsonl")
    assert said.code == 0, said.out + said.err
    assert "the dense model was run on 200 examples" in said.out
    said = called(capsys, *models)  # the dense model reads tokens by other numbers
    assert (said.code, "differs (models)" in said.out) == (1, True)
    said = called(capsys, "disagreements", *words[:3], folder / "texts.csv", "--out", tmp_path / "none.csv")
    assert "0 of 200 texts need a label" in said.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name", "part"),
    [
        (("--onnx", "--int8"), "onnx/model.onnx", "onnx/model.onnx"),
        (("--openvino",), "openvino/openvino_model.xml", "openvino/openvino_model.bin"),
    ],
)
def test_an_exported_file_is_certified_and_a_changed_byte_fails(words, name, part, capsys, folder, tmp_path):
    for package in ("onnxruntime", "onnxscript") if "--onnx" in words else ("openvino",):
        pytest.importorskip(package, reason="the extra of this runtime is not installed")
    pytest.importorskip("transformers.exporters", reason="Transformers has no exporters before 5.24")
    out = tmp_path / "exported"
    assert called(capsys, "export", folder / "smaller", out, *words).code == 0
    texts = ["--data", folder / "texts.csv", "--out"]
    said = called(capsys, "disagreements", folder / "dense", out / name, *texts, tmp_path / "file.csv")
    assert said.code == 0, said.out + said.err
    said = called(capsys, "disagreements", folder / "dense", folder / "smaller", *texts, tmp_path / "torch.csv")
    of_file, of_torch = ({row["text"] for row in read(tmp_path / f"{it}.csv")} for it in ("file", "torch"))
    assert len(of_file ^ of_torch) < len(of_torch) / 10
    lone = called(capsys, "verify", out)
    assert (lone.code, "there is no headprune_certificate.json" in lone.problem) == (2, True)
    data = ["--data", folder / "labelled.csv", "--train", folder / "train.csv"]
    said = called(capsys, "certify", folder / "dense", out / name, *data, "--max-drop", "0.9")
    assert said.code == 0, said.out + said.err
    certificate = Certificate.load((out / name).parent)
    assert certificate.pruned.name.endswith(f" file {(out / name).name}")
    for place in (out, (out / name).parent):
        said = called(capsys, "verify", place)
        assert said.code == 0, said.out + said.err
        assert "checked: fingerprints: pruned weights" in said.out
    shutil.copytree((out / name).parent, tmp_path / "elsewhere")
    said = called(capsys, "verify", tmp_path / "elsewhere", "--model", out / name, "--dense", folder / "dense")
    assert said.code == 0, said.out + said.err
    content = bytearray((out / part).read_bytes())
    content[len(content) // 2] ^= 1
    (out / part).write_bytes(content)
    said = called(capsys, "verify", out)
    assert said.code == 1, said.out + said.err
    assert "differs (fingerprints): pruned weights: the model has " in said.out


def test_of_two_exported_files_with_a_certificate_one_must_be_named(capsys, tmp_path):
    for name in ("onnx", "openvino"):
        (tmp_path / name).mkdir()
        shutil.copy(FILE, tmp_path / name / "headprune_certificate.json")
    said = called(capsys, "verify", tmp_path)
    assert (said.code, "there are several certificates. Pass one: " in said.problem) == (2, True)
    assert called(capsys, "verify", tmp_path / "onnx").code == 0  # its arithmetic


def test_where_results_can_not_be_written_nothing_is_computed(capsys, folder, tmp_path, monkeypatch):
    for name in ("load_deployed", "load_model"):
        monkeypatch.setattr(sys.modules["hf_headprune.cli.certify"], name, lambda _: pytest.fail("a model is loaded"))
    (tmp_path / "file").touch()
    models = folder / "dense", folder / "small"
    for option, place in (("--junit", "none/x.xml"), ("--summary", "file/x.md"), ("--junit", ".")):
        said = called(capsys, "certify", *models, "--data", folder / "labelled.csv", option, tmp_path / place)
        assert (said.code, "it can't be written: " in said.problem) == (2, True), said.err
    for place in ("none/x.csv", "file"):
        said = called(capsys, "disagreements", *models, "--data", folder / "texts.csv", "--out", tmp_path / place)
        assert (said.code, str(tmp_path / place) in said.problem) == (2, True), said.err


@pytest.mark.slow
def test_what_can_not_be_used_is_said_in_one_line(capsys, folder, tmp_path):
    def refused(*words):
        said = called(capsys, *words)
        assert said.code == 2
        return said.problem

    models = [folder / "dense", folder / "small"]
    texts = ["--data", folder / "texts.csv"]
    out = write(tmp_path / "there.csv", [{"id": "ab", "label": "positive"}])
    assert "there is a file of that name" in refused("disagreements", *models, *texts, "--out", out)
    assert "what is written is a .csv" in refused("disagreements", *models, *texts, "--out", tmp_path / "new.tsv")
    assert "--metric agreement needs no labels" in refused(
        "certify", *models, *texts, "--labels", out, "--metric", "agreement"
    )
    assert "the columns 'answer' are missing" in refused(
        "certify", *models, *texts, "--labels", out, "--label-column", "answer"
    )
    assert "1 of 1 labels are for texts that --data does not hold" in refused(
        "certify", *models, *texts, "--labels", out
    )
    twice = tmp_path / "twice.csv"
    assert called(capsys, "disagreements", folder / "dense", folder / "smaller", *texts, "--out", twice).code == 0
    known = [{**row, "label": "positive"} for row in read(twice)]
    of_two = write(tmp_path / "of_two.csv", [*known, {**known[0], "label": "negative"}, {**known[1]}])
    assert f"1 ids have several labels, such as '{known[0]['id']}'" in refused(
        "certify", folder / "dense", folder / "smaller", *texts, "--labels", of_two
    )
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"sentence": "good"}\n{"label": 1}\n', encoding="utf-8")
    for words in (["certify", "--metric", "agreement"], ["disagreements", "--out", tmp_path / "new.csv"]):
        assert "'sentence' must hold text, received something else in 1 of 2 rows, first in row 2" in refused(
            words[0], *models, "--data", empty, *words[1:]
        )
    other = write(tmp_path / "other.csv", [{"text": "good"}])
    assert "the columns 'id', 'label' are missing" in refused("certify", *models, *texts, "--labels", other)
    assert "no column is named label or labels" in refused("certify", *models, *texts)
    rows = sentences(4, seed=1)
    partly = write(tmp_path / "partly.csv", [{**rows[0], "label": ""}, *rows[1:]])
    assert "1 rows have no label. Label the disagreements alone" in refused("certify", *models, "--data", partly)
    save_model(tmp_path / "scores", num_labels=1)
    numbers = write(tmp_path / "scores.csv", scored(4, seed=1))
    words = ["disagreements", tmp_path / "scores", tmp_path / "scores", "--data", numbers, "--out", tmp_path / "n.csv"]
    assert "models with classes can be compared" in refused(*words)
