"""A Trainer of a tiny classifier that runs for some steps, and what is compared of its model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from tests.support.models import VOCAB_SIZE, text_inputs, tiny_bert


def labelled_rows(count: int, seed: int) -> list[dict]:
    """Tokenized texts whose class their first token decides."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB_SIZE, (count, 6), generator=generator)
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": int(row[0] > 50)} for row in ids]


def trainer_of(
    folder: Any, callback: Any, *, model: Any = None, trainer_class: Any = Trainer, callbacks: Any = (), **settings: Any
) -> Any:
    """Builds a Trainer; settings are those of `TrainingArguments`, and the data sets."""
    arguments = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 3,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    } | settings
    data = {"train_dataset": labelled_rows(64, 0), "eval_dataset": labelled_rows(24, 1)}
    data |= {
        key: arguments.pop(key)
        for key in ("train_dataset", "eval_dataset", "compute_metrics", "optimizers")
        if key in arguments
    }
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
