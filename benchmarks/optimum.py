"""Does an exhausted search find the true optimum? Small trained models, against every subset of their units.

BERTs of up to 12 units with random weights are trained on 1 000 sentences of sst2 (seconds each), then searched within
half a point on 400 examples of dev until nothing is left to ask. Beside it, every subset of the units is measured by a
plain evaluation, the largest gains first; the first that is good enough is the optimum. Heads count by number; heads
and chunks of FFN units by the parameters that go with them.

Run: OMP_NUM_THREADS=1 python -m benchmarks.optimum [--smoke]
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.tasks import Task, accuracy, load_task
from hf_headprune import AStarSearch, PruningPlan, anatomy_of
from hf_headprune.cost import cost_of
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.settings import SearchTuning
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import PadRight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset

RESULT = RESULTS / "optimum.json"
SEEDS = range(8)
TRAIN, DEV = 1000, 400
MAX_DROP = 0.005
CHUNK = 32
FFN = 2 * CHUNK


@dataclass(frozen=True)
class Shape:
    """A small model, and which of its units are searched."""

    layers: int
    heads: int
    with_ffn: bool

    @property
    def units(self) -> int:
        """How many units are searched."""
        return self.layers * (self.heads + (FFN // CHUNK if self.with_ffn else 0))

    @property
    def search(self) -> AStarSearch:
        """Settings of a search that goes on until it is exhausted."""
        heads: dict[str, Any] = {"units": ("heads",), "objective": "heads"}
        tuning = SearchTuning(ffn_chunk=CHUNK, refit=False)
        return AStarSearch(max_drop=MAX_DROP, max_evaluations=None, tuning=tuning, **({} if self.with_ffn else heads))


SHAPES = (Shape(2, 4, False), Shape(2, 5, False), Shape(3, 4, False), Shape(2, 3, True), Shape(2, 4, True))


def trained(shape: Shape, task: Task, *, seed: int, steps: int) -> BertForSequenceClassification:
    """Trains a small model from random weights."""
    set_seed(seed)
    logging.set_verbosity_error()
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=8 * shape.heads,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=FFN,
            max_position_embeddings=64,
            num_labels=task.num_labels,
        )
    )
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="headprune-bench-"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    Trainer(model, arguments, train_dataset=task.train, data_collator=PadRight(0), compute_metrics=accuracy).train()
    return model.eval()


def subsets(model: BertForSequenceClassification, shape: Shape) -> Iterator[tuple[int, PruningPlan]]:
    """Yields every subset of the units with its gain, the largest gains first."""
    anatomy = anatomy_of(model)
    full = PruningPlan.full(anatomy)
    choices: list[list[tuple[str, tuple[int, ...]]]] = []
    for site in anatomy.sites:
        if site.is_attention:
            sizes = range(site.units + 1)
            kept = [chosen for size in sizes for chosen in itertools.combinations(range(site.units), size)]
        elif shape.with_ffn:
            chunks = [tuple(range(first, first + CHUNK)) for first in range(0, FFN, CHUNK)]
            parts = [part for size in range(len(chunks) + 1) for part in itertools.combinations(chunks, size)]
            kept = [tuple(itertools.chain(*part)) for part in parts]
        else:
            continue
        choices.append([(site.name, units) for units in kept])
    found = []
    whole = cost_of(full, anatomy, seq_len=1).parameters
    for chosen in itertools.product(*choices):
        heads = {site: units for site, units in chosen if site in full.kept_heads}
        ffn = {site: units for site, units in chosen if site in full.kept_ffn}
        plan = full.replace(kept_heads=heads, kept_ffn=ffn)
        spared = whole - cost_of(plan, anatomy, seq_len=1).parameters
        found.append((spared if shape.with_ffn else plan.num_removed_heads, plan))
    yield from sorted(found, key=lambda entry: -entry[0])


def compared(shape: Shape, task: Task, dev: Dataset, *, seed: int, steps: int) -> dict[str, Any]:
    """Searches one model, and measures its subsets until one is good enough."""
    model = trained(shape, task, seed=seed, steps=steps)
    started = time.process_time()
    anatomy, batched = anatomy_of(model), partial(length_sorted_batches, dev, PadRight(0))
    chunks = [
        (site.name, tuple(range(first, first + CHUNK))) for site in anatomy.ffn_sites for first in range(0, FFN, CHUNK)
    ]
    evaluator = ExampleEvaluator(model, batched(batch_size=32))
    result = search_over_plans(anatomy, evaluator, shape.search, order=chunks if shape.with_ffn else None)
    searched = time.process_time()
    measure = ExampleEvaluator(model, batched(batch_size=len(dev)))
    reference = measure(PruningPlan.of(model)).metric
    measured, optimum = 0, 0
    for gain, plan in subsets(model, shape):
        measured, optimum = measured + 1, gain
        if measure(plan).metric >= reference - MAX_DROP - 1e-9:
            break
    return {
        "layers": shape.layers,
        "heads": shape.heads,
        "with_ffn": shape.with_ffn,
        "units": shape.units,
        "seed": seed,
        "accuracy": 100 * reference,
        "gain": result.gain,
        "optimum": optimum,
        "is_optimal": result.gain == optimum and result.optimality == "proved",
        "evaluations": result.evaluations,
        "subsets_measured": measured,
        "search_seconds": searched - started,
        "subsets_seconds": time.process_time() - searched,
    }


def main() -> None:
    """Compares all models and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one model of each kind, on few examples")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    smoke = options.smoke
    task = load_task("sst2", limit=40 if smoke else TRAIN)
    dev = task.dev.select(range(20 if smoke else DEV)).remove_columns("length")
    runs = []
    for seed in SEEDS[:1] if smoke else SEEDS:
        for shape in (SHAPES[0], SHAPES[3]) if smoke else SHAPES:
            runs.append(compared(shape, task, dev, seed=seed, steps=4 if smoke else 200))
            print(runs[-1], flush=True)
    right = sum(run["is_optimal"] for run in runs)
    print(f"optimal: {right} of {len(runs)}")
    if not smoke:
        content = {"max_drop": MAX_DROP, "examples": len(dev), "optimal": right, "models": len(runs), "runs": runs}
        write_json(RESULT, {**environment(), **content})


if __name__ == "__main__":
    main()
