"""Several sizes of one model from one run: nested plans, certificates that hold together, one table, one picture."""

import copy
import itertools
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_headprune import plan_for_budget, plan_ladder, prune_model_, verify_certificate
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import DataLeakError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.latency import LatencySettings
from hf_headprune.refit.projections import RefitInOrder
from tests.pipeline.test_cost_path import accuracy, learnable, trained  # noqa: F401 - a fixture

TEST = learnable(400, seed=3)
TRAIN = learnable(64, seed=1)
QUICK = LatencySettings(batch_size=2, seq_len=8, runs=5)
ASKED = (0.25, 0.75, 0.05)


@pytest.fixture(scope="module", autouse=True)
def output_projections_alone():
    """The task is so easy that a refit in order solves it with nothing left: no plan would fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RefitInOrder, "fit", lambda refit: refit)
        yield


@pytest.fixture(scope="module")
def ladder(trained):  # noqa: F811
    return plan_ladder(trained, TRAIN, ASKED, certify=TEST, max_drop=0.1, latency=QUICK)


@pytest.mark.slow
def test_each_rung_is_that_of_its_size_alone(trained, ladder):  # noqa: F811
    assert ladder.densities == (0.75, 0.25, 0.05)
    for larger, smaller in itertools.pairwise(ladder.rungs):
        sites = [site.name for site in anatomy_of(trained).sites]
        assert all(set(smaller.plan.kept(site)) <= set(larger.plan.kept(site)) for site in sites)
    for density, rung in zip(ladder.densities, ladder.rungs, strict=True):
        alone = plan_for_budget(trained, TRAIN, density=density)
        assert rung.plan == alone.plan
        pruned = prune_model_(copy.deepcopy(trained), rung)
        assert rung.report.unseen.after == pytest.approx(accuracy(pruned, TEST))
        assert rung.report.latency.runs == QUICK.runs


def test_what_becomes_of_a_pruned_model_changes_no_result(trained, ladder):  # noqa: F811
    before = [prune_model_(copy.deepcopy(trained), rung).state_dict() for rung in ladder.rungs]
    model = prune_model_(copy.deepcopy(trained), ladder.rungs[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # as a step of an optimizer
    for rung, weights in zip(ladder.rungs, before, strict=True):
        again = prune_model_(copy.deepcopy(trained), rung).state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in again.items())


def test_a_model_that_a_rung_has_pruned_is_saved_with_its_certificate(trained, ladder, tmp_path):  # noqa: F811
    for place, rung in enumerate(ladder.rungs):
        prune_model_(copy.deepcopy(trained), rung).save_pretrained(tmp_path / str(place))
        assert (tmp_path / str(place) / "headprune_certificate.json").exists() == (rung.certificate is not None)
    found = Certificate.load(tmp_path / "0")
    pruned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "0")
    assert verify_certificate(found, pruned, TEST, dense=trained).holds


def test_certified_are_the_rungs_before_the_first_that_fails(trained, ladder):  # noqa: F811
    verdicts = [None if rung.certificate is None else rung.certificate.verdict for rung in ladder.rungs]
    assert verdicts == ["PASS", "PASS", None]
    for number, rung in enumerate(ladder.rungs[:2], start=1):
        certificate = rung.certificate
        assert (len(certificate.path.steps), certificate.path.planned) == (number, number)
        pruned = prune_model_(copy.deepcopy(trained), rung)
        checked = verify_certificate(Certificate.from_json(certificate.to_json()), pruned, TEST, dense=trained)
        assert checked.holds, checked.to_text()
    assert "could not be certified to lose less than 10 percentage points" in ladder.rungs[2].report.certificate
    strict = plan_ladder(trained, TRAIN, ASKED, certify=TEST, max_drop=0.001, latency=QUICK)
    assert all(rung.certificate is None for rung in strict.rungs)
    assert "so it was not tested" in strict.rungs[1].report.certificate
    assert strict.note == ""


def test_one_table_and_one_picture_show_all(ladder, tmp_path):
    head, whole, *rows, note = ladder.to_text().splitlines()
    assert head.split()[:4] == ["weights", "million", "MB", "accuracy"]
    assert whole.split()[0] == "whole"
    assert [row.split()[-1] for row in rows] == ["yes", "yes", "no"]
    assert f"{ladder.rungs[0].report.unseen.after:.4f}" in rows[0]
    assert "95 % confidence, all of these together" in note
    assert max(map(len, (head, whole, *rows))) <= 100
    found = json.loads(ladder.to_json())["rungs"]
    assert [(it["density"], it["certified"]) for it in found] == [(0.75, True), (0.25, True), (0.05, False)]
    assert found[0]["report"] == json.loads(ladder.rungs[0].report.to_json())


def test_the_name_of_a_metric_is_not_cut(trained, ladder):  # noqa: F811
    found = plan_ladder(trained, TRAIN, (0.5,), certify=TEST, metric="matthews_correlation", latency=QUICK)
    head, whole, *_ = found.to_text().splitlines()
    assert "matthews_correlation" in head.split()
    assert len(head) == len(head.rstrip()) <= 100
    assert whole.index(f"{found.rungs[0].report.unseen.before:.4f}") < head.index("drop")


def test_the_picture_is_over_sizes_and_latencies(ladder, tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = ladder.plot(tmp_path / "ladder.svg").read_text(encoding="utf-8")
    for words in ("file, MB", "latency, ms", "whole model", "certified", "not certified", "accuracy on unseen"):
        assert words in drawn
    assert all(drawn.count(f">{name}<") == 2 for name in ("75 %", "25 %", "5 %"))


def test_without_examples_nothing_is_certified(trained, tmp_path):  # noqa: F811
    plain = plan_ladder(trained, TRAIN, (0.5,), latency=QUICK)
    assert plain.rungs[0].report.unseen is None
    assert len(plain.to_text().splitlines()) == 3
    if find_spec("matplotlib") is not None:
        with pytest.raises(InvalidSettingError, match="Pass certify="):
            plain.plot(tmp_path / "ladder.png")


def test_what_makes_no_ladder_is_refused(trained):  # noqa: F811
    for wrong in ((), 0.5, "0.5", (0.5, 0.5), np.array([1.0, 0.5]), (0.0,)):
        with pytest.raises(InvalidSettingError, match="different numbers above 0 and below 1"):
            plan_ladder(trained, TRAIN, wrong)
    with pytest.raises(InvalidSettingError, match="each density must give a plan of its own"):
        plan_ladder(trained, TRAIN, (0.5, 0.4999))
    with pytest.raises(InvalidSettingError, match="seq_len must be at most 64, the positions"):
        plan_ladder(trained, TRAIN, (0.5,), latency=LatencySettings(seq_len=10**6))


def test_what_certifies_is_compared_with_all_of_the_training_set_before_the_work(trained):  # noqa: F811
    calls = []
    for leaked in ([*TEST[:50], TRAIN[-1]], TRAIN):
        with pytest.raises(DataLeakError, match="in the train split too"):
            plan_ladder(trained, TRAIN, certify=leaked, latency=QUICK)
        with pytest.raises(DataLeakError, match="in the train split too"):
            plan_for_budget(trained, TRAIN, density=0.5, certify=leaked, recover=lambda *pair: calls.append(pair))
    assert calls == []
    found = plan_for_budget(trained, TRAIN, density=0.5, certify=TEST, max_drop=0.1)
    assert [(it.name, it.examples) for it in found.certificate.disjointness] == [("train", len(TRAIN))]
