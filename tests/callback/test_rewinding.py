"""The learning rate starts over when units have been removed, unless something else rules it."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from hf_headprune import SecondOrder, SecondOrderTuning
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import InvalidSettingError
from tests.support.models import tiny_bert
from tests.support.trainers import trainer_of

STEPS, CUT, RATE = 40, 20, 1e-3
LEFT = STEPS - CUT


class Rates(TrainerCallback):
    """Notes the learning rate of each optimizer step."""

    def __init__(self):
        self.used = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.used.append(optimizer.param_groups[0]["lr"])


def rates_of(folder, callback=None, **changes):
    noted = Rates()
    trainer_of(folder, callback, callbacks=[noted], max_steps=STEPS, **changes).train()
    return noted.used


def removing(rewind=2.0):
    tuning = SecondOrderTuning(scoring_examples=8, width_multiple=8, rewind=rewind)
    costs = SecondOrder(density=0.5, freeze_at=CUT / STEPS, tuning=tuning)
    return HeadPruneCallback(second_order=costs, search=None, latency=None)


def test_a_schedule_starts_over_at_the_cut_and_rises_to_twice_the_rate(tmp_path):
    plain, rewound = rates_of(tmp_path / "plain"), rates_of(tmp_path / "rewound", removing())
    assert rewound[:CUT] == plain[:CUT]
    warmup = LEFT // 10
    expected = [2.0 * RATE * min(1.0, (step + 1) / warmup) * (1.0 - step / LEFT) for step in range(LEFT)]
    assert rewound[CUT:] == pytest.approx(expected)


def test_a_schedule_that_warms_up_does_so_again(tmp_path):
    rewound = rates_of(tmp_path, removing(rewind=1.0), warmup_steps=8)
    assert rewound[CUT] == 0.0
    assert max(rewound[CUT:]) == pytest.approx(RATE)
    assert rewound.index(max(rewound[CUT:]), CUT) == CUT + 8 * LEFT // STEPS


@pytest.mark.parametrize("kind", ["constant", "cosine", "polynomial"])
def test_schedules_of_the_step_rise_again(tmp_path, kind):
    plain = rates_of(tmp_path / "plain", lr_scheduler_type=kind)
    rewound = rates_of(tmp_path / "rewound", removing(), lr_scheduler_type=kind)
    assert rewound[:CUT] == plain[:CUT]
    assert max(rewound[CUT:]) == pytest.approx(2.0 * RATE, rel=0.05)


def own_schedule(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / STEPS)


@pytest.mark.parametrize("other", ["none asked for", "the user's own", "follows a metric"])
def test_what_must_not_start_over_does_not(tmp_path, other, capsys):
    model, changes = tiny_bert(), {}
    if other == "the user's own":
        changes = {"optimizers": own_schedule(model)}
    if other == "follows a metric":
        changes = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 10}
    used = rates_of(tmp_path, removing(None if other == "none asked for" else 2.0), model=model, **changes)
    assert max(used[CUT:]) <= min(used[:CUT])
    assert "removes units" in (said := capsys.readouterr().out)
    assert "starts the learning rate's schedule over" not in said


def test_by_default_it_rises_to_twice_the_rate_where_a_third_or_less_is_kept(tmp_path):
    plain = rates_of(tmp_path / "plain")
    assert rates_of(tmp_path / "half", HeadPruneCallback(density=0.5, latency=None)) == plain
    used = rates_of(tmp_path / "third", HeadPruneCallback(density=1 / 3, latency=None))
    assert used[:CUT] == plain[:CUT]
    assert max(used[CUT:]) == pytest.approx(2.0 * RATE, rel=0.1)
    for costs in (SecondOrder(density=0.4), SecondOrder(kept_heads=0.2)):
        assert (costs.last_round_at, costs.rewinds_to) == (0.6, None)


def test_a_run_says_that_its_schedule_starts_over(tmp_path, capsys):
    rates_of(tmp_path, removing())
    assert "; then starts the learning rate's schedule over, at 2 times the rate." in capsys.readouterr().out


@pytest.mark.parametrize("rewind", [0, -1.0, True, "2", float("nan")])
def test_a_multiple_that_is_none_is_refused(rewind):
    with pytest.raises(InvalidSettingError, match="rewind must be a number above 0, 'auto' or None"):
        SecondOrderTuning(rewind=rewind)
