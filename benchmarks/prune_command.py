"""What `headprune prune` makes of a model that somebody else fine-tuned: a folder without any trace of this package.

The models are those of `benchmarks.default_run`, trained by a plain Trainer; the command gets the folder and the files
of the data set, in a process of its own. The saved model is then loaded by an Auto class and scored on the untouched
test.

Run: OMP_NUM_THREADS=1 python -m benchmarks.prune_command [--tasks sst2] [--seeds 0] [--work FOLDER] [--smoke]
     python -m benchmarks.prune_command --collect
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.default_run import plain_run, plain_seconds, recipe_of
from benchmarks.plain_models import parsed, parser_for, work_or_collect
from benchmarks.results_file import RESULTS, over_seeds
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
    plain_cpu = plain_seconds(task, run.seed, work, smoke=smoke)
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
        "cpu_ratio": seconds / plain_cpu,
    }


def summarised(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    summary = []
    for way in WAYS:
        for task in TASKS:
            mine = [run for run in runs if (run["way"], run["task"]) == (way, task)]
            if mine:
                numbers = over_seeds(mine, "drop", "density", "file", "cpu_ratio", "test", "dense_test")
                passed = sum(run["verdict"] == "PASS" for run in mine)
                summary.append({"way": way, "task": task, "seeds": len(mine), "passed": passed, **numbers})
    return summary


def line(row: dict[str, Any]) -> str:
    """Says what a row of the summary says."""
    return (
        f"{row['way']} {row['task']}: {100 * row['density']['mean']:.1f} % of the weights, drop "
        f"{row['drop']['mean']:.2f}, {row['cpu_ratio']['mean']:.2f} of plain training, passed {row['passed']}"
    )


def main() -> None:
    """Works through the runs, or collects."""
    parser = parser_for(__doc__ or "", TASKS, SEEDS)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), help="of these ways alone")
    options = parsed(parser)
    default, *others = WAYS
    runs = [Run(task, seed, default) for seed in SEEDS for task in TASKS]
    runs += [Run(task, SEEDS[0], way) for way in others for task in TASKS]
    work_or_collect(
        options,
        runs,
        smoke=runs[-2],
        result=RESULT,
        perform=perform,
        summarise=summarised,
        line=line,
        cache="prune_command",
    )


if __name__ == "__main__":
    main()
