"""A teacher's logits are computed once for each example, and are what the teacher would say again."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_headprune.callback.distillation import distil
from hf_headprune.learn.distillation.distiller import Distiller
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.learn.distillation.stored_answers import StoredAnswers
from hf_headprune.tasks.examples import PadRight
from tests.support.classifiers import NUM_LABELS, classifier, examples
from tests.support.models import text_inputs, tiny_bert

ROWS = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in examples(23)]


class _Asked:
    """A teacher that counts the examples that it is asked about."""

    def __init__(self):
        self.model, self.rows = classifier(seed=7).eval(), 0

    @torch.no_grad()
    def __call__(self, given):
        self.rows += len(given["input_ids"])
        return self.model(**given)


def batches(order, size=4):
    collate = PadRight(0)
    for first in range(0, len(order), size):
        batch = collate([ROWS[index] for index in order[first : first + size]])
        yield {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_answers_are_the_teachers_own_in_any_order_and_padding():
    asked, stored = _Asked(), StoredAnswers(len(ROWS))
    direct = _Asked()
    for seed in range(3):  # the last batch of each epoch is a smaller one, and lengths meet anew
        order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(seed)).tolist()
        for batch in batches(order):
            torch.testing.assert_close(stored.answers(batch, asked)["logits"], direct(batch).logits)
    assert (asked.rows, direct.rows, stored.is_on) == (len(ROWS), 3 * len(ROWS), True)


def test_a_batch_of_old_and_new_examples_asks_about_the_new_ones_as_a_process_of_several_does():
    asked, stored = _Asked(), StoredAnswers(len(ROWS))
    (first,), (both,) = batches([0, 1], 2), batches([5, 0, 1, 5], 4)
    stored.answers(first, asked)
    torch.testing.assert_close(stored.answers(both, asked)["logits"], _Asked()(both).logits)
    assert asked.rows == 2 + 2


def test_data_that_are_drawn_anew_in_each_epoch_are_not_stored():
    asked, stored = _Asked(), StoredAnswers(8)
    for epoch in range(3):
        for batch in batches(range(8)):
            changed = {**batch, "input_ids": (batch["input_ids"] + epoch) % 90 + 3}
            torch.testing.assert_close(stored.answers(changed, asked)["logits"], _Asked()(changed).logits)
        assert stored.is_on == (epoch == 0)
    assert asked.rows == 24


@pytest.mark.parametrize(
    "outputs",
    [{"logits": torch.zeros(4, 9, 3)}, {"start_logits": torch.zeros(4, 9)}, {"logits": torch.zeros(1, 3)}],
)
def test_what_is_no_row_of_logits_for_each_example_comes_from_the_teacher(outputs):
    stored = StoredAnswers(8)
    assert stored.answers(text_inputs(batch=4, length=9), lambda given: outputs) is outputs
    assert not stored.is_on


def test_inputs_that_are_no_rows_come_from_the_teacher():
    stored, outputs = StoredAnswers(8), {"logits": torch.zeros(4, 3)}
    uneven = {"input_ids": torch.zeros(4, 9), "cu_seqlens": torch.zeros(5)}
    assert stored.answers(uneven, lambda given: outputs) is outputs
    assert not stored.is_on


def test_more_logits_than_a_file_should_hold_come_from_the_teacher(monkeypatch):
    monkeypatch.setattr("hf_headprune.learn.distillation.stored_answers.MOST_BYTES", 95)
    stored, outputs = StoredAnswers(8), {"logits": torch.zeros(4, 3)}
    assert stored.answers(text_inputs(batch=4, length=9), lambda given: outputs) is outputs


def trained(folder, *, epochs, alpha_hidden=0.0, is_stored=True):
    """Trains a student; counts, of each epoch, the batches that its teacher ran on."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student, teacher = (tiny_bert(seed=seed, num_labels=NUM_LABELS, **still) for seed in (0, 7))
    rows = [{**row, "labels": row["label"]} for row in ROWS]
    for row in rows:
        del row["label"]
    arguments = {"num_train_epochs": epochs, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    arguments |= {"save_strategy": "no", "disable_tqdm": True, "output_dir": str(folder)}
    trainer = Trainer(student, TrainingArguments(**arguments), train_dataset=rows, data_collator=PadRight(0))
    distiller = distil(trainer, Distillation(teacher, alpha_hidden=alpha_hidden))
    assert isinstance(distiller, Distiller)
    if not is_stored:
        distiller._stored = StoredAnswers(0)
    counted = []
    teacher.register_forward_hook(lambda *given: counted.append(trainer.state.global_step))
    trainer.train()
    per_epoch = [sum(6 * epoch <= step < 6 * (epoch + 1) for step in counted) for epoch in range(epochs)]
    return trainer.model, per_epoch


def test_a_teacher_runs_in_the_first_epoch_alone_and_training_ends_as_with_it(tmp_path):
    model, counted = trained(tmp_path, epochs=3)
    plain, always = trained(tmp_path, epochs=3, is_stored=False)
    assert (counted, always) == ([6, 0, 0], [6, 6, 6])
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_hidden_states_are_not_stored(tmp_path):
    assert trained(tmp_path, epochs=2, alpha_hidden=1.0)[1] == [6, 6]


def test_a_single_epoch_stores_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(StoredAnswers, "answers", lambda *given: pytest.fail("there is nothing to repeat"))
    assert trained(tmp_path, epochs=1)[1] == [6]
