"""Devices without float64: the meta device stands in for Apple's MPS."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_headprune.anatomy import anatomy_of
from hf_headprune.learn import exact
from hf_headprune.learn.exact import exact_device
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.pruner import MovementPruner
from hf_headprune.learn.training_loop import TrainingLoop
from tests.support.models import tiny_bert
from tests.support.settings import movement


class WithoutFloat64(TorchDispatchMode):
    """Refuses every float64 on the meta device, as MPS does, and lets what is there be copied to the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            found = torch.arange(args[0].numel()).view(args[0].shape).to(kwargs.get("dtype") or args[0].dtype)
        else:
            found = func(*args, **kwargs)
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype == torch.float64:
                raise TypeError(f"{func} made float64 on a device that has none")
        return found


@pytest.fixture
def device_without_float64(monkeypatch):
    monkeypatch.setattr(exact, "WITHOUT_FLOAT64", frozenset({"meta"}))
    with WithoutFloat64():
        yield "meta"


def test_the_stand_in_refuses_float64(device_without_float64):
    with pytest.raises(TypeError, match="made float64"):
        torch.zeros(3, device=device_without_float64).double()


@pytest.mark.parametrize("estimator", ["sigmoid", "dsp", "ste", "hard_concrete"])
def test_gates_are_made_where_there_is_float64(device_without_float64, estimator):
    model = tiny_bert()
    anatomy = anatomy_of(model)
    settings = SubsetGates(3, estimator, warmup_ratio=0.0)
    bank = GatePruner(anatomy, settings, multiplier=2.0)
    bank.attach(model.to(device_without_float64).train())
    bank.decided = torch.tensor(False)  # a meta tensor has no value to ask for
    bank.prepare(12)
    bank.set_step(3)
    assert (bank.noise.device.type, bank.noise.dtype) == ("cpu", torch.float64)
    found = bank.soft_gates()
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float32, (8,))
    found.sum().backward()
    assert bank.importance_bias.grad.is_meta


@pytest.mark.parametrize(
    "settings", [{}, {"counts": "macs"}, {"attention_block": None, "counts": "scores", "kept": 64}]
)
def test_masks_are_made_where_there_is_float64(device_without_float64, settings):
    model = tiny_bert().to(device_without_float64)
    chosen = movement(**{"attention_block": (8, 8), "width_multiple": 8, **settings})
    bank = MovementPruner.of(model, anatomy_of(model), chosen, TrainingLoop(learning_rate=1e-3))
    found = bank.mask_at(0.4)
    assert (found.device.type, found.shape) == ("meta", (bank.num_scores,))
    if bank.sites:
        assert bank.density(torch.ones(bank.num_scores, device=device_without_float64)) > 0  # of what the copy made up


def test_only_devices_without_float64_are_left():
    assert exact_device(torch.device("mps")) == torch.device("cpu")
    for name in ("cpu", "cuda:1", "meta"):
        assert exact_device(torch.device(name)) == torch.device(name)


def test_what_a_log_shows_of_gates_is_asked_for_before_the_first_step_too():
    model = tiny_bert()
    anatomy = anatomy_of(model)
    settings = SubsetGates(3, "dsp")
    bank = GatePruner(anatomy, settings, multiplier=2.0)
    bank.attach(model)
    found = bank.quantities()
    assert sum(found[f"hard_heads/{site.name}"] for site in anatomy.attention_sites) == 3
