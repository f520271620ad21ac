"""Several rounds without training: each looks at what the rounds before have left."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_headprune import SecondOrder, anatomy_of, linear_density, masked, prune_model_
from hf_headprune.errors import InvalidPlanError
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit import rounds as rounds_module
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.shrink.surgery import probe
from tests.support.classifiers import classifier, examples


def settings(rounds, density=0.3):
    return SecondOrder(density=density, rounds=rounds, tuning=SecondOrderTuning(width_multiple=8))


@pytest.fixture
def model():
    return classifier().eval()


def test_each_round_starts_from_the_plan_and_the_weights_of_the_one_before(model, monkeypatch):
    seen = []

    def watched(twin, asked, before, losses, *, share, speed_up_of):
        plan, refit = choose(twin, asked, before, losses, share=share, speed_up_of=speed_up_of)
        seen.append((before, share, plan, copy.deepcopy(twin.state_dict())))
        return plan, refit

    choose = rounds_module.choose
    monkeypatch.setattr(rounds_module, "choose", watched)
    found = second_order_plan(model, examples(60), settings(3))
    assert [share for _, share, _, _ in seen] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [before for before, _, _, _ in seen] == [PruningPlan.full(anatomy_of(model)), seen[0][2], seen[1][2]]
    assert found.plan == seen[2][2]
    weights = [state["bert.encoder.layer.0.output.dense.weight"] for _, _, _, state in seen]
    assert not torch.equal(weights[0], weights[1])
    assert linear_density(found.plan, anatomy_of(model)) == pytest.approx(0.3, abs=0.05)


def test_the_model_is_left_as_it_was_and_masked_equals_pruned(model):
    before = copy.deepcopy(model.state_dict())
    found = second_order_plan(model, examples(60), settings(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with masked(model, found):
        expected = probe(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(probe(prune_model_(copy.deepcopy(model), found)), expected, rtol=1e-4, atol=1e-5)


def test_the_weights_of_rounds_belong_to_their_plan_and_model(model):
    found = second_order_plan(model, examples(60), settings(2))
    other = RefittedPlan(second_order_plan(model, examples(60), settings(2, density=0.6)).plan, found.refit)
    with pytest.raises(InvalidPlanError, match="belong to the plan of the last one"), masked(model, other):
        pass
    wider = classifier(hidden_size=64)
    with pytest.raises(InvalidPlanError, match="do not fit the model"):
        found.refit.check_fits(wider)
