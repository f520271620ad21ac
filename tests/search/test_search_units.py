"""Units of a search beyond heads: FFN chunks and whole layers, and what their removal saves."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from hf_headprune.anatomy import anatomy_of
from hf_headprune.cost import cost_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.choice import record_refit
from hf_headprune.search.bounds import ExactGains
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.latency import latency_gains
from hf_headprune.search.plans import _heads_by_scores, order_by_costs, search_over_plans
from hf_headprune.search.problem import Measurement, to_mask
from hf_headprune.search.units import gains_of, layers_of, places_of, plan_without, removed_at, units_of_search
from tests.support.classifiers import batches_of, classifier, own_examples, searched
from tests.support.families import made
from tests.support.models import tiny_marian
from tests.support.searches import Given, changed, over_heads

BOTH = over_heads(units=("heads", "ffn"), objective="parameters", ffn_chunk=32, max_drop=0.1)
ALL = dataclasses.replace(BOTH, units=("heads", "ffn", "layers"))
LAYERS = dataclasses.replace(BOTH, units=("layers",))


def test_the_layers_of_all_stages_are_units_though_they_are_numbered_through():
    model, _ = made("swin")
    layers = layers_of(anatomy_of(model))
    assert list(layers) == [f"encoder.layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]
    assert all(sites == [f"{layer}.attention", f"{layer}.mlp"] for layer, sites in layers.items())


def everything(plan):
    return Measurement(1.0)


def some_order(plan, seed=0, width=32):
    """Chunks of the FFN units that a plan keeps, drawn at random."""
    rng, order = np.random.default_rng(seed), []
    for site, kept in plan.kept_ffn.items():
        left = rng.permutation(kept).tolist()
        while left:
            count = len(left) % width or width
            order.append((site, tuple(left[:count])))
            left = left[count:]
    return order


def test_chunks_are_what_the_order_removes_together():
    anatomy = anatomy_of(classifier())
    full = PruningPlan.full(anatomy)
    order = some_order(full)
    units = units_of_search(anatomy, full, dataclasses.replace(BOTH, units=("ffn",)), order)
    assert [(part.site, part.indices) for (part,) in units] == [(site, tuple(sorted(them))) for site, them in order]
    assert [part.index for (part,) in units] == [0, 1, 0, 1]


def test_an_order_that_splits_what_is_removed_together_is_refused():
    anatomy = anatomy_of(classifier())
    site = anatomy.attention_sites[0].name
    with pytest.raises(InvalidSettingError, match=r"one head or one chunk, received \(0, 1\) of encoder"):
        search_over_plans(anatomy, Given(everything), BOTH, order=[(site, (0, 1))])


@pytest.mark.parametrize("chosen", [BOTH, ALL])
def test_the_first_answers_follow_the_order(chosen):
    anatomy = anatomy_of(classifier())
    full = PruningPlan.full(anatomy)
    heads_first = [(site.name, (head,)) for site in anatomy.attention_sites for head in range(4)]
    order = [*heads_first[::-1], *some_order(full)]
    result = search_over_plans(anatomy, Given(everything), dataclasses.replace(chosen, max_evaluations=2), order=order)
    removed = result.plan_of(result.history[1])
    gone = {(site, unit) for site in full.num_heads for unit in range(4) if unit not in removed.kept_heads[site]}
    assert gone == {(site, unit) for site, (unit,) in order[: len(gone)]}
    assert len(gone) == 6
    assert removed.kept_ffn == full.kept_ffn


def test_without_an_order_costs_decide_it_and_whole_layers_stand_at_their_mean():
    model = classifier(num_hidden_layers=3)
    anatomy, evaluator = anatomy_of(model), ExampleEvaluator(model, batches_of(own_examples(model)))
    order = order_by_costs(evaluator.use_refit(PruningPlan.full(anatomy), ffn=True), PruningPlan.of(model), BOTH)
    assert sorted(len(units) for _, units in order) == [1] * 12 + [32] * 6
    layers = list(layers_of(anatomy).values())
    means = [np.mean([place for place, (site, _) in enumerate(order) if site in sites]) for sites in layers]
    result = search_over_plans(anatomy, evaluator, dataclasses.replace(LAYERS, max_drop=0.99, max_evaluations=2))
    assert {site for site, _ in result.history[1].removed} == {
        site for layer in np.argsort(means)[:2] for site in layers[layer]
    }


@pytest.mark.parametrize("kept", [0, 1, 20, 32, 50, 63, 64])
def test_a_start_that_removes_ffn_units_splits_no_chunk(kept):
    anatomy = anatomy_of(classifier())
    site = anatomy.ffn_sites[0].name
    chosen = np.random.default_rng(kept).permutation(64)[:kept].tolist()
    start = PruningPlan.full(anatomy).replace(kept_ffn={site: chosen})
    units = units_of_search(anatomy, start, BOTH, some_order(start))
    removed = removed_at(start, units)
    assert plan_without(start, units, removed) == start
    assert plan_without(start, units, ()) == PruningPlan.full(anatomy)
    widths = [
        len(unit[0].indices) for number, unit in enumerate(units) if unit[0].site == site and number not in removed
    ]
    assert sum(widths) == kept
    assert all(width == 32 for width in widths[1:])


def test_layers_hold_the_sites_of_one_layer_each():
    layers = layers_of(anatomy_of(tiny_marian()))
    assert len(layers) == 4
    assert [len(sites) for sites in layers.values()] == [2, 2, 3, 3]
    assert all(site.startswith(layer + ".") for layer, sites in layers.items() for site in sites)


@pytest.mark.parametrize("chosen", [BOTH, ALL, LAYERS, dataclasses.replace(BOTH, objective="macs")])
def test_gain_is_what_the_plan_costs_less(chosen):
    model = classifier()
    anatomy = anatomy_of(model)
    keep = anatomy.attention_sites[0].name

    def measure(plan):
        return Measurement(1.0 if len(plan.kept_heads[keep]) == 4 else 0.0)

    result = search_over_plans(anatomy, Given(measure), dataclasses.replace(chosen, max_evaluations=60))
    assert result.plan.num_removed_heads >= 4
    assert result.plan.num_removed_ffn > 0
    before, after = (cost_of(plan, anatomy, seq_len=128) for plan in (result.start, result.plan))
    assert result.gain == getattr(before, chosen.objective) - getattr(after, chosen.objective)
    for step in result.history:
        plan = result.plan_of(step)
        saved = getattr(before, chosen.objective) - getattr(cost_of(plan, anatomy, seq_len=128), chosen.objective)
        assert step.gain == saved
    incumbent = [step for step in result.history if step.is_incumbent][-1]
    assert result.plan_of(incumbent) == result.plan


@pytest.mark.parametrize("lengths", [{}, {"seq_len": 8}, {"seq_len": 512}, {"seq_len": 8, "target_len": 300}])
def test_macs_are_those_of_the_lengths_asked_for(lengths):
    anatomy = anatomy_of(tiny_marian())
    chosen = changed(BOTH, objective="macs", max_evaluations=40, **lengths)
    result = search_over_plans(anatomy, Given(everything), chosen)
    asked = {"seq_len": 128, **lengths}
    full = cost_of(result.start, anatomy, **asked).macs
    assert len({step.gain for step in result.history}) > 5
    assert all(step.gain == full - cost_of(result.plan_of(step), anatomy, **asked).macs for step in result.history)


@pytest.mark.parametrize("chosen", [BOTH, ALL, LAYERS])
def test_what_is_not_alive_is_never_put_back(chosen):
    anatomy = anatomy_of(classifier())
    (attention, _), (ffn, _) = anatomy.attention_sites, anatomy.ffn_sites
    alive = PruningPlan.full(anatomy).replace(kept_heads={attention.name: [1, 2]}, kept_ffn={ffn.name: range(10, 50)})
    start = (
        alive
        if chosen is LAYERS
        else alive.replace(kept_heads={attention.name: [2]}, kept_ffn={ffn.name: range(50)[10:42]})
    )
    result = search_over_plans(
        anatomy, Given(everything), dataclasses.replace(chosen, max_evaluations=100), start=start, alive=alive
    )
    plans = [result.plan_of(step) for step in result.history]
    assert plans[0] == start
    assert len(set(plans)) > 3
    for plan in plans:
        assert set(plan.kept(attention.name)) <= {1, 2}
        assert set(plan.kept(ffn.name)) <= set(range(10, 50))
    assert result.plan.num_kept_heads == result.plan.num_kept_ffn == 0


def test_a_start_that_keeps_what_is_not_alive_is_refused():
    anatomy = anatomy_of(classifier())
    alive = PruningPlan.full(anatomy).replace(kept_heads={anatomy.attention_sites[1].name: [1, 2]})
    with pytest.raises(InvalidSettingError, match=r"received less at \['encoder.layer.1.attention'\]"):
        search_over_plans(anatomy, Given(everything), BOTH, alive=alive)


def test_whole_layers_alone_go_or_stay_as_a_whole():
    model = classifier(num_hidden_layers=3)
    result = search_over_plans(anatomy_of(model), Given(everything), dataclasses.replace(LAYERS, max_evaluations=None))
    assert result.evaluations <= 8
    assert result.plan.num_kept_heads == result.plan.num_kept_ffn == 0
    partly = result.start.replace(kept_heads={next(iter(result.start.kept_heads)): [0]})
    with pytest.raises(InvalidSettingError, match="must keep or remove each searched layer wholly"):
        search_over_plans(anatomy_of(model), Given(everything), LAYERS, start=partly)


def test_heads_alone_leave_the_ffn_and_chunks_alone_the_heads():
    model = classifier()
    anatomy = anatomy_of(model)
    start = PruningPlan.full(anatomy).replace(
        kept_heads={anatomy.attention_sites[0].name: [0, 2]}, kept_ffn={anatomy.ffn_sites[0].name: range(10)}
    )
    heads = search_over_plans(anatomy, Given(everything), over_heads(), start=start)
    assert heads.plan.kept_ffn == start.kept_ffn
    assert heads.plan.num_kept_heads == 0
    ffn = search_over_plans(anatomy, Given(everything), dataclasses.replace(BOTH, units=("ffn",)), start=start)
    assert ffn.plan.kept_heads == start.kept_heads
    assert ffn.plan.num_kept_ffn == 0
    assert [found.plan_of(found.history[0]) for found in (heads, ffn)] == [start, start]


@pytest.mark.slow
def test_optimum_over_heads_and_chunks_of_a_live_model_is_the_true_one():
    model = classifier(num_hidden_layers=1)
    dataset = own_examples(model)
    chosen = dataclasses.replace(BOTH, max_evaluations=None)
    result = searched(model, dataset, chosen)
    anatomy = anatomy_of(model)
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    order = [(site, chunk) for site, chunks in result.ffn_chunks.items() for chunk in chunks]
    units = units_of_search(anatomy, result.start, chosen, order)
    assert len(units) == 6
    plans = [
        plan_without(result.start, units, removed)
        for size in range(7)
        for removed in itertools.combinations(range(6), size)
    ]
    threshold = evaluator(result.start).metric - 0.1 - 1e-9
    full = cost_of(result.start, anatomy, seq_len=8).parameters
    best = max(full - cost_of(p, anatomy, seq_len=8).parameters for p in plans if evaluator(p).metric >= threshold)
    assert (result.optimality, result.gain) == ("proved", best)
    assert evaluator(result.plan).metric == result.metric
    content = json.loads(result.to_json())
    assert content["units"] == ["heads", "ffn"]
    assert {site: [len(chunk) for chunk in chunks] for site, chunks in content["ffn_chunks"].items()} == {
        anatomy.ffn_sites[0].name: [32, 32]
    }


# --- latency ---


def table(anatomy, head_ms=(1.0, 1.0, 2.0, 2.0, 3.0), chunk_ms=(0.5, 2.0, 4.0)):
    chunks = {32 * number: ms for number, ms in enumerate(chunk_ms)}
    return {site.name: dict(enumerate(head_ms)) if site.is_attention else chunks for site in anatomy.sites}


def test_latency_counts_what_was_measured_for_the_units_kept():
    anatomy = anatomy_of(classifier())
    latency = over_heads(units=("heads", "ffn"), objective="latency", ffn_chunk=32, latency_ms=table(anatomy))
    first = anatomy.attention_sites[0].name

    def measure(plan):  # of the first site two heads have to stay
        return Measurement(1.0 if len(plan.kept_heads[first]) >= 2 else 0.0)

    result = search_over_plans(anatomy, Given(measure), dataclasses.replace(latency, max_evaluations=200))
    assert result.gain == (3.0 - 2.0) + (3.0 - 1.0) + 2 * (4.0 - 0.5)
    for step in result.history:
        plan = result.plan_of(step)
        measured = latency.tuning.latency_ms
        ms = sum(measured[site][len(kept)] for site, kept in [*plan.kept_heads.items(), *plan.kept_ffn.items()])
        assert step.gain == pytest.approx(2 * 3.0 + 2 * 4.0 - ms)


def test_units_of_which_a_table_says_that_they_take_no_time_are_searched_last():
    anatomy = anatomy_of(classifier())
    flat = {site: dict.fromkeys(ms, 1.0) | {max(ms): 3.0} for site, ms in table(anatomy).items()}
    chosen = over_heads(units=("heads", "ffn"), objective="latency", ffn_chunk=32, latency_ms=flat, max_evaluations=20)
    first = anatomy.attention_sites[0].name
    start = PruningPlan.full(anatomy).replace(kept_heads={first: [1]})  # one head takes what none takes
    result = search_over_plans(anatomy, Given(everything), chosen, start=start, alive=start)
    assert result.gain == pytest.approx(3 * (3.0 - 1.0))
    assert {step.gain for step in result.history} <= {0.0, 2.0, 4.0, 6.0}


def test_latency_between_measured_numbers_of_units_is_interpolated():
    anatomy = anatomy_of(classifier())
    first, second = (site.name for site in anatomy.ffn_sites)
    chosen = dataclasses.replace(BOTH, units=("ffn",))
    start = PruningPlan.full(anatomy).replace(kept_ffn={first: range(16)})  # chunks of 16, 32 and, kept, 16 units
    units = units_of_search(anatomy, start, chosen, None)
    shares, tables = latency_gains(units, {first: {0: 1.0, 16: 3.0, 64: 9.0}, second: {0: 0.0, 64: 8.0}})
    assert [unit[0].indices for unit in units[:3]] == [tuple(range(16, 32)), tuple(range(32, 64)), tuple(range(16))]
    assert tables[0].saved == pytest.approx((0.0, 2.0, 6.0, 8.0))  # 64, 48, 16 and 0 units stay
    assert tables[1].saved == pytest.approx((0.0, 4.0, 8.0))
    assert shares == pytest.approx((8 / 3, 8 / 3, 8 / 3, 4.0, 4.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "elsewhere": {0: 1.0, 4: 2.0}}, r"unknown \['elsewhere'\]"),
        (lambda t: dict(list(t.items())[1:]), r"missing are \['encoder.layer.0.attention'\]"),
        (lambda t: {site: dict(list(values.items())[1:]) for site, values in t.items()}, "needs the ms with 0 and"),
        (lambda t: {site: dict(list(values.items())[:-1]) for site, values in t.items()}, "with all 4 of its units"),
        (lambda t: {site: {**values, 65: 9.0} for site, values in t.items()}, "and none beyond"),
        (lambda t: {site: {**values, 0: 9.0} for site, values in t.items()}, "must be faster without any unit"),
    ],
)
def test_a_table_that_does_not_fit_the_search_is_refused(change, message):
    anatomy = anatomy_of(classifier())
    chosen = over_heads(units=("heads", "ffn"), objective="latency", ffn_chunk=32, latency_ms=table(anatomy))
    search_over_plans(anatomy, Given(everything), chosen)
    with pytest.raises(InvalidSettingError, match=message):
        search_over_plans(anatomy, Given(everything), changed(chosen, latency_ms=change(chosen.tuning.latency_ms)))


def test_latency_of_layers_needs_them_as_steps():
    anatomy = anatomy_of(classifier())
    chosen = over_heads(units=("layers",), objective="latency", latency_ms=table(anatomy))
    with pytest.raises(InvalidSettingError, match="must lie in one site each, received whole layers"):
        search_over_plans(anatomy, Given(everything), chosen)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"units": ("heads", "ffn")}, "AStarSearch: units must be"),
        ({"units": ("heads", "layers"), "objective": "macs"}, "AStarSearch: units must be"),
        ({"units": ()}, "AStarSearch: units must be"),
        ({"seq_len": 64}, "seq_len and tuning.target_len are for the objective 'macs'.*tuning.seq_len=64"),
        ({"seq_len": 0, "objective": "macs"}, "SearchTuning: seq_len must be"),
        ({"target_len": 128}, "tuning.target_len are for the objective 'macs'.*tuning.target_len=128"),
        ({"target_len": 0, "objective": "macs"}, "SearchTuning: target_len must be"),
        ({"ffn_chunk": 48}, "SearchTuning: ffn_chunk must be"),
        ({"ffn_chunk": 0}, "SearchTuning: ffn_chunk must be"),
        ({"objective": "latency"}, "latency_ms is for the objective 'latency', which needs it"),
        ({"latency_ms": {"a": {0: 0.0, 4: 1.0}}}, "latency_ms is for the objective 'latency'.*objective='heads'"),
        ({"objective": "latency", "latency_ms": {"a": (0.0, 1.0)}}, "SearchTuning: latency_ms must be"),
        ({"objective": "latency", "latency_ms": {"a": {"none": 0.0}}}, "SearchTuning: latency_ms must be"),
        ({"objective": "latency", "latency_ms": {"a": {0: float("nan")}}}, "SearchTuning: latency_ms must be"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, message):
    with pytest.raises(InvalidSettingError, match=message):
        over_heads(**wrong)


def test_scores_of_another_model_are_refused():
    with pytest.raises(InvalidSettingError, match="head_scores must be 8 finite numbers"):
        search_over_plans(anatomy_of(classifier()), Given(everything), BOTH, head_scores=np.zeros(3))


def test_scores_of_heads_decide_among_heads_and_chunks_keep_their_places():
    anatomy = anatomy_of(classifier())
    full = PruningPlan.full(anatomy)
    chunks = some_order(full)
    listed = [(site.name, (head,)) for site in anatomy.attention_sites for head in range(4)]
    order = [chunks[0], *listed[:4], chunks[1], *listed[4:], *chunks[2:]]
    scores = np.random.default_rng(0).permutation(8)
    result = search_over_plans(
        anatomy,
        Given(everything),
        dataclasses.replace(BOTH, max_evaluations=2),
        order=order,
        head_scores=scores,
    )
    removed = result.plan_of(result.history[1])
    gone = [listed[place] for place in np.argsort(scores)[:4]]
    assert all(unit not in removed.kept(site) for site, (unit,) in gone)
    assert not set(removed.kept(chunks[0][0])) & {*chunks[0][1], *chunks[1][1]}
    assert removed.num_removed_heads == 4


HEADS = dataclasses.replace(BOTH, units=("heads",))


def test_groups_of_query_heads_and_one_head_of_each_are_searched():
    anatomy = anatomy_of(made("llama")[0])  # four groups of two
    full = PruningPlan.full(anatomy)
    first, second = full.num_heads
    start = full.replace(kept_heads={first: (0, 3), second: (0, 1, 6, 7)})  # of the first, a head of two groups
    units = units_of_search(anatomy, start, HEADS, [(second, (1, 7)), (second, (0,)), (second, (6,))])
    groups = [(group, (2 * group, 2 * group + 1)) for group in range(4)]
    found = [(part.site, part.index, part.indices) for (part,) in units]
    assert found[:5] == [(first, *it) for it in [*groups, (4, (1, 2, 4, 6))]]  # what the start has removed goes back
    assert found[5:] == [(second, *it) for it in [*groups, (4, (1, 2, 4, 7))]]  # what the order removes leaves
    assert removed_at(start, units) == {2, 3, 4, 6, 7}
    assert plan_without(start, units, removed_at(start, units)) == start
    alone = units_of_search(anatomy, start, HEADS, whole_groups=True)
    assert [part.indices for (part,) in alone] == [(0,), (3,), *(heads for _, heads in groups)]


@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (4, 1)])
def test_every_set_of_grouped_heads_is_a_plan_and_saves_what_the_plan_does(sizes):
    heads, groups = sizes
    model, _ = made("llama", num_attention_heads=heads, num_key_value_heads=groups, num_hidden_layers=1)
    anatomy = anatomy_of(model)
    full = PruningPlan.full(anatomy)
    (site,) = full.num_heads
    units = units_of_search(anatomy, full, HEADS)
    assert len(units) == groups + (heads // groups - 1)
    gains = ExactGains(*gains_of(anatomy, units, HEADS))
    most = cost_of(full, anatomy, seq_len=8).parameters
    plans = set()
    for removed in itertools.chain(*(itertools.combinations(range(len(units)), r) for r in range(len(units) + 1))):
        plan = plan_without(full, units, removed)
        plans.add(plan.kept(site))
        assert gains.value(gains.of(to_mask(removed))) == most - cost_of(plan, anatomy, seq_len=8).parameters
        assert plan_without(full, units, removed_at(plan, units)) == plan
    assert len(plans) == (2**groups - 1) * 2 ** (heads // groups - 1) + 1


def test_the_order_of_the_costs_leads_through_the_plans_of_the_costs():
    model, inputs = made("llama", num_attention_heads=12, hidden_size=48)
    anatomy, full = anatomy_of(model), PruningPlan.of(model)
    losses = (model(**inputs, labels=inputs["input_ids"]).loss for _ in range(2))
    refit = record_refit(model, list(anatomy.attention_sites), full, losses)
    order = order_by_costs(refit, full, HEADS)
    assert {len(heads) for _, heads in order} & {2, 3, 4}
    units = units_of_search(anatomy, full, HEADS, order)
    places, gone, plans = places_of(units, order), {site: set() for site in full.num_heads}, []
    assert sorted(places) == list(range(len(units)))
    reached = [plan_without(full, units, places[:count]) for count in range(len(units) + 1)]
    for site, heads in order:
        gone[site] |= {*heads}
        plans.append(full.replace(kept_heads={s: {*full.kept(s)} - them for s, them in gone.items()}))
    assert all(plan in reached for plan in plans)


@pytest.mark.parametrize("recorded", [False, True])
def test_scores_of_heads_say_which_head_of_each_group_leaves_first(recorded):
    model, inputs = made("llama", num_attention_heads=8, num_key_value_heads=2, hidden_size=32, num_hidden_layers=1)
    anatomy, full = anatomy_of(model), PruningPlan.of(model)
    (site,) = full.num_heads
    scores = np.array([5.0, 1, 4, 2, 3, 6, 7, 0.5])
    seen = []

    class Recording(Given):
        def use_refit(self, start, *, ffn=False, apply=True):
            losses = (model(**inputs, labels=inputs["input_ids"]).loss for _ in range(2))
            return record_refit(model, list(anatomy.attention_sites), full, losses)

    def measure(plan):
        seen.append(plan)
        return Measurement(float(plan.num_kept_heads >= 6))

    evaluator = (Recording if recorded else Given)(measure)
    search = dataclasses.replace(HEADS, max_evaluations=40)
    search_over_plans(anatomy, evaluator, search, head_scores=scores)
    of_six = [plan.kept(site) for plan in seen if plan.num_kept_heads == 6]
    assert of_six[0] == (0, 2, 3, 4, 5, 6)  # without the least important head of each group
    units = units_of_search(anatomy, full, HEADS, _heads_by_scores(full, None, scores, inside=True))
    assert [part.indices for (part,) in units if part.is_across] == [(1, 7), (3, 4), (2, 5)]


def test_scores_of_heads_order_groups_by_their_mean():
    anatomy = anatomy_of(made("llama")[0])
    full = PruningPlan.full(anatomy)
    site, other = full.num_heads
    scores = np.array([5.0, 5, 0, 3, 1, 1, 9, 9] + [10.0] * 8)
    removals = [(site, full.groups(site)[0]), *((other, group) for group in full.groups(other))]
    assert [units for _, units in _heads_by_scores(full, removals, scores)][:1] == [(4, 5)]
    units = units_of_search(anatomy, full, dataclasses.replace(BOTH, units=("heads",)))
    assert places_of(units, _heads_by_scores(full, None, scores))[:4] == (2, 1, 0, 3)
