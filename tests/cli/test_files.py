"""Files of examples, read as they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_headprune.cli.files import DataSource, read_file
from hf_headprune.errors import InvalidSettingError

SHARED = Path(__file__).parents[3] / "shared" / "data"
TEXTS, LABELS = ['the "first', "NA", "007"], ["yes", "no", "1"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'text\tlabel\nthe "first\tyes\nNA\tno\n007\t1\n'),
        ("a.csv", 'text,label\n"the ""first",yes\nNA,no\n007,1\n'),
        ("bom.CSV", '\ufefftext,label\n"the ""first",yes\nNA,no\n007,1\n'),
        ("a.jsonl", "".join(json.dumps({"text": t, "label": g}) + "\n" for t, g in zip(TEXTS, LABELS, strict=True))),
        ("a.json", json.dumps([{"text": t, "label": g} for t, g in zip(TEXTS, LABELS, strict=True)])),
    ],
)
def test_every_format_reads_alike(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    rows = read_file(tmp_path / name)
    assert rows.column_names == ["text", "label"]
    assert (rows["text"][:], rows["label"][:]) == (TEXTS, LABELS)


def test_blank_lines_are_no_rows_and_a_quoted_value_may_have_several_lines(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\r\n\r\n"a\nb",1\r\n\r\n,0\r\n', encoding="utf-8", newline="")
    rows = read_file(tmp_path / "a.csv")
    assert (rows["text"][:], rows["label"][:]) == (["a\nb", ""], ["1", "0"])


def test_parquet_keeps_the_names_of_classes(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "a.parquet")
    rows = read_file(tmp_path / "a.parquet")
    assert rows["label"][:] == [1, 0]
    assert rows.features["label"].names == ["no", "yes"]


def test_a_squad_file_has_a_row_per_question(tmp_path):
    question = {"id": "x", "question": "What?", "answers": [{"text": "boat", "answer_start": 2}]}
    content = {"data": [{"title": "t", "paragraphs": [{"context": "a boat", "qas": [question]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    (row,) = read_file(tmp_path / "a.json")
    assert row["answers"] == {"text": ["boat"], "answer_start": [2]}
    assert (row["context"], row["question"], row["title"]) == ("a boat", "What?", "t")


def test_the_row_numbers_that_pandas_writes_have_a_name(tmp_path):
    (tmp_path / "a.csv").write_text(",text,label\n0,x,1\n")
    assert read_file(tmp_path / "a.csv")[:] == {"Unnamed: 0": ["0"], "text": ["x"], "label": ["1"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,,label\na,b,1\n", "different names, received 'text', '', 'label'"),
        ("a.xlsx", "x", "must end with one of .csv, .tsv, .json, .jsonl, .parquet"),
        ("missing.csv", None, "there is no such file"),
        ("a.csv", "", "it has no rows"),
        ("a.csv", "text,label\n", "it has no rows"),
        ("a.jsonl", "\n", "it has no rows"),
        ("a.json", "[]", "can't be read"),
        ("a.json", '{"dense": [0, 1], "pruned": [0, 1]}', "one object with the columns 'dense', 'pruned'"),
        ("a.csv", "text,text\na,b\n", "different names, received 'text'"),
        ("a.csv", "text,label\nx,1\na,b,c\n", "line 3 has 3 values for the 2 columns"),
        ("a.csv", "text,label\nx, y,1\na, b,0\n", "line 2 has 3 values for the 2 columns"),
        ("a.csv", 'text,label\n"x\ny",1\na\n', "line 4 has 1 values for the 2 columns"),
        ("a.csv", 'text,label\n"x,1\na,0\n', "unexpected end of data"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "can't decode"),
        ("a.jsonl", '{"text": "a"\n', "can't be read"),
        ("a.json", '{"data": [{"paragraphs": 3}]}', "a SQuAD file must hold"),
        ("a.json", '{"data": {"text": "x"}}', "a SQuAD file must hold"),
        ("a.parquet", "nothing", "can't be read"),
    ],
)
def test_what_can_not_be_read_is_named_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidSettingError) as caught:
        read_file(tmp_path / name)
    words = str(caught.value)
    assert message in words
    assert words.startswith(str(tmp_path / name))
    assert "\n" not in words


def test_a_data_set_gives_the_splits_that_it_has_and_those_that_are_named(tmp_path):
    for name, size in (("train", 3), ("validation", 2)):
        Dataset.from_dict({"text": [f"{name} {i}" for i in range(size)]}).to_parquet(tmp_path / f"{name}.parquet")
    found = DataSource(dataset=str(tmp_path)).read()
    assert {name: len(split) for name, split in found.items()} == {"train": 3, "validation": 2}
    found = DataSource(train="train[:1]", test="validation[1:]", dataset=str(tmp_path)).read()
    assert {name: len(split) for name, split in found.items()} == {"train": 1, "validation": 2, "test": 1}
    with pytest.raises(InvalidSettingError, match=r"--dataset .*nope"):
        DataSource(train="nope", dataset=str(tmp_path)).read()


@pytest.mark.skipif(not SHARED.exists(), reason="the project's shared data are not beside this checkout")
@pytest.mark.parametrize("name", ["sst2", "snli", "cola", "stsb"])
def test_the_shared_data_read_completely(name):
    file = SHARED / name / "dev.tsv"
    assert len(read_file(file)) == len(file.read_text(encoding="utf-8").strip("\n").split("\n")) - 1
