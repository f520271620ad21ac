"""How long a run will take, said before it, and how far it is, shown while it runs."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hf_headprune._offloaded import device_of
from hf_headprune.guarantee.external import bare, is_model
from hf_headprune.masking import evaluating
from hf_headprune.pipeline.cost_path import CALIBRATION, DEEP, DENSITIES
from hf_headprune.pipeline.holdout import CANDIDATES
from hf_headprune.pipeline.progress import TYPICAL_SHARE
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import ModelExamples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hf_headprune.cli.splits import Splits
    from hf_headprune.tasks.batches import Batching

TIMED = 4  # batches
WITH_GRADIENTS = 3.0  # forward and backward pass, in forward passes
CERTIFIED = 2  # models that the certificate runs: the whole and the pruned one


def examples_of_work(
    splits: Splits, *, searches: bool, tests: bool, sizes: int = 1, epochs: float = 0.0, looked_at: int = CALIBRATION
) -> tuple[float, float]:
    """Returns how many examples pass forward through the model, at most, and how many backward too.

    Args:
        splits: As they will be used.
        searches: Whether an A* search measures plans.
        tests: Whether the plans of the default are tested, rather than those of given sizes.
        sizes: How many sizes are given.
        epochs: For which a pruned model trains on, and the whole one teaches.
        looked_at: Training examples that costs and refit look at, where there are as many.
    """
    counts = splits.counts()
    certify, measured = counts.get("certify", 0), min(looked_at, counts["train"])
    if searches:
        limit = AStarSearch().max_evaluations or 0
        searched = TYPICAL_SHARE * limit * counts["validation"]
        return searched + (CANDIDATES + 1 + CERTIFIED) * certify, counts["train"]
    training = epochs * counts["train"]
    if tests:
        looked_at = len(DENSITIES) * measured if epochs else 0  # how deep to cut is decided on training examples
        refitted = len(DEEP) * measured  # half of them, by the whole and the pruned model
        return (1 + len(DENSITIES) + CERTIFIED) * certify + training + looked_at + refitted, measured + training
    return (CERTIFIED + sizes - 1) * certify + training + 2 * sizes * measured, measured + training


def seconds_of(model: Any, splits: Splits, batching: Batching, work: tuple[float, float]) -> float:
    """Estimates how long a run takes, from a few batches.

    Args:
        model: Its forward pass is timed.
        splits: Examples.
        batching: How they become batches.
        work: Of `examples_of_work`.
    """
    split = splits.train if splits.certify is None else splits.certify
    examples = ModelExamples(split, model)
    step = max(1, len(examples) // (TIMED * batching.batch_size))
    sample = [examples[index] for index in range(0, len(examples), step)][: TIMED * batching.batch_size]
    batches = length_sorted_batches(sample, batching.collate_for(model), batch_size=batching.batch_size)
    with evaluating(model):
        _run(model, batches[-1])  # the first pass is slow
        started = time.perf_counter()
        for batch in batches:
            _run(model, batch)
        each = (time.perf_counter() - started) / len(sample)
    forward, backward = work
    return each * (forward + WITH_GRADIENTS * backward)


def in_words(seconds: float) -> str:
    """Says how long it takes."""
    minutes = round(seconds / 60)
    return "less than a minute" if minutes < 1 else f"about {minutes:,} minute{'s' * (minutes > 1)}"


@contextmanager
def shown(models: Sequence[Any], examples: float, title: str) -> Iterator[None]:
    """Shows on a terminal how many examples the models have read; a run may end before they have read them all.

    Args:
        models: Of which those of torch are watched.
        examples: That each of these reads, at most.
        title: What is done, for the bar.
    """
    watched = [model for model in map(bare, models) if is_model(model)]
    total = round(examples * len(watched))
    bar = tqdm(total=total, desc=title, unit=" examples", disable=not sys.stderr.isatty(), leave=False)

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        bar.update(min(len(next(iter(kwargs.values()))), bar.total - bar.n))

    handles = [model.register_forward_pre_hook(count, with_kwargs=True) for model in watched]
    try:
        with bar:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: Any, batch: dict[str, Any]) -> None:
    device = device_of(model)
    outputs = model(**{name: tensor.to(device) for name, tensor in batch.items()})
    float(outputs.loss)  # waits for the device
