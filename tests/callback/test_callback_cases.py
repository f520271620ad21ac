"""Runs of the callback that a user's own model, loss, data or plan makes unusual."""

from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
)

from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.cost import cost_of, macs_price
from hf_headprune.errors import InvalidSettingError, TrainingStateError, UnsupportedModelError
from hf_headprune.latency import LatencySettings, random_inputs
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.learn.pruner import Pruner
from hf_headprune.learn.score_pruner import ScorePruner
from hf_headprune.plan import PruningPlan
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.latency_table import measure_latency_table
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import BERT_SIZES, EOS, tiny_bart, tiny_bert, tiny_distilbert, tiny_marian, tiny_roberta
from tests.support.searches import over_heads
from tests.support.searches import settings as search_settings
from tests.support.settings import gates, movement, second_order
from tests.support.trainers import GATES, InterruptAt, StopAt, Stream, labelled_rows, trainer_of

SHORT = AStarSearch(max_evaluations=4)
HEADS = over_heads(max_evaluations=4)


@pytest.mark.parametrize("kept", [0, 1])
def test_the_search_goes_on_from_layers_that_training_has_emptied(tmp_path, kept):
    callback = HeadPruneCallback(gates=SubsetGates(kept_heads=kept), search=HEADS, latency=None)
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    assert anatomy_of(trainer.model).num_heads == callback.plan.num_kept_heads <= kept


@pytest.mark.parametrize("emptied", ["kept_heads", "kept_ffn"])
def test_a_model_with_an_empty_block_can_be_pruned_again_while_it_trains(tmp_path, emptied):
    model = tiny_bert()
    site = next(iter(getattr(PruningPlan.of(model), emptied)))
    prune_model_(model, PruningPlan.of(model).replace(**{emptied: {site: ()}}))
    callback = HeadPruneCallback(gates=SubsetGates(kept_heads=2), search=HEADS, latency=None)
    trainer_of(tmp_path, callback, model=model).train()
    assert callback.plan.num_kept_heads <= 2


def test_a_model_that_could_not_be_saved_pruned_is_refused_at_construction(tmp_path):
    model = BertForSequenceClassification(BertConfig(**BERT_SIZES))
    model.classifier = torch.nn.Sequential(model.classifier)
    with pytest.raises(UnsupportedModelError, match="not what its class and its configuration say"):
        trainer_of(tmp_path, HeadPruneCallback(gates=GATES), model=model)


def own_loss(outputs, labels, num_items_in_batch=None):
    return functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


class CountingTrainer(Trainer):
    """A method in place of a function."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = own_loss(outputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize(
    "parts",
    [{"gates": GATES}, {"second_order": second_order(kept_heads=3, scoring_examples=8)}],
)
def test_a_loss_that_divides_by_the_items_of_its_batch_is_given_their_number(tmp_path, parts):
    for trainer_class in (Trainer, CountingTrainer):
        callback = HeadPruneCallback(**parts, latency=None)
        trainer = trainer_of(tmp_path, callback, trainer_class=trainer_class, gradient_accumulation_steps=2)
        trainer.compute_loss_func = own_loss if trainer_class is Trainer else None
        trainer.train()
        assert callback.plan.num_kept_heads == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda kept: {"gates": gates(kept_heads=round(8 * kept), scoring_examples=8)},
        lambda kept: {"movement": movement(attention_block="unit", density=kept, width_multiple=8)},
        lambda kept: {"second_order": second_order(density=kept, width_multiple=8, scoring_examples=8)},
    ],
    ids=["gates", "movement", "second_order"],
)
def test_a_resumed_run_must_have_the_budget_of_its_checkpoint(tmp_path, make):
    settings = {"save_strategy": "steps", "save_steps": 11}
    trainer_of(tmp_path, HeadPruneCallback(**make(0.75), latency=None), **settings).train()
    other = trainer_of(tmp_path, HeadPruneCallback(**make(0.25), latency=None), **settings)
    with pytest.raises(TrainingStateError, match="another budget"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-11"))


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"gates": gates(scoring_examples=8)}, {"gates": gates(scoring_examples=8, estimator="dsp")}),
        ({"gates": gates(scoring_examples=8)}, {"gates": gates(scoring_examples=8, freeze_at=0.9)}),
        ({"gates": gates(scoring_examples=8)}, {"gates": gates(scoring_examples=8, mode="pipelined")}),
        ({"gates": gates(scoring_examples=8)}, {"gates": gates(scoring_examples=8, ramp_steps=1)}),
        ({"movement": movement(width_multiple=8)}, {"movement": movement(width_multiple=8, freeze_at=0.9)}),
        (
            {"second_order": second_order(density=0.5, width_multiple=8, scoring_examples=8)},
            {"second_order": second_order(density=0.5, width_multiple=8, scoring_examples=8, freeze_at=0.9)},
        ),
    ],
    ids=["estimator", "freeze_at", "mode", "ramp", "movement", "second_order"],
)
def test_a_resumed_run_must_have_the_method_and_schedule_of_its_checkpoint(tmp_path, first, other):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    trainer_of(tmp_path, HeadPruneCallback(**first, latency=None), **settings).train()
    trainer = trainer_of(tmp_path, HeadPruneCallback(**other, latency=None), **settings)
    with pytest.raises(TrainingStateError, match="another budget, method or schedule"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    "other",
    [
        {"ranking": "per_matrix"},
        {"score_gradient": "weights"},
        {"mask_bias": False},
        {"counts": "macs", "seq_len": 384},
    ],
    ids=str,
)
def test_a_resumed_run_must_score_as_its_checkpoint_did(tmp_path, other):
    def callback(**changes):
        counted = {"counts": changes.get("counts", "scores")}
        asked = movement(attention_block=(8, 8), width_multiple=8, **(counted | changes))
        return HeadPruneCallback(movement=asked, latency=None)

    first = {name: value for name, value in other.items() if name == "counts"}
    trainer_of(tmp_path, callback(**first), max_steps=2, save_strategy="steps", save_steps=1).train()
    with pytest.raises(TrainingStateError, match="another budget"):
        trainer_of(tmp_path, callback(**other), max_steps=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


class _Scores(TrainerCallback):
    """Records the scores when training begins, and how far they go in the first step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        bank = next(module for module in model.modules() if isinstance(module, ScorePruner))
        self.start = bank.scores.detach().clone()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not hasattr(self, "step"):
            bank = next(module for module in model.modules() if isinstance(module, ScorePruner))
            self.step = float((bank.scores.detach() - self.start).abs().max())


LEARNED = {
    "gates": {"gates": gates(kept_heads=3, estimator="dsp", warmup_ratio=0.0, initial_scores="random", ramp_steps=0)},
    "movement": {"movement": movement(attention_block="unit", warmup_ratio=0.0, width_multiple=8)},
}


@pytest.mark.parametrize("part", LEARNED)
def test_a_run_that_is_resumed_with_another_learning_rate_goes_on_with_its_scores(tmp_path, part):
    def run(learning_rate, **settings):
        looks = _Scores()
        callback = HeadPruneCallback(**LEARNED[part], latency=None)
        trainer = trainer_of(
            tmp_path, callback, callbacks=[looks], learning_rate=learning_rate, save_strategy="steps", save_steps=5
        )
        trainer.train(**settings)
        return looks, callback.plan

    run(1e-3)
    checkpoint = {"resume_from_checkpoint": str(tmp_path / "checkpoint-5")}
    (same, plan), (other, other_plan) = run(1e-3, **checkpoint), run(1e-4, **checkpoint)
    assert same.start.abs().max() > 0
    torch.testing.assert_close(other.start, same.start, rtol=0, atol=0)
    assert other.step == same.step  # the Trainer goes on with the rate of the checkpoint
    assert other_plan == plan


@pytest.mark.slow
def test_a_run_that_is_resumed_for_longer_goes_on_with_its_scores(tmp_path):
    def run(max_steps, **settings):
        looks = _Scores()
        asked = gates(kept_heads=3, estimator="sigmoid", scoring_examples=8)
        callback = HeadPruneCallback(gates=asked, latency=None)
        saving = {"save_strategy": "steps", "save_steps": 5, "max_steps": max_steps}
        trainer_of(tmp_path, callback, callbacks=[looks], **saving).train(**settings)
        return looks

    run(12)
    with pytest.MonkeyPatch.context() as patch:  # at step 10 of 100 gates would begin to learn
        patch.setattr("hf_headprune.learn.gates.pruner.gradient_importance", Mock(side_effect=AssertionError))
        assert run(100, resume_from_checkpoint=str(tmp_path / "checkpoint-5")).start.std() > 0


@pytest.mark.parametrize("part", LEARNED)
def test_scores_learn_as_fast_beside_an_optimizer_with_a_rate_of_its_own(tmp_path, part):
    steps = []
    for own in ({}, {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": 1e-2})}):
        looks = _Scores()
        model, callback = (
            tiny_bert(hidden_dropout_prob=0.0),
            HeadPruneCallback(**LEARNED[part], latency=None),
        )
        trainer = trainer_of(tmp_path, callback, model=model, callbacks=[looks], trainer_class=partial(Trainer, **own))
        trainer.train()
        steps.append(looks.step)
    assert steps[1] == pytest.approx(steps[0], rel=1e-3)


def test_scores_that_the_optimizer_trains_at_no_rate_are_refused(tmp_path):
    make = partial(Trainer, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.0}))
    trainer = trainer_of(tmp_path, HeadPruneCallback(**LEARNED["gates"], latency=None), trainer_class=make)
    with pytest.raises(TrainingStateError, match=r"at a learning rate of 0\.0; theirs is a multiple"):
        trainer.train()


@pytest.mark.parametrize("first", [{"density": 0.5}, {"gates": gates(kept_heads=4, scoring_examples=8)}], ids=str)
def test_a_run_that_chooses_otherwise_is_not_resumed(tmp_path, first):
    settings = {"save_strategy": "steps", "save_steps": 11}
    trainer_of(tmp_path, HeadPruneCallback(**first, latency=None), **settings).train()
    other = trainer_of(tmp_path, HeadPruneCallback(max_drop=0.2, latency=None), **settings)
    with pytest.raises(TrainingStateError, match=r"it holds headprune_\w+, by which another run chose"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-11"))


def test_a_resumed_run_must_score_the_blocks_of_its_checkpoint(tmp_path):
    def callback(whole):
        blocks = {f"encoder.layer.{whole}.*": None}
        asked = movement(attention_block="unit", density=0.5, width_multiple=8, blocks=blocks)
        return HeadPruneCallback(movement=asked, latency=None)

    settings = {"save_strategy": "steps", "save_steps": 11}
    trainer_of(tmp_path, callback(0), **settings).train()
    with pytest.raises(TrainingStateError, match="another budget"):
        trainer_of(tmp_path, callback(1), **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-11"))


def test_a_proof_that_training_makes_too_long_is_refused_before_the_first_step(tmp_path):
    search = search_settings(max_evaluations=None, ffn_chunk=32, objective="macs")
    model = tiny_bert(num_hidden_layers=4)  # 16 heads, 8 chunks, and one more of each FFN that training cuts
    trainer = trainer_of(tmp_path, HeadPruneCallback(density=0.75, search=search, latency=None), model=model)
    with pytest.raises(InvalidSettingError, match="at most 24 units allow it, received 28"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_chunks_that_movement_removes_make_a_proof_no_longer(tmp_path):
    search = search_settings(max_evaluations=None, units=("ffn",), ffn_chunk=32, max_drop=0.9)
    model = tiny_bert(intermediate_size=32 * 12)  # 24 chunks, as many as a proof may have
    callback = HeadPruneCallback(
        search=search, movement=BlockMovement.ffn_units(1 / 12, width_multiple=8), latency=None
    )
    trainer_of(tmp_path, callback, model=model).train()
    assert callback.search_result.optimality == "proved"


@pytest.mark.parametrize(
    "parts", [{"density": 0.5}, {"gates": GATES, "movement": BlockMovement.ffn_units(0.5)}], ids=str
)
def test_a_search_of_whole_layers_after_a_choice_of_heads_is_refused(parts):
    with pytest.raises(InvalidSettingError, match="whole layers alone can't start"):
        HeadPruneCallback(search=AStarSearch(units=("layers",)), **parts)


@pytest.mark.parametrize("parts", [{}, {"movement": BlockMovement.ffn_units(0.5, width_multiple=8)}], ids=str)
def test_whole_layers_are_searched_of_a_whole_model_and_after_movement(tmp_path, parts):
    layers = AStarSearch(units=("layers",), max_drop=0.9, max_evaluations=4)
    callback = HeadPruneCallback(search=layers, **parts, latency=None)
    trainer_of(tmp_path, callback).train()
    assert callback.plan.num_kept_heads in (0, 4)


@pytest.mark.parametrize("factor", [1.5, 4.0])
def test_a_run_to_a_speedup_ends_with_the_macs_that_it_leaves(tmp_path, factor):
    to_speedup = BlockMovement.to_speedup(factor, width_multiple=8, seq_len=300)
    callback = HeadPruneCallback(movement=to_speedup, latency=None)
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    anatomy = anatomy_of(tiny_bert())
    whole = cost_of(PruningPlan.full(anatomy), anatomy, seq_len=300).macs
    left = cost_of(PruningPlan.full(anatomy_of(trainer.model)), anatomy_of(trainer.model), seq_len=300).macs
    a_chunk = 8 * macs_price(anatomy.ffn_sites[0], 300, 300).per_unit
    assert whole / factor - a_chunk < left <= whole / factor


@pytest.mark.parametrize("objective", ["macs", "latency"])
def test_a_search_goes_on_from_what_movement_left_and_restores_nothing(tmp_path, objective):
    model = tiny_bert(intermediate_size=96)
    rising = None
    if objective == "latency":
        brief = LatencySettings(batch_size=1, seq_len=8, runs=5)
        measured = measure_latency_table(model, brief, points=2, progress=False)
        # Of a model as small as this one, times are noise.
        rising = {site: {kept: rank * 0.1 for rank, kept in enumerate(sorted(ms))} for site, ms in measured.items()}
    search = search_settings(
        max_drop=0.4, max_evaluations=15, ffn_chunk=32, objective=objective, latency_ms=rising, refit=False
    )
    blocks = movement(attention_block="unit", density=0.5, width_multiple=32)
    callback = HeadPruneCallback(search=search, movement=blocks, latency=None)
    trainer = trainer_of(tmp_path, callback, model=model)
    trainer.train()
    found = callback.search_result
    learned = found.start
    assert 0 < learned.num_kept_ffn < 192
    assert any(found.plan_of(step).num_kept_ffn < learned.num_kept_ffn for step in found.history)
    assert found.heads == {site: heads for site, heads in learned.kept_heads.items() if heads}
    searched = {site: tuple(sorted(sum(chunks, ()))) for site, chunks in found.ffn_chunks.items()}
    assert searched == {site: units for site, units in learned.kept_ffn.items() if units}
    assert (
        anatomy_of(trainer.model).num_parameters == callback.report.after.parameters < callback.report.before.parameters
    )


def test_a_search_goes_on_from_movement_that_left_nothing(tmp_path):
    search = search_settings(max_evaluations=4, units=("ffn",), ffn_chunk=32)
    callback = HeadPruneCallback(search=search, movement=BlockMovement.ffn_units(0, width_multiple=8), latency=None)
    trainer_of(tmp_path, callback).train()
    assert callback.plan.num_kept_ffn == 0


def test_a_second_training_begins_with_the_whole_model_again(tmp_path):
    seen = []

    class Looks(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(metrics["eval_loss"])

    callback = HeadPruneCallback(gates=SubsetGates(kept_heads=1), latency=None)
    trainer = trainer_of(tmp_path, callback, eval_on_start=True, learning_rate=1e-12)
    trainer.add_callback(Looks())
    trainer.add_callback(stops := InterruptAt(1))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(stops)
    trainer.train()
    assert seen[1] == pytest.approx(seen[0], abs=1e-6)


def test_a_stream_can_be_trained_on_beside_enough_examples_for_a_certificate(tmp_path):
    callback = HeadPruneCallback(gates=GATES, search=SHORT, latency=None)
    trainer = trainer_of(tmp_path, callback, train_dataset=Stream(), eval_dataset=labelled_rows(240, 1))
    trainer.train()
    assert "not checked that no example is in the train split" in callback.report.certificate


def test_of_a_stream_the_number_of_training_examples_is_not_known_beforehand(tmp_path, capsys):
    trainer = trainer_of(
        tmp_path,
        HeadPruneCallback(latency=None),
        train_dataset=Stream(),
        eval_dataset=labelled_rows(240, 1),
        max_steps=2,
    )
    trainer.train()
    said = " ".join(capsys.readouterr().out.split())
    assert "in the order of removal costs on up to 1,024 training examples, whose accuracy drops by" in said


def test_heads_that_nothing_was_learned_of_are_chosen_by_their_gradient(tmp_path, caplog):
    callback = HeadPruneCallback(gates=SubsetGates(kept_heads=4, warmup_ratio=0.5), latency=None)

    trainer = trainer_of(tmp_path, callback, callbacks=[StopAt(1)])
    trainer.train()
    assert "chosen by the gradient" in caplog.text
    assert callback.plan.num_kept_heads == 4


@pytest.mark.parametrize(
    "parts",
    [
        {"gates": gates(kept_heads=1, initial_scores="random", scoring_examples=8)},
        {"movement": movement(attention_block=(8, 8), density=0.2, width_multiple=8)},
        {"gates": SubsetGates(), "density": 0.3},
        {"density": 0.3},
    ],
    ids=["gates", "movement", "both", "second_order"],
)
def test_before_the_first_step_the_whole_model_is_evaluated(tmp_path, parts):
    whole = trainer_of(tmp_path, None).evaluate()["eval_loss"]
    trainer = trainer_of(tmp_path, HeadPruneCallback(**parts, latency=None), eval_on_start=True)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(whole, rel=1e-6)
    trainer.train()
    on_start = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert on_start == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("parts", "step"),
    [
        ({"gates": gates(kept_heads=4, scoring_examples=8)}, 8),
        ({"movement": movement(attention_block="unit", width_multiple=8)}, 8),
        ({"movement": BlockMovement.struct(width_multiple=8)}, 6),
        ({"density": 0.5}, 7),
        ({"density": 0.3}, 6),
    ],
    ids=["gates", "movement", "recipe", "second_order", "deep"],
)
def test_a_run_that_is_stopped_before_the_choice_warns_and_no_later_one(tmp_path, caplog, parts, step):
    seen = []
    for last in (step - 2, step + 1, 12):
        caplog.clear()
        callback = HeadPruneCallback(**parts, latency=None)
        trainer_of(tmp_path, callback, callbacks=[StopAt(last)]).train()
        seen.append(caplog.text)
    assert f"has seen {step - 2} of 12 optimizer steps, and the choice was due at step {step}" in seen[0]
    assert "the choice was due" not in seen[1] + seen[2]


def gates_of(model, kept):
    anatomy = anatomy_of(model)
    settings = SubsetGates(kept_heads=kept)
    bank = GatePruner(anatomy, settings)
    bank.attach(model)
    bank.prepare(20)
    bank.set_scores(torch.rand(bank.num_heads, generator=torch.Generator().manual_seed(0)))
    bank.is_idle = False  # as in a run that has begun
    return bank


def test_generation_after_a_training_step_sees_the_hard_choice(tmp_path):
    model = tiny_marian()
    bank = gates_of(model, 6)
    bank.set_step(8)
    tokens = torch.randint(4, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    model.train()
    model(input_ids=tokens, labels=tokens)  # leaves soft gates at the sites
    model.eval()
    seen = []
    scale = bank.units.scales[0]
    model.model.encoder.layers[0].self_attn.out_proj.register_forward_pre_hook(
        lambda *_: seen.append(scale.scale.clone())
    )
    model.generate(input_ids=tokens, max_new_tokens=2, num_beams=1)
    assert len(seen) == 1
    assert set(seen[0].tolist()) <= {0.0, 1.0}


def test_a_decoder_alone_passes_through_its_gates():
    model = tiny_marian("MarianForCausalLM", is_decoder=True)
    tokens = torch.randint(4, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=tokens).logits
    gates_of(model, 1)
    assert not torch.allclose(model(input_ids=tokens).logits, before)


def test_gates_are_computed_once_per_pass(monkeypatch):
    model = tiny_marian()
    bank = gates_of(model, 4)
    calls = []
    monkeypatch.setattr(bank, "gates", lambda: calls.append(1))
    tokens = torch.randint(4, 60, (2, 5))
    model(input_ids=tokens, labels=tokens)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(input_ids=tokens)  # a pass that ends in an error ends, too
    del calls[:]
    model.model.encoder(input_ids=tokens)
    assert len(calls) == 1


@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta, tiny_distilbert])
def test_latency_of_multiple_choice_is_measured_with_choices(make):
    model = make("MultipleChoice")
    inputs = random_inputs(model, LatencySettings(batch_size=3, seq_len=4))
    assert inputs["input_ids"].shape == (3, 2, 4)
    assert model(**inputs).logits.shape == (3, 2)


def test_a_classifier_that_reads_the_end_of_its_texts_is_measured_and_reloads(tmp_path):
    rows = [{**row, "input_ids": [*row["input_ids"][:-1], EOS]} for row in labelled_rows(24, 0)]
    model = tiny_bart("BartForSequenceClassification", num_labels=2)
    callback = HeadPruneCallback(gates=gates(kept_heads=12, scoring_examples=8), search=AStarSearch(max_evaluations=4))
    trainer = trainer_of(tmp_path / "run", callback, model=model, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert callback.report.latency is not None
    trainer.save_model(tmp_path / "saved")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    batch = {"input_ids": torch.tensor([rows[0]["input_ids"]])}
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, trainer.model.eval()(**batch).logits)


def test_what_can_not_be_measured_is_refused_before_training(tmp_path):
    model = tiny_bart("BartForSequenceClassification", eos_token_id=None)
    with pytest.raises(InvalidSettingError, match=r"(?s)can't be measured on random tokens.*latency=None"):
        trainer_of(tmp_path, HeadPruneCallback(), model=model)


def test_the_longest_sequence_of_a_model_with_a_position_offset_is_known():
    model = tiny_roberta()
    longest = model.config.max_position_embeddings - model.config.pad_token_id - 1
    model(**random_inputs(model, LatencySettings(batch_size=1, seq_len=longest)))
    with pytest.raises(ValueError, match=f"at most {longest}"):
        random_inputs(model, LatencySettings(batch_size=1, seq_len=longest + 1))


@pytest.mark.parametrize(
    ("examples", "drop", "rule"),
    [
        ([{**row, "labels": -1} for row in labelled_rows(24, 1)], 0.01, r"labels must be 0\.\.1, received \[-1\]"),
        (labelled_rows(24, 1), 1.0, "max_drop is absolute"),
    ],
)
def test_a_search_that_could_measure_nothing_is_refused_before_the_first_step(tmp_path, examples, drop, rule):
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_drop=drop))
    trainer = trainer_of(tmp_path, callback, eval_dataset=examples)
    with pytest.raises(InvalidSettingError, match=rule):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            search_settings(objective="latency", latency_ms={"elsewhere": {0: 0.0, 4: 1.0}}),
            "needs its ms",
        ),
        (
            search_settings(max_evaluations=None, units=("ffn",), ffn_chunk=32),
            "at most 24 units allow it",
        ),
    ],
)
def test_a_search_that_does_not_fit_the_model_is_refused_before_the_first_step(tmp_path, search, message):
    model = tiny_bert(intermediate_size=32 * 13)
    trainer = trainer_of(tmp_path, HeadPruneCallback(gates=GATES, search=search, latency=None), model=model)
    with pytest.raises(InvalidSettingError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


EARLIER = {
    "pipelined": {"gates": gates(kept_heads=3, mode="pipelined", scoring_examples=8)},
    "gates": {"gates": gates(kept_heads=3, warmup_ratio=0.0, scoring_examples=8)},
    "movement": LEARNED["movement"],
    "density, at first": {"density": 0.5},
}


@pytest.mark.parametrize("trains", [False, True], ids=["never trained", "interrupted"])
@pytest.mark.parametrize("earlier", EARLIER)
def test_a_trainer_built_again_around_a_model_starts_without_earlier_parts(tmp_path, earlier, trains):
    model = tiny_bert()
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    first = trainer_of(tmp_path, HeadPruneCallback(**EARLIER[earlier], latency=None), model=model)
    if trains:
        first.add_callback(InterruptAt(3))
        with pytest.raises(KeyboardInterrupt):
            first.train()
    callback = HeadPruneCallback(gates=gates(kept_heads=3, scoring_examples=8), latency=None)
    again = trainer_of(tmp_path, callback, model=model)
    assert sum(isinstance(module, Pruner) for module in model.modules()) == 1
    again.train()
    assert callback.plan.num_kept_heads == 3
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()] == hooks


def test_a_model_that_was_refitted_half_way_is_not_trained_on(tmp_path):
    model = tiny_bert()
    trainer = trainer_of(
        tmp_path, HeadPruneCallback(density=0.3, latency=None), model=model, callbacks=[InterruptAt(9)]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(TrainingStateError, match=r"removed heads and FFN units of this model.*load the model anew"):
        trainer_of(tmp_path, HeadPruneCallback(), model=model)


def test_a_second_callback_is_refused(tmp_path):
    with pytest.raises(TrainingStateError, match="takes one HeadPruneCallback"):
        trainer_of(tmp_path, HeadPruneCallback(), callbacks=[HeadPruneCallback(density=0.5)])
