"""Disks that are full at any byte, files that are cut off at any byte: nothing finished is lost, nothing half is read.

Run: python -m benchmarks.faults.disks [--count 80]
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.faults.campaign import Case, forked, main
from benchmarks.faults.runs import model, outcome, rows, trainer
from hf_headprune import PruningPlan, prune_model_

IDS = torch.tensor([row["input_ids"] for row in rows(8, 5)])


def cases(count: int, scratch: Path) -> Iterable[Case]:
    """Yields a run on a full disk for every four files that are cut off."""
    draws = random.Random(0)
    for number in range(count):
        share = draws.random()
        if number % 4 == 0:
            yield f"full disk {number}", partial(_full_disk, share, scratch / str(number))
        else:
            yield f"cut-off file {number}", partial(_cut_off, share, number, scratch / str(number))


def _full_disk(share: float, folder: Path) -> dict[str, Any]:
    """Trains where no file may grow beyond some bytes; then goes on with room, as a user would."""
    limit = int(200_000 * share)  # the weights have 100,000 bytes, the optimizer 200,000

    def run() -> dict[str, Any]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        built, callback = trainer("density", folder / "run")
        built.args.save_strategy = "no"  # the Trainer's own checkpoints are the Trainer's
        built.train()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        built.save_model(str(folder / "saved"))
        return {"kept": callback.plan.num_kept_heads, "reads": _answers(folder / "saved") is not None}

    status, found = forked(run)
    _, expected = forked(partial(outcome, "density", folder / "unbroken"))
    shutil.rmtree(folder, ignore_errors=True)
    kept = status == 0 and found is not None and found["reads"] and expected is not None
    return {"outcome": "the trained model was pruned and saved" if kept else "work was lost", "limit": limit}


def _answers(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()(input_ids=IDS).logits


def _cut_off(share: float, number: int, folder: Path) -> dict[str, Any]:
    """Cuts a file of a checkpoint off, or makes it read-only or empty; loading refuses, or gives the same answers."""
    small = model(number).eval()
    prune_model_(small, PruningPlan.of(small).replace(kept_heads={"encoder.layer.0.attention": (1,)}))
    small.save_pretrained(folder)
    expected = _answers(folder)
    file = sorted(path for path in folder.iterdir())[number % len(list(folder.iterdir()))]
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    os.chmod(file, 0o400)  # noqa: PTH101 - read-only as well
    try:
        words = "the same answers" if torch.equal(_answers(folder), expected) else "OTHER ANSWERS"
    except Exception as error:  # noqa: BLE001 - ours or the host's: it is refused
        words = "refused"
        del error
    shutil.rmtree(folder, ignore_errors=True)
    return {"outcome": words, "file": file.name, "share": round(share, 3)}


if __name__ == "__main__":
    main("disks", cases, count=80, smoke=5)
