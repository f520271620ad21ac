"""Labels to classes: by the names that a model knows, or by number."""

from __future__ import annotations

import pytest

from hf_headprune.cli.labels import ModelClasses
from hf_headprune.errors import InvalidSettingError

NAMED = ModelClasses({"NEGATIVE": 0, "positive": 1}, 2)
UNNAMED = ModelClasses({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, 3)
STARS = ModelClasses({"1": 0, "2": 1, "3": 2}, 3)


@pytest.mark.parametrize(
    ("classes", "labels", "names", "found"),
    [
        (NAMED, {"negative", "Positive"}, None, {"negative": 0, "Positive": 1}),
        (NAMED, {"0", "1"}, None, {"0": 0, "1": 1}),
        (NAMED, {0, 1.0}, None, {0: 0, 1.0: 1}),
        (NAMED, {0, 1}, ["positive", "negative"], {0: 1, 1: 0}),  # the data set's order is another one
        (UNNAMED, {0, 2}, ["entailment", "neutral", "contradiction"], {0: 0, 2: 2}),
        (UNNAMED, {"LABEL_2"}, None, {"LABEL_2": 2}),
        (STARS, {"1", "3"}, None, {"1": 0, "3": 2}),  # a name comes before a number
        (STARS, {"0", "1"}, None, {"0": 0, "1": 1}),  # all of them, or none
    ],
)
def test_labels_become_classes(classes, labels, names, found):
    assert classes.classes_of(labels, names, where="train") == found


@pytest.mark.parametrize(
    ("classes", "labels", "names", "received"),
    [
        (NAMED, {"positive", "neutral"}, None, "received 'neutral'. The model knows 'NEGATIVE', 'positive'"),
        (NAMED, {0, 2}, None, "numbers from 0 to 1; received '2'"),
        (NAMED, {0.5}, None, "received '0.5'"),
        (NAMED, {"positive", "0"}, None, "received '0', 'positive'"),
        (NAMED, {0, 1}, ["positive", "mixed"], "received 'mixed'"),
        (UNNAMED, {float("inf")}, None, "received 'inf'"),
    ],
    ids=["name", "number", "fraction", "names and numbers", "a name of the data set", "infinity"],
)
def test_a_label_that_the_model_does_not_know_is_refused_with_those_it_knows(classes, labels, names, received):
    with pytest.raises(InvalidSettingError, match="train: labels must all be names that the model knows") as caught:
        classes.classes_of(labels, names, where="train")
    assert received in str(caught.value)
