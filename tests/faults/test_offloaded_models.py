"""Models that accelerate keeps in memory or on disk: the same plans, answers and files as of models that are whole."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import offload
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_headprune import (
    AStarSearch,
    HeadPruneCallback,
    PruningPlan,
    certify,
    export_model,
    export_onnx,
    masked,
    plan_for_budget,
    prune_model_,
    scores_of,
    search_plan,
)
from hf_headprune._offloaded import is_offloaded, reloading
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import TrainingStateError, UnsupportedModelError
from hf_headprune.masking import plain_copy
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.refit.settings import SecondOrder
from tests.support.documentation import examples
from tests.support.families import made, random_plan
from tests.support.models import text_inputs, tiny_bart, tiny_bert, translation_inputs
from tests.support.trainers import logits_of, trainer_of

WAYS = ["memory", "disk", "partly on disk"]


def spread(model, way, folder):
    """Spreads a model in place and returns it."""
    if way == "memory":
        return cpu_offload(model, execution_device="cpu")
    if way == "disk":
        return disk_offload(model, str(folder), execution_device="cpu")
    parts = {name: "cpu" for name, _ in model.bert.named_children() if name != "encoder"}
    parts |= {"encoder.layer.0": "disk", "encoder.layer.1": "cpu"}
    places = {f"bert.{name}": place for name, place in parts.items()} | {"dropout": "cpu", "classifier": "cpu"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


def first_of(outputs):
    return outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_is_met_masked_cut_saved_and_reloaded_as_by_the_whole_model(way, tmp_path, monkeypatch):
    monkeypatch.setattr(RefitInOrder, "fit", lambda refit: refit)  # models that are spread are not refitted in order
    model = tiny_bert(num_labels=2).eval()
    other = spread(copy.deepcopy(model), way, tmp_path / "kept")
    rows = examples(20, 1)
    plans = [plan_for_budget(each, examples(40, 2), density=0.5) for each in (model, other)]
    assert plans[0].plan == plans[1].plan
    with masked(model, plans[0]), masked(other, plans[1]):
        assert torch.equal(logits_of(other), logits_of(model))
    assert scores_of(other, rows).tolist() == scores_of(model, rows).tolist()
    before = sorted(tmp_path.rglob("*"))
    for each, plan in zip((model, other), plans, strict=True):
        prune_model_(each, plan)
    assert torch.equal(logits_of(other), logits_of(model))
    assert sorted(tmp_path.rglob("*")) == before  # what was cut on disk has no name
    other.save_pretrained(tmp_path / "saved", max_shard_size="20kB")
    assert len([*(tmp_path / "saved").glob("*.safetensors")]) > 2
    assert torch.equal(
        logits_of(AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")), logits_of(model)
    )
    again = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", device_map={"bert": "disk", "classifier": "cpu"}, offload_folder=str(tmp_path / "again")
    )
    assert is_offloaded(again)
    assert torch.equal(logits_of(again), logits_of(model))


def test_a_search_and_its_certificate_are_those_of_the_whole_model(tmp_path):
    model = tiny_bert(num_labels=2).eval()
    other = spread(copy.deepcopy(model), "disk", tmp_path)
    search = AStarSearch(max_drop=0.2, max_evaluations=12)
    found = [
        search_plan(it, examples(30, 1), search=search, calibration=examples(20, 2), progress=False)
        for it in (model, other)
    ]
    assert found[0].plan == found[1].plan
    assert [step.metric for step in found[0].history] == [step.metric for step in found[1].history]
    assert found[0].plan != PruningPlan.of(model)
    for each, result in zip((model, other), found, strict=True):
        prune_model_(each, result)
    whole = tiny_bert(num_labels=2).eval()
    records = [certify(whole, each, examples(30, 3)) for each in (model, other)]
    assert records[0].pruned == records[1].pruned
    assert records[0].evidence == records[1].evidence


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2", "vit"])
def test_blocks_that_lose_some_or_all_units_compute_what_those_of_a_whole_model_do(name, tmp_path):
    (model, inputs), (other, _) = made(name), made(name)
    disk_offload(other.eval(), str(tmp_path), execution_device="cpu")
    model.eval()
    plan = random_plan(model, seed=1)
    with torch.no_grad(), masked(model, plan), masked(other, plan):
        assert torch.equal(first_of(other(**inputs)), first_of(model(**inputs)))
    for each in (model, other):
        prune_model_(each, plan)
    with torch.no_grad():
        assert torch.equal(first_of(other(**inputs)), first_of(model(**inputs)))


def test_tied_weights_are_counted_once_after_a_pass_has_untied_them(tmp_path):
    model = tiny_bart().eval()
    other = spread(copy.deepcopy(model), "disk", tmp_path / "kept")
    other(**translation_inputs())
    expected, found = anatomy_of(model), anatomy_of(other)
    assert (found.num_parameters, found.num_bytes) == (expected.num_parameters, expected.num_bytes)
    plan = random_plan(model, seed=2)
    for name, each in {"whole": model, "spread": other}.items():
        prune_model_(each, plan).save_pretrained(tmp_path / name)
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "spread")}
    assert sizes["whole"] == sizes["spread"]


class Loaded:
    """Counts the bytes of weights that were loaded from disk and are still there."""

    def __init__(self, monkeypatch):
        self.now = self.most = 0
        load = offload.load_offloaded_weight
        monkeypatch.setattr(offload, "load_offloaded_weight", lambda *given: self._counted(load(*given)))

    def _counted(self, tensor):
        array = np.array(tensor.numpy())
        self.now += array.nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(array, self._gone, array.nbytes)
        return torch.from_numpy(array)

    def _gone(self, count):
        self.now -= count


def test_no_more_than_a_few_weights_are_loaded_at_any_time(tmp_path, monkeypatch):
    model = tiny_bert(num_labels=2, num_hidden_layers=8).eval()
    whole = sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    disk_offload(model, str(tmp_path), execution_device="cpu")
    loaded = Loaded(monkeypatch)
    loss = model(**text_inputs(), labels=torch.tensor([0, 1, 0])).loss  # whose graph holds the weights
    assert loaded.most > 6 * largest
    del loss
    loaded.most = 0
    found = second_order_plan(model, examples(20, 1), SecondOrder(density=0.5))
    with masked(model, found):
        logits_of(model)
    prune_model_(model, found)
    assert 0 < loaded.most < 3 * largest < 0.25 * whole


def test_gradients_through_reloaded_weights_are_those_of_weights_that_stayed(tmp_path):
    model = tiny_bert(num_labels=2).eval()
    other = spread(copy.deepcopy(model), "disk", tmp_path)
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(model(inputs_embeds=hidden).logits.square().sum(), hidden)
    with reloading(other):
        (found,) = torch.autograd.grad(other(inputs_embeds=hidden).logits.square().sum(), hidden)
    assert torch.equal(found, expected)
    assert expected.abs().sum() > 0
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in other.modules())


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_shares_weights_and_nothing_else(way, tmp_path):
    model = spread(tiny_bert(num_labels=2).eval(), way, tmp_path)
    expected = logits_of(model)
    twin = plain_copy(model)
    prune_model_(twin, random_plan(model, seed=0))
    assert not torch.equal(logits_of(twin), expected)
    assert torch.equal(logits_of(model), expected)
    model.bert.encoder.layer[0].attention.output.dense._hf_hook.execution_device = "meta"
    assert logits_of(twin).isfinite().all()


def test_a_plain_export_holds_the_weights_and_onnx_which_needs_them_in_one_place_is_refused(tmp_path):
    model = spread(tiny_bert(num_labels=2).eval(), "disk", tmp_path / "kept")
    with pytest.raises(UnsupportedModelError, match="export_onnx: the BertForSequenceClassification is spread over"):
        export_onnx(model, tmp_path)
    full = PruningPlan.of(model)
    prune_model_(model, full.replace(kept_ffn={site: range(32) for site in full.num_ffn}))
    export_model(model, tmp_path / "plain", mode="plain")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert torch.equal(logits_of(again), logits_of(model))


class Other(ModelHook):
    """Does something that is not known here."""


def test_hooks_that_do_anything_else_are_refused_before_anything_is_changed(tmp_path):
    model = tiny_bert().eval()
    add_hook_to_module(model.classifier, Other())
    with pytest.raises(
        UnsupportedModelError, match=r"classifier has a Other of accelerate that does more than to load"
    ):
        prune_model_(model, PruningPlan.of(model))


def test_a_training_that_prunes_refuses_a_spread_model_when_the_trainer_is_built(tmp_path):
    model = spread(tiny_bert(), "partly on disk", tmp_path / "kept")
    with pytest.raises(TrainingStateError, match=r"spread over devices .* search_plan and plan_for_budget take such"):
        trainer_of(tmp_path, HeadPruneCallback(max_drop=0.05, latency=None), model=model)
    assert Path(tmp_path, "kept").exists()
