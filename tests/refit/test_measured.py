"""A speed-up is met as it is measured, whatever the table of blocks says."""

from __future__ import annotations

import pytest

from hf_headprune import LatencySettings, plan_for_budget
from hf_headprune.anatomy import anatomy_of
from hf_headprune.cost import latency_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.latency import LatencyChange, LatencySample
from hf_headprune.pipeline import speed
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.measured import NEAR, plan_as_measured
from tests.support.classifiers import classifier, examples


def machine(time_of):
    """A machine on which plans, here the share of the blocks' ms, take a share of the time of the whole model."""
    return (lambda share: share), (lambda plan: 1.0 / time_of(plan))


@pytest.mark.parametrize("wanted", [1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(
    "time_of",
    [
        lambda share: share,
        lambda share: 0.15 + 0.85 * share,  # what is no block
        lambda share: share**1.4,  # blocks that share a cache
        lambda share: 0.05 + 0.95 * share**0.7,
    ],
)
def test_the_speed_up_that_is_measured_is_the_one_that_was_wanted(time_of, wanted):
    plan_at, speed_up_of = machine(time_of)
    found = plan_as_measured(wanted, plan_at, speed_up_of)
    assert speed_up_of(found) == pytest.approx(wanted, rel=2 * NEAR)


def test_a_plan_that_looked_right_by_chance_is_measured_anew():
    times = []

    def speed_up_of(share):
        times.append(share)
        return 1.0 / (0.5 if len(times) == 1 else 0.2 + 0.8 * share)  # the first measurement flatters the first plan

    found = plan_as_measured(2.0, lambda share: share, speed_up_of)
    assert times[:2] == [0.5, 0.5]
    assert 1.0 / (0.2 + 0.8 * found) == pytest.approx(2.0, rel=2 * NEAR)
    assert times[-2:] == [found, found]


def test_steps_that_no_plan_lies_between_give_the_nearest():
    plan_at, speed_up_of = machine(lambda share: 0.3 if share < 0.5 else 0.6)
    assert speed_up_of(plan_as_measured(2.0, plan_at, speed_up_of)) == pytest.approx(1 / 0.6)
    assert speed_up_of(plan_as_measured(3.0, plan_at, speed_up_of)) == pytest.approx(1 / 0.3)


def test_a_speed_up_that_the_rest_of_the_model_forbids_is_refused():
    plan_at, speed_up_of = machine(lambda share: 0.4 + 0.6 * share)
    with pytest.raises(InvalidSettingError, match=r"speedup=4.*2\.46 times as fast"):
        plan_as_measured(4.0, plan_at, speed_up_of)


@pytest.mark.parametrize("wanted", [1.5, 2.0])
def test_plan_for_budget_cuts_and_measures_until_the_model_is_so_fast(monkeypatch, wanted):
    model = classifier()
    anatomy = anatomy_of(model)
    table = {site.name: {0: 0.0, site.units: 1.0} for site in anatomy.sites}
    measured = []

    def measure(before, after, settings):
        assert settings == LatencySettings(batch_size=2, seq_len=8)
        units = [
            sum(site.units / whole.units for site, whole in zip(anatomy_of(it).sites, anatomy.sites, strict=True))
            for it in (before, after)
        ]
        times = [LatencySample(*[0.3 + 0.7 * (count / len(anatomy.sites)) ** 1.3] * 3) for count in units]
        measured.append(times[0].median_ms / times[1].median_ms)
        return LatencyChange(*times, device="cpu", dtype="float32", batch_size=2, seq_len=8, threads=1, runs=5)

    monkeypatch.setattr(speed, "measure_latency", measure)
    monkeypatch.setattr(speed, "measure_latency_table", lambda *args, **kwargs: table)
    settings = LatencySettings(batch_size=2, seq_len=8)
    found = plan_for_budget(model, examples(40), speedup=wanted, latency=settings, batch_size=8)
    reached = found.report.latency.before.median_ms / found.report.latency.after.median_ms
    assert reached in measured
    assert abs(reached - wanted) == min(abs(it - wanted) for it in measured)
    share = latency_of(found.plan, table) / latency_of(PruningPlan.full(anatomy), table)
    assert share < 1 / wanted  # the table alone would have kept more
    assert reached == pytest.approx(wanted, rel=0.12)  # a chunk of FFN units is much of so small a model


def test_latency_without_a_speed_up_is_refused():
    with pytest.raises(InvalidSettingError, match="belongs to speedup="):
        plan_for_budget(classifier(), examples(4), density=0.5, latency=LatencySettings())


def test_a_smallest_plan_that_is_met_before_the_smallest_share_is_refused_too():
    time_of = lambda share: 0.5 + 0.5 * max(share, 0.3)  # noqa: E731 - no plan is smaller than 30 %
    with pytest.raises(InvalidSettingError, match=r"speedup=1.6.*1\.54 times as fast"):
        plan_as_measured(1.6, lambda share: max(share, 0.3), lambda plan: 1.0 / time_of(plan))
