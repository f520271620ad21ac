"""The learning rate starts over when units have been removed, in the steps that are left."""

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler

from hf_headprune.callback.rewinding import rewind_

CUT, STEPS = 6, 10


def rates(scheduler, count=STEPS):
    found = []
    for _ in range(count):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def scheduled(kind, warmup=0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    return get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS)


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "constant_with_warmup", "inverse_sqrt"])
def test_a_schedule_runs_as_it_was_up_to_the_cut_and_then_once_more(kind):
    plain, rewound = scheduled(kind, warmup=1), scheduled(kind, warmup=1)
    assert rewind_(rewound, CUT, STEPS)
    before, after = rates(plain), rates(rewound)
    assert after[:CUT] == before[:CUT]
    assert after[CUT] == before[0]
    assert max(after[CUT:]) >= 0.5 * max(before)
    assert after[CUT + 1 :] == sorted(after[CUT + 1 :], reverse=True)  # it falls as the first time


def test_a_linear_one_ends_at_nothing_and_a_constant_one_stays():
    linear, constant = scheduled("linear"), scheduled("constant")
    for scheduler in (linear, constant):
        rewind_(scheduler, CUT, STEPS)
        rewind_(scheduler, CUT, STEPS)  # of a second try of the same run
    assert rates(linear, STEPS + 1) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 1, 0.75, 0.5, 0.25, 0])
    assert set(rates(constant)) == {1.0}


def test_a_checkpoint_of_the_schedule_is_plain_and_goes_on_where_it_was(tmp_path):
    whole, broken = scheduled("linear"), scheduled("linear")
    rewind_(whole, CUT, STEPS)
    rewind_(broken, CUT, STEPS)
    wanted = rates(whole)
    rates(broken, 7)
    torch.save(broken.state_dict(), tmp_path / "scheduler.pt")
    again = scheduled("linear")
    again.load_state_dict(torch.load(tmp_path / "scheduler.pt", weights_only=True))
    rewind_(again, CUT, STEPS)
    assert rates(again, 3) == wanted[7:]


def test_what_is_no_function_of_the_step_or_has_no_steps_left_is_left_alone():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert not rewind_(ReduceLROnPlateau(optimizer), CUT, STEPS)
    for cut in (0, STEPS):
        assert not rewind_(scheduled("linear"), cut, STEPS)
