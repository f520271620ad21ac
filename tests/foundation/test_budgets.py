import math
from functools import partial

import pytest

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import budgets, linear_density
from hf_headprune.cost import cost_of
from hf_headprune.errors import InvalidPlanError, InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import tiny_bert, tiny_marian


def linear_weights(model):
    """Entries of all attention and FFN matrices, counted on the model itself."""
    layers = [p for name, p in model.named_parameters() if ".layer" in name and p.dim() == 2]
    return sum(p.numel() for p in layers)


def first_units(anatomy, found):
    """A plan that keeps as many units as the budgets say, from the first site on."""
    plan = PruningPlan.full(anatomy)
    kept = {}
    for sites, number in ((anatomy.attention_sites, found.kept_heads), (anatomy.ffn_sites, found.kept_ffn)):
        before = 0
        for site in sites:
            kept[site.name] = range(min(site.units, max(number - before, 0)))
            before += site.units
    heads = {site.name: kept[site.name] for site in anatomy.attention_sites}
    return plan.replace(kept_heads=heads, kept_ffn={site.name: kept[site.name] for site in anatomy.ffn_sites})


@pytest.mark.parametrize("make", [tiny_bert, tiny_marian])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.26, 0.5, 0.74, 0.9, 0.97, 1.0])
def test_budgets_reach_the_density_to_half_a_multiple_of_ffn_units(make, density):
    model = make()
    anatomy = anatomy_of(model)
    found = budgets(anatomy, density, width_multiple=2)
    assert found.density == pytest.approx(linear_density(first_units(anatomy, found), anatomy), abs=1e-12)
    assert found.kept_ffn % 2 == 0
    assert abs(found.density - density) <= (2 * 2 * 32 / 2) / linear_weights(model) + 1e-12


def test_budgets_of_bert_base_are_whole_heads_and_chunks_of_32_units():
    anatomy = anatomy_of(tiny_bert(hidden_size=768, num_attention_heads=12, intermediate_size=3072))
    found = budgets(anatomy, 0.26)
    assert found.kept_heads == round(24 * math.sqrt(0.26))
    assert found.kept_ffn % 32 == 0
    assert found.density == pytest.approx(0.26, abs=16 * 2 * 768 / (2 * 12 * 768 * 768))


def test_the_neighbouring_number_of_heads_is_taken_where_it_comes_nearer():
    anatomy = anatomy_of(tiny_bert())  # 8 heads of 1 024 weights, and 128 FFN units of 64 in one multiple
    found = budgets(anatomy, 0.42, width_multiple=64)
    assert found.kept_heads != round(8 * math.sqrt(0.42))
    nearest = [(5 * 1024 + chunks * 64 * 64) / 16384 for chunks in range(3)]  # with the heads of the rule
    assert abs(found.density - 0.42) < min(abs(density - 0.42) for density in nearest)


def test_a_model_without_heads_or_without_ffn_units_has_no_budgets():
    for name in ("kept_heads", "kept_ffn"):
        model = tiny_bert()
        plan = PruningPlan.of(model)
        prune_model_(model, plan.replace(**{name: dict.fromkeys(getattr(plan, name), ())}))
        with pytest.raises(InvalidSettingError, match="the model must have heads and FFN units"):
            budgets(anatomy_of(model), 0.5)


@pytest.mark.parametrize("count", [linear_density, partial(cost_of, seq_len=8)])
def test_a_model_in_place_of_its_anatomy_is_refused(count):
    model = tiny_bert()
    with pytest.raises(InvalidSettingError, match=r"received a BertForSeq.* Pass anatomy_of\(model\)"):
        count(PruningPlan.of(model), model)


def test_the_density_of_another_models_plan_is_refused():
    with pytest.raises(InvalidPlanError):
        linear_density(PruningPlan.of(tiny_bert(num_hidden_layers=3)), anatomy_of(tiny_bert()))


def test_attention_gets_at_most_four_fifths_of_what_stays():
    anatomy = anatomy_of(tiny_bert(num_attention_heads=32))
    assert budgets(anatomy, 0.1, width_multiple=1).kept_heads == round(0.8 * 0.1 * 2 * 64)


def test_linear_density_counts_the_weights_of_the_model():
    model = tiny_bert()
    plan = PruningPlan.of(model)
    first = next(iter(plan.kept_heads))
    kept = plan.replace(kept_heads={first: (0, 2)})
    assert linear_density(plan, anatomy_of(model)) == 1.0
    assert linear_density(kept, anatomy_of(model)) == 1 - 2 * (4 * 32 * 8) / linear_weights(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "density must be above 0"),
        ({"density": 1.5}, "density must be above 0"),
        ({"density": 0.5, "width_multiple": 48}, "width_multiple=48"),
        ({"density": 0.5, "width_multiple": 0}, "width_multiple=0"),
    ],
)
def test_impossible_budgets_are_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        budgets(anatomy_of(tiny_bert()), **settings)
