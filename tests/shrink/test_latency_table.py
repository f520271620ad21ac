"""The table of measured latencies, and a search that counts with it."""

import json
from types import SimpleNamespace

import pytest

from hf_headprune import LatencySettings, PruningPlan, measure_latency, measure_latency_table, search_plan
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.shrink.latency_table import _spread
from hf_headprune.shrink.surgery import prune_model_
from tests.support.classifiers import NUM_LABELS, own_examples
from tests.support.models import tiny_bert, tiny_marian
from tests.support.searches import settings

QUICK = LatencySettings(batch_size=2, seq_len=16, runs=5)


@pytest.mark.slow
def test_table_holds_every_block_and_searches_its_model():
    model = tiny_bert(num_labels=NUM_LABELS, hidden_size=256, intermediate_size=2048).eval()  # FFNs take long
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = measure_latency_table(model, LatencySettings(batch_size=8, seq_len=32), points=2, progress=False)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    anatomy = anatomy_of(model)
    assert {site: list(ms) for site, ms in table.items()} == {
        site.name: [0, site.units // 2, site.units] for site in anatomy.sites
    }
    for site in anatomy.ffn_sites:
        ms = table[site.name]
        assert ms[0] == 0 < min(ms[site.units // 2], ms[site.units])  # which is larger depends on the machine
    table = json.loads(json.dumps(table))  # as a script keeps it beside the journal
    search = settings(units=("ffn",), objective="latency", latency_ms=table, max_drop=0.9, max_evaluations=20)
    result = search_plan(model, own_examples(model), search=search, progress=False).search
    table = search.tuning.latency_ms
    left = sum(table[site][len(kept)] for site, kept in result.plan.kept_ffn.items() if len(kept) in table[site])
    assert result.gain == pytest.approx(sum(table[site.name][site.units] for site in anatomy.ffn_sites) - left)


@pytest.mark.slow
def test_table_of_a_pruned_encoder_decoder_lists_what_it_has():
    model = tiny_marian()
    full = PruningPlan.of(model)
    table = measure_latency_table(model, QUICK, points=1, progress=False)
    assert table.keys() == full.num_heads.keys() | full.num_ffn.keys()


@pytest.mark.slow
def test_blocks_of_one_kind_share_the_difference_and_a_block_without_units_is_left_out(monkeypatch):
    model = tiny_bert(num_hidden_layers=3)
    plan = PruningPlan.of(model)
    first, *others = plan.kept_heads
    prune_model_(model, plan.replace(kept_heads={first: ()}))

    def timed(seconds, whole, cut, settings, inputs):
        """A model takes a ms for each head and a tenth of one for each FFN unit, and one beside them."""
        times = [
            1.0 + sum(len(k) for k in p.kept_heads.values()) + sum(len(k) for k in p.kept_ffn.values()) / 10
            for p in map(PruningPlan.of, (whole, cut))
        ]
        return SimpleNamespace(**dict(zip(("before", "after"), (SimpleNamespace(median_ms=t) for t in times))))  # noqa: B905

    monkeypatch.setattr("hf_headprune.shrink.latency_table.measured_within", timed)
    table = measure_latency_table(model, QUICK, points=4, progress=False)
    assert table.keys() == {*others, *plan.kept_ffn}
    for site in others:
        assert table[site] == pytest.approx({0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    for site in plan.kept_ffn:
        assert table[site] == pytest.approx({0: 0.0, 16: 1.6, 32: 3.2, 48: 4.8, 64: 6.4})


@pytest.mark.parametrize(("units", "points", "numbers"), [(4, 8, [0, 1, 2, 3]), (12, 3, [0, 4, 8]), (1, 8, [0])])
def test_measured_numbers_are_evenly_spread_below_all_units(units, points, numbers):
    assert _spread(units, points) == numbers


@pytest.mark.parametrize("points", [0, 1.5, True])
def test_too_few_points_are_refused(points):
    with pytest.raises(InvalidSettingError, match="points must be an integer of at least 1"):
        measure_latency_table(tiny_bert(), QUICK, points=points)


def test_modules_that_were_frozen_in_evaluation_stay_there():
    model = tiny_bert().train()
    model.bert.embeddings.eval()
    measure_latency(model, tiny_bert().train(), QUICK)
    assert model.training
    assert not any(module.training for module in model.bert.embeddings.modules())
