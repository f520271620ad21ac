"""Rows to tokenized examples: what the model reads, and the labels beside it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_headprune.cli.columns import NamedColumns
from hf_headprune.cli.examples import UnlabelledError, groups_of_rows, reader_for
from hf_headprune.cli.labels import whole_number
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from tests.support.command_line import questions, tokenizer_of_words
from tests.support.models import tiny_bert, tiny_roberta


def reader(task, *, named=NamedColumns(), max_length=None, **settings):  # noqa: B008 - frozen
    return reader_for(tiny_bert(task, **settings), tokenizer_of_words(), named, max_length)


def test_texts_are_cut_to_the_positions_of_the_model_whatever_pads_them():
    tokenizer = tokenizer_of_words()
    for model, longest in ((tiny_bert(pad_token_id=40), 64), (tiny_roberta(max_position_embeddings=34), 33)):
        assert reader_for(model, tokenizer, NamedColumns(), None).max_length == longest
    tokenizer.model_max_length = 1
    with pytest.raises(UnsupportedModelError, match="reads texts of at most 1 tokens"):
        reader_for(tiny_bert(), tokenizer, NamedColumns(), None)


def test_a_decoder_that_classifies_needs_a_token_for_padding():
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=64, num_labels=2)
    for padding, refused in ((3, False), (None, True)):
        config.pad_token_id = padding
        with pytest.raises(InvalidSettingError, match="no pad_token_id") if refused else nullcontext():
            reader_for(LlamaForSequenceClassification(config), tokenizer_of_words(), NamedColumns(), None)


def test_questions_on_one_context_are_one_group():
    rows = reader("QuestionAnswering").encode(Dataset.from_list(questions(4, seed=1)), "train").rows
    assert groups_of_rows(rows) == "context"
    assert groups_of_rows(rows.remove_columns("context")) is groups_of_rows(None) is None


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


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("values", [[1.0, 0.0], [True, False], ["1", "0"]])
def test_classes_are_whole_numbers_whatever_the_column_is_called_and_holds(column, values):
    rows = Dataset.from_dict({"text": ["a", "b"], column: values})
    labels = reader("SequenceClassification").encode(rows, "train").rows["labels"][:]
    assert (labels, {type(label) for label in labels}) == ([1, 0], {int})


@pytest.mark.parametrize(
    ("label", "number"),
    [
        (2**53 + 1, 2**53 + 1),
        (str(2**53 + 1), 2**53 + 1),
        (" 7.0 ", 7),
        ("-1", -1),
        (2.0, 2),
        (True, 1),
        *((label, None) for label in ("1_2", "1e2", "0.5", 2.5, "x", "", float("nan"), None, "1" * 5000)),
    ],
)
def test_a_label_is_the_whole_number_that_its_digits_spell(label, number):
    assert whole_number(label) == number


def test_tags_are_whole_numbers_whatever_the_column_is_called():
    features = Features({"tokens": List(Value("string")), "labels": List(ClassLabel(names=["LABEL_0", "LABEL_1"]))})
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "labels": [[0, 1]]}, features=features)
    (example,) = reader("TokenClassification", named=NamedColumns(label="labels")).encode(rows, "train").rows
    assert example["labels"] == [-100, 0, 1, -100]


def test_it_says_which_texts_are_cut_or_empty():
    rows = Dataset.from_dict({"text": ["a b c", "a b c d", " ", "a"], "label": [0, 1, 0, 1]})
    notes = "1 of 4 texts are cut to 5 tokens.", "1 of 4 rows have an empty text, and count as examples."
    assert reader("SequenceClassification", max_length=5).encode(rows, "train").notes == notes
    assert reader("SequenceClassification", max_length=6).encode(rows, "train").notes == notes[1:]
    words = Dataset.from_dict({"tokens": [["a", "b", "c"], ["a"]], "tags": [[0, 1, 0], [0]]})
    assert reader("TokenClassification", max_length=4).encode(words, "train").notes == (
        "1 of 2 texts are cut to 4 tokens.",
    )
    assert reader("TokenClassification", max_length=5).encode(words, "train").notes == ()


def test_a_row_is_called_by_its_number_in_the_file():
    rows = Dataset.from_dict({"text": [None, "a", "b", None], "label": [None, 0, 1, 1]})
    with pytest.raises(InvalidSettingError, match="in 1 of 3 rows, first in row 4"):
        reader("SequenceClassification").encode(rows, "train")


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


TOPICS = {"id2label": {0: "good", 1: "film", 2: "long"}, "label2id": {"good": 0, "film": 1, "long": 2}}
TWO_OF_THREE = [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"labels": [["good", "LONG"], []]}, None),
        ({"labels": [[0, 2], []]}, None),
        ({"labels": [[1, 0, 1], [0, 0, 0]]}, None),
        ({"kinds": [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]}, "kinds"),
        ({"long": ["1", "0"], "good": ["1", "0"], "film": ["0", "0"]}, None),
        ({"long": [1, 0], "good": [1, 0], "film": [0, 0]}, "film, good, long"),
        ({"a": [True, False], "b": [False, False], "c": [True, False]}, "a,b,c"),
    ],
    ids=[
        "names",
        "numbers",
        "zeros and ones",
        "a column that is named",
        "a column each",
        "in any order",
        "other names",
    ],
)
def test_several_labels_are_read_from_lists_and_from_columns(columns, named):
    several = reader(
        "SequenceClassification", named=NamedColumns(label=named), problem_type="multi_label_classification", **TOPICS
    )
    found = several.encode(Dataset.from_dict({"text": ["a film", "a play"], **columns}), "train")
    assert found.rows["labels"][:] == [TWO_OF_THREE, [0.0, 0.0, 0.0]]
    assert {type(value) for row in found.rows["labels"] for value in row} == {float}  # as the loss takes them
    assert found.columns[0] == "text"
    assert set(found.columns[1:]) == set(columns)


def test_a_list_of_numbers_that_the_data_set_names_holds_the_labels_of_these_names():
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["long", "film", "good"]))})
    rows = Dataset.from_dict({"text": ["a"], "labels": [[0, 2]]}, features=features)
    several = reader("SequenceClassification", problem_type="multi_label_classification", **TOPICS)
    assert several.encode(rows, "train").rows["labels"][:] == [TWO_OF_THREE]


def test_rows_of_which_a_label_is_missing_are_left_out():
    several = reader("SequenceClassification", problem_type="multi_label_classification", **TOPICS)
    rows = {"text": ["a", "b", "c"], "good": ["1", "", "1"], "film": ["0", "1", "-1"], "long": ["1", "0", "0"]}
    found = several.encode(Dataset.from_dict(rows), "train")
    assert (found.rows["labels"][:], found.unlabelled) == ([TWO_OF_THREE], 2)


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"labels": ["good", "film"]}, None, "each row must hold a list, received 'good' in row 1. A .jsonl or"),
        ({"labels": [["good"], ["bad"]]}, None, "The model knows 'good', 'film', 'long'"),
        ({"good": [1, 0], "film": [0, 1]}, None, "nor is there one for each of 'good', 'film', 'long'"),
        (
            {"good": [1, 0], "film": [0, 1]},
            "good,film",
            "one column for each label of the model, 'good', 'film', 'long'",
        ),
        ({"good": [1, 0], "film": [0, 1], "x": [0, 1]}, "good,film,x", "one column for each label of the model"),
        ({"good": [1, 0], "film": [0, 1]}, "good,play", "there is no column 'play'"),
        ({"good": [1, 2], "film": [0, 1], "long": [0, 1]}, None, "must be 1, if the example has it, or 0, received 2"),
        (
            {"good": [None, 2], "film": [0, 1], "long": [0, 1]},  # rows are counted as in the file
            None,
            "received 2, 1, 1 in row 2",
        ),
        ({"labels": [None, "good"]}, None, "each row must hold a list, received 'good' in row 2"),
    ],
)
def test_several_labels_that_can_not_be_read_are_refused(columns, named, message):
    several = reader(
        "SequenceClassification", named=NamedColumns(label=named), problem_type="multi_label_classification", **TOPICS
    )
    with pytest.raises(InvalidSettingError) as caught:
        several.encode(Dataset.from_dict({"text": ["a film", "a play"], **columns}), "train")
    assert message in str(caught.value)
