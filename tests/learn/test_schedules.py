import itertools

import pytest

from hf_headprune.learn.gates.schedule import GateSchedule, geometric
from hf_headprune.learn.gates.settings import GateTuning, SubsetGates
from hf_headprune.learn.movement.schedule import MovementSchedule
from hf_headprune.learn.ramp import cubic


@pytest.mark.parametrize(("progress", "expected"), [(-1.0, 100.0), (0.0, 100.0), (0.5, 10.0), (1.0, 1.0), (2.0, 1.0)])
def test_the_temperature_falls_geometrically_between_its_ends(progress, expected):
    assert geometric(100.0, 1.0, progress) == pytest.approx(expected)


def test_a_run_is_open_then_learns_then_is_decided():
    schedule = GateSchedule(
        open_steps=10,
        closed_step=40,
        cooled_step=60,
        decided_step=60,
        start_temperature=3.0,
        end_temperature=0.05,
    )
    assert [schedule.phase(step) for step in (0, 9, 10, 59, 60, 99)] == [
        "open",
        "open",
        "learn",
        "learn",
        "decided",
        "decided",
    ]
    assert schedule.temperature(10) == pytest.approx(3.0)
    assert schedule.temperature(60) == pytest.approx(0.05)
    assert [schedule.closed(step) for step in (10, 25, 40, 60)] == [0.0, 1 - 1 / 8, 1.0, 1.0]


def test_gates_close_over_a_number_of_steps_but_never_after_the_temperature_has_fallen():
    schedules = [SubsetGates(tuning=GateTuning(ramp_steps=120)).schedule(steps) for steps in (2000, 200)]
    assert [schedule.closed_step - schedule.open_steps for schedule in schedules] == [120, 110]
    assert SubsetGates(tuning=GateTuning(ramp_steps=0)).schedule(100).closed(0) == 1.0


def test_block_scores_are_open_then_move_and_are_decided_from_that_very_step_on():
    schedule = MovementSchedule(10, 50, 80, start=1.0, end=0.25, end_penalty=0.0)
    assert [schedule.is_open(step) for step in (0, 9, 10)] == [True, True, False]
    assert [schedule.decided(step) for step in (79, 80)] == [False, True]
    assert [schedule.level(step) for step in (10, 30, 50, 99)] == [1.0, 0.25 + 0.75 / 8, 0.25, 0.25]


@pytest.mark.parametrize("mode", ["joint", "pipelined"])
@pytest.mark.parametrize("preset", [SubsetGates.paper_mnli, SubsetGates.paper_iwslt], ids=["mnli", "iwslt"])
def test_the_papers_settings_are_those_of_its_code(preset, mode):
    own = {SubsetGates.paper_mnli: (0.5, (1000.0, 1e-8)), SubsetGates.paper_iwslt: (0.2, (0.1, 1e-8))}
    gates = preset(36, mode=mode)
    assert (gates.tuning.score_learning_rate, gates.tuning.temperature) == own[preset]
    assert (gates.kept_heads, gates.estimator, gates.mode, gates.tuning.seed) == (36, "dsp", mode, None)
    assert (gates.warmup_ratio, gates.freeze_at, gates.tuning.ramp_steps) == (0.0, 1.0, 0)  # noise from start to end
    assert (gates.tuning.initial_scores, gates.tuning.max_score_grad_norm) == ("random", None)


def test_the_papers_setting_of_translation_cools_sooner():
    schedule = SubsetGates.paper_iwslt(36).schedule(60_000)
    assert schedule.temperature(0) == pytest.approx(0.1)
    assert (schedule.cooled_step, schedule.phase(59_999)) == (15_000, "learn")


def test_the_papers_setting_cools_to_its_end_and_stays_noisy_until_the_end():
    schedule = SubsetGates.paper_mnli(36).schedule(36_800)
    assert schedule.cooled_step == 25_000
    assert schedule.temperature(0) == pytest.approx(1000.0)
    assert schedule.temperature(25_000) == pytest.approx(1e-8)
    assert schedule.phase(36_799) == "learn"


@pytest.mark.parametrize("freeze_at", [0.0, 1.0])
def test_degenerate_schedules_are_valid(freeze_at):
    schedule = SubsetGates(warmup_ratio=0.0, freeze_at=freeze_at).schedule(100)
    assert schedule.phase(0) == ("decided" if freeze_at == 0.0 else "learn")


def test_gradual_closing_goes_from_open_to_closed_without_turning_back():
    closed = [cubic(step / 100) for step in range(101)]
    assert (closed[0], closed[50], closed[-1]) == (0.0, 1 - 1 / 8, 1.0)
    assert all(earlier < later for earlier, later in itertools.pairwise(closed))
    assert (cubic(-1.0), cubic(2.0)) == (0.0, 1.0)
