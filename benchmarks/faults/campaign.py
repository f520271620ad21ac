"""What all campaigns share: cases by name, each in a process of its own where it must be, results kept as they come."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, environment, read_json, write_json

WRITE_EVERY = 100
Case = tuple[str, Callable[[], dict[str, Any]]]


def main(
    name: str,
    cases: Callable[[int, Path], Iterable[Case]],
    *,
    count: int,
    smoke: int,
    shorten: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Runs the cases of a campaign that are not in its result file yet.

    Args:
        name: Of the campaign, and of its result file.
        cases: Yields names and functions, given how many and a scratch folder.
        count: Cases by default.
        smoke: Cases with `--smoke`.
        shorten: Makes of all results those that are kept, once all cases are done; None keeps all.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--smoke", action="store_true", help=f"{smoke} cases, into a scratch file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "results.json") if given.smoke else RESULTS / f"faults_{name}.json"
        content = run(file, cases(smoke if given.smoke else given.count, Path(scratch)))
        if shorten is not None:
            write_json(file, shorten(content))
        sys.stdout.write(f"{name}: {json.dumps(content['summary'])}\n")


def run(file: Path, cases: Iterable[Case]) -> dict[str, Any]:
    """Runs cases, writes each result, and returns the file's content with a summary: how often each outcome came."""
    content: dict[str, Any] = read_json(file)
    if "cases" not in content:  # nothing, or what is left of a campaign that is complete
        content = {"cases": {}}
    content |= {"environment": environment()}
    started = _cpu_seconds()
    for number, (name, function) in enumerate(cases):
        if name not in content["cases"]:
            content["cases"][name] = function()
        if number % WRITE_EVERY == 0:
            write_json(file, content)
    outcomes = [result["outcome"] for result in content["cases"].values()]
    content["summary"] = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    content["cpu_seconds"] = round(content.get("cpu_seconds", 0) + _cpu_seconds() - started, 1)
    write_json(file, content)
    return content


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def forked(function: Callable[[], Any], *, kill_after: float | None = None, limit: float = 120.0) -> tuple[int, Any]:
    """Runs a function in a child process.

    Args:
        function: Its result can be written as JSON.
        kill_after: Seconds after which the child is killed by SIGKILL; None lets it end.
        limit: Seconds after which it counts as hanging, and is killed.

    Returns:
        The exit status as `os.waitpid` gives it, negative for a signal, and the result, or None.
    """
    with tempfile.NamedTemporaryFile("r") as answer:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                result = function()
                Path(answer.name).write_text(json.dumps(result), encoding="utf-8")
                status = 0
            finally:
                os._exit(status)
        deadline = time.monotonic() + (limit if kill_after is None else kill_after)
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                text = answer.read()
                return os.waitstatus_to_exitcode(status), json.loads(text) if text else None
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), None
