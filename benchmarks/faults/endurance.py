"""Many rounds in one process: memory, hooks and file descriptors stay as they are.

Run: python -m benchmarks.faults.endurance [--count 220]
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch.nn.modules import module as torch_module
from transformers import AutoModelForSequenceClassification, Trainer

from benchmarks.faults.campaign import Case, main
from benchmarks.faults.runs import MODES, model, trainer
from hf_headprune import PruningPlan, prune_model_

RUNS = 11  # every so many cases one is a run of the Trainer, so that 220 are 200 rounds and 20 runs
ALLOWED_MIB, WARM_UP = 24, 0.25


def cases(count: int, scratch: Path) -> Iterable[Case]:
    """Yields rounds of cut, save and reload, with runs of the Trainer among them, and at the end what has grown."""
    course: list[dict[str, float]] = []
    for number in range(count):
        if number % RUNS == RUNS - 1:
            yield f"run {number}", partial(_run, [*MODES][number // RUNS % len(MODES)], scratch / "run", course)
        else:
            yield f"round {number}", partial(_round, number, scratch / "round", course)
    yield "at the end", partial(_grown, course)


def _state() -> dict[str, float]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    hooks = len(torch_module._global_forward_hooks) + len(torch_module._global_forward_pre_hooks)
    trainers = sum(issubclass(type(found), Trainer) for found in gc.get_objects())
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    return {
        "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "hooks": hooks,
        "trainers": trainers,
        "files": descriptors,
    }


def _round(number: int, folder: Path, course: list[dict[str, float]]) -> dict[str, Any]:
    small = model(number).eval()
    plan = PruningPlan.of(small)
    kept = {site: range(1 + number % count) for site, count in plan.num_heads.items()}
    prune_model_(small, plan.replace(kept_heads=kept))
    small.save_pretrained(folder)
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    same = PruningPlan.of(again) == PruningPlan.of(small)
    course.append(_state())
    return {"outcome": "read as it was saved" if same else "read otherwise"}


def _run(mode: str, folder: Path, course: list[dict[str, float]]) -> dict[str, Any]:
    built, callback = trainer(mode, folder)
    built.train()
    done = callback.result is not None
    del built, callback
    shutil.rmtree(folder, ignore_errors=True)
    course.append(_state())
    return {"outcome": "ran to its end" if done else "did not end", "mode": mode}


def _grown(course: list[dict[str, float]]) -> dict[str, Any]:
    if not course:
        return {"outcome": "flat: every round was done before"}
    first, last = course[int(WARM_UP * len(course))], course[-1]
    grown = {name: round(last[name] - first[name], 1) for name in last}
    flat = grown["mib"] <= ALLOWED_MIB and not (grown["hooks"] or grown["trainers"] or grown["files"] > 0)
    return {"outcome": "flat" if flat else "GROWN", "grown": grown, "last": last}


if __name__ == "__main__":
    main("endurance", cases, count=220, smoke=12)
