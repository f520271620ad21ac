"""The Trainer's own evaluation: quietly, with the same randomness each time, and without a trace in the log."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import set_seed

from hf_headprune.callback.trainer_compat import eval_loader, evaluation_sets, is_stream, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import Trainer


def evaluate(trainer: Trainer) -> dict[str, float]:
    """Returns what the Trainer's evaluation returns, by name without the prefix."""
    with quiet(trainer), same_randomness(trainer):
        metrics = trainer.evaluate()
    return {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}


def first_batch(trainer: Trainer, count: int = 1) -> Mapping[str, Any]:
    """Returns the first examples as evaluation reads them: a collator may make labels, as for masked tokens."""
    loader = eval_loader(trainer)
    with same_randomness(trainer):
        return loader.collate_fn([loader.dataset[index] for index in range(count)])


def contents(trainer: Trainer, metric: str) -> tuple[dict[str, torch.Tensor], int]:
    """Returns what evaluation reads, by place and name, and the number of examples that a metric is about.

    Of several data sets that is the one whose name the metric begins with.

    A process of a distributed run reads its own share, and counts those of a stream in it.
    """
    found: dict[str, torch.Tensor] = {}
    count = 0
    asked: Any = trainer.eval_dataset
    keys = [*asked] if isinstance(asked, dict) else [""] * len(evaluation_sets(trainer))
    meant = [key for key in keys if key and metric.startswith(f"{key}_")] or keys
    with same_randomness(trainer):  # a collator may draw, such as the tokens that it masks
        for number, (key, dataset) in enumerate(zip(keys, evaluation_sets(trainer), strict=True)):
            batches = [dict(tensors(batch)) for batch in eval_loader(trainer, dataset)]
            found |= {f"{number} {i} {name}": value for i, given in enumerate(batches) for name, value in given.items()}
            if key in meant:
                read = sum(len(next(iter(given.values()), ())) for given in batches)
                count += read if is_stream(dataset) else len(dataset)
    return found, count


@contextmanager
def same_randomness(trainer: Trainer) -> Iterator[None]:
    """Lets whatever draws, such as a collator that masks tokens, draw the same each time, and restores all states."""
    states = random.getstate(), np.random.get_state()
    device = trainer.args.device
    with torch.random.fork_rng(devices_drawn_from(device, trainer.args.n_gpu), device_type=device.type):
        set_seed(trainer.args.seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def devices_drawn_from(device: torch.device, count: int) -> list[torch.device]:
    """Returns the accelerators whose random states a run changes; those of other processes are not even looked at.

    Args:
        device: Of the run.
        count: Of accelerators that it spreads its batches over.
    """
    if device.type in ("cpu", "mps"):  # whose state is that of the CPU, or is not asked by number
        return []
    return [torch.device(device.type, index) for index in range(count)] if count > 1 else [device]


@contextmanager
def quiet(trainer: Trainer) -> Iterator[None]:
    """Keeps the log, progress bars and trackers out of the many evaluations of a search."""
    callbacks, trainer.callback_handler.callbacks = trainer.callback_handler.callbacks, []
    history, trainer.state.log_history = trainer.state.log_history, []
    try:
        yield
    finally:
        trainer.callback_handler.callbacks = callbacks
        trainer.state.log_history = history
