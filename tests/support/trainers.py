"""A Trainer of a tiny classifier that runs for some steps, and what is compared of its model."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from tests.support.models import VOCAB_SIZE, text_inputs, tiny_bert
from tests.support.settings import gates

GATES = gates(kept_heads=3, estimator="sigmoid", scoring_examples=16)
LEARNS = {"max_steps": 50, "per_device_train_batch_size": 16, "learning_rate": 5e-3}  # for `attended_rows`


def labelled_rows(count: int, seed: int) -> list[dict]:
    """Tokenized texts whose class their first token decides."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB_SIZE, (count, 6), generator=generator)
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": int(row[0] > 50)} for row in ids]


def attended_rows(count: int, seed: int) -> list[dict]:
    """Tokenized texts whose class their last token decides, so that only attention can tell; `LEARNS` is enough."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 11, (count, 6), generator=generator)
    ids[:, -1] = torch.randint(11, 13, (count,), generator=generator)
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": int(row[-1] > 11)} for row in ids]


class Stream(IterableDataset):
    """Examples without a length or an index."""

    def __iter__(self) -> Any:
        return iter(labelled_rows(4, 0))


def accuracy_of(prediction: Any) -> dict[str, float]:
    """Metric of the user: the same accuracy as the library's."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class StopAt(TrainerCallback):
    """Ends a run early, as a user's own rule does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


class InterruptAt(TrainerCallback):
    """Ends a run at a step, as Ctrl-C or an error does.

    Attributes:
        step: After which it happens; -1 for never.
        steps_of_run: Length of the run in which it happens; None for any.
    """

    def __init__(
        self, step: int, error: type[BaseException] = KeyboardInterrupt, *, steps_of_run: int | None = None
    ) -> None:
        self.step, self.error, self.steps_of_run = step, error, steps_of_run

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.steps_of_run in (None, state.max_steps):
            raise self.error


DATA = ("train_dataset", "eval_dataset", "compute_metrics", "optimizers", "data_collator", "processing_class")


class CountSteps(TrainerCallback):
    """Counts the optimizer steps that it sees."""

    steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


def trainer_of(
    folder: Any, callback: Any, *, model: Any = None, trainer_class: Any = Trainer, callbacks: Any = (), **settings: Any
) -> Any:
    """Builds a Trainer; settings are those of `TrainingArguments`, and the data sets."""
    arguments = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 50,
        "learning_rate": 1e-3,
        "logging_steps": 3,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    } | settings
    data = {"train_dataset": labelled_rows(64, 0), "eval_dataset": labelled_rows(24, 1)}
    data |= {key: arguments.pop(key) for key in DATA if key in arguments}
    chosen = [*([] if callback is None else [callback]), *callbacks]
    return trainer_class(model=model or tiny_bert(), args=TrainingArguments(**arguments), callbacks=chosen, **data)


def logits_of(model: Any) -> torch.Tensor:
    """What a model answers in evaluation."""
    with torch.no_grad():
        return model.eval()(**text_inputs()).logits


def assert_reloads_alike(trainer: Any, folder: Any) -> None:
    """The saved model computes what the model in hand does."""
    trainer.save_model(folder)
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits_of(trainer.model), logits_of(reloaded))
