"""Peak memory of pruning a model that is kept on disk (`device_map`), over that of the same model in memory.

A model is written once. A fresh process for each way reads it, prunes it to a density and saves it; what counts is its
anonymous memory, the largest of samples, less what the process held before. Pages of mapped files are not counted: the
system drops them when memory is short. Linux alone tells the two apart.

Run: python -m benchmarks.offloaded_memory [--smoke]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune import PruningPlan, SecondOrder, prune_model_
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.choice import choose
from hf_headprune.refit.one_shot import ExampleLosses

WAYS = {"in memory": None, "on disk": {"bert": "disk", "classifier": "cpu"}}
SHAPE = {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024}
SMOKE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
EXAMPLES, LENGTH, VOCABULARY, DENSITY = 32, 32, 1000, 0.5
SECONDS = 0.005  # between samples


class Peak:
    """Samples the anonymous memory of this process in a thread of its own.

    Attributes:
        megabytes: The largest so far, less that of the start.
    """

    def __init__(self) -> None:
        """Begins."""
        self.megabytes = 0.0
        self._start, self._ended = anonymous(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            self.megabytes = max(self.megabytes, anonymous() - self._start)

    def end(self) -> float:
        """Ends, and returns the peak in MB."""
        self._ended.set()
        return self.megabytes


def anonymous() -> float:
    """Returns the anonymous memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def prune(folder: Path, way: str) -> tuple[float, str]:
    """Reads, prunes and saves in this process; returns the peak and the sha256 of what was saved."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (EXAMPLES, LENGTH), generator=draw).tolist()
    rows = [{"input_ids": row, "attention_mask": [1] * LENGTH, "labels": row[0] % 2} for row in ids]
    kept = {} if WAYS[way] is None else {"device_map": WAYS[way], "offload_folder": str(folder / "offloaded")}
    peak = Peak()
    model = AutoModelForSequenceClassification.from_pretrained(folder / "dense", **kept)
    full, losses = PruningPlan.of(model), ExampleLosses(model, rows, EXAMPLES, 0, batch_size=4)
    # As of a model that is kept on disk: output projections alone are refitted.
    prune_model_(model, RefittedPlan(*choose(model.eval(), SecondOrder(density=DENSITY), full, losses)))
    model.save_pretrained(folder / way, max_shard_size="20MB")
    saved = hashlib.sha256()
    for file in sorted((folder / way).glob("*.safetensors")):
        saved.update(file.read_bytes())
    return peak.end(), saved.hexdigest()


def measured(folder: str, way: str) -> tuple[float, str]:
    """Prunes in a fresh process; see `prune`."""
    command = [sys.executable, "-m", "benchmarks.offloaded_memory", "--way", way, "--folder", folder]
    around = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    peak, digest = done.stdout.splitlines()[-1].split()
    return float(peak), digest


def main() -> None:
    """Measures both ways and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a small model")
    parser.add_argument("--work", type=Path, help="folder on a disk, where the system's for temporary files is memory")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(*prune(options.folder, options.way))
        return
    torch.set_num_threads(1)  # as the fresh processes do; the result file says so
    torch.manual_seed(0)
    shape = SMOKE if options.smoke else SHAPE
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **shape))
    sizes = [parameter.nbytes / 1e6 for parameter in model.parameters()]
    found = {}
    with TemporaryDirectory(dir=options.work) as folder:
        model.save_pretrained(Path(folder, "dense"))
        for way in WAYS:
            found[way] = prune(Path(folder), way) if options.smoke else measured(folder, way)
            print(f"{way:10} {found[way][0]:.1f} MB of {sum(sizes):.1f} MB of weights", flush=True)
    is_same = len({digest for _, digest in found.values()}) == 1
    print(f"the saved weights are {'the same' if is_same else 'others'}")
    if not options.smoke:
        peaks = {way: round(peak, 1) for way, (peak, _) in found.items()}
        given = {"shape": shape, "density": DENSITY, "examples": EXAMPLES, "length": LENGTH, "seed": 0}
        given |= {"weights_mb": sum(sizes), "largest_mb": max(sizes), "same_file": is_same, "peak_mb": peaks}
        write_json(RESULTS / "offloaded_memory.json", {**environment(), **given})


if __name__ == "__main__":
    main()
