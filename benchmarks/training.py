"""One fine-tuning run of MiniLM with or without gates; the benchmarks' common recipe."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from benchmarks.tasks import Task, minilm_path
from hf_headprune.callback.plain_recovery import bf16_is_faster

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback


@dataclass(frozen=True)
class Recipe:
    """Settings that every method of a comparison shares.

    `bf16=None` trains under bf16 autocast where the machine gains by it, and else in fp32. Without `attention_dropout`
    long texts train faster on a CPU, whose fused attention knows none.
    """

    epochs: float = 2.0
    max_steps: int = -1
    learning_rate: float = 1e-4
    batch_size: int = 32
    warmup_steps: float = 0.06
    bf16: bool | None = None
    attention_dropout: bool = True

    @property
    def in_bf16(self) -> bool:
        """Whether it trains under bf16 autocast on this machine."""
        return bf16_is_faster(torch.device("cpu")) if self.bf16 is None else self.bf16


class InOrder(Trainer):
    """Evaluates in the order of the data set, and trains by length.

    The Trainer would evaluate by length too. Windows of a text, and answers of two models, are compared in their order.
    """

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        return SequentialSampler(eval_dataset)


def build_trainer(
    task: Task, recipe: Recipe, *, seed: int, callback: TrainerCallback | None, model: PreTrainedModel | None = None
) -> Trainer:
    """Builds a Trainer whose data order, dropout and fresh head depend on the seed alone."""
    logging.set_verbosity_error()
    set_seed(seed)
    settings = {} if recipe.attention_dropout else {"attention_probs_dropout_prob": 0.0}
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="headprune-bench-"),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=64,
        warmup_steps=recipe.warmup_steps,
        bf16=recipe.in_bf16,
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        train_sampling_strategy="group_by_length",
        length_column_name="length",
    )
    return InOrder(
        model=model or task.model(**settings),
        args=arguments,
        train_dataset=task.train,
        eval_dataset=task.dev,
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(minilm_path())),
        compute_metrics=task.scorers["dev"],
        callbacks=[] if callback is None else [callback],
    )


def train_and_score(trainer: Trainer, task: Task) -> dict[str, float]:
    """Trains and returns the metric (percent) on dev and test, and the seconds that training took."""
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return {**score(trainer, task), "train_seconds": seconds}


def score(trainer: Trainer, task: Task) -> dict[str, float]:
    """Returns the metric of a trained model (percent) on dev and test."""
    scores = {}
    for split, scorer in task.scorers.items():
        trainer.compute_metrics = scorer
        scores[split] = trainer.evaluate(getattr(task, split))[f"eval_{task.metric}"]
    return scores
