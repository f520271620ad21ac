"""The plan beside the weights: in the numbering of the dense model, through every cut, save and reload."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_headprune.plan import PruningPlan
from hf_headprune.shrink import prunable
from hf_headprune.shrink.prunable import prunable_named
from hf_headprune.shrink.saved_plan import PLAN_NAME, plan_from_dense
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import text_inputs, tiny_bert, tiny_marian

HEADS, UNITS = "encoder.layer.0.attention", "encoder.layer.1.intermediate"


def cut(model, heads, units):
    """Keeps these heads of the first layer and these FFN units of the second, as the live model numbers them."""
    return prune_model_(model, PruningPlan.of(model).replace(kept_heads={HEADS: heads}, kept_ffn={UNITS: units}))


def saved_plan(folder):
    return PruningPlan.from_json((folder / PLAN_NAME).read_text())


@pytest.fixture
def folder(tmp_path):
    cut(tiny_bert(), (1, 2, 3), (0, 7, 40, 63)).save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_says_which_heads_and_units_it_has_kept(folder):
    plan, dense = saved_plan(folder), PruningPlan.of(tiny_bert())
    assert plan == dense.replace(kept_heads={HEADS: (1, 2, 3)}, kept_ffn={UNITS: (0, 7, 40, 63)})
    assert plan_from_dense(AutoModelForSequenceClassification.from_pretrained(folder)) == plan


def test_a_second_cut_keeps_the_numbering_of_the_dense_model(folder, tmp_path):
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    cut(again, (0, 2), (1, 3)).save_pretrained(tmp_path / "again")
    plan = saved_plan(tmp_path / "again")
    assert (plan.kept(HEADS), plan.kept(UNITS)) == ((1, 3), (7, 63))
    assert plan.num_heads == PruningPlan.of(tiny_bert()).num_heads
    once = prune_model_(tiny_bert(), plan)  # the plan fits the dense model and gives the very same weights
    assert all(map(torch.equal, once.state_dict().values(), again.state_dict().values()))


@pytest.mark.slow
def test_every_family_composes_two_cuts(any_model, any_inputs):
    dense, first = copy.deepcopy(any_model), PruningPlan.of(any_model)
    heads, units = next(iter(first.kept_heads)), next(iter(first.kept_ffn))
    prune_model_(any_model, first.replace(kept_heads={heads: (0, 2, 3)}, kept_ffn={units: range(1, 64)}))
    second = PruningPlan.of(any_model)
    prune_model_(any_model, second.replace(kept_heads={heads: (1, 2)}, kept_ffn={units: range(0, 63, 2)}))
    plan = plan_from_dense(any_model)
    assert (plan.kept(heads), plan.kept(units)) == ((2, 3), tuple(range(1, 64, 2)))
    with torch.no_grad():
        assert torch.equal(prune_model_(dense, plan)(**any_inputs)[0], any_model(**any_inputs)[0])


def test_the_body_alone_and_another_head_keep_the_plan(folder, tmp_path):
    body = AutoModel.from_pretrained(folder)
    AutoModelForSequenceClassification.from_pretrained(folder).bert.save_pretrained(tmp_path / "body")
    copied = prunable_named("PrunableBertForTokenClassification").from_pretrained(folder)
    assert plan_from_dense(body) == plan_from_dense(copied) == saved_plan(tmp_path / "body") == saved_plan(folder)
    assert plan_from_dense(copy.deepcopy(copied)) == saved_plan(folder)


def test_a_block_without_heads_is_in_the_plan(tmp_path):
    model = tiny_marian()
    site = "decoder.layers.1.encoder_attn"
    prune_model_(model, PruningPlan.of(model).replace(kept_heads={site: ()}))
    prune_model_(model, PruningPlan.of(model))
    model.save_pretrained(tmp_path)
    assert saved_plan(tmp_path).kept(site) == ()


def damaged(text):
    yield "text", "not JSON"
    yield "", "not JSON"
    yield "[" * 100_000, "not JSON"
    yield "{}", "format must be"
    yield text.replace('"1-3"', '"1-9"'), "kept_heads"
    yield text.replace('"1-3"', '"1-2"'), rf"keeps other numbers of heads or FFN units in {HEADS}"
    yield text.replace('"bert"', '"bart"'), "about another model"
    yield text.replace("63", "62").replace("64", "63"), "about another model"
    yield text.replace('"0,7,40,63"', '"0-9999999"'), "kept_ffn"
    yield json.dumps({**json.loads(text), "num_heads": {HEADS: 10**15}}), "num_heads"


@pytest.mark.parametrize("index", range(10))
def test_a_plan_that_is_damaged_or_foreign_is_not_used_and_loading_goes_on(folder, index, caplog):
    text, message = list(damaged((folder / PLAN_NAME).read_text()))[index]
    (folder / PLAN_NAME).write_text(text)
    with caplog.at_level(logging.WARNING):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    (record,) = [record for record in caplog.records if PLAN_NAME in record.getMessage()]
    assert message.replace("\\", "") in record.getMessage()
    assert len(record.getMessage()) < 2000
    assert plan_from_dense(model) is None
    assert model(**text_inputs()).logits.isfinite().all()


def test_a_plan_that_is_no_text_is_not_used(folder, caplog):
    (folder / PLAN_NAME).write_bytes(bytes(range(256)))
    assert plan_from_dense(AutoModelForSequenceClassification.from_pretrained(folder)) is None
    assert "can't be read as text" in caplog.text


def test_without_a_known_plan_none_is_written_and_a_foreign_one_is_removed(folder, caplog):
    text = (folder / PLAN_NAME).read_text()
    (folder / PLAN_NAME).unlink()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    cut(model, (0,), (0, 1))
    model.save_pretrained(folder)
    assert not (folder / PLAN_NAME).exists()
    (folder / PLAN_NAME).write_text(text)
    model.save_pretrained(folder)
    assert not (folder / PLAN_NAME).exists()
    assert "it is removed" in caplog.text


def test_a_plan_that_the_model_has_outgrown_is_not_written(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.bert.headprune_plan = PruningPlan.of(tiny_bert())
    model.save_pretrained(folder)
    assert not (folder / PLAN_NAME).exists()


def test_only_the_main_process_writes_a_plan(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / PLAN_NAME).exists()


def test_an_interruption_leaves_no_plan_of_the_weights_before(folder, monkeypatch):
    """The other model keeps as many heads and units, so that nothing else tells the plans apart."""
    other = cut(tiny_bert(), (0, 1, 2), (1, 2, 3, 4))
    monkeypatch.setattr(prunable, "write_plan_", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(folder)
    assert plan_from_dense(AutoModelForSequenceClassification.from_pretrained(folder)) is None


def test_saving_the_same_model_again_never_leaves_it_without_its_plan(folder, monkeypatch):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    monkeypatch.setattr(prunable, "write_plan_", lambda *_: None)
    before = saved_plan(folder)
    model.save_pretrained(folder)
    assert saved_plan(folder) == before
