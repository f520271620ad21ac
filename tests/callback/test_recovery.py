"""HeadPruneCallback(recover_epochs=...): one call trains, cuts, trains the smaller model on, and certifies it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import BertForSequenceClassification, Trainer, TrainerCallback

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.callback import HeadPruneCallback, plain_recovery
from hf_headprune.callback.distillation import taught_by
from hf_headprune.callback.plain_recovery import bf16_is_faster
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.guarantee.claim import Metric
from hf_headprune.learn.distillation.distiller import Distiller
from hf_headprune.masking import plain_copy
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.batches import Batching
from tests.support.models import tiny_bert
from tests.support.settings import gates
from tests.support.trainers import (
    LEARNS,
    CountSteps,
    InterruptAt,
    Stream,
    assert_reloads_alike,
    attended_rows,
    logits_of,
    trainer_of,
)

TRAIN = attended_rows(320, 0)
_SEEN = {tuple(row["input_ids"]) for row in TRAIN}
UNSEEN = [row for row in attended_rows(160, 1) if tuple(row["input_ids"]) not in _SEEN]
EPOCH = 20  # optimizer steps


class Counting(Trainer):
    """Divides its loss by the items of an optimizer step, which training tells it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def counted_loss(outputs, labels, num_items_in_batch):
    return functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


class Named(BertForSequenceClassification):
    """A class of the user's own."""


def recovering(folder, **settings):
    """A Trainer of a model that learns, with a callback that lets it recover for an epoch."""
    asked = {name: settings.pop(name) for name in ("density", "max_drop", "distillation") if name in settings}
    callback = HeadPruneCallback(recover_epochs=1, latency=None, **asked)
    data = {"train_dataset": TRAIN, "eval_dataset": UNSEEN}
    return trainer_of(folder, callback, **(LEARNS | data | settings)), callback


class _Runs(TrainerCallback):
    """Keeps, of each run, the share of the weights that the trained model has, and its steps."""

    def __init__(self):
        self.runs = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.runs.append([sum(site.units for site in anatomy_of(model).sites), state.max_steps])


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run with a size; the teacher's batches are counted."""
    folder, taught = tmp_path_factory.mktemp("cut"), []
    teach = Distiller.teach
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "teach", lambda *given: taught.append(given[0].settings.teacher) or teach(*given))
        trainer, callback = recovering(folder / "run", density=0.3, callbacks=[runs := _Runs()])
        before = list(trainer.callback_handler.callbacks)
        output = trainer.train()
    assert trainer.callback_handler.callbacks == before
    return trainer, callback, runs.runs, taught, output


@pytest.mark.slow
def test_one_call_trains_cuts_trains_the_smaller_model_on_and_certifies_it(tmp_path, cut):
    trainer, callback, runs, _, output = cut
    full = sum(site.units for site in anatomy_of(tiny_bert()).sites)
    assert [steps for _, steps in runs] == [LEARNS["max_steps"], EPOCH]
    assert runs[0][0] == full > runs[1][0] == sum(site.units for site in anatomy_of(trainer.model).sites)
    assert (output.global_step, trainer.args.max_steps) == (EPOCH, LEARNS["max_steps"])
    assert linear_density(callback.plan, anatomy_of(tiny_bert())) == pytest.approx(0.3, abs=0.1)
    certificate = callback.certificate
    assert certificate.claim.alpha == pytest.approx(0.05)
    assert "Compared with the trained model before pruning" in callback.report.certificate
    assert not [it for name in ("**/checkpoint-*", "second_run_*") for it in (tmp_path / "run").glob(name)]
    assert_reloads_alike(trainer, tmp_path / "saved")


def test_the_dense_model_of_the_run_teaches_in_the_second_run_alone(cut):
    trainer, _, _, taught, _ = cut
    assert len(taught) in (EPOCH, EPOCH + 1)  # one batch is tried before
    assert all(sum(s.units for s in anatomy_of(it).sites) == 2 * (4 + 64) for it in taught[:1])
    assert "compute_loss" not in vars(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["whole", "half of the last checkpoint"])
def test_a_recovery_that_was_killed_ends_as_one_that_was_not(tmp_path, half):
    saving = {"save_strategy": "steps", "save_steps": 10, "density": 0.3}
    whole, _ = recovering(tmp_path / "whole", **saving)
    whole.train()
    killed, _ = recovering(tmp_path / "killed", **saving)
    killed.add_callback(InterruptAt(12, steps_of_run=EPOCH))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    if half:
        (last,) = (tmp_path / "killed").glob("second_run_*/checkpoint-10")
        (last / "trainer_state.json").unlink()
    resumed, callback = recovering(tmp_path / "killed", **saving)
    resumed.add_callback(seen := CountSteps())
    resumed.train(resume_from_checkpoint=True)
    assert seen.steps == EPOCH - 10 * (not half)  # of the first run none
    assert callback.certificate is not None
    assert torch.equal(logits_of(resumed.model), logits_of(whole.model))


def test_labels_teach_where_no_teacher_can(tmp_path, monkeypatch):
    monkeypatch.setattr(Distiller, "teach", lambda *given: pytest.fail("there is a teacher"))
    rows = [{**row, "labels": float(row["labels"])} for row in TRAIN[:64]]
    model = tiny_bert(num_labels=1)
    data = {"train_dataset": rows, "eval_dataset": None, "model": model, "max_steps": 4}
    trainer, callback = recovering(tmp_path, density=0.5, **data)
    trainer.train()
    assert trainer.state.global_step == 4
    assert callback.plan.num_removed_ffn + callback.plan.num_removed_heads > 0


def test_an_allowed_drop_is_tested_after_the_recovery_at_half_of_the_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.DENSITIES", (0.6, 0.3))
    trainer, callback = recovering(tmp_path, max_drop=0.05)
    trainer.train()
    said = " ".join(capsys.readouterr().out.split())
    assert "trains the smallest plan that training may save on for 1 epoch and tests it, and goes on" in said
    assert callback.certificate.verdict == "PASS"
    assert callback.certificate.claim.alpha == pytest.approx(0.125)
    assert len(callback.result.path.steps) == 1
    assert trainer.state.global_step == EPOCH


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recover_epochs": 0}, "must be a number of epochs above 0"),
        ({"gates": gates(kept_heads=3)}, "gates would choose in another way"),
        ({"search": AStarSearch(max_drop=0.1)}, "search would choose in another way"),
        ({"max_drop": 0.1, "confidence": None}, "has to be tested on unseen examples"),
    ],
)
def test_what_contradicts_a_recovery_is_refused(tmp_path, settings, words):
    with pytest.raises(InvalidSettingError, match=words):
        trainer_of(tmp_path, HeadPruneCallback(**({"recover_epochs": 1} | settings)))


def test_a_metric_that_training_examples_may_not_have_decides_no_depth(tmp_path):
    metric = Metric("accuracy", "binary", lambda model, data: [1.0] * len(data))
    asked = {"certification_dataset": UNSEEN, "certification_metric": metric}
    with pytest.raises(InvalidSettingError, match="this metric scores certification_dataset"):
        trainer_of(tmp_path, HeadPruneCallback(recover_epochs=1, **asked))


def test_trainers_that_cannot_train_the_pruned_model_are_refused(tmp_path):
    with pytest.raises(TrainingStateError, match="epochs need a train_dataset with a length"):
        trainer_of(tmp_path, HeadPruneCallback(recover_epochs=1, density=0.5), train_dataset=Stream())


@pytest.mark.parametrize(
    ("of_bf16", "faster", "left"),
    [([7.0, 0.5], True, 0), ([0.9], False, 0), ([2.0], False, 0), ([9.0, 7.9], False, 0), ([60.0, 60.0], False, 4)],
)
def test_bf16_counts_as_faster_where_the_fastest_product_clearly_is(monkeypatch, of_bf16, faster, left):
    slow = [9.0] * (plain_recovery.TRIES - len(of_bf16))  # a slow try is noise
    ticks = iter([tick for duration in [1.0] * plain_recovery.TRIES + of_bf16 + slow for tick in (0.0, duration)])
    monkeypatch.setattr(plain_recovery.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(plain_recovery.torch, "ones", lambda *_, **__: torch.zeros(1, 1))
    assert bf16_is_faster.__wrapped__(torch.device("cpu")) is faster
    assert len([*ticks]) == 2 * left


def test_a_model_that_recovered_in_bf16_computes_in_its_own_precision_afterwards(monkeypatch):
    monkeypatch.setattr(plain_recovery, "bf16_is_faster", lambda device: True)
    model = tiny_bert(num_labels=2)
    recover = plain_recovery.PlainRecovery(TRAIN[:32], Batching(), epochs=1, learning_rate=1e-3)
    before = logits_of(model.eval())
    recover(model, plain_copy(model))
    after = logits_of(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, logits_of(plain_copy(model)))


@pytest.mark.parametrize(("epochs", "runs"), [(1, 4), (3, 4)], ids=["read once", "read again"])
def test_a_teacher_is_asked_for_each_batch_of_the_first_epoch_alone(epochs, runs):
    model = tiny_bert(num_labels=2)
    asked, teacher = [], plain_copy(model)
    teacher.register_forward_hook(lambda *_: asked.append(1))
    plain_recovery.PlainRecovery(TRAIN[:32], Batching(batch_size=8), epochs=epochs, learning_rate=1e-3)(model, teacher)
    assert len(asked) == 1 + runs  # one batch is tried before


def test_an_error_while_a_teacher_is_tried_leaves_the_loss_as_it_was(tmp_path):
    def fails(batch):
        raise RuntimeError("no such file")

    trainer = trainer_of(tmp_path, None)
    trainer.data_collator = fails
    with pytest.raises(RuntimeError, match="no such file"), taught_by(trainer, tiny_bert(seed=1)):
        pass
    assert "compute_loss" not in vars(trainer)


@pytest.mark.parametrize("own", ["method", "function", "class"])
@pytest.mark.parametrize("asked", [{"density": 0.5}, {"max_drop": 0.3}], ids=["size", "drop"])
def test_what_trains_in_a_way_of_its_own_is_taught_and_refitted_in_full(tmp_path, caplog, own, asked):
    settings = {"trainer_class": Counting} if own == "method" else {}
    settings |= {"model": Named(tiny_bert().config)} if own == "class" else {}
    trainer, callback = recovering(tmp_path, **asked, **settings)
    trainer.compute_loss_func = counted_loss if own == "function" else None
    trainer.train()
    assert callback.result is not None
    assert "labels alone" not in caplog.text
    assert "Only output projections are refitted" not in caplog.text
