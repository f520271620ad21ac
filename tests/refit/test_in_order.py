"""The refit in order: what it changes, what it brings back on other examples, and what it leaves behind."""

from __future__ import annotations

import copy
import gc
import logging
import threading
import weakref

import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError
from hf_headprune.masking import masked, plain_copy
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit import projections
from hf_headprune.refit.choice import record_refit
from hf_headprune.refit.in_order import Runs
from hf_headprune.refit.one_shot import ExampleLosses, second_order_plan
from hf_headprune.refit.projections import Refit, RefitInOrder
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning
from hf_headprune.refit.side_by_side import SideBySide
from hf_headprune.shrink.surgery import prune_model_
from tests.support.classifiers import batches_of, classifier, examples
from tests.support.families import made, random_plan
from tests.support.models import TINY_FAMILIES

QUERY = "bert.encoder.layer.1.attention.self.query"
LAYOUTS = ("bert", "marian", "llama", "gpt2", "swin", "clip", "deberta-v2")  # each with something that others lack


def first_of(outputs):
    found = (getattr(outputs, name, None) for name in ("logits", "logits_per_image", "last_hidden_state"))
    return next(value for value in found if value is not None)


def unlabelled(dataset):
    return [{k: v for k, v in batch.items() if k != "labels"} for batch in batches_of(dataset)]


def error(model, plan, batches):
    """Mean squared difference of the outputs of the model under a plan."""
    with torch.no_grad():
        whole = [first_of(model(**batch)) for batch in batches]
        with masked(plain_copy(model), plan) as closed:
            pruned = [first_of(closed(**batch)) for batch in batches]
    return sum(float((a - b).square().mean()) for a, b in zip(whole, pruned, strict=True))


def refits_of(model, plan, batches):
    """Returns both refits to a plan: of output projections alone, and in order."""
    full = PruningPlan.of(model)
    losses = (first_of(model(**batch)).square().sum() for batch in batches)
    refit = record_refit(model, anatomy_of(model).sites, full, losses)
    runs = Runs(model, [lambda twin, batch=batch: twin(**batch) for batch in batches])
    return refit, RefitInOrder(refit, plan, full, runs)


@pytest.mark.parametrize("has_heads", [True, False], ids=["", "first layer without heads"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_a_pruned_model_is_nearer_to_the_dense_one_and_cut_as_it_is_masked(family, has_heads):
    model, _ = made(family)
    if not has_heads:
        full = PruningPlan.of(model)
        prune_model_(model, full.replace(kept_heads={next(iter(full.num_heads)): ()}))
    batches = [TINY_FAMILIES[family].inputs(seed=seed) for seed in range(12)]
    plan = random_plan(model, seed=2 if has_heads else 3)
    refit, in_order = refits_of(model, plan, batches)
    assert error(model, RefittedPlan(plan, in_order), batches) < error(model, RefittedPlan(plan, refit), batches)
    with torch.no_grad(), masked(plain_copy(model), RefittedPlan(plan, in_order)) as closed:
        expected = first_of(closed(**batches[0]))
    cut = prune_model_(plain_copy(model), RefittedPlan(plan, in_order))
    with torch.no_grad():
        torch.testing.assert_close(first_of(cut(**batches[0])), expected, rtol=1e-4, atol=1e-4)


def test_other_examples_gain_too_and_more_modules_than_output_projections_change():
    model = classifier().eval()
    losses = ExampleLosses(model, examples(400), 400, 0, batch_size=16)
    full = PruningPlan.of(model)
    plan = full.replace(
        kept_heads={site: heads[:2] for site, heads in full.kept_heads.items()},
        kept_ffn={site: units[::3] for site, units in full.kept_ffn.items()},
    )
    refit = record_refit(model, anatomy_of(model).sites, full, losses)
    in_order = RefitInOrder(refit, plan, full, losses.runs()).fit()
    unseen = unlabelled(examples(200, seed=7))
    before = error(model, RefittedPlan(plan, refit), unseen)
    assert error(model, RefittedPlan(plan, in_order), unseen) < 0.95 * before
    cut = prune_model_(plain_copy(model), RefittedPlan(plan, in_order))
    rows = torch.cat([torch.arange(head * 8, head * 8 + 8) for head in plan.kept("encoder.layer.1.attention")])
    assert not torch.equal(cut.get_submodule(QUERY).weight, model.get_submodule(QUERY).weight[rows])


def test_another_plan_gets_the_refit_of_output_projections():
    model = classifier().eval()
    batches = unlabelled(examples(40))
    full = PruningPlan.of(model)
    plan, other = (full.replace(kept_heads={"encoder.layer.0.attention": heads}) for heads in ((0,), (0, 1)))
    refit, in_order = refits_of(model, plan, batches)
    in_order.fit()
    assert error(model, RefittedPlan(other, in_order), batches) == error(model, RefittedPlan(other, refit), batches)


def test_a_model_is_left_as_it_was_and_so_is_what_a_block_masks():
    model = classifier().train()
    found = second_order_plan(model, examples(40), SecondOrder(density=0.5), batch_size=4)
    before = copy.deepcopy(model.state_dict())
    assert model.training
    with masked(model, found):
        assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_examples_and_model_are_let_go_once_it_is_made():
    model = classifier().eval()
    batches = unlabelled(examples(40))
    plan = random_plan(model, seed=1)
    _, in_order = refits_of(model, plan, batches)
    in_order.fit()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert isinstance(in_order, Refit)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headprune")]


def test_padding_changes_nothing():
    model = classifier().eval()
    plan = random_plan(model, seed=1)
    plain = unlabelled(examples(40))
    wide = [{name: torch.nn.functional.pad(tensor, (0, 6)) for name, tensor in batch.items()} for batch in plain]
    cuts = []
    for batches in (plain, wide):
        _, in_order = refits_of(model, plan, batches)
        cut = prune_model_(plain_copy(model), RefittedPlan(plan, in_order))
        with torch.no_grad():
            cuts.append(torch.cat([cut(**batch).logits for batch in plain]))
    torch.testing.assert_close(cuts[0], cuts[1], rtol=1e-2, atol=1e-2)


def test_with_a_loss_of_several_passes_output_projections_alone_are_refitted():
    model = classifier().eval()
    batches = unlabelled(examples(16))
    full, plan = PruningPlan.of(model), random_plan(model, seed=1)
    losses = (model(**batch).logits.square().sum() + model(**batch).logits.sum() for batch in batches)
    refit = record_refit(model, anatomy_of(model).sites, full, losses)
    in_order = RefitInOrder(
        refit, plan, full, Runs(model, [lambda twin, batch=batch: twin(**batch) for batch in batches])
    )
    assert error(model, RefittedPlan(plan, in_order), batches) == error(model, RefittedPlan(plan, refit), batches)


def test_where_no_copy_runs_output_projections_alone_are_refitted_and_a_warning_says_so(caplog):
    model = classifier().eval()
    batches = unlabelled(examples(16))
    plan, full = random_plan(model, seed=1), PruningPlan.of(model)
    refit, _ = refits_of(model, plan, batches)

    def run(twin):
        raise RuntimeError("a loss that holds a model of its own")

    in_order = RefitInOrder(refit, plan, full, Runs(model, [run for _ in batches]))
    with caplog.at_level(logging.WARNING):
        in_order.fit()
    assert "a loss that holds a model of its own" in caplog.text
    caplog.clear()  # what is asked for here is a fault elsewhere, see conftest.py
    assert error(model, RefittedPlan(plan, in_order), batches) == error(model, RefittedPlan(plan, refit), batches)


def test_passes_wait_for_each_other_and_go_on_with_what_was_changed():
    model = classifier().eval()
    batches = unlabelled(examples(16))
    ends = []
    runs = [lambda twin, batch=batch: ends.append(twin(**batch).logits) for batch in batches]
    output = "bert.encoder.layer.1.output.dense"
    with torch.no_grad(), SideBySide(model, runs) as passes:
        passes.stop_at(before=[QUERY], sums=[output])
        assert all(stop.outputs is None for stop in passes.advance(QUERY))
        stops = passes.advance(output)
        assert all(stop.stream.shape == stop.outputs.shape for stop in stops)
        assert not ends
        changed = model.get_submodule(output)
        changed.weight.data, changed.bias.data = changed.weight * 0.0, changed.bias * 0.0 + 1.0
        for stop in stops:
            stop.is_outdated = True
        with pytest.raises(RuntimeError, match="has not come to"):
            passes.advance("no such module")
    with torch.no_grad():
        torch.testing.assert_close(ends[0], model(**batches[0]).logits)


def test_the_costs_of_a_budget_do_not_depend_on_it():
    model = classifier().eval()
    settings = SecondOrder(density=0.4, tuning=SecondOrderTuning(width_multiple=8))
    plans = [second_order_plan(model, examples(40), settings, batch_size=size).plan for size in (4, 10)]
    assert plans[0] == plans[1]


def test_fewer_batches_are_run_where_their_activations_would_be_too_large(monkeypatch):
    model = classifier().eval()
    batches = unlabelled(examples(40))
    plan, ran = random_plan(model, seed=1), []
    refit, _ = refits_of(model, plan, batches)
    runs = [lambda twin, number=number: ran.append(number) or twin(**batches[number]) for number in range(len(batches))]
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    monkeypatch.setattr(projections, "MOST_ACTIVATIONS", 4 * tokens * (64 + 4 * 32) // 2)  # half of what all take
    monkeypatch.setattr(projections, "_size_of", lambda model: 0)
    RefitInOrder(refit, plan, PruningPlan.of(model), Runs(model, runs)).fit()
    assert set(ran) == set(range(0, len(batches), 2))


def test_a_model_with_another_head_is_refused():
    model = classifier().eval()
    batches = unlabelled(examples(80))
    plan = random_plan(model, seed=1)
    _, in_order = refits_of(model, plan, batches)
    in_order.fit()
    other = plain_copy(model)
    other.bert.pooler.dense = torch.nn.Linear(32, 16)
    other.classifier = torch.nn.Linear(16, 5)
    with pytest.raises(InvalidPlanError, match=r"This refit does not fit the model: .* has not the shape that it had"):
        in_order.check_fits(other)
