"""Examples that a model can't read, and models that have nothing left: an error of ours that says what was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DefaultDataCollator

from hf_headprune import AStarSearch, HeadPruneCallback, PruningPlan, SubsetGates, plan_for_budget, search_plan
from hf_headprune.errors import InvalidSettingError, SearchStateError, UnsupportedModelError
from hf_headprune.pipeline.ladder import plan_ladder
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.tasks.examples import PadRight
from tests.support.models import tiny_bert
from tests.support.trainers import CountSteps, labelled_rows, trainer_of

LONG = {"input_ids": [5] * 70, "attention_mask": [1] * 70}


def with_one(**changes):
    rows = [dict(row) for row in labelled_rows(40, 0)]
    rows[3] |= changes
    return rows


def without_labels_of_one():
    return [{k: v for k, v in row.items() if i != 3 or k == "input_ids"} for i, row in enumerate(labelled_rows(40, 0))]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (with_one(**LONG), r"batch of input_ids \(32, 70\) .*max_position_embeddings 64"),
        (with_one(input_ids=[5] * 5 + [100]), r"from 3 to 100.*vocab_size 100"),
        (with_one(input_ids=[5] * 5 + [-1]), r"from -1 to .*vocab_size 100"),
        ([{**row, "token_type_ids": [5] * 6} for row in labelled_rows(40, 0)], "from 5 to 5.*type_vocab_size 2"),
        (with_one(labels=0.5), r"labels \(32,\) of torch.float32.*num_labels 2"),
        (without_labels_of_one(), "must all hold the same columns, received one with"),
    ],
    ids=["too long", "another tokenizer", "a negative token", "token types", "fractions", "a missing column"],
)
def test_what_a_model_cant_read_is_said_with_its_values_and_the_limits_of_the_model(rows, said):
    with pytest.raises(InvalidSettingError, match=said):
        plan_for_budget(tiny_bert(), rows, density=0.5)


@pytest.mark.parametrize("rows", ["texts", "images"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_column_of_some_examples_is_refused_wherever_it_is(rows, place):
    each = {"texts": {"input_ids": [5, 6], "labels": 1}, "images": {"pixel_values": np.zeros((3, 4, 4)), "labels": 1}}
    examples = [dict(each[rows]) for _ in range(2)]
    examples[place]["token_type_ids"] = [0, 0]
    with pytest.raises(InvalidSettingError, match="must all hold the same columns, received one with"):
        PadRight(0)(examples)


@pytest.mark.parametrize("token", [100, -1])
def test_a_token_that_the_model_does_not_embed_is_named_in_evaluation_and_calibration(token):
    good, wrong = labelled_rows(40, 1), with_one(input_ids=[5] * 5 + [token])
    with pytest.raises(InvalidSettingError, match=f"hold token {token}, and"):
        search_plan(tiny_bert(), wrong, calibration=good, max_drop=0.1)
    with pytest.raises(
        InvalidSettingError, match="search_plan: a BertForSequenceClassification can't be run on a batch"
    ):
        search_plan(tiny_bert(), good, calibration=wrong, max_drop=0.1)


def test_weights_in_two_precisions_are_named():
    model = tiny_bert()
    model.classifier.half()
    with pytest.raises(InvalidSettingError, match=r"weights in torch\.float16 and torch\.float32, load it in one"):
        plan_for_budget(model, labelled_rows(40, 1), density=0.5)


def test_a_collator_that_fails_is_said_with_the_columns_that_it_got():
    with pytest.raises(
        InvalidSettingError, match=r"can't make a batch of 32 examples with \['attention_mask', .*ValueError"
    ):
        plan_for_budget(tiny_bert(), with_one(**LONG), density=0.5, data_collator=DefaultDataCollator())


def empty(*, heads_alone=False):
    model = tiny_bert()
    full = PruningPlan.of(model)
    none = {"kept_heads": dict.fromkeys(full.num_heads, ()), "kept_ffn": dict.fromkeys(full.num_ffn, ())}
    return prune_model_(model, full.replace(**{name: none[name] for name in list(none)[: 1 if heads_alone else 2]}))


@pytest.mark.parametrize(
    ("call", "heads_alone", "said"),
    [
        (lambda model, rows: plan_for_budget(model, rows, density=0.5), False, "no heads and FFN units left"),
        (lambda model, rows: plan_for_budget(model, rows, speedup=2.0), False, "no heads and FFN units left"),
        (lambda model, rows: plan_ladder(model, rows, (0.5,)), False, "no heads and FFN units left"),
        (lambda model, rows: plan_for_budget(model, rows, kept_heads=0), True, "no heads left"),
    ],
)
def test_a_model_without_units_is_refused(call, heads_alone, said):
    with pytest.raises(InvalidSettingError, match=said):
        call(empty(heads_alone=heads_alone), labelled_rows(40, 0))


@pytest.mark.parametrize(
    ("parts", "heads_alone"),
    [
        ({"density": 0.5}, False),
        ({"kept_heads": 0.5}, True),
        ({"gates": SubsetGates(kept_heads=0)}, True),
        ({"gates": SubsetGates()}, True),
        ({}, False),
    ],
    ids=str,
)
def test_a_model_without_units_is_refused_before_training(tmp_path, parts, heads_alone):
    counted, callback, model = CountSteps(), HeadPruneCallback(**parts, latency=None), empty(heads_alone=heads_alone)
    with pytest.raises(InvalidSettingError, match=r"no heads( and (ffn|FFN units))? left"):
        trainer_of(tmp_path, callback, model=model, callbacks=(counted,)).train()
    assert counted.steps == 0


def without_weights():
    with torch.device("meta"):
        return type(tiny_bert())(tiny_bert().config)


def test_a_model_without_weights_is_refused():
    rows, said = labelled_rows(40, 0), "weights of a BertForSequenceClassification are on the meta device"
    with pytest.raises(UnsupportedModelError, match=said):
        plan_for_budget(without_weights(), rows, density=0.5)
    with pytest.raises(UnsupportedModelError, match=said):
        search_plan(without_weights(), rows, max_drop=0.1)
    with pytest.raises(UnsupportedModelError, match=said):
        plan_ladder(without_weights(), rows, (0.5,))


def test_a_metric_that_is_a_text_is_refused_before_training(tmp_path):
    callback = HeadPruneCallback(max_drop=0.1, latency=None)
    trainer = trainer_of(tmp_path, callback, compute_metrics=lambda _: {"accuracy": "good"})
    with pytest.raises(
        InvalidSettingError, match="accuracy decides what is pruned, and compute_metrics returns 'good'"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(SearchStateError, match="a journal is a file, and this is a folder"):
        search_plan(tiny_bert(), labelled_rows(40, 1), search=AStarSearch(max_drop=0.2), journal=tmp_path)
