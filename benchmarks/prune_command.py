"""What `headprune prune` makes of a model that somebody else fine-tuned: a folder without any trace of this package.

The models are those of `benchmarks.default_run`, trained by a plain Trainer; the command gets the folder and the files
of the data set, in a process of its own. The saved model is then loaded by an Auto class and scored on the untouched
test.

Run: OMP_NUM_THREADS=1 python -m benchmarks.prune_command [--tasks sst2] [--seeds 0] [--work FOLDER] [--smoke]
     python -m benchmarks.prune_command --collect
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.default_run import plain_run, recipe_of
from benchmarks.results_file import RESULTS, environment, over_seeds, write_json
from benchmarks.run_queue import RunQueue
from benchmarks.tasks import copied, data_folder, load_task, minilm_path
from benchmarks.training import build_trainer, score

RESULT = RESULTS / "prune_command.json"
TASKS = ("sst2", "snli")
SEEDS = (0, 1, 2)
COMMAND = "from hf_headprune.cli import main; main()"
# What is typed beside the folder and the files, by the name of the row.
WAYS: dict[str, tuple[str, ...]] = {
    "--max-drop 0.01": ("--max-drop", "0.01"),
    "--max-drop 0.02 --confidence 0.95": ("--max-drop", "0.02", "--confidence", "0.95"),
    "--density 0.5": ("--density", "0.5"),
}


@dataclass(frozen=True)
class Run:
    """One call on one model."""

    task: str
    seed: int
    way: str


def given(task: Any, seed: int, work: Path) -> Path:
    """Writes the folder that the command gets: a plain checkpoint with names of its classes, and the tokenizer."""
    folder = work / f"{task.name}-{seed}-given"
    with (data_folder(task.name) / "train.tsv").open(encoding="utf-8", newline="") as file:
        labels = sorted({row["label"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)})
    model = copied(AutoModelForSequenceClassification, work / f"{task.name}-{seed}")
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_path()).save_pretrained(folder)
    return folder


def perform(run: Run, *, work: Path, smoke: bool) -> dict[str, Any]:
    """Runs the command, and scores what it saved."""
    task = load_task(run.task, limit=400 if smoke else None)
    plain = plain_run(task, run.seed, work, smoke=smoke)
    folder, output = given(task, run.seed, work), work / f"{run.task}-{run.seed}-pruned"
    data = data_folder(run.task)
    files = ["--train", str(data / "train.tsv"), "--validation", str(data / "dev.tsv")]
    command = [sys.executable, "-c", COMMAND, "prune", str(folder), str(output), *files, *WAYS[run.way]]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "--overwrite", "--json"], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    outcome = json.loads(done.stdout.splitlines()[-1])
    scores = {"dev": plain["dev"], "test": plain["test"]}
    if outcome["holds"]:
        pruned = copied(AutoModelForSequenceClassification, output)
        scores = score(build_trainer(task, recipe_of(task, smoke=smoke), seed=0, callback=None, model=pruned), task)
    certificate, report = outcome["certificate"], outcome["report"]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        **scores,
        "dense_test": plain["test"],
        "drop": plain["test"] - scores["test"],
        "exit_code": done.returncode,
        "density": report["linear_density"] if outcome["holds"] else 1.0,
        "file": report["after"]["size_bytes"] / report["before"]["size_bytes"],
        "verdict": None if certificate is None else certificate["verdict"],
        "statement": None if certificate is None else certificate["statement"],
        "cpu_seconds": seconds,
        "cpu_ratio": seconds / plain["cpu"],
    }


def collect(waiting: RunQueue[Run]) -> dict[str, Any]:
    """Means over seeds."""
    runs = waiting.finished()
    summary = []
    for way in WAYS:
        for task in TASKS:
            mine = [run for run in runs if (run["way"], run["task"]) == (way, task)]
            if mine:
                numbers = over_seeds(mine, "drop", "density", "file", "cpu_ratio", "test", "dense_test")
                passed = sum(run["verdict"] == "PASS" for run in mine)
                summary.append({"way": way, "task": task, "seeds": len(mine), "passed": passed, **numbers})
    return {"missing": len(waiting.runs) - len(runs), "summary": summary, "runs": runs}


def main() -> None:
    """Works through the runs, or collects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/default"), help="the folder of benchmarks.default_run")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="of these tasks alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of these seeds alone")
    parser.add_argument("--collect", action="store_true", help="summarise what is finished")
    parser.add_argument("--smoke", action="store_true", help="one call, four training steps")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    runs = [Run(task, seed, way) for way in WAYS for seed in SEEDS for task in TASKS]
    asked = [run for run in runs if run.task in options.tasks and run.seed in options.seeds]
    result = RESULT
    if options.smoke:
        asked, runs, result = [runs[-2]], [runs[-2]], Path("no such file")
    cache = options.work / "prune_command"
    cache.mkdir(exist_ok=True)
    if not options.collect:
        queue = RunQueue(tuple(asked), cache, result)
        queue.work_through(partial(perform, work=options.work, smoke=options.smoke))
    content = collect(RunQueue(tuple(runs), cache, result))
    for row in content["summary"]:
        print(
            f"{row['way']} {row['task']}: {100 * row['density']['mean']:.1f} % of the weights, drop "
            f"{row['drop']['mean']:.2f}, {row['cpu_ratio']['mean']:.2f} of plain training, passed {row['passed']}"
        )
    if options.collect and not options.smoke:
        write_json(RESULT, {**environment(), **content})


if __name__ == "__main__":
    main()
