"""Second-order removal in training: its budgets, and the callback around it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hf_headprune import PruningPlan, SecondOrder, anatomy_of, linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.cost import cost_of, macs_price
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.learn.second_order.pruner import SecondOrderPruner
from hf_headprune.masking import masked
from hf_headprune.refit.settings import SecondOrderTuning
from tests.support.classifiers import batches_of, classifier, examples
from tests.support.models import tiny_bert
from tests.support.second_order import losses_of
from tests.support.settings import second_order
from tests.support.trainers import assert_reloads_alike, logits_of, trainer_of


@pytest.fixture
def case():
    return classifier().eval(), batches_of(examples(40))


@pytest.mark.parametrize(("factor", "seq_len"), [(1.3, 16), (2.0, 16), (2.0, 512)])
def test_a_speed_up_is_met_in_macs_to_the_nearest_unit(case, factor, seq_len):
    model, batches = case
    anatomy = anatomy_of(model)
    bank = SecondOrderPruner(anatomy, SecondOrder.to_speedup(factor, width_multiple=8, seq_len=seq_len))
    bank.choose(model, losses_of(model, batches), 1)
    macs = [cost_of(plan, anatomy, seq_len=seq_len).macs for plan in (PruningPlan.full(anatomy), bank.plan())]
    steps = [macs_price(s, seq_len, seq_len).per_unit * (1 if s.is_attention else 8) for s in anatomy.sites]
    assert abs(macs[0] / factor - macs[1]) <= max(steps) / 2


@pytest.mark.parametrize("density", [0.3, 0.55, 0.8, 1.0])
def test_a_density_is_met_to_the_nearest_unit_and_widths_stay_multiples(case, density):
    model, batches = case
    bank = SecondOrderPruner(
        anatomy_of(model), SecondOrder(density=density, tuning=SecondOrderTuning(width_multiple=8))
    )
    bank.attach(model)
    bank.remove(model, losses_of(model, batches), 1)
    plan = bank.plan()
    anatomy = anatomy_of(model)
    largest = max(site.hidden_size * site.unit_width * 4 for site in anatomy.attention_sites)
    total = sum(parameter.numel() for parameter in model.bert.encoder.parameters() if parameter.dim() == 2)
    assert abs(linear_density(plan, anatomy) - density) <= max(largest, 16 * 64) / total
    assert all(len(kept) % 8 == 0 for kept in plan.kept_ffn.values())


def test_each_round_removes_its_share_of_what_a_density_lets_go(case):
    model, batches = case
    anatomy = anatomy_of(model)
    bank = SecondOrderPruner(
        anatomy, SecondOrder(density=0.4, rounds=3, tuning=SecondOrderTuning(start_at=0.2, width_multiple=1))
    )
    bank.attach(model)
    for number in (1, 2, 3):
        bank.remove(model, losses_of(model, batches), number)
        assert linear_density(bank.plan(), anatomy) == pytest.approx(1 - 0.6 * number / 3, abs=0.03)


@pytest.mark.parametrize("changes", [{"rounds": 2}, {"width_multiple": 16}, {"density": 0.5}], ids=str)
def test_a_checkpoint_of_other_rounds_or_widths_is_refused(case, changes):
    settings = {"density": 0.4, "rounds": 3, "start_at": 0.2, "width_multiple": 8}
    model, _ = case
    SecondOrderPruner(anatomy_of(model), second_order(**settings)).attach(model)
    saved = model.state_dict()
    other = classifier()
    SecondOrderPruner(anatomy_of(other), second_order(**settings | changes)).attach(other)
    with pytest.raises(TrainingStateError, match="another budget"):
        other.load_state_dict(saved)


@pytest.mark.parametrize("kept_heads", [0, 3, 8])
def test_heads_alone_are_met_exactly_and_ffns_stay_whole(case, kept_heads):
    model, batches = case
    full = PruningPlan.of(model)
    kept_heads = min(kept_heads, full.num_kept_heads)
    bank = SecondOrderPruner(
        anatomy_of(model), SecondOrder(kept_heads=kept_heads, rounds=2, tuning=SecondOrderTuning(start_at=0.5))
    )
    bank.attach(model)
    bank.remove(model, losses_of(model, batches), 1)
    halfway = bank.plan().num_kept_heads
    assert kept_heads <= halfway <= full.num_kept_heads
    bank.remove(model, losses_of(model, batches), 2)
    assert bank.plan().num_kept_heads == kept_heads
    assert bank.plan().kept_ffn == full.kept_ffn


def test_refitted_outputs_are_nearer_to_the_whole_model_than_closed_ones(case):
    model, batches = case
    whole = copy.deepcopy(model)
    bank = SecondOrderPruner(anatomy_of(model), SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8)))
    bank.attach(model)
    bank.remove(model, losses_of(model, batches), 1)
    inputs = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]
    with torch.no_grad():
        expected = [whole(**batch).logits for batch in inputs]
        refitted = [model(**batch).logits for batch in inputs]
        with masked(whole, bank.plan()):
            closed = [whole(**batch).logits for batch in inputs]
    assert (torch.cat(refitted) - torch.cat(expected)).norm() < (torch.cat(closed) - torch.cat(expected)).norm()


def test_a_density_alone_prunes_both_kinds_and_the_saved_model_reloads(tmp_path):
    callback = HeadPruneCallback(density=0.5, search=None)
    trainer = trainer_of(tmp_path / "run", callback)
    assert callback.settings.second_order == SecondOrder(density=0.5)  # once the model is known
    assert callback.settings.gates is None
    trainer.train()
    assert_reloads_alike(trainer, tmp_path / "saved")
    assert abs(linear_density(callback.plan, anatomy_of(tiny_bert())) - 0.5) < 0.1
    assert any(key.startswith("headprune/kept_units/") for entry in trainer.state.log_history for key in entry)


def test_the_cut_computes_what_evaluation_computed(tmp_path):
    callback = HeadPruneCallback(
        second_order=SecondOrder(density=0.6, tuning=SecondOrderTuning(width_multiple=8)), search=None
    )
    trainer = trainer_of(tmp_path, callback)
    seen = []
    finish = trainer.callback_handler.on_train_end
    trainer.callback_handler.on_train_end = lambda *given: (seen.append(logits_of(trainer.model)), finish(*given))[1]
    trainer.train()
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    torch.testing.assert_close(logits_of(trainer.model), seen[0], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [3, 4, 6])
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, killed_after):
    def build(folder, *others):
        settings = SecondOrder(
            density=0.5,
            rounds=2,
            freeze_at=0.75,
            tuning=SecondOrderTuning(width_multiple=8, start_at=0.5, scoring_examples=8),
        )
        callback = HeadPruneCallback(second_order=settings, search=None)
        changes = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1}
        return callback, trainer_of(folder, callback, *others, **changes)

    whole, trainer = build(tmp_path / "whole")
    trainer.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{killed_after}"
    resumed, again = build(tmp_path / "again")
    again.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.plan == whole.plan
    state = trainer.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())


def test_rounds_that_the_best_model_has_not_seen_are_done_at_the_end(tmp_path):
    settings = SecondOrder(kept_heads=3, freeze_at=1.0, tuning=SecondOrderTuning(scoring_examples=8))
    callback = HeadPruneCallback(second_order=settings, search=None)
    trainer_of(tmp_path, callback).train()
    assert callback.plan.num_kept_heads == 3


def test_no_model_from_before_the_removal_is_the_best(tmp_path):
    settings = SecondOrder(kept_heads=3, freeze_at=0.75, tuning=SecondOrderTuning(scoring_examples=8))
    callback = HeadPruneCallback(second_order=settings, search=None)
    every = {
        f"{what}_{name}": value
        for what in ("eval", "save")
        for name, value in {"strategy": "steps", "steps": 1}.items()
    }
    trainer = trainer_of(
        tmp_path,
        callback,
        max_steps=4,
        learning_rate=0.5,  # the loss explodes, so that the first model would be the best
        load_best_model_at_end=True,
        **every,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert callback.plan.num_kept_heads == 3


def test_a_checkpoint_of_another_callback_is_refused(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer_of(tmp_path, None, **settings).train()
    later = trainer_of(tmp_path, HeadPruneCallback(density=0.5, search=None), **settings)
    with pytest.raises(TrainingStateError, match="kept"):
        later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    "parts",
    [
        {"second_order": SecondOrder(density=0.5), "gates": SubsetGates(kept_heads=3)},
        {"second_order": SecondOrder(density=0.5), "movement": BlockMovement(density=0.5)},
        {"second_order": SecondOrder(density=0.5), "density": 0.5},
        {"second_order": 0.5},
    ],
)
def test_parts_that_would_both_choose_are_refused(parts):
    with pytest.raises(InvalidSettingError, match="second_order"):
        HeadPruneCallback(**parts)


def test_a_loss_that_is_not_finite_is_refused(case):
    model, batches = case
    bank = SecondOrderPruner(anatomy_of(model), SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8)))
    bank.attach(model)
    broken = (loss * np.inf for loss in losses_of(model, batches))
    with pytest.raises(TrainingStateError, match="non-finite"):
        bank.remove(model, broken, 1)
    assert bool(bank.kept.all())
