"""What the benchmarks on fine-tuned models of `benchmarks.default_run` share: the command line and the loop."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.results_file import environment, write_json
from benchmarks.run_queue import RunQueue
from hf_headprune import certify

R = TypeVar("R")
DROPS = (0.01, 0.02)


def parser_for(about: str, tasks: Sequence[str], seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Returns the options that all of them take."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/default"), help="cache of models and finished runs")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, help="of these tasks alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds, help="of these seeds alone")
    parser.add_argument("--collect", action="store_true", help="summarise what is finished")
    parser.add_argument("--smoke", action="store_true", help="one run, four training steps, 400 rows")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Returns what was typed, with a folder to work in and torch's threads set."""
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    return options


def work_or_collect(  # noqa: PLR0913 - what a study is made of
    options: argparse.Namespace,
    runs: Sequence[Any],
    *,
    smoke: Any,
    result: Path,
    perform: Callable[..., dict[str, Any]],
    summarise: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    line: Callable[[dict[str, Any]], str],
    cache: str = "",
) -> None:
    """Works through the runs that were asked for, prints a line for each row of the summary, and keeps it.

    Args:
        options: Of `parsed`.
        runs: All there are; they have a task and a seed.
        smoke: The one of a smoke run.
        result: Committed file; written by `--collect`.
        perform: Does a run; takes `work` and `smoke`.
        summarise: Returns the rows of the summary for the results of finished runs.
        line: Says what a row says.
        cache: Folder inside of `work` for the results.
    """
    ways = getattr(options, "ways", None)
    asked = [run for run in runs if run.task in options.tasks and run.seed in options.seeds]
    asked = [run for run in asked if ways is None or run.way in ways]
    if options.smoke:
        asked, runs, result = [smoke], [smoke], Path("no such file")
    folder = options.work / cache
    folder.mkdir(exist_ok=True)
    if not options.collect:
        RunQueue(tuple(asked), folder, result).work_through(partial(perform, work=options.work, smoke=options.smoke))
    queue = RunQueue(tuple(runs), folder, result)
    finished = queue.finished()
    summary = summarise(finished)
    for row in summary:
        print(line(row))
    if options.collect and not options.smoke:
        content = {"missing": len(runs) - len(finished), "summary": summary, "runs": finished}
        write_json(result, {**environment(), **content})


def verdicts(dense: list[int], pruned: list[int], examples: Any) -> dict[str, str]:
    """Returns the verdict on the answers of a pruned model for each of `DROPS`, by its percentage points."""
    return {f"{100 * drop:g}": certify(dense, pruned, examples, max_drop=drop).verdict for drop in DROPS}
