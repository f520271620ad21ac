"""What the vocabulary of the training texts costs and saves, without any training; alone, and with half of the weights.

The models are those of `benchmarks.default_run`, which trains them where they are missing. Everything is measured on
the test split, whose texts the vocabulary has not seen; certificates compare with the fine-tuned model.

Run: OMP_NUM_THREADS=1 python -m benchmarks.vocabulary [--tasks sst2] [--seeds 0] [--work FOLDER] [--smoke]
     python -m benchmarks.vocabulary --collect
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.default_run import plain_run, trained
from benchmarks.plain_models import parsed, parser_for, verdicts, work_or_collect
from benchmarks.results_file import RESULTS, over_seeds
from benchmarks.tasks import data_folder, load_task, minilm_path, read_rows
from hf_headprune import plan_for_budget, prune_model_, prune_vocabulary_

RESULT = RESULTS / "vocabulary.json"
TASKS = ("sst2", "snli")
SEEDS = (0, 1, 2)
DENSITIES = (1.0, 0.5)
BATCH = 64


@dataclass(frozen=True)
class Run:
    """One model, with a share of its attention and FFN weights."""

    task: str
    seed: int
    density: float


def answers(model: Any, tokenizer: Any, texts: list[tuple[str, ...]]) -> np.ndarray:
    """Returns the class that a model gives to each example, `(n,)`."""
    encoded = tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=64)
    rows = [{name: encoded[name][i] for name in ("input_ids", "token_type_ids")} for i in range(len(texts))]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    found = np.empty(len(rows), dtype=np.int64)
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            batch = tokenizer.pad([rows[place] for place in places], return_tensors="pt")
            found[places] = model.eval()(**batch).logits.argmax(-1).numpy()
    return found


def saved_mb(*parts: Any) -> float:
    """Returns the MB of the weights that a model saves."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6


def perform(run: Run, *, work: Path, smoke: bool) -> dict[str, Any]:
    """Prunes weights, then the vocabulary; measures the fine-tuned model, and both steps."""
    task, rows = load_task(run.task, limit=400 if smoke else None), read_rows(data_folder(run.task))
    plain_run(task, run.seed, work, smoke=smoke)
    *columns, label = rows["train"][0]
    labels = sorted({row[label] for row in rows["train"]})
    test = rows["test"][: 400 if smoke else None]
    texts = [tuple(row[column] for column in columns) for row in test]
    gold = np.array([labels.index(row[label]) for row in test])
    tokenizer, model = AutoTokenizer.from_pretrained(minilm_path()), trained(task, run.seed, work)
    dense, size = answers(model, tokenizer, texts), saved_mb(model)
    if run.density < 1:
        prune_model_(model, plan_for_budget(model, task.train, density=run.density))
    before, pieces = answers(model, tokenizer, texts), model.config.vocab_size
    corpus = [row[column] for row in rows["train"][: 400 if smoke else None] for column in columns]
    smaller = prune_vocabulary_(model, tokenizer, corpus)
    after = answers(model, smaller, texts)
    examples = [
        {"id": number, "text": "\t".join(text), "label": int(it)}
        for number, (text, it) in enumerate(zip(texts, gold, strict=True))
    ]
    shares = {"dense": dense, "before": before, "test": after}
    return {
        **{name: 100.0 * float((found == gold).mean()) for name, found in shares.items()},
        "dev": 100.0 * float((after == before).mean()),
        "changed": 100.0 * float((after != before).mean()),
        "pieces_before": pieces,
        "pieces": model.config.vocab_size,
        "dense_mb": size,
        "mb": saved_mb(model),
        "certified": verdicts(dense.tolist(), after.tolist(), examples),
    }


def summarised(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    summary = []
    for task in TASKS:
        for density in DENSITIES:
            mine = [run for run in runs if (run["task"], run["density"]) == (task, density)]
            if mine:
                values = over_seeds(mine, "dense", "before", "test", "changed", "pieces", "mb", "dense_mb")
                passed = {drop: sum(run["certified"][drop] == "PASS" for run in mine) for drop in ("1", "2")}
                summary.append({"task": task, "density": density, "seeds": len(mine), **values, "certified": passed})
    return summary


def line(row: dict[str, Any]) -> str:
    """Says what a row of the summary says."""
    return (
        f"{row['task']}, density {row['density']}: {row['before']['mean']:.2f} -> {row['test']['mean']:.2f} %, "
        f"{row['changed']['mean']:.1f} % changed, {row['pieces']['mean']:,.0f} pieces, "
        f"{row['dense_mb']['mean']:.1f} -> {row['mb']['mean']:.1f} MB"
    )


def main() -> None:
    """Works through the runs, or collects."""
    options = parsed(parser_for(__doc__ or "", TASKS, SEEDS))
    runs = [Run(task, seed, density) for density in DENSITIES for seed in SEEDS for task in TASKS]
    work_or_collect(
        options,
        runs,
        smoke=runs[-2],
        result=RESULT,
        perform=perform,
        summarise=summarised,
        line=line,
        cache="vocabulary",
    )


if __name__ == "__main__":
    main()
