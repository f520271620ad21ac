"""CPU seconds of `import hf_headprune`, and of reading a pruned BERT, beyond what Transformers takes by itself.

Each measurement is a fresh process, which counts its own CPU time after `import torch, transformers`. To read a dense
BERT with an Auto class and a pruned one are measured in turns: what the package adds is their difference.

Run: python -m benchmarks.import_time [--smoke] [--repetitions 7]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import transformers

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune import PruningPlan, prune_model_

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
CLOCK = """
import sys, time
import torch, transformers
start = time.process_time()
{code}
print(time.process_time() - start)
"""
READ = "transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])"
IMPORT = "import hf_headprune"


def cpu_seconds(code: str, *arguments: str) -> float:
    """Returns the CPU seconds that code takes in a fresh process, after torch and Transformers are imported."""
    command = [sys.executable, "-c", CLOCK.format(code=code), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return float(done.stdout.splitlines()[-1])


def save_models(folder: Path) -> None:
    """Saves a tiny dense BERT and the same one pruned."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZE))
    model.save_pretrained(folder / "dense")
    plan = PruningPlan.of(model)
    prune_model_(model, plan.replace(kept_heads={next(iter(plan.kept_heads)): (1,)}))
    model.save_pretrained(folder / "pruned")


def measure(repetitions: int) -> dict[str, dict[str, float]]:
    """Measures everything in turns and returns the median and the spread of each, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        save_models(Path(name))
        what = {
            "import hf_headprune": (IMPORT, ""),
            "read a dense BERT": (READ, f"{name}/dense"),
            "import hf_headprune, read a pruned BERT": (f"{IMPORT}\n{READ}", f"{name}/pruned"),
        }
        seconds: dict[str, list[float]] = {title: [] for title in what}
        for _ in range(repetitions):
            for title, (code, folder) in what.items():
                seconds[title].append(cpu_seconds(code, folder))
    return {title: {"median": median(found), "min": min(found), "max": max(found)} for title, found in seconds.items()}


def main() -> None:
    """Measures, prints a line for each and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one process each, no result file")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    repetitions = 1 if arguments.smoke else arguments.repetitions
    found = measure(repetitions)
    for title, row in found.items():
        print(f"{title}: {row['median']:.3f} s of CPU ({row['min']:.3f} to {row['max']:.3f})")
    if not arguments.smoke:
        content = {**environment(), "processes": repetitions, "cpu_seconds": found}
        write_json(RESULTS / "import_time.json", content)


if __name__ == "__main__":
    main()
