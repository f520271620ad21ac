"""Which columns are read: known names, or those that the user names, and no others."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hf_headprune.cli.columns import CLASSES, NamedColumns, listed, one_column, text_columns
from hf_headprune.errors import InvalidSettingError


def rows(*columns: str, **values: list):
    """Two rows of text in each column."""
    return Dataset.from_dict({**{name: [f"{name} a", f"{name} b"] for name in columns}, **values})


@pytest.mark.parametrize(
    ("split", "found"),
    [
        (rows("sentence", "label"), ("sentence",)),
        (rows("text", label=[0, 1]), ("text",)),
        (rows("hypothesis", "premise", "label"), ("premise", "hypothesis")),
        (rows("question", "sentence", "label"), ("question", "sentence")),
        (rows("text", "label", "label_text", "guid", idx=[0, 1]), ("text",)),
        (rows("text", "label", year=["1999", "2001"]), ("text",)),
    ],
    ids=["sentence", "text", "pair in its order", "question and sentence", "numbers of rows and labels", "a number"],
)
def test_known_names_are_found(split, found):
    assert text_columns(split, NamedColumns(), ("label",), where="train") == found


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["text", "label", "topic"], r"'text', 'topic' all hold text.*--text-column text, and --text-pair-column"),
        (["text", "sentence", "label"], "'text', 'sentence' all hold text"),
        (["sentence1", "sentence2", "text", "label"], "all hold text.*--text-column sentence1"),
        (["review", "label"], r"no column of text is named sentence, text, premise/hypothesis.*--text-column review"),
        (["a", "b", "label"], r"the columns of text are 'a', 'b'\. Name what the model reads: --text-column NAME"),
        (["label"], "the columns of text are none"),
    ],
)
def test_an_unknown_column_of_text_is_never_taken(columns, message):
    with pytest.raises(InvalidSettingError, match=message):
        text_columns(rows(*columns), NamedColumns(), ("label",), where="train")


def test_named_columns_are_taken_whatever_else_there_is():
    split = rows("text", "topic", "label")
    assert text_columns(split, NamedColumns(text="topic"), ("label",), where="train") == ("topic",)
    assert text_columns(split, NamedColumns(text="text", text_pair="topic"), ("label",), where="x") == ("text", "topic")
    with pytest.raises(InvalidSettingError, match=r"no column 'nope', among .*Change --text-column"):
        text_columns(split, NamedColumns(text="nope"), ("label",), where="train")
    with pytest.raises(InvalidSettingError, match="Name the first with --text-column"):
        text_columns(split, NamedColumns(text_pair="topic"), ("label",), where="train")


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        (["text"], None, "train: no column is named label or labels, among the columns 'text'. Name one with --x"),
        (["label", "labels"], None, "'label', 'labels' could all be meant"),
        (["label"], "stars", "no column 'stars'"),
    ],
)
def test_a_column_that_is_missing_or_meant_twice_is_refused(columns, named, message):
    with pytest.raises(InvalidSettingError, match=message):
        one_column(rows(*columns), named, CLASSES, option="--x", where="train")


def test_what_a_message_lists_is_bounded():
    words = listed(["x" * 10_000, *range(100)])
    assert len(words) < 200
    assert words.endswith("and 89 more")
