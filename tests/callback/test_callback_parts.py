"""Block movement, a density, and a teacher through the callback; the Trainer is a real one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_headprune import PruningPlan, anatomy_of, masked, plan_for_budget
from hf_headprune.budgets import budgets, linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.callback.evaluation import devices_drawn_from
from hf_headprune.errors import InvalidSettingError, TrainingStateError, UnsupportedModelError
from hf_headprune.learn.distillation.settings import Distillation, DistillationTuning
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.learn.score_pruner import ScorePruner
from tests.support.models import tiny_bert
from tests.support.searches import over_heads
from tests.support.settings import gates, movement
from tests.support.trainers import (
    GATES,
    CountSteps,
    InterruptAt,
    StopAt,
    assert_reloads_alike,
    labelled_rows,
    logits_of,
    trainer_of,
)

BLOCKS = movement(attention_block=(8, 8), density=0.5, width_multiple=8)
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_gates_and_a_density_prune_heads_and_ffn_units_in_one_run(tmp_path):
    callback = HeadPruneCallback(gates=SubsetGates(), density=0.5)
    trainer = trainer_of(tmp_path / "run", callback)
    trainer.train()
    assert_reloads_alike(trainer, tmp_path / "saved")
    assert abs(linear_density(callback.plan, anatomy_of(tiny_bert())) - 0.5) < 0.1
    assert callback.plan.num_removed_heads > 0
    assert all(len(kept) % 32 == 0 for kept in callback.plan.kept_ffn.values())
    assert callback.plan.num_removed_ffn > 0


def test_the_cut_after_block_movement_computes_what_evaluation_computed(tmp_path):
    callback = HeadPruneCallback(movement=BLOCKS)
    trainer = trainer_of(tmp_path, callback)
    seen = []
    finish = trainer.callback_handler.on_train_end
    trainer.callback_handler.on_train_end = lambda *given: (seen.append(logits_of(trainer.model)), finish(*given))[1]
    trainer.train()
    torch.testing.assert_close(logits_of(trainer.model), seen[0], atol=1e-6, rtol=1e-5)
    density = sum(int((layer != 0).sum()) for layer in _matrices(trainer.model)) / sum(
        layer.numel() for layer in _matrices(tiny_bert())
    )
    assert 0.3 < density < 0.6


def _matrices(model):
    return [parameter for name, parameter in model.bert.encoder.named_parameters() if parameter.dim() == 2]


def test_gates_and_ffn_units_meet_both_budgets_and_are_searched_from(tmp_path):
    units = BlockMovement.ffn_units(64, width_multiple=8)
    search = over_heads(max_drop=0.99, max_evaluations=4)
    callback = HeadPruneCallback(gates=GATES, movement=units, search=search, latency=None)
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    assert callback.search_result.start.num_kept_heads == 3
    assert callback.search_result.start.num_kept_ffn == callback.plan.num_kept_ffn == 64
    assert callback.plan.num_kept_heads <= 3
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"headprune/temperature", "headprune/final_density"} <= logged


class _AtClipping(TrainerCallback):
    """Records the norm of all gradients, just after the Trainer's clipping."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.stack(norms).norm()))


PENALISED = {
    "movement": {"movement": BlockMovement.hybrid(attention_block=(8, 8), width_multiple=8)},
    "gates": {"gates": gates(kept_heads=3, estimator="hard_concrete", max_score_grad_norm=None)},
}


@pytest.mark.parametrize("part", PENALISED)
def test_a_penalty_is_clipped_with_the_loss_that_it_is_a_part_of(tmp_path, part):
    bank = {
        "movement": "hf_headprune.learn.movement.pruner.MovementPruner",
        "gates": "hf_headprune.learn.gates.pruner.GatePruner",
    }[part]
    norms = {}
    for clip in (0.0, 1e-3):
        looks = _AtClipping()
        trainer = trainer_of(
            tmp_path, HeadPruneCallback(**PENALISED[part], latency=None), max_grad_norm=clip, max_steps=8
        )
        trainer.add_callback(looks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{bank}.add_penalty_grad", lambda self, *, loss_scale: self.importance_bias.grad.add_(100.0))
            trainer.train()
        norms[clip] = looks.norms
    assert max(norms[0.0]) > 100
    assert max(norms[1e-3]) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_penalty_is_added_once_per_optimizer_step(tmp_path, monkeypatch, accumulated):
    added = []
    monkeypatch.setattr(
        "hf_headprune.learn.movement.pruner.MovementPruner.add_penalty_grad",
        lambda self, **_: added.append(int(self.steps)),
    )
    settings = {"gradient_accumulation_steps": accumulated, "max_steps": 6, "per_device_train_batch_size": 4}
    trainer_of(tmp_path, HeadPruneCallback(**PENALISED["movement"], latency=None), **settings).train()
    assert added == list(range(1, 7))


def _mean_loss(outputs, labels, num_items_in_batch=None):
    del num_items_in_batch
    return torch.nn.functional.cross_entropy(outputs.logits, labels)


def _counted_loss(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


class _Undivided(Trainer):
    """Its model takes no number of items, so the Trainer divides by the number of micro-batches itself."""

    def __init__(self, **parts):
        super().__init__(**parts)
        self.model_accepts_loss_kwargs = False


class _SeenError(Exception):
    """Ends a run that has shown what it was run for."""


class _Gradients(TrainerCallback):
    """Records the gradients of the scores and of a weight in the second optimizer step, when penalties have begun.

    The run ends there.
    """

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            scores = next(module for module in model.modules() if isinstance(module, ScorePruner))
            self.scores = scores.importance_bias.grad.clone()
            self.weight = model.bert.encoder.layer[0].attention.self.query.weight.grad.norm()
            raise _SeenError


LOSSES = {
    "a model that ignores the number of items": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "a function of the user's that ignores it": {"compute_loss_func": _mean_loss},
    "a function of the user's that divides by it": {"compute_loss_func": _counted_loss},
    "a model that takes none": {"trainer_class": _Undivided},
    "a teacher": {"distillation": True},
}


@pytest.mark.parametrize(
    ("part", "loss"), [*(("movement", loss) for loss in LOSSES), ("gates", "label smoothing"), ("gates", "a teacher")]
)
def test_a_penalty_weighs_the_same_however_many_batches_are_accumulated(tmp_path, part, loss):
    def gradients(accumulated, penalty):
        others = dict(LOSSES[loss])
        teacher = {"distillation": Distillation(tiny_bert(seed=1))} if others.pop("distillation", False) else {}
        start = {"warmup_ratio": 0.0, "score_learning_rate": 1e-12}
        bank = {
            "movement": {"movement": BlockMovement.hybrid(penalty, attention_block=(8, 8), ramp_end=0.5, **start)},
            "gates": {
                "gates": gates(
                    kept_heads=3,
                    estimator="hard_concrete",
                    penalty=penalty,
                    initial_scores="zeros",
                    max_score_grad_norm=None,
                    **start,
                )
            },
        }[part]
        looks, model = _Gradients(), tiny_bert(**STILL)
        trainer = trainer_of(
            tmp_path,
            HeadPruneCallback(**bank, latency=None, **teacher),
            model=model,
            max_steps=4,
            per_device_train_batch_size=16 // accumulated,
            gradient_accumulation_steps=accumulated,
            max_grad_norm=0.0,
            learning_rate=1e-12,
            callbacks=[looks],
            trainer_class=others.pop("trainer_class", Trainer),
            **{name: value for name, value in others.items() if name != "compute_loss_func"},
        )
        trainer.compute_loss_func = others.get("compute_loss_func")
        with pytest.raises(_SeenError):
            trainer.train()
        return looks

    shares = []
    for accumulated in (1, 4):
        without, penalised = gradients(accumulated, 0.0), gradients(accumulated, 50.0)
        shares.append(float((penalised.scores - without.scores).norm() / without.weight))
    assert shares[0] > 0
    assert shares[1] == pytest.approx(shares[0], rel=1e-3)


def test_a_movement_run_that_was_killed_ends_as_one_that_was_not(tmp_path):
    def run(folder, **settings):
        callback = HeadPruneCallback(gates=SubsetGates(), density=0.5, latency=None)
        return trainer_of(folder, callback, save_strategy="steps", save_steps=4, **settings), callback

    whole, whole_callback = run(tmp_path / "whole")
    whole.train()
    killed, _ = run(tmp_path / "killed", max_steps=12)
    killed.add_callback(StopAt(8))
    killed.train()
    resumed, callback = run(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-8"))
    assert callback.plan == whole_callback.plan
    assert torch.equal(logits_of(resumed.model), logits_of(whole.model))


FILLED = movement(attention_block=(8, 8), density=0.6, refill_ratio=0.5, width_multiple=8)


def _filled(folder, **settings):
    return trainer_of(folder, HeadPruneCallback(movement=FILLED, latency=None), **settings)


def test_one_call_trains_cuts_refills_and_trains_the_cut_model(tmp_path, capsys):
    trainer = _filled(tmp_path / "run", max_steps=12)
    callbacks = list(trainer.callback_handler.callbacks)
    output = trainer.train()
    assert (output.global_step, trainer.args.max_steps) == (6, 12)
    assert "6 optimizer steps" in capsys.readouterr().out
    assert trainer.callback_handler.callbacks == callbacks
    assert all(bool((matrix != 0).all()) for matrix in _matrices(trainer.model))
    assert not list((tmp_path / "run").glob("checkpoint-*"))  # nobody asked for one
    assert_reloads_alike(trainer, tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize("saves", [True, False])
def test_a_second_run_that_was_killed_ends_as_one_that_was_not(tmp_path, saves):
    saving = {"save_strategy": "steps", "save_steps": 2} if saves else {"save_strategy": "no"}
    whole = _filled(tmp_path / "whole", max_steps=12, **saving)
    whole.train()
    killed = _filled(tmp_path / "killed", max_steps=12, **saving)
    killed.add_callback(InterruptAt(5, steps_of_run=6))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = _filled(tmp_path / "killed", max_steps=12, **saving)
    seen = CountSteps()
    resumed.add_callback(seen)
    resumed.train(resume_from_checkpoint=True)
    assert seen.steps == (2 if saves else 6)  # of the first run none, of the second those that no checkpoint holds
    assert torch.equal(logits_of(resumed.model), logits_of(whole.model))
    assert (tmp_path / "killed" / "checkpoint-12").exists() == saves


def test_a_second_run_under_mixed_precision_trains_the_refilled_weights(tmp_path):
    trainer = _filled(tmp_path, max_steps=12, bf16=True)
    trainer.add_callback(seen := _Weights())
    trainer.train()
    assert not torch.equal(seen.first, _matrices(trainer.model)[0])


class _Weights(TrainerCallback):
    """Keeps a matrix as it was when the last run began."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.first = _matrices(model)[0].detach().clone()


def test_a_run_too_short_for_a_second_one_is_refused_before_its_first_step(tmp_path):
    asked = movement(attention_block=(8, 8), refill_ratio=0.01, width_multiple=8)
    trainer = trainer_of(tmp_path, HeadPruneCallback(movement=asked), max_steps=12)
    with pytest.raises(TrainingStateError, match="no step for the second run"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("recipe", [BlockMovement.hybrid, BlockMovement.hybrid_filled, BlockMovement.struct])
def test_the_published_recipes_run_in_one_call_with_a_teacher(tmp_path, recipe):
    teacher = tiny_bert(seed=7, **STILL)
    block = {} if recipe is BlockMovement.struct else {"attention_block": (8, 8)}
    asked = recipe(width_multiple=8, score_learning_rate=0.3, **block)
    callback = HeadPruneCallback(movement=asked, distillation=Distillation(teacher), latency=None)
    trainer = trainer_of(tmp_path / "run", callback, max_steps=20)
    trainer.train()
    assert callback.plan.num_removed_ffn > 0
    assert_reloads_alike(trainer, tmp_path / "saved")


@pytest.mark.parametrize(
    ("recipe", "density"),
    [(BlockMovement.hybrid, 0.26), (BlockMovement.hybrid_filled, 0.6), (BlockMovement.struct, 0.26)],
)
def test_a_published_recipe_cuts_to_the_density_that_was_named(tmp_path, recipe, density):
    block = {} if recipe is BlockMovement.struct else {"attention_block": (8, 8)}
    asked = recipe(density=density, width_multiple=8, score_learning_rate=0.3, **block)
    callback = HeadPruneCallback(movement=asked, latency=None)
    trainer = trainer_of(tmp_path, callback, max_steps=20)
    trainer.train()
    chunk = 8 * 2 * 32 / sum(matrix.numel() for matrix in _matrices(tiny_bert()))
    assert density - chunk < linear_density(callback.plan, anatomy_of(tiny_bert())) <= density
    assert all(len(kept) % 8 == 0 for kept in callback.plan.kept_ffn.values())


@pytest.mark.slow
def test_a_teacher_pulls_the_student_to_its_outputs_and_rests_in_evaluation(tmp_path):
    teacher = tiny_bert(seed=7, **STILL)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    target, distances = logits_of(teacher).softmax(-1), {}
    for alpha in (0.0, 1.0):
        distillation = Distillation(
            teacher, alpha_teacher=max(alpha, 1e-9), tuning=DistillationTuning(alpha_task=1 - alpha)
        )
        callback = HeadPruneCallback(gates=GATES, distillation=distillation, latency=None)
        trainer = trainer_of(tmp_path, callback, model=tiny_bert(**STILL), max_steps=60)
        trainer.train()
        distances[alpha] = float((logits_of(trainer.model).softmax(-1) - target).abs().mean())
        calls.clear()
        trainer.evaluate()
        assert calls == []
    assert distances[1.0] < distances[0.0]


def test_gates_and_a_density_mean_the_same_budgets_as_their_explicit_settings(tmp_path):
    callback = HeadPruneCallback(gates=SubsetGates(estimator="sigmoid"), density=0.5)
    trainer_of(tmp_path, callback)
    (heads, units), found = callback._parts.banks, budgets(anatomy_of(tiny_bert()), 0.5)
    assert sum(group.kept for group in heads.groups) == found.kept_heads > 0
    ffn = units.settings
    assert (ffn.ffn_block, ffn.attention_block, ffn.tuning.counts) == ("unit", None, "scores")
    assert ffn.kept * units.num_scores == found.kept_ffn


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        (SubsetGates(), (10, 65, 65)),
        (SubsetGates(warmup_ratio=0.0, freeze_at=0.3), (0, 30, 30)),
        (gates(warmup_ratio=0.2, freeze_at=0.8, anneal_end=0.4), (20, 40, 80)),
        (SubsetGates(mode="pipelined"), (0, 100, 100)),
    ],
    ids=["defaults", "early", "cooled", "pipelined"],
)
def test_gates_and_a_density_have_one_schedule(tmp_path, asked, steps):
    callback = HeadPruneCallback(gates=asked, density=0.5)
    trainer_of(tmp_path, callback)
    for bank in callback._parts.banks:
        bank.prepare(100)
    learned, ffn = (bank.schedule for bank in callback._parts.banks)
    assert (learned.open_steps, learned.cooled_step, learned.decided_step) == steps
    assert (ffn.open_steps, ffn.reached_step, ffn.decided_step) == steps


def test_gates_and_a_density_meet_it_where_ffn_widths_are_no_multiples_of_32(tmp_path):
    callback = HeadPruneCallback(gates=SubsetGates(), density=0.5, latency=None)
    trainer = trainer_of(tmp_path, callback, model=tiny_bert(intermediate_size=80))  # 16 divides 80 and 32
    trainer.train()
    assert all(len(kept) % 16 == 0 for kept in callback.plan.kept_ffn.values())
    assert abs(linear_density(callback.plan, anatomy_of(tiny_bert(intermediate_size=80))) - 0.5) < 0.1


def test_a_teacher_that_shares_the_students_weights_is_refused_at_construction(tmp_path):
    model = tiny_bert()
    with pytest.raises(InvalidSettingError, match="the teacher is the student"):
        trainer_of(tmp_path, HeadPruneCallback(distillation=Distillation(model)), model=model)
    fine = HeadPruneCallback(distillation=Distillation(copy.deepcopy(model)))
    trainer_of(tmp_path, fine, model=model)


def test_heads_that_gates_close_fold_nothing_into_a_bias(tmp_path):
    model = tiny_bert()
    value = model.bert.encoder.layer[0].attention.self.value
    with torch.no_grad():
        value.weight.zero_()  # every head of this layer contributes the constant of its bias
    asked = gates(kept_heads=3, mode="pipelined", scoring_examples=8)
    units = BlockMovement.ffn_units(1.0, width_multiple=8)
    callback = HeadPruneCallback(gates=asked, movement=units, latency=None)
    trainer = trainer_of(tmp_path, callback, model=model)
    twin = copy.deepcopy(tiny_bert())
    with torch.no_grad():
        twin.bert.encoder.layer[0].attention.self.value.weight.zero_()
    trainer.train()
    gated = trainer.model
    learned = callback._parts.banks[0].kept.tolist()
    sites = [site.name for site in anatomy_of(twin).attention_sites]
    kept = {site: [h for h in range(4) if learned[4 * i + h]] for i, site in enumerate(sites)}
    with masked(twin, PruningPlan.of(twin).replace(kept_heads=kept)):
        torch.testing.assert_close(logits_of(gated), logits_of(twin), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "count", "expected"),
    [("cpu", 0, []), ("mps", 1, []), ("cuda:3", 1, ["cuda:3"]), ("cuda:0", 2, ["cuda:0", "cuda:1"])],
)
def test_the_random_states_of_the_accelerators_of_other_processes_are_left_alone(device, count, expected):
    assert list(map(str, devices_drawn_from(torch.device(device), count))) == expected


def test_weights_of_inference_mode_are_refused():
    with torch.inference_mode():
        model = tiny_bert()
    with pytest.raises(UnsupportedModelError, match=r"made in torch\.inference_mode"):
        plan_for_budget(model, labelled_rows(8, 0), density=0.5)
