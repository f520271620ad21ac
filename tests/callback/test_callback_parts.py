"""Block movement, a density, and a teacher through the callback; the Trainer is a real one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, Trainer, TrainerCallback

from hf_headprune import PruningPlan, anatomy_of, masked
from hf_headprune.budgets import budgets, linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import DataLeakError, InvalidSettingError, TrainingStateError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.splits import SplitSettings, three_way_split
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.learn.distillation.settings import Distillation, DistillationTuning
from hf_headprune.learn.gates.settings import GateTuning, SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement, MovementTuning
from hf_headprune.learn.score_pruner import ScorePruner
from hf_headprune.pipeline.search import search_plan
from hf_headprune.search.settings import AStarSearch, SearchTuning
from tests.callback.test_callback import GATES
from tests.support.models import tiny_bert
from tests.support.settings import gates
from tests.support.trainers import assert_reloads_alike
from tests.support.trainers import labelled_rows as _examples
from tests.support.trainers import logits_of as _logits
from tests.support.trainers import trainer_of as _trainer

BLOCKS = BlockMovement(attention_block=(8, 8), density=0.5, tuning=MovementTuning(width_multiple=8))
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_gates_and_a_density_prune_heads_and_ffn_units_in_one_run_and_the_saved_model_reloads(tmp_path):
    callback = HeadPruneCallback(gates=SubsetGates(), density=0.5, search=None)
    trainer = _trainer(tmp_path / "run", callback)
    trainer.train()
    assert_reloads_alike(trainer, tmp_path / "saved")
    assert abs(linear_density(callback.plan, anatomy_of(tiny_bert())) - 0.5) < 0.1
    assert callback.plan.num_removed_heads > 0
    assert all(len(kept) % 32 == 0 for kept in callback.plan.kept_ffn.values())
    assert callback.plan.num_removed_ffn > 0


def test_the_cut_after_block_movement_computes_what_evaluation_computed(tmp_path):
    callback = HeadPruneCallback(gates=None, search=None, movement=BLOCKS)
    trainer = _trainer(tmp_path, callback)
    seen = []
    finish = trainer.callback_handler.on_train_end
    trainer.callback_handler.on_train_end = lambda *given: (seen.append(_logits(trainer.model)), finish(*given))[1]
    trainer.train()
    torch.testing.assert_close(_logits(trainer.model), seen[0], atol=1e-6, rtol=1e-5)
    density = sum(int((layer != 0).sum()) for layer in _matrices(trainer.model)) / sum(
        layer.numel() for layer in _matrices(tiny_bert())
    )
    assert 0.3 < density < 0.6


def _matrices(model):
    return [parameter for name, parameter in model.bert.encoder.named_parameters() if parameter.dim() == 2]


def test_gates_and_ffn_units_meet_both_budgets_and_are_logged_and_searched_from(tmp_path):
    movement = BlockMovement.ffn_units(64, width_multiple=8)
    search = AStarSearch(max_drop=0.99, max_evaluations=4)
    callback = HeadPruneCallback(gates=GATES, movement=movement, search=search)
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    assert callback.search_result.start.num_kept_heads == 3
    assert callback.search_result.start.num_kept_ffn == 64
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
    "movement": {"gates": None, "movement": BlockMovement.hybrid(attention_block=(8, 8), width_multiple=8)},
    "gates": {
        "gates": SubsetGates(kept_heads=3, estimator="hard_concrete", tuning=GateTuning(max_score_grad_norm=None))
    },
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
        trainer = _trainer(tmp_path, HeadPruneCallback(**PENALISED[part], search=None), max_grad_norm=clip, max_steps=8)
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
    _trainer(tmp_path, HeadPruneCallback(**PENALISED["movement"], search=None), **settings).train()
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


class _Gradients(TrainerCallback):
    """Records the gradients of the scores and of a weight in the second optimizer step, when penalties have begun."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            scores = next(module for module in model.modules() if isinstance(module, ScorePruner))
            self.scores = scores.importance_bias.grad.clone()
            self.weight = model.bert.encoder.layer[0].attention.self.query.weight.grad.norm()


LOSSES = {
    "a model that ignores the number of items": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "a function of the user's that ignores it": {"compute_loss_func": _mean_loss},
    "a function of the user's that divides by it": {"compute_loss_func": _counted_loss},
    "a model that takes none": {"trainer_class": _Undivided},
    "a teacher": {"distillation": True},
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("part", PENALISED)
def test_a_penalty_has_the_same_share_of_the_gradient_however_many_batches_are_accumulated(tmp_path, part, loss):
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
        trainer = _trainer(
            tmp_path,
            HeadPruneCallback(**bank, search=None, latency=None, **teacher),
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
        callback = HeadPruneCallback(gates=SubsetGates(), density=0.5, search=None)
        return _trainer(folder, callback, save_strategy="steps", save_steps=4, **settings), callback

    whole, whole_callback = run(tmp_path / "whole")
    whole.train()
    killed, _ = run(tmp_path / "killed", max_steps=12)
    killed.add_callback(_Stop(8))
    killed.train()
    resumed, callback = run(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-8"))
    assert callback.plan == whole_callback.plan
    assert torch.equal(_logits(resumed.model), _logits(whole.model))


class _Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


FILLED = BlockMovement(attention_block=(8, 8), density=0.6, refill_ratio=0.5, tuning=MovementTuning(width_multiple=8))


def _filled(folder, **settings):
    return _trainer(folder, HeadPruneCallback(gates=None, movement=FILLED, search=None), **settings)


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


@pytest.mark.parametrize("saves", [True, False])
def test_a_second_run_that_was_killed_ends_as_one_that_was_not(tmp_path, saves):
    saving = {"save_strategy": "steps", "save_steps": 2} if saves else {"save_strategy": "no"}
    whole = _filled(tmp_path / "whole", max_steps=12, **saving)
    whole.train()
    killed = _filled(tmp_path / "killed", max_steps=12, **saving)
    killed.add_callback(_Kill(of=6, step=4))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = _filled(tmp_path / "killed", max_steps=12, **saving)
    seen = _Count()
    resumed.add_callback(seen)
    resumed.train(resume_from_checkpoint=True)
    assert seen.steps == (2 if saves else 6)  # of the first run none, of the second those that no checkpoint holds
    assert torch.equal(_logits(resumed.model), _logits(whole.model))
    assert (tmp_path / "killed" / "checkpoint-12").exists() == saves


class _Kill(TrainerCallback):
    """Kills a run of a given number of steps at one of them."""

    def __init__(self, of, step):
        self.of, self.step = of, step

    def on_step_end(self, args, state, control, **kwargs):
        if (state.max_steps, state.global_step) == (self.of, self.step + 1):
            raise KeyboardInterrupt


class _Count(TrainerCallback):
    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


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
    movement = BlockMovement(attention_block=(8, 8), refill_ratio=0.01, tuning=MovementTuning(width_multiple=8))
    trainer = _trainer(tmp_path, HeadPruneCallback(gates=None, movement=movement, search=None), max_steps=12)
    with pytest.raises(TrainingStateError, match="no step for the second run"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("recipe", [BlockMovement.hybrid, BlockMovement.hybrid_filled, BlockMovement.struct])
def test_the_published_recipes_run_from_start_to_end_in_one_call_with_a_teacher(tmp_path, recipe):
    teacher = tiny_bert(seed=7, **STILL)
    block = {} if recipe is BlockMovement.struct else {"attention_block": (8, 8)}
    movement = recipe(width_multiple=8, score_learning_rate=0.3, **block)
    callback = HeadPruneCallback(movement=movement, distillation=Distillation(teacher))
    trainer = _trainer(tmp_path / "run", callback, max_steps=20)
    trainer.train()
    assert callback.plan.num_removed_ffn > 0
    assert_reloads_alike(trainer, tmp_path / "saved")


@pytest.mark.parametrize("recipe", [BlockMovement.hybrid, BlockMovement.hybrid_filled, BlockMovement.struct])
@pytest.mark.parametrize("density", [0.26, 0.6])
def test_a_published_recipe_cuts_to_the_density_that_was_named(tmp_path, recipe, density):
    block = {} if recipe is BlockMovement.struct else {"attention_block": (8, 8)}
    movement = recipe(density=density, width_multiple=8, score_learning_rate=0.3, **block)
    callback = HeadPruneCallback(movement=movement, latency=None)
    trainer = _trainer(tmp_path, callback, max_steps=20)
    trainer.train()
    chunk = 8 * 2 * 32 / sum(matrix.numel() for matrix in _matrices(tiny_bert()))
    assert density - chunk < linear_density(callback.plan, anatomy_of(tiny_bert())) <= density
    assert all(len(kept) % 8 == 0 for kept in callback.plan.kept_ffn.values())


def test_a_teacher_pulls_the_student_towards_its_outputs_and_does_not_run_in_evaluation(tmp_path):
    teacher = tiny_bert(seed=7, **STILL)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    target, distances = _logits(teacher).softmax(-1), {}
    for alpha in (0.0, 1.0):
        distillation = Distillation(
            teacher, alpha_teacher=max(alpha, 1e-9), tuning=DistillationTuning(alpha_task=1 - alpha)
        )
        callback = HeadPruneCallback(gates=GATES, search=None, distillation=distillation)
        trainer = _trainer(tmp_path, callback, model=tiny_bert(**STILL), max_steps=60)
        trainer.train()
        distances[alpha] = float((_logits(trainer.model).softmax(-1) - target).abs().mean())
        calls.clear()
        trainer.evaluate()
        assert calls == []
    assert distances[1.0] < distances[0.0]


def test_gates_and_a_density_mean_the_same_budgets_as_their_explicit_settings(tmp_path):
    callback = HeadPruneCallback(gates=SubsetGates(estimator="sigmoid"), density=0.5, search=None)
    _trainer(tmp_path, callback)
    (heads, units), found = callback._parts.banks, budgets(anatomy_of(tiny_bert()), 0.5)
    assert sum(group.kept for group in heads.groups) == found.kept_heads > 0
    ffn = units.settings
    assert (ffn.ffn_block, ffn.attention_block, ffn.tuning.counts) == ("unit", None, "scores")
    assert ffn.kept * units.num_scores == found.kept_ffn


@pytest.mark.parametrize(
    ("gates", "steps"),
    [
        (SubsetGates(), (10, 65, 65)),
        (SubsetGates(warmup_ratio=0.0, freeze_at=0.3), (0, 30, 30)),
        (SubsetGates(warmup_ratio=0.2, freeze_at=0.8, tuning=GateTuning(anneal_end=0.4)), (20, 40, 80)),
        (SubsetGates(mode="pipelined"), (0, 100, 100)),
    ],
    ids=["defaults", "early", "cooled", "pipelined"],
)
def test_gates_and_a_density_have_one_schedule(tmp_path, gates, steps):
    callback = HeadPruneCallback(gates=gates, density=0.5)
    _trainer(tmp_path, callback)
    for bank in callback._parts.banks:
        bank.prepare(100)
    learned, ffn = (bank.schedule for bank in callback._parts.banks)
    assert (learned.open_steps, learned.cooled_step, learned.decided_step) == steps
    assert (ffn.open_steps, ffn.reached_step, ffn.decided_step) == steps


def test_gates_and_a_density_meet_it_where_ffn_widths_are_no_multiples_of_32(tmp_path):
    callback = HeadPruneCallback(gates=SubsetGates(), density=0.5, search=None, latency=None)
    trainer = _trainer(tmp_path, callback, model=tiny_bert(intermediate_size=80))  # 16 divides 80 and 32
    trainer.train()
    assert all(len(kept) % 16 == 0 for kept in callback.plan.kept_ffn.values())
    assert abs(linear_density(callback.plan, anatomy_of(tiny_bert(intermediate_size=80))) - 0.5) < 0.1


def test_nothing_but_what_is_asked_for_runs():
    def parts(**given):
        settings = HeadPruneCallback(**given).settings
        return settings.gates is not None, settings.search is not None, settings.max_drop

    assert parts() == (False, False, 0.01)
    assert parts(movement=BLOCKS) == (False, False, None)
    assert parts(movement=BLOCKS, search=AStarSearch()) == (False, True, None)
    assert parts(gates=GATES) == (True, False, None)
    assert parts(gates=GATES, max_drop=0.02) == (True, False, 0.02)
    assert parts(density=0.5) == (False, False, None)


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        ({"density": 0.4, "movement": BLOCKS}, "movement state a budget, too"),
        ({"density": 0.4, "gates": SubsetGates(kept_heads=3)}, "gates state a budget, too"),
        ({"density": 0.4, "gates": SubsetGates(kept_heads=0.5)}, "gates state a budget, too"),
        ({"movement": BLOCKS, "gates": SubsetGates()}, "Leave gates out"),
        ({"movement": 0.5, "gates": None}, "BlockMovement"),
        ({"distillation": tiny_bert()}, "Distillation"),
        ({"search": AStarSearch(), "movement": BlockMovement.hybrid_filled()}, "Leave search and max_drop out"),
        ({"density": 0.4, "speedup": 2.0}, "density=0.4 and speedup=2.0. Leave all but one out"),
    ],
    ids=str,
)
def test_parts_that_contradict_each_other_are_refused_at_construction(parts, rule):
    with pytest.raises(InvalidSettingError, match=rule):
        HeadPruneCallback(**parts)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_out_of_range_is_refused_when_the_trainer_is_built(tmp_path, density):
    with pytest.raises(InvalidSettingError, match="density must be above 0"):
        _trainer(tmp_path, HeadPruneCallback(density=density, search=None))


def test_a_teacher_that_shares_the_students_weights_is_refused_when_the_trainer_is_built(tmp_path):
    model = tiny_bert()
    with pytest.raises(InvalidSettingError, match="the teacher is the student"):
        _trainer(tmp_path, HeadPruneCallback(distillation=Distillation(model), search=None), model=model)
    fine = HeadPruneCallback(distillation=Distillation(copy.deepcopy(model)), search=None)
    _trainer(tmp_path, fine, model=model)


def test_heads_that_gates_close_fold_nothing_into_a_bias(tmp_path):
    model = tiny_bert()
    value = model.bert.encoder.layer[0].attention.self.value
    with torch.no_grad():
        value.weight.zero_()  # every head of this layer contributes the constant of its bias
    movement = BlockMovement.ffn_units(1.0, width_multiple=8)
    gates = SubsetGates(kept_heads=3, mode="pipelined", tuning=GateTuning(scoring_examples=8))
    callback = HeadPruneCallback(gates=gates, movement=movement, search=None)
    trainer = _trainer(tmp_path, callback, model=model)
    twin = copy.deepcopy(tiny_bert())
    with torch.no_grad():
        twin.bert.encoder.layer[0].attention.self.value.weight.zero_()
    trainer.train()
    gated = trainer.model
    learned = callback._parts.banks[0].kept.tolist()
    sites = [site.name for site in anatomy_of(twin).attention_sites]
    kept = {site: [h for h in range(4) if learned[4 * i + h]] for i, site in enumerate(sites)}
    with masked(twin, PruningPlan.of(twin).replace(kept_heads=kept)):
        torch.testing.assert_close(_logits(gated), _logits(twin), atol=1e-6, rtol=1e-5)


HEADS = {"units": ("heads",), "objective": "heads"}


def _certifying(tmp_path, *, examples=400, confidence=0.95, **search):
    callback = HeadPruneCallback(
        gates=SubsetGates(kept_heads=6, tuning=GateTuning(scoring_examples=8)),
        search=AStarSearch(**({"max_drop": 0.2, "max_evaluations": 12, **HEADS} | search)),
        confidence=confidence,
    )
    return _trainer(tmp_path, callback, eval_dataset=_examples(examples, 1), max_steps=40), callback


@pytest.mark.parametrize("reconstruct", [False, True])
def test_a_confidence_certifies_what_is_cut_on_examples_that_the_search_has_not_seen(tmp_path, capsys, reconstruct):
    trainer, callback = _certifying(tmp_path / "run", tuning=SearchTuning(refit=reconstruct))
    trainer.train()
    certificate = callback.certificate
    printed = capsys.readouterr().out
    assert certificate.verdict == "PASS"
    assert {record.name for record in certificate.disjointness} == {"train", "search"}
    assert callback.report.certificate == certificate.statement
    assert "Compared with" in certificate.statement
    assert callback.plan.num_kept_heads < 6
    assert "To be certified: 200 examples, 95 % confidence" in " ".join(printed.split())
    assert " ".join(certificate.statement.split()) in " ".join(printed.split())
    assert callback.search_result.threshold == pytest.approx(callback.search_result.reference_metric - 0.1)
    trainer.save_model(tmp_path / "saved")
    assert Certificate.load(tmp_path / "saved") == certificate == Certificate.load(tmp_path / "run")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    report = verify_certificate(tmp_path / "saved", reloaded, _examples(400, 1))
    assert not report.holds  # the whole of eval_dataset is not the certification split
    split = three_way_split(_examples(400, 1), trainer.train_dataset, SplitSettings(seed=42, on_leak="drop"))
    assert verify_certificate(tmp_path / "saved", reloaded, split.certify).holds


EVALUATED = {"eval_strategy": "steps", "eval_steps": 20, "save_strategy": "steps", "save_steps": 20}


@pytest.mark.parametrize(
    ("settings", "callbacks", "has_own_split", "is_said"),
    [
        (EVALUATED | {"load_best_model_at_end": True}, (), False, True),
        (EVALUATED | {"metric_for_best_model": "loss"}, (EarlyStoppingCallback(9),), False, True),
        (EVALUATED | {"lr_scheduler_type": "reduce_lr_on_plateau"}, (), False, True),
        (EVALUATED | {"load_best_model_at_end": True}, (), True, False),
        (EVALUATED, (), False, False),
    ],
)
def test_what_training_chose_by_the_examples_held_back_is_said_before_and_after(
    tmp_path, capsys, settings, callbacks, has_own_split, is_said
):
    callback = HeadPruneCallback(
        gates=SubsetGates(kept_heads=6, tuning=GateTuning(scoring_examples=8)),
        search=AStarSearch(max_drop=0.2, max_evaluations=12),
        certification_dataset=_examples(200, 5) if has_own_split else None,
    )
    trainer = _trainer(tmp_path, callback, eval_dataset=_examples(400, 1), max_steps=40, **settings)
    for other in callbacks:
        trainer.add_callback(other)  # after the Trainer was built, as one may
    trainer.train()
    printed = " ".join(capsys.readouterr().out.split())
    assert callback.certificate.steered_training == is_said
    assert ("certification_dataset=...) keeps examples out of it" in printed) == is_said
    assert ("by these examples too" in callback.report.certificate) == is_said
    assert any("steered" in text for text in callback.certificate.assumptions) == is_said


def test_weights_that_train_on_lose_their_certificate(tmp_path, caplog):
    trainer, callback = _certifying(tmp_path / "run")
    trainer.train()
    assert callback.certificate is not None
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "headprune_certificate.json").exists()
    with torch.no_grad():
        trainer.model.classifier.bias += 1.0
    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved" / "headprune_certificate.json").exists()
    assert "weights are not those that were certified" in caplog.text


def test_what_can_not_be_certified_is_not_pruned(tmp_path):
    trainer, callback = _certifying(tmp_path, examples=800, max_drop=0.01)
    trainer.train()
    if callback.plan.num_kept_heads == 6:
        assert callback.certificate is None
        assert callback.report.certificate.startswith("Certificate: none.")
        assert callback.report.metric.before == callback.report.metric.after
    else:
        assert callback.certificate.verdict == "PASS"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "too few to hold some back"),
        ({"metric": "loss"}, "nothing scores single examples"),
    ],
)
def test_where_nothing_can_be_held_back_the_search_sees_all_and_the_table_says_why(tmp_path, settings, reason):
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=4, **settings))
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    assert callback.certificate is None
    assert reason in callback.report.certificate
    assert callback.report.metric.num_examples == 24


def test_nothing_is_certified_on_what_an_earlier_search_of_the_model_has_seen(tmp_path):
    settings = {"max_drop": 0.2, "max_evaluations": 4}
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(**settings))
    trainer = _trainer(tmp_path, None, eval_dataset=_examples(400, 1))
    search_plan(trainer.model, _examples(400, 1), search=AStarSearch(**settings), progress=False)
    _trainer(tmp_path, callback, model=trainer.model, eval_dataset=_examples(400, 1)).train()
    assert callback.certificate is None
    assert "an earlier search of this model has seen examples of eval_dataset" in callback.report.certificate


def test_a_split_of_its_own_leaves_all_of_the_evaluation_set_to_the_search(tmp_path):
    callback = HeadPruneCallback(
        gates=SubsetGates(kept_heads=6, tuning=GateTuning(scoring_examples=8)),
        search=AStarSearch(max_drop=0.2, max_evaluations=12),
        certification_dataset=_examples(120, 5),
    )
    trainer = _trainer(tmp_path, callback, max_steps=40)
    trainer.train()
    assert callback.report.metric.num_examples == 24
    assert callback.certificate.evidence.examples == 120
    assert {record.name for record in callback.certificate.disjointness} == {"train", "search"}


@pytest.mark.parametrize("seen", [("train", 0), ("search", 1)], ids=str)
def test_examples_that_were_seen_are_refused_for_the_certificate_before_training(tmp_path, seen):
    callback = HeadPruneCallback(search=AStarSearch(), certification_dataset=_examples(24, seen[1]))
    with pytest.raises(DataLeakError, match=seen[0]):
        _trainer(tmp_path, callback)


def test_examples_for_a_certificate_that_is_switched_off_are_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match="certification_dataset"):
        _trainer(tmp_path, HeadPruneCallback(confidence=None, certification_dataset=_examples(24, 5)))


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95, "high"])
def test_a_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(InvalidSettingError, match=r"must be None, or a number above 0\.5"):
        HeadPruneCallback(confidence=confidence)
