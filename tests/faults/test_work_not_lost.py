"""What can fail after training fails before it or at its first step; halves of checkpoints block nothing."""

from __future__ import annotations

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_headprune import HeadPruneCallback, plan_for_budget, search_plan
from hf_headprune.callback.trainer_compat import tensors
from hf_headprune.errors import TrainingStateError
from hf_headprune.search.settings import AStarSearch
from tests.support.models import tiny_bert
from tests.support.trainers import CountSteps, InterruptAt, labelled_rows, trainer_of

MODES = {
    "default": dict,
    "search": lambda: {"search": AStarSearch(max_drop=0.3, max_evaluations=4)},
    "density": lambda: {"density": 0.5},
}
every_mode = pytest.mark.parametrize("mode", MODES)


def callback_of(mode, **parts):
    return HeadPruneCallback(**MODES[mode](), latency=None, **parts)


# --- collators that read what they like ------------------------------------------------------------------------------


def of_label(rows):
    return [{"input_ids": row["input_ids"], "label": row["labels"]} for row in rows]


def of_text(rows):
    return [
        {"sentence": " ".join(map(str, row["input_ids"])), "label": row["labels"], "id": i}
        for i, row in enumerate(rows)
    ]


def of_two_columns(rows):
    return [{"input_ids": row["input_ids"], "extra": [7, 8], "label": row["labels"]} for row in rows]


def by_label(rows):
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": torch.tensor([row["label"] for row in rows])}


def by_text(rows):
    ids = torch.tensor([[int(word) for word in row["sentence"].split()] for row in rows])
    return {"input_ids": ids, "labels": torch.tensor([row["label"] for row in rows])}


def by_two_columns(rows):
    ids = torch.tensor([row["input_ids"] + row["extra"] for row in rows])
    return {"input_ids": ids, "labels": torch.tensor([row["label"] for row in rows])}


COLLATORS = {by_label: of_label, by_text: of_text, by_two_columns: of_two_columns}


@pytest.mark.slow
@pytest.mark.parametrize("collate", COLLATORS)
@every_mode
def test_a_collator_of_the_users_is_given_the_columns_that_it_reads(tmp_path, collate, mode):
    make = COLLATORS[collate]
    trainer = trainer_of(
        tmp_path,
        callback := callback_of(mode),
        train_dataset=make(labelled_rows(32, 0)),
        eval_dataset=make(labelled_rows(220, 1)),
        data_collator=collate,
        remove_unused_columns=False,
    )
    trainer.train()
    assert callback.result is not None
    assert mode == "density" or "failed" not in callback.report.to_text()


@pytest.mark.parametrize("collate", COLLATORS)
def test_so_it_is_by_the_plain_calls(collate):
    make = COLLATORS[collate]
    train, dev = make(labelled_rows(16, 0)), make(labelled_rows(24, 1))
    plan_for_budget(tiny_bert(), train, density=0.5, data_collator=collate)
    search_plan(tiny_bert(), dev, calibration=train, max_drop=0.5, data_collator=collate)


# --- batches of any shape --------------------------------------------------------------------------------------------


class Pairs(Trainer):
    """A contrastive loss over nested batches, without labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first, second = (model(**inputs[side]).last_hidden_state[:, 0] for side in ("query", "passage"))
        scores = first @ second.T
        loss = nn.functional.cross_entropy(scores, torch.arange(len(scores)))
        return (loss, {"loss": loss, "scores": scores}) if return_outputs else loss


def nested(rows):
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"query": {"input_ids": ids}, "passage": {"input_ids": ids.flip(1)}, "names": ["x"] * len(rows)}


@pytest.mark.slow
def test_nested_batches_are_scored(tmp_path):
    trainer = trainer_of(
        tmp_path,
        callback := HeadPruneCallback(density=0.5, latency=None),
        model=tiny_bert(None),
        trainer_class=Pairs,
        data_collator=nested,
        remove_unused_columns=False,
    )
    trainer.train()
    assert callback.plan.num_removed_heads


def test_nested_tensors_have_names_of_their_own():
    batch = {"a": torch.ones(1), "b": {"c": torch.ones(2), "d": [torch.ones(3), "text"]}, "e": None}
    assert {name: len(value) for name, value in tensors(batch)} == {"a": 1, "b.c": 2, "b.d.0": 3}


# --- the rehearsal ---------------------------------------------------------------------------------------------------


class FailsInEvaluation(Trainer):
    """A loss that can't be computed outside of training."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not model.training:
            raise ZeroDivisionError("no loss in evaluation")
        return super().compute_loss(model, inputs, *args, **kwargs)


class KnowsTheWidth(nn.Module):
    """An activation with a parameter for each unit, which no cut reaches."""

    def forward(self, hidden):
        return nn.functional.gelu(hidden) * torch.ones(64)


def that_relies_on_its_width():
    model = tiny_bert()
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = KnowsTheWidth()
    return model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainer_class": FailsInEvaluation}, "ZeroDivisionError: no loss in evaluation"),
        ({"model": that_relies_on_its_width}, "RuntimeError: The size of tensor"),
    ],
)
@pytest.mark.parametrize("mode", ["density", "default"])
def test_what_would_fail_after_training_fails_at_the_first_step(tmp_path, mode, settings, message):
    counter = CountSteps()
    settings = {name: value() if name == "model" else value for name, value in settings.items()}
    parts = {"confidence": None} if mode == "default" else {}
    trainer = trainer_of(tmp_path, callback_of(mode, **parts), callbacks=[counter], eval_strategy="no", **settings)
    with pytest.raises(TrainingStateError, match=f"tried on a copy after the first step, and failed: {message}"):
        trainer.train()
    assert counter.steps <= 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "density"])
def test_activations_that_a_hook_keeps_cost_no_training(tmp_path, mode):
    model = tiny_bert()

    def keep(module, args, output):
        module.last = output[0] if isinstance(output, tuple) else output

    model.bert.encoder.layer[1].register_forward_hook(keep)
    trainer_of(tmp_path, callback := callback_of(mode), model=model).train()
    assert callback.result is not None


@pytest.mark.slow
def test_a_rehearsal_changes_nothing_of_the_run(tmp_path, monkeypatch):
    def weights(folder):
        torch.manual_seed(3)
        model = tiny_bert(hidden_dropout_prob=0.3)
        trainer_of(tmp_path / folder, HeadPruneCallback(density=0.5, latency=None), model=model).train()
        return model.state_dict()

    with_it = weights("with")
    monkeypatch.setattr("hf_headprune.callback.hooks.rehearse", lambda *_: None)
    without = weights("without")
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


# --- checkpoints -----------------------------------------------------------------------------------------------------


def cut_state(folder):
    file = folder / "trainer_state.json"
    file.write_text(file.read_text()[:40])


def no_state(folder):
    (folder / "trainer_state.json").unlink()


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_state, no_state, cut_weights])
def test_half_of_a_checkpoint_does_not_block_a_resume(tmp_path, damage, caplog):
    settings = {"save_strategy": "steps", "save_steps": 4}
    trainer = trainer_of(tmp_path, HeadPruneCallback(density=0.5, latency=None), callbacks=[InterruptAt(9)], **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    damage(tmp_path / "checkpoint-8")
    counter = CountSteps()
    again = trainer_of(
        tmp_path, callback := HeadPruneCallback(density=0.5, latency=None), callbacks=[counter], **settings
    )
    again.train(resume_from_checkpoint=True)
    assert counter.steps == 8
    assert callback.plan.num_removed_heads
    assert "checkpoint-8 is half of a checkpoint" in caplog.text


@pytest.mark.slow
def test_a_run_with_nothing_but_halves_begins_anew(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    counter = CountSteps()
    trainer = trainer_of(tmp_path, HeadPruneCallback(density=0.5, latency=None), callbacks=[counter])
    trainer.train(resume_from_checkpoint=True)
    assert counter.steps == 12


def test_without_any_checkpoint_the_trainer_says_so(tmp_path):
    trainer = trainer_of(tmp_path, HeadPruneCallback(density=0.5, latency=None))
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer.train(resume_from_checkpoint=True)


# --- what is kept alive ----------------------------------------------------------------------------------------------


class Rows(list):
    """A list that can be watched."""


def test_data_sets_that_were_searched_are_not_kept_alive():
    model, dev, train = tiny_bert(), Rows(labelled_rows(24, 1)), Rows(labelled_rows(16, 0))
    search_plan(model, dev, search=AStarSearch(max_drop=0.3, max_evaluations=4), calibration=train, progress=False)
    watched = weakref.ref(dev), weakref.ref(train)
    del dev, train
    gc.collect()
    assert [each() for each in watched] == [None, None]
    assert np.size(list(model.headprune_seen.splits)) == 4
