"""SIGKILL at many moments of training, search, cut and save: a resumed run ends as the unbroken one.

Run: python -m benchmarks.faults.kills [--count 50]
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.campaign import Case, forked, main
from benchmarks.faults.runs import MODES, outcome

WARM_UP = "default"


def cases(count: int, scratch: Path) -> Iterable[Case]:
    """Yields kills, spread evenly over the length of a run of each mode in turn."""
    unbroken: dict[str, tuple[float, Any]] = {}
    draws = random.Random(0)
    for number in range(count):
        mode, moment = [*MODES][number % len(MODES)], (number + draws.random()) / count
        yield f"{mode} {number}", partial(_killed, mode, moment, scratch / str(number), unbroken)


def _killed(mode: str, moment: float, folder: Path, unbroken: dict[str, tuple[float, Any]]) -> dict[str, Any]:
    if mode not in unbroken:
        started = time.monotonic()
        _, expected = forked(partial(outcome, mode, folder / "unbroken"))
        unbroken[mode] = time.monotonic() - started, expected
    seconds, expected = unbroken[mode]
    status, _ = forked(partial(outcome, mode, folder / "run"), kill_after=moment * seconds)
    left = sorted(path.name for path in (folder / "run").glob("*")) if (folder / "run").exists() else []
    status_again, found = forked(partial(outcome, mode, folder / "run", resumes=True))
    shutil.rmtree(folder, ignore_errors=True)
    same = found == expected
    words = "ended as the unbroken run" if same else "ended otherwise" if status_again == 0 else "did not resume"
    return {"outcome": words, "moment": round(moment, 3), "killed": status == -signal.SIGKILL, "left": left}


if __name__ == "__main__":
    main("kills", cases, count=50, smoke=2)
