"""Distillation: the mixed loss against slow versions, its way through a real Trainer, and the teachers it refuses."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from hf_headprune.callback.distillation import distil
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.learn.distillation.distiller import Distiller, hidden_distance, logits_divergence
from hf_headprune.learn.distillation.settings import Distillation, DistillationTuning
from hf_headprune.learn.distillation.teachers import layer_pairs
from hf_headprune.tasks.examples import predicts_next_token
from tests.support.models import (
    EOS,
    TINY_FAMILIES,
    VOCAB_SIZE,
    text_inputs,
    tiny_bart,
    tiny_bert,
    tiny_bert_decoder,
    tiny_distilbert,
    tiny_marian,
    tiny_roberta,
)
from tests.support.processes import both

ROOT = Path(__file__).parents[2]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RATE = 10.0


def train_one_step(folder, model, dataset, settings, *, trainer_class=Trainer, arguments=(), **data) -> nn.Module:
    """One step of plain gradient descent over the whole data set."""
    given = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": len(dataset),
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    } | dict(arguments)
    trainer = trainer_class(model=model, args=TrainingArguments(**given), train_dataset=dataset, **data)
    distil(trainer, settings)
    trainer.train()
    return trainer.model


def _rows(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{name: values[i] for name, values in batch.items()} for i in range(len(next(iter(batch.values()))))]


def uneven_labels(classes: int, shape: tuple[int, int]) -> torch.Tensor:
    """Labels of which each row counts another number."""
    labels = torch.randint(classes, shape, generator=torch.Generator().manual_seed(5))
    for row, count in enumerate((7, 1, 4, 2)):
        labels[row, count:] = -100
    return labels


def _task(name: str):
    """Returns student, teacher and a batch of four for one task."""
    batch = text_inputs(batch=4, length=9)
    if name == "classification":
        models = [tiny_bert(seed=seed, num_labels=3, **STILL) for seed in (0, 7)]
        return *models, batch | {"labels": torch.tensor([0, 2, 1, 1])}
    if name == "question answering":
        models = [tiny_bert("QuestionAnswering", seed=seed, **STILL) for seed in (0, 7)]
        return *models, batch | {
            "start_positions": torch.tensor([1, 0, 3, 2]),
            "end_positions": torch.tensor([2, 0, 4, 5]),
        }
    if name == "translation":
        models = [tiny_marian(seed=seed, dropout=0.0) for seed in (0, 7)]
        return *models, batch | {"labels": uneven_labels(VOCAB_SIZE, (4, 7))}
    if name == "next tokens":
        models = [tiny_roberta("CausalLM", seed=seed, is_decoder=True, **STILL) for seed in (0, 7)]
        labels = uneven_labels(VOCAB_SIZE, (4, 9))
        labels[:, 0] = -100  # nothing predicts it; the second row now has no label that counts
        return *models, batch | {"labels": labels}
    models = [tiny_bert("TokenClassification", seed=seed, num_labels=5, **STILL) for seed in (0, 7)]
    return *models, batch | {"labels": uneven_labels(5, (4, 9))}


TASKS = ("classification", "question answering", "token classification", "translation", "next tokens")


def _kl(student, teacher, temperature):
    """Divergence of one row, the obvious way."""
    p = softmax(np.asarray(teacher, dtype=np.float64) / temperature)
    q = log_softmax(np.asarray(student, dtype=np.float64) / temperature)
    return temperature**2 * sum(p[c] * (np.log(p[c]) - q[c]) for c in range(len(p)))


def _obvious_logits_loss(task, student, teacher, batch, temperature=2.0):
    """Mean divergence over what counts, row by row."""
    with torch.no_grad():
        ours, theirs = student(**batch), teacher(**batch)
    if task == "classification":
        return np.mean([_kl(s, t, temperature) for s, t in zip(ours.logits, theirs.logits, strict=True)])
    if task == "question answering":
        names = ("start_logits", "end_logits")
        return np.mean([_kl(s, t, temperature) for n in names for s, t in zip(ours[n], theirs[n], strict=True)])
    shift = 1 if task == "next tokens" else 0
    labels = batch["labels"]
    found = [
        _kl(ours.logits[i, j - shift], theirs.logits[i, j - shift], temperature)
        for i in range(labels.shape[0])
        for j in range(shift, labels.shape[1])
        if labels[i, j] != -100
    ]
    return np.mean(found)


def test_logits_and_losses_of_the_original_code_are_reproduced():
    # One batch of the original nn_pruning code: its student's and teacher's logits, cross-entropy and mixed loss.
    student = torch.tensor(
        [
            [1.1565278768539429, -1.0079326629638672, -0.43099743127822876],
            [0.611962616443634, -0.711905837059021, 0.27178502082824707],
            [0.9555857181549072, -0.8894348740577698, 0.07715505361557007],
            [0.6828088164329529, -0.7903835773468018, -0.008403750136494637],
        ]
    )
    teacher = torch.tensor(
        [
            [0.9991859793663025, 0.24723482131958008, 0.7750246524810791],
            [0.47271355986595154, 0.8094790577888489, 0.44717609882354736],
            [1.1976934671401978, -0.09334952384233475, 0.22103746235370636],
            [0.7469484806060791, 0.5803896188735962, 0.23485375940799713],
        ]
    )

    class Teacher(type(tiny_bert())):
        def forward(self, input_ids=None, **kwargs):
            return SequenceClassifierOutput(logits=teacher)

    model = Teacher(tiny_bert(num_labels=3).config)
    model.__class__.__name__ = "BertForSequenceClassification"
    labels = torch.tensor([0, 1, 2, 1])
    task_loss = nn.functional.cross_entropy(student, labels)
    distiller = Distiller(Distillation(model), tiny_bert(num_labels=3))
    mixed = distiller(SequenceClassifierOutput(logits=student), {"labels": labels}, task_loss)
    assert logits_divergence(student, teacher, 2.0).mean().item() == pytest.approx(0.17013414204120636, rel=1e-5)
    assert task_loss.item() == pytest.approx(1.4089992046356201, rel=1e-6)
    assert mixed.item() == pytest.approx(0.2940206527709961, rel=1e-5)


def test_the_divergence_is_that_of_softmaxes_and_stays_exact_in_half_precision():
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, 5, 4, generator=generator).bfloat16() for _ in range(2))
    found = logits_divergence(student, teacher, 3.0)
    assert found.dtype == torch.float32
    for i, j in np.ndindex(2, 5):
        assert found[i, j].item() == pytest.approx(_kl(student[i, j].float(), teacher[i, j].float(), 3.0), abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_the_logits_loss_is_the_mean_over_what_counts(task):
    student, teacher, batch = _task(task)
    distiller = Distiller(
        Distillation(teacher, alpha_teacher=1.5, temperature=1.7, tuning=DistillationTuning(alpha_task=0.25)), student
    )
    outputs = student(**batch)
    found = distiller(outputs, batch, outputs.loss)
    wanted = 0.25 * outputs.loss.item() + 1.5 * _obvious_logits_loss(task, student, teacher, batch, 1.7)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_a_teacher_that_agrees_costs_nothing_but_the_task():
    student, _, batch = _task("classification")
    outputs = student(**batch)
    found = Distiller(Distillation(copy.deepcopy(student)), student)(outputs, batch, outputs.loss)
    assert found.item() == pytest.approx(0.1 * outputs.loss.item(), rel=1e-5)


def _reference_step(task, alphas=(0.1, 0.9), task_loss=None):
    """The weights after one step on the loss of the whole batch, without a Trainer."""
    student, teacher, batch = _task(task)
    student.train()
    outputs = student(**batch)
    loss = (outputs.loss if task_loss is None else task_loss(outputs, batch["labels"])) * alphas[0]
    with torch.no_grad():
        taught = teacher(**batch)
    if task == "question answering":
        rows = [(outputs[n], taught[n]) for n in ("start_logits", "end_logits")]
    elif task == "classification":
        rows = [(outputs.logits, taught.logits)]
    else:
        shift = 1 if task == "next tokens" else 0
        counts = batch["labels"][:, shift:] != -100
        length = outputs.logits.shape[1] - shift
        rows = [(outputs.logits[:, :length][counts], taught.logits[:, :length][counts])]
    for ours, theirs in rows:
        kl = nn.KLDivLoss(reduction="batchmean")((ours / 2).log_softmax(-1), (theirs / 2).softmax(-1)) * 4
        loss = loss + alphas[1] * kl / len(rows)
    loss.backward()
    return {
        name: parameter.detach() - (0 if parameter.grad is None else RATE * parameter.grad)
        for name, parameter in student.named_parameters()
    }


def assert_same_weights(model, wanted):
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-5), name


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("task", TASKS)
def test_the_trainer_steps_on_the_mixed_loss_of_the_whole_batch(tmp_path, task, micro_batches):
    student, teacher, batch = _task(task)
    arguments = {"per_device_train_batch_size": 4 // micro_batches, "gradient_accumulation_steps": micro_batches}
    model = train_one_step(tmp_path, student, _rows(batch), Distillation(teacher), arguments=arguments)
    wanted = _reference_step(task)
    assert_same_weights(model, wanted)
    before = dict(_task(task)[0].named_parameters())
    steps = [(wanted[name] - before[name]).abs().max() for name in wanted if "value.w" in name or "v_proj.w" in name]
    assert max(steps) > 2e-4  # far above what weights may differ by


def _cross_entropy(outputs, labels, reduction="mean"):
    return nn.functional.cross_entropy(outputs["logits"].flatten(0, -2), labels.flatten(), reduction=reduction)


def _smoothed(outputs, labels):
    logs = -outputs["logits"].log_softmax(-1)[labels != -100]
    picked = logs.gather(-1, labels[labels != -100].unsqueeze(-1)).mean()
    return 0.8 * picked + 0.2 * logs.mean()


def _mean_loss(outputs, labels, num_items_in_batch=None):
    return _cross_entropy(outputs, labels)


def _counting_loss(outputs, labels, num_items_in_batch):
    return _cross_entropy(outputs, labels, "sum") / num_items_in_batch


class _MeanTrainer(Trainer):
    """A subclass that makes its own loss and lets the Trainer divide it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = _cross_entropy(outputs, labels)
        return (loss, outputs) if return_outputs else loss


class _PlainMeanTrainer(_MeanTrainer):
    loss_is_scaled_for_ga = False


class _DividingTrainer(_MeanTrainer):
    """A subclass that normalises over the optimizer step itself."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**inputs)
        loss = _cross_entropy(outputs, labels, "sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class _ScaledTrainer(Trainer):
    """A subclass that says of the Trainer's own loss that it is normalised over the optimizer step."""

    loss_is_scaled_for_ga = True


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("trainer_class", [Trainer, _ScaledTrainer])
def test_a_share_of_what_several_processes_count_weighs_both_losses_alike(
    tmp_path, monkeypatch, trainer_class, averages
):
    student, teacher, batch = _task("token classification")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, average_tokens_across_devices=averages)
    trainer = trainer_class(model=student.train(), args=arguments, compute_loss_func=_counting_loss)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    distil(trainer, Distillation(teacher))
    found = trainer.compute_loss(student, dict(batch), num_items_in_batch=torch.tensor(56))
    task_loss = _cross_entropy(student(**batch), batch["labels"]).item()
    mixed = 0.1 * task_loss + 0.9 * _obvious_logits_loss("token classification", student, teacher, batch)
    factor = 2 if averages else 1  # gradients of two are averaged, 56 counted in both; or in this one
    assert found.item() == pytest.approx(mixed * factor * 14 / 56, rel=1e-5)
    with pytest.raises(ValueError, match="input_ids"):
        trainer.compute_loss(student, {"labels": batch["labels"]}, num_items_in_batch=torch.tensor(56))
    assert arguments.average_tokens_across_devices == averages


@pytest.mark.parametrize("task", ["classification", "token classification"])
@pytest.mark.parametrize(
    ("options", "task_loss"),
    [
        ({"arguments": {"label_smoothing_factor": 0.2}}, _smoothed),
        ({"compute_loss_func": _mean_loss}, None),
        ({"compute_loss_func": _counting_loss}, None),
        ({"trainer_class": _MeanTrainer}, None),
        ({"trainer_class": _DividingTrainer}, None),
        ({"arguments": {"average_tokens_across_devices": False}}, None),
    ],
    ids=["label smoothing", "function", "counting function", "subclass", "dividing subclass", "no averaging"],
)
def test_every_way_to_make_the_loss_gives_the_same_step(tmp_path, task, options, task_loss):
    student, teacher, batch = _task(task)
    micro = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    options = options | {"arguments": options.get("arguments", {}) | micro}
    model = train_one_step(tmp_path, student, _rows(batch), Distillation(teacher), **options)
    assert_same_weights(model, _reference_step(task, task_loss=task_loss))


def test_a_subclass_that_declares_a_mean_per_micro_batch_gets_the_mean_of_means(tmp_path):
    student, teacher, batch = _task("classification")
    micro = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    settings = Distillation(teacher)
    model = train_one_step(tmp_path, student, _rows(batch), settings, trainer_class=_PlainMeanTrainer, arguments=micro)
    assert_same_weights(model, _reference_step("classification"))


class _SharingTrainer(Trainer):
    """A subclass that divides by the number of micro-batches itself, since nothing in them is counted."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


def _own_loss(outputs, labels, num_items_in_batch=None):
    return outputs["loss"]


@pytest.mark.parametrize("steps", [4, 8])  # of eight, four come before the epoch ends
@pytest.mark.parametrize(
    "options", [{"trainer_class": _SharingTrainer}, {"compute_loss_func": _own_loss}], ids=["subclass", "function"]
)
def test_a_scaled_loss_of_batches_that_count_nothing_is_the_mean_of_means(tmp_path, options, steps):
    student, teacher, batch = _task("question answering")
    micro = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
    model = train_one_step(tmp_path, student, _rows(batch), Distillation(teacher), arguments=micro, **options)
    assert_same_weights(model, _reference_step("question answering"))


def test_the_last_incomplete_step_of_an_epoch_is_a_mean_too(tmp_path):
    student, teacher, batch = _task("classification")
    micro = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    model = train_one_step(tmp_path, student, _rows(batch), Distillation(teacher), arguments=micro)
    assert_same_weights(model, _reference_step("classification"))


def test_a_micro_batch_in_which_nothing_counts_adds_nothing(tmp_path):
    student, teacher, batch = _task("next tokens")
    trainer = Trainer(model=student.train(), args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    distil(trainer, Distillation(teacher))
    row = {name: values[1:2] for name, values in batch.items()}
    assert trainer.compute_loss(student, row, num_items_in_batch=torch.tensor(10)).item() == 0.0
    assert trainer.compute_loss(student, batch, num_items_in_batch=torch.tensor(10)).item() > 0.0


def test_a_micro_batch_in_which_nothing_counts_adds_nothing_to_a_loss_that_is_declared_scaled(tmp_path):
    student, teacher, batch = _task("token classification")
    trainer = _DividingTrainer(model=student.train(), args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    distil(trainer, Distillation(teacher))
    row = {name: values[1:2] for name, values in batch.items()} | {"labels": torch.full((1, 9), -100)}
    assert trainer.compute_loss(student, row, num_items_in_batch=torch.tensor(10)).item() == 0.0


def test_outputs_are_returned_when_asked_for_and_evaluation_gets_what_it_got_before(tmp_path):
    student, teacher, batch = _task("token classification")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    trainer = Trainer(model=student.eval(), args=arguments, compute_loss_func=_counting_loss)
    count = torch.tensor(28)  # twice as many as count in the batch
    plain = trainer.compute_loss(student, dict(batch), num_items_in_batch=count)
    distil(trainer, Distillation(teacher))
    for is_training in (False, True):
        student.train(is_training)
        loss, outputs = trainer.compute_loss(student, dict(batch), return_outputs=True, num_items_in_batch=count)
        assert outputs.logits.shape == (4, 9, 5)
        assert loss == trainer.compute_loss(student, dict(batch), num_items_in_batch=count)
        assert (loss == plain) == (not is_training)


def test_bf16_training_distils(tmp_path):
    student, teacher, batch = _task("classification")
    seen = []
    teacher.bert.encoder.layer[0].intermediate.dense.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    model = train_one_step(tmp_path, student, _rows(batch), Distillation(teacher), arguments={"bf16": True})
    before, wanted = dict(_task("classification")[0].named_parameters()), _reference_step("classification")
    for name in ("bert.encoder.layer.0.attention.self.value.weight", "classifier.weight"):
        taken, exact = model.get_parameter(name) - before[name], wanted[name] - before[name]
        assert (taken - exact).norm() < 0.05 * exact.norm(), name
    assert seen == [torch.bfloat16]  # as fast as the student


def test_the_teacher_stays_as_it_was_outside_of_the_model_and_out_of_evaluation(tmp_path):
    student, teacher, batch = _task("classification")
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(teacher.training))
    trainer = Trainer(
        model=student,
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=3, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
        ),
        train_dataset=_rows(batch),
        eval_dataset=_rows(batch),
    )
    plain = trainer.evaluate()["eval_loss"]
    teacher.train()
    distil(trainer, Distillation(teacher))
    assert trainer.evaluate()["eval_loss"] == plain
    assert trainer.predict(_rows(batch)).predictions.shape == (4, 3)
    assert calls == []
    trainer.train()
    assert calls == [False]  # in the first of three epochs; its logits are stored
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trainer.save_model(tmp_path / "saved")
    assert (
        type(trainer.model).from_pretrained(tmp_path / "saved").num_parameters()
        == tiny_bert(num_labels=3).num_parameters()
    )


def test_the_teacher_answers_before_the_student(tmp_path):
    student, teacher, batch = _task("classification")
    order = []
    teacher.register_forward_pre_hook(lambda *_: order.append("teacher"))
    student.register_forward_pre_hook(lambda *_: order.append("student"))
    train_one_step(tmp_path, student, _rows(batch), Distillation(teacher))
    assert order == ["teacher", "student"]


def test_a_teacher_that_somebody_set_to_training_goes_back_to_evaluation():
    student, teacher, batch = _task("classification")
    distiller = Distiller(Distillation(teacher), student)
    teacher.train()
    assert distiller.teach(batch, torch.device("cpu")).logits.grad_fn is None
    assert not teacher.training


def test_a_teacher_of_another_family_gets_the_inputs_that_it_knows():
    teacher = tiny_distilbert(num_labels=3)
    student, _, batch = _task("classification")
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    taught = Distiller(Distillation(teacher), student).teach(batch, torch.device("cpu"))
    wanted = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(taught.logits, wanted)
    assert "loss" not in taught


def test_what_the_trainer_takes_for_labels_does_not_reach_the_teacher(tmp_path):
    student, teacher, batch = _task("classification")
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    seen = []
    teacher.register_forward_pre_hook(lambda module, args, given: seen.append(set(given)), with_kwargs=True)
    arguments = {"label_names": ["labels", "token_type_ids"]}
    train_one_step(tmp_path, student, _rows(batch), Distillation(teacher), arguments=arguments)
    assert seen == [{"input_ids", "attention_mask", "return_dict"}]


def test_a_translating_teacher_reads_the_decoders_inputs_when_they_are_given():
    student, teacher, batch = _task("translation")
    given = batch | {"decoder_input_ids": torch.full((4, 7), 9)}
    taught = Distiller(Distillation(teacher), student).teach(given, torch.device("cpu"))
    del given["labels"]
    assert torch.equal(taught.logits, teacher(**given).logits)


def test_hidden_states_are_compared_layer_by_layer_at_real_positions_only(tmp_path):
    student, _, batch = _task("token classification")
    teacher = tiny_bert("TokenClassification", seed=7, num_labels=5, num_hidden_layers=4, **STILL)
    settings = Distillation(teacher, alpha_teacher=0.0, alpha_hidden=2.0, tuning=DistillationTuning(alpha_task=0.5))
    distiller = Distiller(settings, student)
    assert distiller.extra_inputs == {"output_hidden_states": True}
    outputs = student(**batch, **distiller.extra_inputs)
    taught = teacher(**batch, output_hidden_states=True)
    distances = []
    for ours, theirs in ((1, 2), (2, 4)):
        squares = [
            (outputs.hidden_states[ours][i, j] - taught.hidden_states[theirs][i, j]).pow(2).mean().item()
            for i in range(4)
            for j in range(9)
            if batch["attention_mask"][i, j] == 1
        ]
        distances.append(np.mean(squares))
    found = distiller(outputs, batch, outputs.loss)
    assert found.item() == pytest.approx(0.5 * outputs.loss.item() + 2.0 * np.mean(distances), rel=1e-5)
    before = student.get_parameter("bert.encoder.layer.0.output.dense.weight").detach().clone()
    train_one_step(tmp_path, student, _rows(batch), settings)
    assert not torch.equal(before, student.get_parameter("bert.encoder.layer.0.output.dense.weight"))


def test_both_stacks_of_a_translation_model_learn_from_the_teachers():
    student, teacher, batch = _task("translation")
    settings = Distillation(
        teacher, alpha_teacher=0.0, alpha_hidden=1.0, tuning=DistillationTuning(alpha_task=0.0, layer_map={1: 0})
    )
    distiller = Distiller(settings, student)
    outputs = student(**batch, output_hidden_states=True)
    taught = teacher(**batch, output_hidden_states=True)
    encoder = (outputs.encoder_hidden_states[2] - taught.encoder_hidden_states[1])[batch["attention_mask"] == 1]
    decoder = (outputs.decoder_hidden_states[2] - taught.decoder_hidden_states[1])[batch["labels"] != -100]
    wanted = (encoder.pow(2).mean() + decoder.pow(2).mean()) / 2
    assert distiller(outputs, batch, outputs.loss).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_classifiers_decoder_is_compared_at_the_positions_that_its_encoder_reads():
    student, teacher = (tiny_bart("BartForSequenceClassification", seed=seed, dropout=0.0) for seed in (0, 7))
    batch = text_inputs(batch=9, length=9) | {"labels": torch.arange(9) % 3}  # one label a row, as many as positions
    batch["input_ids"][:, 5] = EOS
    outputs = student(**batch, output_hidden_states=True)
    taught = teacher(**batch, output_hidden_states=True)
    wanted = [
        (getattr(outputs, name)[i + 1] - getattr(taught, name)[i + 1])[batch["attention_mask"] == 1]
        .pow(2)
        .mean()
        .item()
        for name in ("encoder_hidden_states", "decoder_hidden_states")
        for i in range(2)
    ]
    distiller = Distiller(
        Distillation(teacher, alpha_teacher=0.0, alpha_hidden=1.0, tuning=DistillationTuning(alpha_task=0.0)), student
    )
    assert distiller(outputs, batch, outputs.loss).item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_without_a_mask_every_position_counts():
    student, teacher = torch.zeros(2, 3, 4), torch.ones(2, 3, 4) * 3
    assert hidden_distance(student, teacher, None).item() == 9
    assert hidden_distance(student, teacher, torch.zeros(2, 3)).item() == 0


@pytest.mark.parametrize(
    ("student_layers", "teacher_layers", "wanted"),
    [
        (2, 2, {0: 0, 1: 1}),
        (2, 6, {0: 2, 1: 5}),
        (3, 4, {0: 0, 1: 1, 2: 3}),
        (4, 2, {0: 0, 1: 0, 2: 0, 3: 1}),
    ],
)
def test_layers_pair_at_the_same_relative_depth_and_end_together(student_layers, teacher_layers, wanted):
    models = (tiny_bert(num_hidden_layers=layers) for layers in (teacher_layers, student_layers))
    assert layer_pairs(*models, None) == {"hidden_states": wanted}


def test_each_stack_pairs_with_its_own_kind():
    teacher = tiny_marian(encoder_layers=4, decoder_layers=2)
    found = layer_pairs(teacher, tiny_marian(encoder_layers=2, decoder_layers=1), None)
    assert found == {"encoder_hidden_states": {0: 1, 1: 3}, "decoder_hidden_states": {0: 1}}


def test_models_that_predict_the_next_token_are_known():
    decoders = tiny_bert_decoder(add_cross_attention=False), tiny_roberta("CausalLM", is_decoder=True)
    assert all(map(predicts_next_token, decoders))
    own = type("OwnDecoder", (type(decoders[0]),), {})  # of a user
    assert predicts_next_token(own(decoders[0].config))
    assert not any(map(predicts_next_token, (tiny_bert("MaskedLM"), tiny_marian(), tiny_bert())))


def test_labels_that_are_no_tokens_do_not_say_which_positions_of_a_decoder_are_real():
    student, teacher = (tiny_bart("BartForSequenceClassification", seed=seed, dropout=0.0) for seed in (0, 7))
    batch = text_inputs(batch=9, length=9)
    batch["input_ids"][:, 5] = EOS
    settings = Distillation(teacher, alpha_teacher=0.0, alpha_hidden=1.0, tuning=DistillationTuning(alpha_task=0.0))
    outputs, taught = (model(**batch, output_hidden_states=True) for model in (student, teacher))
    wanted, found = (
        Distiller(settings, student)._hidden_loss(outputs, taught, inputs).item()
        for inputs in (batch, batch | {"labels": torch.full((9, 9), -100.0)})
    )
    assert found == wanted > 0


STUDENTS = {
    "classification": partial(tiny_bert, num_labels=3, seed=1),
    "tokens": partial(tiny_bert, "TokenClassification", num_labels=3),
    "translation": tiny_marian,
}


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ("classification", partial(tiny_bert, num_labels=2), "number of labels is 2, the student's 3"),
        ("classification", partial(tiny_bert, num_labels=3, vocab_size=90), "vocabulary size is 90, the student's 100"),
        ("classification", partial(tiny_bert, "TokenClassification", num_labels=3), "task is TokenClassification"),
        ("classification", partial(tiny_bert, "QuestionAnswering"), "task is QuestionAnswering"),
        ("classification", partial(tiny_bert, None), "none, it has no head"),
        ("tokens", partial(tiny_bert, "MaskedLM"), "task is language modelling, the student's TokenClassification"),
        ("translation", partial(tiny_bert, "MaskedLM"), "architecture is one stack, the student's an encoder-decoder"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(student, teacher, message):
    Distiller(Distillation(STUDENTS[student](seed=3)), STUDENTS[student]())
    with pytest.raises(InvalidSettingError, match=message):
        Distiller(Distillation(teacher()), STUDENTS[student]())


def test_an_image_classifier_learns_from_another_one_unless_several_labels_hold():
    vit = TINY_FAMILIES["vit"]
    student, teacher = vit.make(num_labels=3), vit.make(seed=3, num_labels=3)
    batch = vit.inputs() | {"labels": torch.tensor([0, 2, 1])}
    outputs = student(**batch)
    settings = Distillation(teacher)
    found = Distiller(settings, student)(outputs, batch, outputs.loss)
    kl = logits_divergence(outputs.logits, teacher(pixel_values=batch["pixel_values"]).logits, settings.temperature)
    wanted = settings.tuning.alpha_task * outputs.loss + settings.alpha_teacher * kl.mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    several = {"num_labels": 3, "problem_type": "multi_label_classification"}
    with pytest.raises(InvalidSettingError, match="exclude each other in no softmax"):
        Distiller(Distillation(vit.make(seed=3, **several)), vit.make(**several))


def test_the_student_itself_and_a_teacher_that_shares_its_weights_are_refused():
    student = tiny_bert()
    with pytest.raises(InvalidSettingError, match="the teacher is the student"):
        Distiller(Distillation(student), student)
    teacher = tiny_bert(seed=4)
    teacher.bert.embeddings = student.bert.embeddings
    with pytest.raises(InvalidSettingError, match=r"shares weights with the model.*copy\.deepcopy"):
        Distiller(Distillation(teacher), student)


@pytest.mark.parametrize("task", ["classification", "tokens"])
def test_a_vocabulary_that_is_only_padded_fits_where_no_logits_of_tokens_are_compared(task):
    student, teacher = STUDENTS[task](), STUDENTS[task](seed=3, vocab_size=104)
    batch = text_inputs() | {"labels": torch.ones((3, 9) if task == "tokens" else (3,), dtype=torch.long)}
    outputs = student(**batch)
    assert Distiller(Distillation(teacher), student)(outputs, batch, outputs.loss).isfinite()
    with pytest.raises(InvalidSettingError, match="vocabulary size is 300"):  # another tokenizer
        Distiller(Distillation(STUDENTS[task](seed=3, vocab_size=300)), student)
    with pytest.raises(InvalidSettingError, match="vocabulary size is 104"):
        Distiller(Distillation(tiny_bert("MaskedLM", vocab_size=104)), tiny_bert("MaskedLM"))


def test_labels_in_another_order_are_refused_and_other_names_are_not():
    def model(*names):
        return tiny_bert(num_labels=2, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})

    with pytest.raises(InvalidSettingError, match="in another order"):
        Distiller(Distillation(model("bad", "good")), model("Good", "Bad"))
    Distiller(Distillation(model("bad", "good")), model("BAD", "GOOD"))
    Distiller(Distillation(model("LABEL_0", "LABEL_1")), model("bad", "good"))


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}], ids=str
)
def test_tasks_without_a_softmax_are_refused(settings):
    with pytest.raises(InvalidSettingError, match="exclude each other in no softmax"):
        Distiller(Distillation(tiny_bert(**settings)), tiny_bert(**settings))


def test_a_teacher_or_a_student_of_several_labels_at_once_is_refused():
    several = {"num_labels": 3, "problem_type": "multi_label_classification"}
    for teacher, student in (
        (tiny_bert(seed=3, num_labels=3), tiny_bert(**several)),
        (tiny_bert(seed=3, **several), tiny_bert(num_labels=3)),
    ):
        with pytest.raises(InvalidSettingError, match="exclude each other in no softmax"):
            Distiller(Distillation(teacher), student)


def test_a_student_whose_labels_turn_out_to_be_several_at_once_is_refused_at_its_first_step(tmp_path):
    student, teacher, batch = _task("classification")
    batch["labels"] = torch.eye(3)[batch["labels"]]
    with pytest.raises(TrainingStateError, match="problem_type 'multi_label_classification'"):
        train_one_step(tmp_path, student, _rows(batch), Distillation(teacher))


def test_hidden_states_of_another_size_are_refused_only_when_they_are_compared():
    teacher, student = tiny_bert(hidden_size=48), tiny_bert()
    Distiller(Distillation(teacher), student)
    with pytest.raises(InvalidSettingError, match="hidden size is 48, the student's 32"):
        Distiller(Distillation(teacher, alpha_hidden=1.0), student)


def test_a_layer_that_does_not_exist_is_refused():
    for layer_map in ({1: 2}, {2: 0}):
        settings = Distillation(tiny_bert(seed=2), alpha_hidden=1.0, tuning=DistillationTuning(layer_map=layer_map))
        with pytest.raises(InvalidSettingError, match=r"layers 0 to 1 and the teacher 0 to 1 \(hidden_states\)"):
            Distiller(settings, tiny_bert())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "bert-base-uncased"}, "teacher must be a model, not of type str"),
        ({"alpha_teacher": 0.0}, "alpha_teacher or alpha_hidden must be above 0"),
        ({"alpha_hidden": -1.0}, "alpha_hidden must be a number >= 0"),
        ({"temperature": 0.0}, "temperature must be a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        Distillation(**{"teacher": tiny_bert()} | settings)


def test_outputs_of_other_shapes_and_missing_labels_are_named():
    student, teacher, batch = _task("token classification")
    distiller = Distiller(Distillation(teacher), student)
    outputs = student(**batch)
    short = TokenClassifierOutput(loss=outputs.loss, logits=outputs.logits[:, :-1])
    with pytest.raises(TrainingStateError, match=r"student's are \(4, 8, 5\), the teacher's \(4, 9, 5\)"):
        distiller(short, batch, outputs.loss)
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    with pytest.raises(TrainingStateError, match="has no 'labels' to tell real positions"):
        distiller(outputs, unlabelled, outputs.loss)
    hidden = Distiller(Distillation(teacher, alpha_hidden=1.0), student)
    with pytest.raises(TrainingStateError, match="the student returned no 'hidden_states'"):
        hidden(outputs, batch, outputs.loss)


@pytest.mark.parametrize(
    ("returned", "received"),
    [
        (lambda outputs: outputs.loss, "Tensor"),
        (lambda outputs: (outputs.loss, outputs, 0), "tuple"),
        (lambda outputs: (outputs.loss, outputs.to_tuple()), "tuple"),
        (lambda outputs: [outputs.loss, outputs], "list"),
    ],
    ids=["loss", "three", "outputs without names", "list"],
)
def test_a_loss_without_outputs_is_refused(tmp_path, returned, received):
    class Bare(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return returned(model(**inputs))

    student, teacher, batch = _task("classification")
    with pytest.raises(TrainingStateError, match=rf"returned {received}, not the loss and the model's outputs"):
        train_one_step(tmp_path, student, _rows(batch), Distillation(teacher), trainer_class=Bare)


@pytest.mark.slow
def test_two_processes_step_as_one_does(tmp_path):
    both("tests.support.distillation_script", tmp_path)
    found = torch.load(tmp_path / "weights.pt")
    assert json.loads((tmp_path / "world.json").read_text()) == 2
    for task in ("classification", "token classification"):
        wanted = _reference_step(task)
        for name, value in found[task].items():
            assert torch.allclose(value, wanted[name], atol=1e-5), (task, name)
