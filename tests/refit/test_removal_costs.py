"""Removal costs, against ridge regression written out."""

from __future__ import annotations

import pytest
import torch

from hf_headprune import PruningPlan
from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.cost import weights_price
from hf_headprune.refit.choice import record_refit
from hf_headprune.refit.moments import record_moments, record_moments_by_gradient
from hf_headprune.refit.plans_between import plans_between
from hf_headprune.refit.projections import Block
from hf_headprune.refit.removal_costs import Removal, cheapest_first, elimination
from tests.support.classifiers import batches_of, classifier, examples
from tests.support.families import made
from tests.support.second_order import ATTENTION, FFN, losses_of, site_of


@pytest.fixture
def case():
    return classifier().eval(), batches_of(examples(40))


def error_without(block, gone):
    """What ridge regression on the units of the start that stay leaves unpredicted, in the metric of the loss."""
    columns = block.columns([unit for unit in block.start if unit not in gone], constant=True)
    lost = block.columns(gone, constant=False)
    moments = block.regularised(torch.arange(len(block.moments)))
    fit = torch.linalg.solve(moments[columns][:, columns], moments[columns][:, lost])
    left = moments[lost][:, lost] - moments[lost][:, columns] @ fit
    weight = block.weight[:, lost]
    return float(torch.trace(block.sensitivity.double() @ weight @ left @ weight.T))


@pytest.mark.parametrize("name", [ATTENTION, FFN])
def test_summed_costs_are_the_error_that_ridge_regression_leaves(case, name):
    model, batches = case
    site = site_of(model, name)
    recorded = record_moments_by_gradient(model, [site], losses_of(model, batches))[name]
    kept = tuple(range(site.units))
    block = Block.of(model, recorded, kept)
    path = elimination(block, kept, width_multiple=4)
    assert sorted(unit for removal in path for unit in removal.units) == list(kept)
    gone: list[int] = []
    cost = 0.0
    for removal in path:
        gone += removal.units
        cost += removal.cost
        assert cost == pytest.approx(error_without(block, gone), rel=1e-4)


def test_the_first_removal_is_the_cheapest_single_one(case):
    model, batches = case
    site = site_of(model, ATTENTION)
    recorded = record_moments_by_gradient(model, [site], losses_of(model, batches))[ATTENTION]
    kept = tuple(range(site.units))
    block = Block.of(model, recorded, kept)
    costs = {head: error_without(block, [head]) for head in kept}
    first = elimination(block, kept)[0]
    assert first.units == (min(costs, key=costs.__getitem__),)
    assert first.cost == pytest.approx(min(costs.values()), rel=1e-6)


def test_only_what_may_leave_leaves_and_without_a_loss_the_price_is_the_share_lost(case):
    model, batches = case
    site = site_of(model, ATTENTION)

    def run():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    kept = tuple(range(site.units))
    block = Block.of(model, record_moments(model, [site], run)[ATTENTION], kept)
    path = elimination(block, kept, removable=kept[1:])
    assert {unit for removal in path for unit in removal.units} == set(kept[1:])
    assert sum(removal.cost for removal in elimination(block, kept)) <= 1.0 + 1e-6


def test_sites_take_turns_by_cost_per_weight_in_their_own_order():
    a = [Removal("a", (1,), 3.0, 1), Removal("a", (0,), 1.0, 1)]
    b = [Removal("b", (0, 1), 4.0, 2), Removal("b", (2, 3), 9.0, 2)]
    found = [removal.units for removal in cheapest_first([a, b, []])]
    assert found == [(0, 1), (1,), (0,), (2, 3)]


def test_the_first_units_to_leave_a_ragged_width_make_it_a_multiple(case):
    model, batches = case
    refit = record_refit(model, [site_of(model, FFN)], PruningPlan.of(model), losses_of(model, batches))
    removals = elimination(refit.blocks[FFN], range(60), width_multiple=32)
    assert [len(removal.units) for removal in removals] == [28, 32]


@pytest.fixture(scope="module")
def grouped():
    """Attention with three query heads for each of four groups, of which one hardly counts: refit, plan and site."""
    model, inputs = made("llama", num_attention_heads=12, hidden_size=48)
    plan = PruningPlan.of(model)
    site = anatomy_of(model).attention_sites[0]
    with torch.no_grad():
        base_model(model).get_submodule(site.output).weight[:, site.columns((1, 4, 7, 10))] *= 0.3
    losses = (model(**inputs, labels=inputs["input_ids"]).loss for _ in range(1))
    return record_refit(model, [site], plan, losses), plan, site


@pytest.mark.parametrize("whole_groups", [True, False])
def test_groups_of_heads_leave_whole_or_lose_a_head_each(grouped, whole_groups):
    refit, plan, site = grouped
    block = refit.blocks[site.name]
    path = elimination(block, plan.kept(site.name), whole_groups=whole_groups)
    gone, cost = set(), 0.0
    for removal in path:
        gone |= {*removal.units}
        cost += removal.cost
        assert cost == pytest.approx(error_without(block, sorted(gone)), rel=1e-3)
        left = plan.replace(kept_heads={site.name: {*plan.kept(site.name)} - gone})  # refuses what is uneven
    assert left.kept(site.name) == ()
    assert sum(removal.saved for removal in path) == site.price(weights_price(site))
    assert [len(removal.units) for removal in path] == ([3, 3, 3, 3] if whole_groups else [4, 2, 2, 2, 2])


def test_each_step_takes_what_costs_least_for_what_it_saves(grouped):
    refit, plan, site = grouped
    block, price = refit.blocks[site.name], weights_price(site)
    first = elimination(block, plan.kept(site.name))[0]
    groups = [[3 * group, 3 * group + 1, 3 * group + 2] for group in range(4)]
    cheapest = [min(group, key=lambda head: error_without(block, [head])) for group in groups]
    options = [(error_without(block, group) / price.of(3, 1), group) for group in groups]
    options.append((error_without(block, cheapest) / price.of(4, 0), cheapest))
    assert list(first.units) == min(options)[1]
    assert first.cost / first.saved == pytest.approx(min(options)[0], rel=1e-4)


def test_plans_between_two_of_grouped_heads_are_plans(grouped):
    refit, start, site = grouped
    end = start.replace(kept_heads={site.name: (0, 2, 9, 10)})
    for way in (refit, None):
        plans = plans_between(start, end, way)
        assert plans[-1] == end
        assert all({*end.kept(site.name)} <= {*plan.kept(site.name)} for plan in plans)
    assert len(plans_between(start, end, refit)) == 3  # two groups whole, and a head of each that is there
