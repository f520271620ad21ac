"""Around a training: what an interrupt, a NaN or a damaged checkpoint leaves, and what a run keeps alive."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, Trainer

from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.search.settings import AStarSearch
from tests.support.models import tiny_bert
from tests.support.settings import gates, movement, second_order
from tests.support.trainers import InterruptAt, logits_of, trainer_of

METHODS = {
    "gates": lambda: {"gates": gates(kept_heads=3, scoring_examples=8, ramp_steps=1)},
    "pipelined": lambda: {"gates": gates(kept_heads=3, mode="pipelined", scoring_examples=8)},
    "movement": lambda: {"movement": movement(attention_block="unit", density=0.5, width_multiple=8)},
    "blocks": lambda: {"movement": movement(attention_block=(8, 8), density=0.5, width_multiple=8)},
    "penalty": lambda: {"gates": gates(kept_heads=3, estimator="hard_concrete", scoring_examples=8)},
    "second order": lambda: {"second_order": second_order(density=0.5, width_multiple=8, scoring_examples=8)},
    "teacher": lambda: {"density": 0.5, "distillation": Distillation(tiny_bert(seed=1))},
}
AFTERWARDS = {
    "default": dict,
    "seen drop": lambda: {"confidence": None},
    "search": lambda: {"search": AStarSearch(max_evaluations=4)},
}
every_method = pytest.mark.parametrize("method", METHODS)
every_mode = pytest.mark.parametrize("method", [*METHODS, *AFTERWARDS])


def callback_of(method):
    return HeadPruneCallback(**(METHODS | AFTERWARDS)[method](), latency=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "error"), [*((method, KeyboardInterrupt) for method in METHODS), ("gates", ZeroDivisionError)]
)
def test_an_interrupted_model_computes_what_is_saved_of_it(tmp_path, method, error, caplog):
    trainer = trainer_of(tmp_path / "run", callback_of(method), callbacks=[InterruptAt(9, error)])
    with pytest.raises(error):
        trainer.train()
    with caplog.at_level(logging.WARNING):
        trainer.save_model(tmp_path / "saved")
    assert "was interrupted after 9 steps" in caplog.text
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(trainer.model), logits_of(saved))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.slow
@every_method
def test_a_run_goes_on_in_the_same_trainer_after_an_interrupt(tmp_path, method):
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(tmp_path / "whole", callback_of(method), **saving)
    whole.train()
    stop = InterruptAt(9)
    trainer = trainer_of(tmp_path / "again", callback_of(method), callbacks=[stop], **saving)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    stop.step = -1
    trainer.train(resume_from_checkpoint=True)
    assert torch.equal(logits_of(trainer.model), logits_of(whole.model))


@pytest.mark.slow
@every_mode
def test_a_finished_run_keeps_no_trainer_model_or_optimizer_alive(tmp_path, method):
    trainer = trainer_of(tmp_path, callback_of(method))
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    dead = [weakref.ref(each) for each in (trainer, trainer.model, optimizer)]
    del trainer, optimizer
    gc.collect()
    assert [ref() for ref in dead] == [None, None, None]


class NaNLoss(Trainer):
    """Its loss is no number from the seventh step on."""

    def compute_loss(self, *args, **kwargs):
        found = super().compute_loss(*args, **kwargs)
        if self.state.global_step < 6:
            return found
        return (found[0] * float("nan"), *found[1:]) if isinstance(found, tuple) else found * float("nan")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "logging_steps"),
    [*((method, 1) for method in (*METHODS, "default")), *((method, 500) for method in ("gates", *AFTERWARDS))],
)
def test_a_loss_that_is_no_number_ends_the_run_and_nothing_is_cut(tmp_path, method, logging_steps):
    callback = callback_of(method)
    trainer = trainer_of(tmp_path, callback, trainer_class=NaNLoss, logging_steps=logging_steps)
    with pytest.raises(TrainingStateError, match="finite"):
        trainer.train()
    assert trainer.state.global_step <= (7 if logging_steps == 1 else 12)
    assert type(trainer.model).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("method", ["gates", "movement", "second order"])
def test_a_checkpoint_whose_choice_was_changed_is_refused(tmp_path, method):
    saving = {"save_strategy": "steps", "save_steps": 10}
    trainer_of(tmp_path, callback_of(method), **saving).train()
    weights = tmp_path / "checkpoint-10" / "model.safetensors"
    state = load_file(weights)
    kept = next(tensor for name, tensor in state.items() if name.endswith(".kept"))
    kept.fill_(1.0)
    save_file(state, weights, metadata={"format": "pt"})
    again = trainer_of(tmp_path, callback_of(method), **saving)
    with pytest.raises(TrainingStateError, match="the choice is not the one that was made"):
        again.train(resume_from_checkpoint=str(weights.parent))
