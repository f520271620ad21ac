"""Settings of removal by costs."""

from __future__ import annotations

import pytest

from hf_headprune import SecondOrder
from hf_headprune.errors import InvalidSettingError
from hf_headprune.refit.settings import SecondOrderTuning
from tests.support.settings import second_order


def test_a_speed_up_must_be_one():
    with pytest.raises(InvalidSettingError, match=r"above 1, received 1\.0"):
        SecondOrder.to_speedup(1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"density": 0.5, "kept_heads": 3},
        {"density": 0.0},
        {"density": 1.5},
        {"kept_heads": -1},
        {"density": 0.5, "rounds": 0},
        {"density": 0.5, "rounds": 2, "start_at": 0.7},
        {"density": 0.5, "start_at": 0.4},
        {"density": 0.5, "scoring_examples": 0},
        {"density": 0.5, "width_multiple": 0},
        {"density": 0.5, "counts": "bits"},
        {"kept_heads": 3, "counts": "bytes"},
        {"kept_heads": 3, "counts": "macs"},
        {"density": 0.5, "counts": "macs", "seq_len": 0},
        {"density": 0.5, "counts": "macs", "target_len": 0},
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings):
    with pytest.raises(InvalidSettingError, match="SecondOrder"):
        second_order(**settings)


def test_rounds_are_spread_evenly_between_first_and_last():
    settings = SecondOrder(density=0.5, rounds=3, tuning=SecondOrderTuning(start_at=0.2))
    due = [settings.rounds_due(step, 10) for step in range(10)]
    assert due == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
