"""Recovery where there is no Trainer yet: one with settings that suit a small model that has lost a part of itself."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_headprune.callback.distillation import taught_by
from hf_headprune.tasks.batches import collated
from hf_headprune.tasks.examples import ModelExamples

if TYPE_CHECKING:
    from hf_headprune.tasks.batches import Batching

WARMUP_SHARE = 0.1  # of the steps
CLEARLY = 1.25  # times as fast
TRIES = 6  # of a product; the fastest counts
HOPELESS = 8.0  # times as slow: without instructions for bf16 a product takes 60 times as long


@dataclass(frozen=True)
class PlainRecovery:
    """Trains a pruned model on: AdamW, a linear schedule, and the dense model as teacher where it can be one.

    Texts of like length share a batch, and bf16 autocast is used where the machine gains by it.

    Attributes:
        dataset: Tokenized, labelled training examples.
        batching: How they become batches.
        epochs: For which it trains.
        learning_rate: At its highest. A cut model takes a higher one than fine-tuning.
        shows_progress: Whether to show a bar.
    """

    dataset: Any
    batching: Batching
    epochs: float
    learning_rate: float
    shows_progress: bool = False

    def __call__(self, pruned: Any, dense: Any) -> None:
        """Trains, in place, and leaves the model in evaluation mode.

        Args:
            pruned: What trains.
            dense: Its teacher; the labels alone teach where they do not exclude each other.
        """
        examples = ModelExamples(self.dataset, pruned, where="recovery", collate=self.batching.data_collator)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=pruned,
                args=self._arguments(folder, examples, pruned.device),
                train_dataset=examples,
                data_collator=partial(collated, self.batching.collate_for(pruned)),
            )
            trainer.remove_callback(PrinterCallback)  # standard output is the caller's
            if self.shows_progress:
                trainer.add_callback(StepsOnStandardError())
            try:
                with taught_by(trainer, dense):
                    trainer.train()
            finally:  # accelerate's autocast would stay around the model
                trainer.accelerator.unwrap_model(pruned, keep_fp32_wrapper=False)
        pruned.eval()

    def _arguments(self, folder: str, examples: ModelExamples, device: torch.device) -> TrainingArguments:
        steps = self.epochs * len(examples) / self.batching.batch_size
        has_lengths = hasattr(examples[0].get("input_ids"), "__len__")
        return TrainingArguments(
            output_dir=folder,
            num_train_epochs=self.epochs,
            learning_rate=self.learning_rate,
            warmup_steps=round(WARMUP_SHARE * steps),
            per_device_train_batch_size=self.batching.batch_size,
            remove_unused_columns=False,
            train_sampling_strategy="group_by_length" if has_lengths else "random",
            bf16=bf16_is_faster(device),
            use_cpu=device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,  # its bar writes what it logs to standard output
            seed=0,
        )


class StepsOnStandardError(TrainerCallback):
    """Shows how many of the optimizer steps are done."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows none."""
        self._bar = tqdm(total=state.max_steps, desc="Recovery", unit=" steps", leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows one more."""
        self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the bar away."""
        self._bar.close()


@cache
def bf16_is_faster(device: torch.device) -> bool:
    """Tries whether products of matrices take clearly less time in bf16 than in fp32.

    That a processor has instructions for bf16 does not say so: without matrix tiles some take twice as long.
    """
    single = _seconds(device, torch.float32)
    return single > CLEARLY * _seconds(device, torch.bfloat16, limit=HOPELESS * single)


def _seconds(device: torch.device, dtype: torch.dtype, *, limit: float = math.inf) -> float:
    """Returns the least seconds of some products; of two where not even the second comes below a limit."""
    left, right = (torch.ones(rows, 1024, device=device, dtype=dtype) for rows in (256, 1024))
    tries: list[float] = []
    while len(tries) < TRIES and (len(tries) < 2 or min(tries) < limit):  # noqa: PLR2004 - the first warms up
        started = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        tries.append(time.perf_counter() - started)
    return min(tries)
