"""Models whose weights are split over processes: FSDP2 by accelerate's own code on gloo, ZeRO-3 at its boundary."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import Trainer

from hf_headprune import BlockMovement, HeadPruneCallback, SubsetGates
from hf_headprune.callback.gathering import is_split, make_whole_, whole_copy
from hf_headprune.errors import TrainingStateError
from tests.support.models import tiny_bart, tiny_bert
from tests.support.processes import both
from tests.support.trainers import logits_of, trainer_of

pytestmark = pytest.mark.slow

MODES = ("default", "costs", "gates", "movement")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    found = both("tests.support.split_script", tmp_path_factory.mktemp("split"))
    return {mode: [outcome for outcome in found if outcome["mode"] == mode] for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_fsdp_splits_is_pruned_whole_once_and_saved_once(outcomes, mode):
    first, second = outcomes[mode]
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert first == second
    assert first["was split"]
    assert not first["is split"]
    assert first["reloads alike"]
    assert sum(map(len, first["kept"])) < 8 + 128


@pytest.mark.parametrize("mode", MODES[1:])
def test_pruning_in_training_chooses_under_fsdp_what_it_chooses_under_data_parallelism(outcomes, mode):
    found = outcomes[mode][0]
    assert not found["plain was split"]
    assert found["plan of plain"]
    assert found["from plain"] < 1e-3
    assert found["scores from plain"] < 1e-3
    assert (len(set(found["scores"])) > 1) == (mode != "costs")


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_run_under_fsdp_goes_on_from_a_checkpoint_and_ends_as_the_unbroken_one(outcomes, mode):
    for found in outcomes[mode]:
        assert found["plan of resumed"]
        assert found["from resumed"] < 1e-5


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


FILLED = BlockMovement.hybrid_filled(density=0.5, attention_block=(8, 8))
GATES = SubsetGates(kept_heads=3)


class Sharding(Trainer):
    """Says that it shards."""

    said: ClassVar[dict] = {}
    version: ClassVar[int] = 2

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=self.version)
        vars(self).update(self.said)


@pytest.mark.parametrize(
    ("state", "parts", "message"),
    [
        ({"is_fsdp_enabled": True, "version": 2}, {"movement": FILLED}, "trains the cut model a second time"),
        (
            {"is_fsdp_enabled": True, "version": 2, "dtype": "bfloat16"},
            {"gates": GATES},
            "received a model in bfloat16",
        ),
        ({"is_deepspeed_enabled": True, "version": 2}, {"kept_heads": 3}, "moves weights, gradients and optimizer"),
        ({"is_fsdp_enabled": True, "version": 1}, {}, "FSDP of version 1 flattens the weights"),
    ],
)
def test_what_can_not_be_gathered_is_refused_when_the_trainer_is_built(tmp_path, monkeypatch, state, parts, message):
    model = tiny_bert().to(getattr(torch, state.pop("dtype", "float32")))
    monkeypatch.setattr(Sharding, "version", state.pop("version"))
    monkeypatch.setattr(Sharding, "said", {"is_fsdp_enabled": False, **state})
    with pytest.raises(TrainingStateError, match=message):
        trainer_of(tmp_path, HeadPruneCallback(**parts, latency=None), trainer_class=Sharding, model=model)
    AcceleratorState._reset_state()  # it is one for all Trainers
