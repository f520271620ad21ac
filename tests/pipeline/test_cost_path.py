"""The order of removal costs, walked down until a test fails."""

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_headprune._seen_splits import seen_by
from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.errors import DataLeakError, InvalidSettingError
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.scored import CertificationData, least_needed
from hf_headprune.latency import LatencySettings
from hf_headprune.masking import masked
from hf_headprune.pipeline.budget import header_bytes, plan_for_budget
from hf_headprune.pipeline.cost_path import DENSITIES, can_decide, examples_for, leaving_densities
from hf_headprune.pipeline.ladder import plan_ladder
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.choice import plans_at
from hf_headprune.refit.one_shot import ExampleLosses
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import made
from tests.support.models import VOCAB_SIZE, text_inputs, tiny_bert


def learnable(count, *, seed):
    """Examples whose class is told by their first token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB_SIZE, (count, 6), generator=generator)
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": int(row[0] > 50)} for row in ids]


@pytest.fixture(scope="module")
def trained():
    """A classifier that has learned its task."""
    model = tiny_bert(num_labels=2).train()
    train = learnable(600, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(120):
        rows = [train[index] for index in range((16 * step) % 592, (16 * step) % 592 + 16)]
        batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def accuracy(model, rows):
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        return float((model(**batch).logits.argmax(-1) == batch["labels"]).float().mean())


@pytest.mark.slow
def test_plans_of_one_order_are_nested_and_meet_their_densities(trained):
    losses = ExampleLosses(trained, learnable(64, seed=1), 64, 0)
    settings = SecondOrder(density=0.1, tuning=replace(SecondOrder(density=0.1).tuning, width_multiple=8))
    plans, refit = plans_at(trained, (0.3, 0.7, 0.5), settings, PruningPlan.of(trained), losses)
    densities = [linear_density(plan, anatomy_of(trained)) for plan in plans]
    assert densities == pytest.approx([0.7, 0.5, 0.3], abs=0.05)
    for larger, smaller in itertools.pairwise(plans):
        assert all(set(smaller.kept(site)) <= set(larger.kept(site)) for site in refit.blocks)


@pytest.mark.slow
def test_the_smallest_plan_that_passes_is_returned_with_its_certificate(trained):
    dev = learnable(500, seed=2)
    result = search_plan(trained, dev, calibration=learnable(200, seed=1), max_drop=0.05, progress=False)
    assert result.certificate.evidence.verdict == "PASS"
    assert result.certificate.claim.max_drop == 0.05
    assert result.path.certified_index is not None
    assert linear_density(result.plan, anatomy_of(trained)) < max(DENSITIES)
    pruned = prune_model_(copy.deepcopy(trained), result)
    assert result.report.unseen.after == pytest.approx(accuracy(pruned, dev))
    assert result.report.unseen.before == pytest.approx(accuracy(trained, dev))
    with masked(trained, result), torch.no_grad():
        closed = trained(**text_inputs()).logits
    with torch.no_grad():
        torch.testing.assert_close(pruned(**text_inputs()).logits, closed)


def test_a_higher_confidence_prunes_no_more(trained):
    dev, train = learnable(400, seed=2), learnable(200, seed=1)
    densities = []
    for confidence in (0.6, 0.999):
        result = search_plan(trained, dev, calibration=train, max_drop=0.03, confidence=confidence, progress=False)
        densities.append(linear_density(result.plan, anatomy_of(trained)))
        assert result.report.frontier.confidence == confidence
    assert densities[0] <= densities[1]


def test_nothing_is_pruned_where_no_plan_passes(trained, monkeypatch):
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.DENSITIES", (0.01,))
    result = search_plan(
        trained, learnable(400, seed=2), calibration=learnable(64, seed=1), max_drop=0.01, confidence=0.95
    )
    assert result.plan == PruningPlan.of(trained)
    assert result.certificate is None
    assert "Certificate: none" in result.report.certificate


def assert_is_frontier(result):
    """Smaller and smaller, worse and worse, and nothing measured beats a plan of it."""
    sizes, metrics = [it.density for it in result.frontier], [it.metric for it in result.frontier]
    assert sizes == sorted(set(sizes), reverse=True)
    assert metrics == sorted(set(metrics), reverse=True)
    for known in result.history:
        assert any(it.density <= known.density and it.metric >= known.metric for it in result.frontier)


def test_heads_leave_in_the_order_of_nested_plans(trained):
    anatomy, whole = anatomy_of(trained), PruningPlan.of(trained)
    site = anatomy.attention_sites[0].name
    before = whole.replace(kept_heads={site: [it for it in whole.kept_heads[site] if it != 1]})
    plans = [before.replace(kept_heads={site: kept}) for kept in ((0, 3), (0,))]
    sizes = [linear_density(plan, anatomy) for plan in plans]
    found = leaving_densities(before, plans, anatomy)
    assert found[site][:4] == (0.0, 1.0, sizes[0], sizes[1])
    assert set(found[anatomy.attention_sites[1].name]) == {0.0}


def test_examples_of_the_calibration_can_not_certify(trained):
    train = learnable(200, seed=1)
    with pytest.raises(DataLeakError, match=r"search|calibration"):
        search_plan(trained, train[:100], calibration=train, max_drop=0.05)


def test_without_calibration_the_drop_that_is_seen_decides_and_nothing_is_certified(trained):
    result = search_plan(trained, learnable(200, seed=2), max_drop=0.05, progress=False)
    assert result.certificate is None
    assert result.report.metric.before - result.report.metric.after <= 0.05 + 1e-9
    assert_is_frontier(result)
    *passed, last = result.history
    assert all(it.passed for it in passed)
    reported = result.report.frontier
    assert [(it.density, it.metric) for it in reported.plans] == [(it.density, it.metric) for it in result.history]
    assert (reported.max_drop, reported.confidence) == (0.05, None)
    assert (last if last.passed else passed[-1]).plan == result.plan


def test_a_metric_that_is_no_number_prunes_nothing_and_says_so(trained, caplog):
    result = search_plan(trained, None, lambda model: float("nan"), calibration=learnable(64, seed=1), progress=False)
    assert result.plan == PruningPlan.of(trained)
    assert "the model before pruning is nan, with which no plan can be compared" in caplog.text


def test_no_drop_at_all_is_asked_of_the_order_of_costs(trained):
    result = search_plan(trained, learnable(60, seed=11), calibration=learnable(64, seed=1), max_drop=0)
    assert result.report.unseen is None or result.report.unseen.after >= result.report.unseen.before


@pytest.mark.parametrize("drop", [0.01, 0.03])
@pytest.mark.parametrize("confidence", [0.75, 0.95])
@pytest.mark.parametrize("kind", ["binary", "bounded", "grouped"])
def test_so_few_examples_decide_as_pass_where_no_answer_changes(kind, confidence, drop):
    """The least number that can decide is the least of which the certificate of two equal models says PASS."""
    metric = Metric("score", "bounded" if kind == "bounded" else "binary", lambda model, rows: np.ones(len(rows)))

    def data(count):
        rows = [{"input_ids": [3 + i // 40, 3 + i % 40], "labels": 0, "of": f"{i // 2}"} for i in range(count)]
        return CertificationData(rows, groups="of") if kind == "grouped" else CertificationData(rows)

    count, needed = least_needed(metric, data(20), drop, confidence)
    size = 2 if kind == "grouped" else 1
    assert count == 20 // size
    for enough, verdict in ((needed, "PASS"), (needed - 1, "INCONCLUSIVE")):
        given = data(size * enough)
        assert can_decide(metric, given, drop, confidence) == (verdict == "PASS")
        made = certify(tiny_bert(), tiny_bert(), given, metric, max_drop=drop, confidence=confidence)
        assert made.verdict == verdict
    assert not can_decide(metric, data(needed), 0.0, confidence)
    with pytest.raises(InvalidSettingError, match=rf"it\(confidence={confidence}\): .* on 10 .*it takes {needed}"):
        can_decide(metric, data(10 * size), drop, confidence, required_by="it")


def test_a_confidence_that_is_asked_for_and_can_not_be_reached_is_refused(trained):
    with pytest.raises(InvalidSettingError, match=r"search_plan\(confidence=0\.9\).* on 40 examples"):
        search_plan(trained, learnable(40, seed=2), calibration=learnable(64, seed=1), confidence=0.9)


@pytest.mark.parametrize("confidence", [1.5, float("nan"), 0.3, None, "0.95", True])
def test_what_is_no_confidence_is_refused(trained, confidence):
    with pytest.raises(InvalidSettingError, match=r'search_plan: confidence must be "auto" or a number above 0\.5'):
        search_plan(trained, learnable(40, seed=2), calibration=learnable(64, seed=1), confidence=confidence)


def test_no_drop_at_all_can_not_be_shown_with_any_confidence(trained):
    with pytest.raises(
        InvalidSettingError, match=r"search_plan\(confidence=0\.9\): no examples can show a drop below 0 "
    ):
        search_plan(trained, learnable(40, seed=2), calibration=learnable(64, seed=1), max_drop=0, confidence=0.9)


def test_a_search_goes_on_from_the_costs(trained):
    search = AStarSearch(max_drop=0.05, max_evaluations=12)
    result = search_plan(
        trained,
        learnable(200, seed=2),
        search=search,
        calibration=learnable(200, seed=1),
        certify=learnable(400, seed=3),
        progress=False,
    )
    assert result.history
    assert_is_frontier(result)
    assert result.history[0].plan == result.reference
    with pytest.raises(InvalidSettingError, match="max_drop of its own"):
        search_plan(trained, learnable(200, seed=2), search=search, max_drop=0.1)


@pytest.mark.parametrize(
    ("budget", "reached"),
    [
        ({"density": 0.5}, lambda report: report.linear_density),
        ({"speedup": 2.0}, lambda report: report.after.macs / report.before.macs),
    ],
    ids=["density", "speedup"],
)
def test_a_budget_is_met_to_a_few_units(trained, budget, reached):
    result = plan_for_budget(trained, learnable(64, seed=1), **budget)
    assert reached(result.report) == pytest.approx(0.5, abs=0.15)


def test_numbers_of_numpy_are_taken_as_those_of_python(trained, tmp_path):
    train, dev = learnable(64, seed=1), learnable(48, seed=77)
    numbers = {"max_drop": np.float32(0.3), "confidence": np.float32(0.9)}
    result = search_plan(copy.deepcopy(trained), dev, calibration=train, progress=False, **numbers)
    pruned = prune_model_(copy.deepcopy(trained), result)
    pruned.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "headprune_report.json").read_text())["frontier"]["max_drop"] == pytest.approx(0.3)
    settings = {"density": np.float32(0.5), "seed": np.int64(3)}
    same = plan_for_budget(copy.deepcopy(trained), train, density=0.5, seed=3)
    assert plan_for_budget(copy.deepcopy(trained), train, **settings).plan == same.plan


@pytest.mark.parametrize("factor", [1.1, 1.3, 1.7, 2.5, 4.0])
def test_a_speed_up_is_reached_and_by_no_removal_more(trained, factor):
    report = plan_for_budget(trained, learnable(24, seed=1), speedup=factor).report
    assert report.before.macs / report.after.macs >= factor
    assert report.before.macs / report.after.macs < 1.35 * factor


def test_a_size_in_mb_is_that_of_the_saved_file_and_never_exceeded(trained, tmp_path):
    dense = copy.deepcopy(trained)
    dense.save_pretrained(tmp_path / "dense")
    whole = (tmp_path / "dense" / "model.safetensors").stat().st_size
    limit = 0.85 * whole / 1e6
    result = plan_for_budget(trained, learnable(64, seed=1), size_mb=limit)
    pruned = prune_model_(copy.deepcopy(trained), result)
    pruned.save_pretrained(tmp_path / "pruned")
    size = (tmp_path / "pruned" / "model.safetensors").stat().st_size
    assert 0.6 * limit < size / 1e6 <= limit
    assert header_bytes(trained) + sum(t.numel() * t.element_size() for t in trained.state_dict().values()) >= whole


def test_one_budget_is_asked_for_and_the_error_says_which_to_drop(trained):
    with pytest.raises(InvalidSettingError, match=r"density=0.5 and speedup=2.0. Leave all but one out"):
        plan_for_budget(trained, learnable(64, seed=1), density=0.5, speedup=2.0)
    with pytest.raises(InvalidSettingError, match="needs one budget, received none"):
        plan_for_budget(trained, learnable(64, seed=1))
    with pytest.raises(InvalidSettingError, match="Pass a size above"):
        plan_for_budget(trained, learnable(64, seed=1), size_mb=0.001)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "nonsense"}, "metric is about a certificate"),
        ({"confidence": 0.99, "max_drop": 0.02}, "max_drop and confidence are about a certificate"),
        ({"reference": tiny_bert()}, "reference is about a certificate"),
    ],
)
def test_what_is_about_a_certificate_is_refused_where_there_is_none(trained, given, said):
    for call in (lambda: plan_for_budget(trained, learnable(8, seed=1), density=0.5, **given),
                 lambda: plan_ladder(trained, learnable(8, seed=1), (0.5,), **given)):  # fmt: skip
        with pytest.raises(InvalidSettingError, match=said):
            call()


def test_several_labels_may_be_whole_numbers():
    model = tiny_bert(num_labels=3, problem_type="multi_label_classification")
    rows = [{**row, "labels": [row["labels"], 1, 0]} for row in learnable(24, seed=1)]
    plans = [
        plan_for_budget(model, [{**row, "labels": [*map(kind, row["labels"])]} for row in rows], density=0.3)
        for kind in (int, float)
    ]
    pruned = [prune_model_(copy.deepcopy(model), plan) for plan in plans]
    with torch.no_grad():
        torch.testing.assert_close(*(it(**text_inputs()).logits for it in pruned))


def test_texts_and_images_of_two_towers_are_told_apart_by_their_own_loss():
    model, inputs = made("clip")
    rows = [{name: tensor[row].tolist() for name, tensor in inputs.items()} for row in range(len(inputs["input_ids"]))]
    found = plan_for_budget(model, rows, density=0.5)
    assert linear_density(found.plan, anatomy_of(model)) == pytest.approx(0.5, abs=0.1)
    pruned = prune_model_(copy.deepcopy(model), found)
    assert pruned(**inputs, return_loss=True).loss.isfinite()


def test_what_a_speed_up_counts_is_said(trained):
    table = {site.name: {0: 0.0, site.units: 1.0} for site in anatomy_of(trained).sites}
    for latency, said in ((None, "speedup=1.5"), (table, "speedup=1.5, counts='latency'")):
        found = plan_for_budget(trained, learnable(24, seed=1), speedup=1.5, latency=latency)
        assert found.report.recipe.budget == said


def test_gradients_that_inference_mode_forbids_are_asked_for_outside(trained):
    with torch.inference_mode(), pytest.raises(InvalidSettingError, match=r"which torch.inference_mode\(\) forbids"):
        plan_for_budget(trained, learnable(8, seed=1), density=0.5)


def test_a_budget_can_be_certified(trained):
    result = plan_for_budget(
        trained, learnable(64, seed=1), density=0.6, certify=learnable(300, seed=4), max_drop=0.2, confidence=0.9
    )
    assert result.certificate.claim.alpha == pytest.approx(0.1)
    assert result.report.unseen.num_examples == 300
    assert np.isfinite(result.report.unseen.after)


@pytest.mark.parametrize(
    ("density", "count"), [(None, 1024), (0.75, 1024), (0.5, 1024), (0.4, 1600), (0.25, 4096), (0.05, 4096)]
)
def test_the_less_is_kept_the_more_examples_are_looked_at(density, count):
    assert examples_for(density, trains_on=False) == pytest.approx(count, abs=1)
    assert examples_for(density, trains_on=True) == 1024


@pytest.mark.parametrize(
    ("given", "count"),
    [({"density": 0.5}, 8), ({"density": 0.2}, 20), ({"density": 0.2, "recover": lambda *_: None}, 8)],
)
def test_a_budget_looks_at_that_many_unless_training_follows(trained, monkeypatch, given, count):
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.CALIBRATION", 8)
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.MOST_CALIBRATION", 20)
    model = copy.deepcopy(trained)
    plan_for_budget(model, learnable(40, seed=7), **given)
    assert [len(seen) for name, seen in seen_by(model) if name == "calibration"][-1] == count


def test_a_ladder_looks_at_as_many_as_its_smallest_rung(trained, monkeypatch):
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.CALIBRATION", 8)
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.MOST_CALIBRATION", 20)
    model = copy.deepcopy(trained)
    plan_ladder(model, learnable(40, seed=7), (0.75, 0.2), latency=LatencySettings(1, 6, 5))
    assert [len(seen) for name, seen in seen_by(model) if name == "calibration"][-1] == 20
