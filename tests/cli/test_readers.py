"""Rows to tokenized examples: what the model reads, and the labels beside it."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_headprune.cli.columns import NamedColumns
from hf_headprune.cli.examples import UnlabelledError, reader_for
from hf_headprune.errors import InvalidSettingError
from tests.support.command_line import questions, tokenizer_of_words
from tests.support.models import tiny_bert


def reader(task, *, named=NamedColumns(), max_length=None, **settings):  # noqa: B008 - frozen
    return reader_for(tiny_bert(task, **settings), tokenizer_of_words(), named, max_length)


def test_pairs_are_read_with_both_texts_and_cut_to_the_length():
    rows = Dataset.from_list([{"premise": "the film was good", "hypothesis": "the film was bad", "label": 2}])
    found = reader("SequenceClassification", num_labels=3, max_length=9).encode(rows, "train")
    (example,) = found.rows
    words = tokenizer_of_words().convert_ids_to_tokens(example["input_ids"])
    assert words == ["[CLS]", "the", "film", "was", "[SEP]", "the", "film", "was", "[SEP]"]
    assert (example["labels"], example["text_pair"]) == (2, "the film was bad")
    assert found.columns == ("premise", "hypothesis", "label")


def test_the_first_token_of_a_word_carries_its_tag():
    features = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=["O", "VIEW"]))})
    rows = Dataset.from_dict({"words": [["the", "good?film", "bad"]], "tags": [[0, 1, 1]]}, features=features)
    names = {"id2label": {0: "VIEW", 1: "O"}, "label2id": {"VIEW": 0, "O": 1}}
    (example,) = reader("TokenClassification", **names).encode(rows, "train").rows
    assert example["labels"] == [-100, 1, 0, -100, -100, 0, -100]  # the model's numbers, not those of the data set


@pytest.mark.parametrize(
    "rows",
    [
        [{"tokens": ["a", "b"], "tags": [0]}],
        [{"tokens": [], "tags": []}],
        [{"tokens": "a b", "tags": [0, 1]}],
    ],
    ids=["too few", "none", "text"],
)
def test_words_without_as_many_tags_are_refused(rows):
    with pytest.raises(InvalidSettingError, match="lists of equally many words and tags, received others in row 1"):
        reader("TokenClassification").encode(Dataset.from_list(rows), "train")


def test_answers_become_positions_in_windows_and_may_be_missing():
    rows = questions(4, seed=1)
    rows[3]["answers"] = {"text": [], "answer_start": []}
    found = reader("QuestionAnswering", max_length=14).encode(Dataset.from_list(rows), "train")
    assert len(found.rows) > 4
    answers = {}
    for example in found.rows:
        words = tokenizer_of_words().convert_ids_to_tokens(example["input_ids"])
        assert len(words) <= 14
        first, last = example["start_positions"], example["end_positions"]
        if last:
            answers.setdefault(example["context"], set()).add(" ".join(words[first : last + 1]))
    assert answers == {row["context"]: set(row["answers"]["text"]) for row in rows[:3]}


def test_a_score_may_be_minus_one_but_not_all_of_them():
    scores = reader("SequenceClassification", num_labels=1)
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "score": ["-1", "0.5", ""]})
    found = scores.encode(rows, "train")
    assert found.rows["labels"][:] == [-1.0, 0.5]
    assert found.unlabelled == 1
    with pytest.raises(UnlabelledError, match="no row has a label in 'score'"):
        scores.encode(Dataset.from_dict({"text": ["a", "b"], "score": [-1.0, -1.0]}), "test")
    with pytest.raises(InvalidSettingError, match="the model predicts a number, received 'high'"):
        scores.encode(Dataset.from_dict({"text": ["a", "b"], "score": ["high", "1"]}), "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"text": ["a", None], "label": [0, 1]},
            "must hold text, received something else in 1 of 2 rows, first in row 2",
        ),
        ({"text": ["a", "b"], "label": [[0], [1]]}, "a label must be one name or number, received"),
    ],
)
def test_rows_that_hold_no_text_or_no_single_label_are_refused(rows, message):
    with pytest.raises(InvalidSettingError) as caught:
        reader("SequenceClassification").encode(Dataset.from_dict(rows), "train")
    assert message in str(caught.value)
