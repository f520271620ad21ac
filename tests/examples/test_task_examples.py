"""Each example of a task goes the whole way with --smoke: trains, prunes, saves, reloads, and measures both."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.examples.test_examples import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SCRIPTS = {
    "translation": ("test_bleu", "test_chrf"),
    "summarization": ("test_rouge1", "test_rougeL"),
    "image_classification": ("test_accuracy",),
    "causal_lm": ("test_perplexity",),
    "token_classification": ("test_accuracy", "test_f1"),
    "sentence_embeddings": ("test_spearman_cosine",),
}
NEEDS = {"translation": "sacrebleu", "summarization": "rouge_score", "sentence_embeddings": "sentence_transformers"}


@pytest.fixture(params=SCRIPTS)
def script(request):
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param], reason="comes with the extra `examples`")
    return request.param


def test_it_goes_the_whole_way_with_smoke(script, tmp_path):
    module = load(script)
    arguments = without_budget(module.smoke_arguments(tmp_path))
    results = module.main([*arguments, "--density", "0.6", "--max_steps", "4"])
    assert results["reload_difference"] <= 1e-6
    for name in SCRIPTS[script]:
        assert math.isfinite(results[name])
    folder = tmp_path / "out"
    assert json.loads((folder / "results.json").read_text()) == pytest.approx(results)
    assert json.loads((folder / "config.json").read_text())["model_type"].startswith("prunable_")
    report = json.loads((folder / "headprune_report.json").read_text())
    assert report["linear_density"] == pytest.approx(0.6, abs=0.06)


def without_budget(arguments: list[str]) -> list[str]:
    """Returns the arguments of a smoke run without its budget."""
    places = [place for place, word in enumerate(arguments) if word in ("--max_drop", "--density")]
    return [word for place, word in enumerate(arguments) if place not in places and place - 1 not in places]


def test_files_of_sentences_are_read_line_by_line(tmp_path):
    pairs = load("text_pairs")
    for language, lines in {"de": "ein Hund\nzwei\n", "en": "a dog\ntwo\n"}.items():
        with gzip.open(tmp_path / f"dev.{language}.gz", "wt", encoding="utf-8") as file:
            file.write(lines)
    found = pairs.parallel_lines(str(tmp_path / "dev.{lang}.gz"), ("de", "en"))
    assert found.to_dict() == {"source": ["ein Hund", "zwei"], "target": ["a dog", "two"]}
    (tmp_path / "dev.fr").write_text("un\n", encoding="utf-8")
    (tmp_path / "dev.it").write_text("uno\ndue\n", encoding="utf-8")
    with pytest.raises(ValueError, match="1 and 2 sentences"):
        pairs.parallel_lines(str(tmp_path / "dev.{lang}"), ("fr", "it"))
    with pytest.raises(ValueError, match=r"named with \{lang\}"):
        pairs.parallel_lines("dev.de.gz", ("de", "en"))


def test_a_learned_vocabulary_gives_texts_back():
    texts = ["ein Hund läuft", "zwei Katzen schlafen"] * 5
    tokenizer = load("text_pairs").tokenizer_of(texts, 200)
    for text in texts[:2]:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("words", "tags", "expected"),
    [
        ([None, 0, 0, 1, None], ["B", "O"], [-100, 0, -100, 1, -100]),
        ([0, 1, 1], [1, 0], [1, 0, -100]),
        ([None, None], [], [-100, -100]),
    ],
)
def test_the_first_token_of_a_word_carries_its_tag(words, tags, expected):
    assert load("token_classification").labels_of(words, tags, {"B": 0, "O": 1}) == expected


def test_images_of_a_file_are_split_once_and_each_is_in_one_split(tmp_path):
    module = load("image_classification")
    arrays = {
        f"x_{n}": np.arange(size * 4, dtype=np.uint8).reshape(size, 2, 2) for n, size in (("train", 20), ("test", 5))
    }
    np.savez(tmp_path / "a.npz", **arrays, y_train=np.arange(20) % 2, y_test=np.arange(5) % 2)
    arguments = module.DataArguments(arrays_file=str(tmp_path / "a.npz"), validation_fraction=0.2)
    splits = arguments.images(0)
    assert {name: len(split) for name, split in splits.items()} == {"validation": 4, "train": 16, "test": 5}
    firsts = [image[0][0] for name in ("validation", "train") for image in splits[name]["image"]]
    assert sorted(firsts) == list(range(0, 80, 4))


def test_pixels_are_between_minus_one_and_one_with_channels_first():
    pixels = load("image_classification").Pixels(None)
    assert pixels(np.array([[0, 255]], dtype=np.uint8)).tolist() == [[[-1.0, 1.0]]]
    assert pixels(np.zeros((4, 5, 3), dtype=np.uint8)).shape == (3, 4, 5)


def test_columns_that_are_missing_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"document": "a", "summary": "b"}\n', encoding="utf-8")
    module = load("summarization")
    data = module.DataArguments(train_file=str(path), validation_file=str(path))
    with pytest.raises(ValueError, match=r"no column \['source', 'target'\].*--text_column"):
        data.pairs()
    data = module.DataArguments(
        train_file=str(path), validation_file=str(path), text_column="document", summary_column="summary"
    )
    assert data.pairs()["train"].to_dict() == {"source": ["a"], "target": ["b"]}


def test_sentences_are_distilled_without_their_scores(tmp_path):
    pytest.importorskip("sentence_transformers", reason="comes with the extra `examples`")
    module = load("sentence_embeddings")
    results = module.main([*module.smoke_arguments(tmp_path), "--distil", "--max_steps", "4"])
    assert results["reload_difference"] <= 1e-6


def test_perplexity_is_that_of_the_loss(tmp_path):
    module = load("causal_lm")
    results = module.main([*module.smoke_arguments(tmp_path), "--no_pruning", "--max_steps", "2"])
    assert results["test_perplexity"] == pytest.approx(math.exp(results["test_loss"]))
    assert Path(tmp_path, "out", "results.json").exists()
