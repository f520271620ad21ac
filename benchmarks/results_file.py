"""Reading and writing of benchmark results: JSON with seed, versions, machine, command and date."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from hf_headprune.callback.plain_recovery import bf16_is_faster

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Returns what a reader needs to judge a measurement."""
    module = sys.modules["__main__"].__spec__
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]  # no folder of a machine
    packages = ("torch", "transformers", "accelerate", "numpy")
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_is_faster": bf16_is_faster(torch.device("cpu")),
        "command": " ".join(["python", "-m", module.name if module else "?", *arguments]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def over_seeds(runs: Sequence[Mapping[str, Any]], *names: str) -> dict[str, Any]:
    """Returns the mean of each number over runs, and its standard deviation; None of a single run."""
    return {
        name: {
            "mean": mean(run[name] for run in runs),
            "spread": stdev(run[name] for run in runs) if len(runs) > 1 else None,
        }
        for name in names
    }


def read_json(path: Path) -> dict[str, Any]:
    """Returns a result file's content, or an empty mapping where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a result file at once, so that a kill leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def seeds_unless_three(seeds: int) -> str:
    """Says how many seeds a cell has, where it is not the usual three."""
    return "" if seeds == 3 else f" ({seeds} seed{'s' * (seeds > 1)})"  # noqa: PLR2004
