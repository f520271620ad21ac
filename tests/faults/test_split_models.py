"""Models whose weights are split over processes: FSDP2 by accelerate's own code on gloo, ZeRO-3 at its boundary."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate import disk_offload, dispatch_model
from accelerate.state import AcceleratorState
from transformers import Trainer

from hf_headprune import (
    HeadPruneCallback,
    PruningPlan,
    certify,
    plan_for_budget,
    prune_model_,
    scores_of,
    search_plan,
)
from hf_headprune.callback.gathering import is_split, make_whole_, whole_copy
from hf_headprune.errors import TrainingStateError, UnsupportedModelError
from tests.callback.test_distributed import both
from tests.support.documentation import examples
from tests.support.models import tiny_bart, tiny_bert
from tests.support.trainers import logits_of, trainer_of


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return both("tests.support.split_script", tmp_path_factory.mktemp("split"))


def test_a_model_that_fsdp_splits_is_pruned_whole_once_and_saved_once(outcomes):
    first, second = outcomes
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert first == second
    assert first["was split"]
    assert not first["is split"]
    assert first["reloads alike"]
    assert sum(map(len, first["kept"])) < 8 + 128


class Partitions:
    """Stands for DeepSpeed: parameters are empty but while they are gathered.

    Attributes:
        at_once: Parameters that were whole at the same time, at most.
    """

    def __init__(self, model):
        self.whole = {}
        self.at_once = self._now = 0
        for number, parameter in enumerate(model.parameters()):
            self.whole[number] = parameter.data
            parameter.ds_id = number
            parameter.data = torch.empty(0)

    @contextmanager
    def GatheredParameters(self, params, modifier_rank=None, fwd_module=None, enabled=True):  # noqa: N802 - its name
        """As DeepSpeed's: what was gathered is freed at the end, and changes are lost unless a rank modifies."""
        assert (modifier_rank, fwd_module, enabled) == (None, None, True)
        assert all(parameter.numel() == 0 for parameter in params)
        self._now += len(params)
        self.at_once = max(self.at_once, self._now)
        gathered = [self.whole[parameter.ds_id].clone() for parameter in params]
        for parameter, whole in zip(params, gathered, strict=True):
            parameter.data = whole
        try:
            yield
        finally:
            self._now -= len(params)
            for parameter, whole in zip(params, gathered, strict=True):
                parameter.data = torch.empty(0)
                whole.fill_(torch.nan)  # whoever kept it sees that it is gone


@pytest.fixture
def partition(monkeypatch):
    def split(model):
        partitions = Partitions(model)
        module = ModuleType("deepspeed")
        module.zero = partitions
        monkeypatch.setitem(sys.modules, "deepspeed", module)
        return partitions

    return split


@pytest.mark.parametrize("make", [tiny_bert, tiny_bart])
def test_weights_that_zero_has_partitioned_are_gathered_one_at_a_time(make, partition):
    model, same = make(), make()
    partitions = partition(model)
    assert is_split(model)
    twin = whole_copy(model)
    assert partitions.at_once == 1
    assert not is_split(twin)
    assert twin.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in twin.state_dict().items())
    assert all(parameter.numel() == 0 for parameter in model.parameters())


def test_tied_weights_and_frozen_ones_stay_so(partition):
    model = tiny_bart()
    model.model.encoder.layers[0].fc1.weight.requires_grad_(False)
    partition(model)
    twin = whole_copy(model)
    assert twin.lm_head.weight is twin.model.shared.weight
    assert not twin.model.encoder.layers[0].fc1.weight.requires_grad
    assert twin.model.encoder.layers[0].fc2.weight.requires_grad


def test_a_trainer_has_a_whole_model_once_training_has_ended(tmp_path, partition):
    trainer = trainer_of(tmp_path, None)
    expected = logits_of(trainer.model)
    make_whole_(trainer)
    assert not is_split(trainer.model)
    before = trainer.model
    partition(before)
    trainer.is_deepspeed_enabled = True
    make_whole_(trainer)
    assert trainer.model is not before
    assert trainer.model_wrapped is trainer.model
    assert torch.equal(logits_of(trainer.model), expected)
    del sys.modules["deepspeed"]
    trainer.save_model(tmp_path / "saved")  # as any other
    assert (tmp_path / "saved" / "model.safetensors").is_file()


@pytest.mark.parametrize("whole", [False, True], ids=["a part", "all"])
def test_an_offloaded_model_is_scored_and_refused_for_anything_else(tmp_path, whole):
    model, rows = tiny_bert(num_labels=2).eval(), examples(20, 1)
    expected = scores_of(model, rows)
    if whole:
        disk_offload(model, tmp_path, execution_device="cpu")
    else:
        parts = {name: "cpu" for name, _ in model.named_children()} | {"bert.encoder.layer.0": "disk"}
        del parts["bert"]
        parts |= {f"bert.{name}": "cpu" for name, _ in model.bert.named_children() if name != "encoder"}
        dispatch_model(model, parts | {"bert.encoder.layer.1": "cpu"}, main_device="cpu", offload_dir=tmp_path)
    assert any(weight.is_meta for weight in model.parameters())
    assert scores_of(model, rows).tolist() == expected.tolist()
    cuts = (
        lambda: prune_model_(model, PruningPlan.of(model)),
        lambda: search_plan(model, rows, calibration=examples(20, 2)),
        lambda: plan_for_budget(model, rows, density=0.5),
    )
    for cut in cuts:
        with pytest.raises(UnsupportedModelError, match="it is spread over devices"):
            cut()
    with pytest.raises(UnsupportedModelError, match=r"weights of a BertForSequenceClassification are offloaded"):
        certify(tiny_bert(num_labels=2), model, rows)


class Sharding(Trainer):
    """Says that it shards."""

    said: ClassVar[dict] = {}

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        vars(self).update(self.said)


@pytest.mark.parametrize(
    ("state", "parts", "message"),
    [
        (
            {"is_fsdp_enabled": True, "version": 2},
            {"density": 0.5},
            "needs whole ones. Prune after",
        ),
        ({"is_deepspeed_enabled": True, "version": 2}, {"kept_heads": 3}, "needs whole ones"),
        ({"is_fsdp_enabled": True, "version": 1}, {}, "FSDP of version 1 flattens the weights"),
    ],
)
def test_what_can_not_be_gathered_is_refused_when_the_trainer_is_built(tmp_path, monkeypatch, state, parts, message):
    trainer_of(tmp_path, None)  # the state of accelerate is one for all
    plugin = SimpleNamespace(fsdp_version=state.pop("version"))
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
    monkeypatch.setattr(Sharding, "said", {"is_fsdp_enabled": False, **state})
    with pytest.raises(TrainingStateError, match=message):
        trainer_of(tmp_path, HeadPruneCallback(**parts, latency=None), trainer_class=Sharding)
