"""Units that are closed in training: nothing is computed for them, and what trains is what trains under a mask."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from hf_headprune import PruningPlan, SecondOrder, anatomy_of, prune_model_
from hf_headprune.anatomy import base_model
from hf_headprune.learn.closed_units import ClosedUnits
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.second_order.pruner import SecondOrderPruner
from hf_headprune.masking import masked
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.shrink.surgery import probe
from tests.support.classifiers import batches_of, classifier, examples
from tests.support.families import made, random_plan
from tests.support.models import TINY_FAMILIES, text_inputs, tiny_bert
from tests.support.second_order import losses_of


def closed(model, plan):
    sites = anatomy_of(model).sites
    found = ClosedUnits(sites)
    found.attach(model)
    kept = [plan.kept(site.name) for site in sites]
    factors = [
        torch.tensor([float(unit in units) for unit in range(site.units)])
        for site, units in zip(sites, kept, strict=True)
    ]
    found.close(kept, factors)
    return found


def output_and_gradients(model, inputs):
    model.zero_grad()
    output = model(**inputs)
    values = next(value for value in output.values() if isinstance(value, torch.Tensor) and value.requires_grad)
    values.float().square().sum().backward()
    return values.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_output_and_gradients_are_those_of_the_mask(name, seed):
    model, inputs = made(name)
    model.eval()
    plan = random_plan(model, seed=seed)
    with masked(model, plan):
        expected, gradients = output_and_gradients(model, inputs)
    widths = {}
    for site in anatomy_of(model).sites:
        for path in site.inputs:
            module = base_model(model).get_submodule(path)
            module.register_forward_hook(lambda m, args, out, path=path: widths.update({path: out.shape[-1]}))
    closed(model, plan)
    output, found = output_and_gradients(model, inputs)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max() + 1))
    for site in anatomy_of(model).sites:
        kept = plan.kept(site.name)
        for part in site.parts:
            if part.path in widths:
                computed = kept or site.units_of((0,))
                expected_width = len(site.rows(part, computed)) if site.runs_with(computed) else part.rows.total
                assert widths[part.path] == expected_width


def test_opened_again_the_model_is_as_it_was():
    model = tiny_bert().eval()
    before, modules = probe(model), {name: set(vars(module)) for name, module in model.named_modules()}
    units = closed(model, random_plan(model, seed=0))
    assert not torch.equal(probe(model), before)
    units.scale([None] * len(units.scales))
    assert torch.equal(probe(model), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == modules


def test_blocks_that_an_earlier_cut_has_emptied_are_closed_and_opened_with_the_others():
    model = tiny_bert().eval()
    whole = PruningPlan.of(model)
    first_of = {kind: next(iter(getattr(whole, kind))) for kind in ("kept_heads", "kept_ffn")}
    prune_model_(model, whole.replace(**{kind: {site: ()} for kind, site in first_of.items()}))
    before, left = probe(model), PruningPlan.of(model)
    halves = {kind: {site: units[::2] for site, units in getattr(left, kind).items()} for kind in first_of}
    units = closed(model, left.replace(**halves))
    assert not torch.equal(probe(model), before)
    units.scale([None] * len(units.scales))
    assert torch.equal(probe(model), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_weights_of_its_own(copied):
    model = tiny_bert().eval()
    closed(model, random_plan(model, seed=0))
    before, twin = probe(model), copied(model)
    assert torch.equal(probe(twin), before)
    with torch.no_grad():
        for parameter in twin.bert.encoder.parameters():
            parameter.mul_(2.0)
    assert not torch.equal(probe(twin), before)
    assert torch.equal(probe(model), before)


def test_under_autocast_it_computes_in_half_precision():
    model = tiny_bert().eval()
    plan = random_plan(model, seed=0)
    with masked(model, plan), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = probe(model)
    closed(model, plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(probe(model), expected, rtol=0.05, atol=0.05)


def test_a_module_whose_forward_pass_is_not_its_class_s_is_masked():
    model = tiny_bert().eval()
    plan = random_plan(model, seed=0)
    with masked(model, plan):
        expected = probe(model)
    for site in anatomy_of(model).sites:
        output = base_model(model).get_submodule(site.output)
        output.forward = output.forward
    closed(model, plan)
    assert torch.equal(probe(model), expected)


def widths_of(model):
    found = []
    sites = anatomy_of(model).sites
    handles = [
        base_model(model)
        .get_submodule(site.output)
        .register_forward_pre_hook(lambda module, args: found.append(args[0].shape[-1]))
        for site in sites
    ]
    with torch.no_grad():
        model(**text_inputs())
    for handle in handles:
        handle.remove()
    return dict(zip((site.name for site in sites), found, strict=True))


@pytest.mark.parametrize("rounds", [1, 2])
def test_second_order_removal_computes_with_what_it_keeps(rounds):
    model, batches = classifier().eval(), batches_of(examples(40))
    whole = widths_of(model)
    tuning = SecondOrderTuning(width_multiple=8)
    pruner = SecondOrderPruner(anatomy_of(model), SecondOrder(density=0.5, rounds=rounds, tuning=tuning))
    pruner.attach(model)
    pruner.is_idle = False
    assert widths_of(model) == whole
    for number in range(1, rounds + 1):  # a round records whole projections
        pruner.remove(model, losses_of(model, batches), number)
        plan = pruner.plan()
        expected = {s.name: s.unit_width * (len(plan.kept(s.name)) or 1) for s in anatomy_of(model).sites}
        assert widths_of(model) == expected
        assert expected != whole
    pruner.idle()
    assert widths_of(model) == whole


def test_gates_that_are_decided_compute_with_what_they_keep():
    model = tiny_bert()
    whole = widths_of(model)
    pruner = GatePruner(anatomy_of(model), SubsetGates(kept_heads=4))
    pruner.attach(model)
    pruner.prepare(100)
    pruner.set_scores(torch.linspace(-1, 1, pruner.num_heads))
    pruner.set_step(50)
    assert widths_of(model) == whole
    pruner.set_step(99)
    kept = dict(zip((site.name for site in anatomy_of(model).attention_sites), pruner.kept_per_site(), strict=True))
    found = widths_of(model)
    for site in anatomy_of(model).attention_sites:
        assert found[site.name] == site.unit_width * (len(kept[site.name]) or 1)
    assert found != whole
    pruner.detach(model)
    assert widths_of(model) == whole


def test_a_choice_that_is_first_met_in_inference_mode_trains_on():
    model = tiny_bert()
    pruner = GatePruner(anatomy_of(model), SubsetGates(kept_heads=3, warmup_ratio=0.0))
    pruner.attach(model)
    pruner.prepare(10)
    pruner.set_step(9)
    with torch.inference_mode():
        model.eval()(**text_inputs())
    model.train()(**text_inputs()).logits.sum().backward()
    assert model.classifier.weight.grad.abs().sum() > 0
