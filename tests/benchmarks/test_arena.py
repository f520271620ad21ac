"""Every way of the arena cuts as much as it is asked to, and does what its paper says."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from benchmarks.arena import kprune, kwon, packaged
from benchmarks.arena.case import Case, weights_of
from benchmarks.arena.ways import WAYS
from hf_headprune.anatomy import anatomy_of, base_model
from tests.support.classifiers import classifier, examples


@pytest.fixture
def case():
    def make(density):
        model = classifier(num_hidden_layers=4, intermediate_size=128).eval()
        return Case(model, SimpleNamespace(train=Dataset.from_list(examples(48))), density, seed=0)

    return make


def logits(case):
    with torch.no_grad():
        return torch.cat([case.model(**batch).logits for batch in case.batches])


def weights(model):
    return sum(weights_of(site) * site.units for site in anatomy_of(model).sites)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("density", [0.5, 0.25])
def test_every_way_cuts_to_the_density(case, way, density):
    if way == "Torch-Pruning":
        pytest.importorskip("torch_pruning", reason="the extra `test` is not installed")
    asked = case(density)
    chunk = max(32 * weights_of(site) if not site.is_attention else weights_of(site) for site in asked.sites)
    WAYS[way](asked)
    assert abs(weights(asked.model) - asked.budget) <= chunk
    assert logits(asked).isfinite().all()


@pytest.mark.parametrize("cut", [kprune.cut, kwon.cut])
def test_where_nothing_is_removed_nothing_changes(case, cut):
    asked = case(1.0)
    before = logits(asked)
    cut(asked)
    assert torch.allclose(logits(asked), before, atol=1e-3)


def test_k_prune_leaves_out_a_unit_that_another_one_repeats(case):
    asked = case(0.999)  # all but one FFN unit
    ffn = next(site for site in asked.sites if not site.is_attention)
    first, output = (base_model(asked.model).get_submodule(path) for path in (ffn.parts[0].path, ffn.output))
    with torch.no_grad():  # unit 1 says what unit 0 says, and adds next to nothing
        first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
        output.weight[:, 1] = 1e-3 * output.weight[:, 0]
    before = logits(asked)
    kprune.cut(asked)
    assert anatomy_of(asked.model).sites[1].units < ffn.units
    assert torch.allclose(logits(asked), before, atol=1e-3)


def test_rearranging_removes_units_whose_effects_cancel():
    grads = torch.tensor([[3.0, -3.0, 1.0, 2.0], [1.0, -1.0, 1.5, 2.0]])
    assert grads.square().sum(0).topk(2).indices.sort().values.tolist() == [
        0,
        1,
    ]  # what scores of single units would keep
    assert kwon.rearranged(grads, kept=[0, 1]) == [0, 3]  # removing 1 makes up for a part of removing 2


def test_masks_are_tuned_to_what_the_dense_layer_returns(case):
    asked = case(0.5)
    ffn = next(site for site in asked.sites if not site.is_attention)
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(400, ffn.units, generator=generator)
    given[:, 1] = given[:, 0]  # so that unit 0 can stand for both
    weight = torch.randn(8, ffn.units, generator=generator)
    weight[:, 1] = weight[:, 0]
    kept = [0, *range(2, ffn.units)]
    factors = kwon._masks(weight, given, given @ weight.T, ffn, kept)
    assert factors[0] == pytest.approx(2.0, abs=0.01)
    assert torch.allclose(factors[1:], torch.ones(len(kept) - 1), atol=0.01)


def test_torch_pruning_removes_what_the_loss_does_not_depend_on(case):
    pytest.importorskip("torch_pruning", reason="the extra `test` is not installed")
    asked = case(0.76)
    with torch.no_grad():  # a quarter of the heads and of the FFN units of each layer adds next to nothing
        for site in asked.sites:
            output = base_model(asked.model).get_submodule(site.output)
            output.weight[:, site.columns(range(site.units // 4))] *= 1e-4
    before = logits(asked)
    packaged.cut(asked)
    assert weights(asked.model) <= asked.budget
    assert torch.allclose(logits(asked), before, atol=1e-2)


def test_torch_pruning_says_what_to_install(case, monkeypatch):
    monkeypatch.setattr(packaged, "torch_pruning", None)
    with pytest.raises(SystemExit, match="pip install --no-deps torch-pruning"):
        packaged.cut(case(0.5))
