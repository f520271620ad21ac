"""How fast plans are measured: probes of the search against the plain padded loop, on the same plans in one run.

An A* search on MiniLM, fine-tuned on sst2, records each of its measurements and their CPU seconds. Of each kind a
sample is measured again by the naive loop: close the units, run the data set in its order in padded batches of 32. The
verdicts must be the same, or the benchmark ends with an error. Kinds:

- rejection: enough errors seen, the hardest examples first, that the metric is below the floor of the search;
- tentative acceptance: an estimate from the hardest quarter;
- exact acceptance: every example; where an estimate came first, both together.

The whole search is compared with naive greedy elimination: the CPU seconds until A*'s exact incumbent removes so many
heads, against the number of plans that greedy has to measure before it can have removed as many, times the naive
seconds of a plan, an extrapolation. How far greedy gets is told by `--greedy`, which takes an hour more.

Run: python -m benchmarks.search_speed [--part whole] [--greedy] [--smoke] [--work FOLDER]
Parts write into one result file; "whole" takes the naive seconds of a plan from it.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.finetuned import evaluator_on, fine_tuned
from benchmarks.results_file import RESULTS, environment, read_json, write_json
from benchmarks.search_baselines import greedy
from benchmarks.tasks import load_task
from hf_headprune import AStarSearch, PruningPlan, anatomy_of, masked
from hf_headprune.search.evaluation.base import Evaluator
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.problem import Measurement, Question
from hf_headprune.search.settings import SearchTuning
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import PadRight

if TYPE_CHECKING:
    from hf_headprune.search.problem import Progress

SEARCH = AStarSearch(
    max_drop=0.01, max_evaluations=300, units=("heads",), objective="heads", tuning=SearchTuning(refit=False)
)
PARTS = ("kinds", "growth", "whole")
GREEDY = replace(SEARCH, max_evaluations=100_000)
WHOLE_EVALUATIONS = 150
SAMPLE = 12  # plans of each kind that the naive loop measures again
GROWTH = ((6, 384, 200, 24), (6, 384, 800, 24), (6, 384, 200, 96), (12, 768, 200, 24), (12, 768, 100, 128))


class NaiveLoop:
    """The loop that anybody would write."""

    def __init__(self, model: Any, split: Any) -> None:
        """Collates the data set in its own order, 32 examples a batch."""
        self.model = model
        collate = PadRight(model.config.pad_token_id)
        names = ("input_ids", "token_type_ids", "attention_mask", "labels")
        rows = [{name: split[i][name] for name in names if name in split[i]} for i in range(len(split))]
        self.batches = [collate(rows[start : start + 32]) for start in range(0, len(rows), 32)]

    @torch.no_grad()
    def __call__(self, plan: PruningPlan) -> float:
        """Returns the accuracy of a plan."""
        right = total = 0
        with masked(self.model, plan):
            for batch in self.batches:
                inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
                right += int((self.model(**inputs).logits.argmax(dim=-1) == batch["labels"]).sum())
                total += len(batch["labels"])
        return right / total


class Recorder(Evaluator):
    """An evaluator that notes what each probe found and its CPU seconds."""

    def __init__(self, evaluator: ExampleEvaluator) -> None:
        """Wraps an evaluator."""
        self.evaluator = evaluator
        self.facts = evaluator.facts
        self.records: list[tuple[PruningPlan, Question, Measurement, float]] = []

    def __call__(self, plan: PruningPlan) -> Measurement:
        """Measures the start."""
        return self.evaluator(plan)

    def probe(self, plan: PruningPlan, question: Question) -> Measurement:
        """Times a probe."""
        started = time.process_time()
        found = self.evaluator.probe(plan, question)
        self.records.append((plan, question, found, time.process_time() - started))
        return found


def classes(recorder: Recorder) -> dict[str, list[tuple[PruningPlan, Question, Measurement, float]]]:
    """Sorts records by what they are; a confirmation counts together with its estimate."""
    found = defaultdict(list)
    estimates = {}
    for plan, question, measurement, seconds in recorder.records:
        if measurement.kind == "bound":
            found["rejection"].append((plan, question, measurement, seconds))
        elif measurement.kind == "estimate":
            estimates[plan] = seconds
            found["tentative acceptance"].append((plan, question, measurement, seconds))
        else:
            found["exact acceptance"].append((plan, question, measurement, seconds + estimates.get(plan, 0.0)))
    return found


def compare(recorder: Recorder, naive: NaiveLoop, sample: int) -> list[dict[str, Any]]:
    """Measures a sample of each kind naively, checks the verdicts, and returns the ratios of CPU seconds."""
    rows = []
    for name, records in classes(recorder).items():
        chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, sample).astype(int))]
        naive_seconds = []
        for plan, question, measurement, _ in chosen:
            started = time.process_time()
            metric = naive(plan)
            naive_seconds.append(time.process_time() - started)
            check(metric, measurement, question)
        own = [seconds for *_, seconds in chosen]
        looked_at = [float((~np.isnan(m.margins)).mean()) for _, _, m, _ in records if m.margins is not None]
        row = {"kind": name, "plans": len(records), "compared": len(chosen), "share_of_examples": np.mean(looked_at)}
        row |= {"naive_cpu_seconds": np.mean(naive_seconds), "cpu_seconds": np.mean(own)}
        row["cpu_seconds_of_all"] = np.mean([seconds for *_, seconds in records])
        row["ratio"] = row["naive_cpu_seconds"] / row["cpu_seconds"]
        row["ratio_of_all"] = row["naive_cpu_seconds"] / row["cpu_seconds_of_all"]
        rows.append({key: value if isinstance(value, (str, int)) else float(value) for key, value in row.items()})
    return rows


def check(metric: float, measurement: Measurement, question: Question) -> None:
    """Ends the benchmark where a verdict differs from that of the naive loop."""
    floor = question.floor if question.floor is not None else -1.0
    wrong = measurement.kind == "exact" and abs(metric - measurement.metric) > 1e-9  # noqa: PLR2004
    wrong |= measurement.kind == "bound" and not metric <= measurement.metric + 1e-9
    wrong |= measurement.kind == "bound" and not metric < floor
    if wrong:
        raise SystemExit(f"The naive loop measured {metric}, the search {measurement.kind} {measurement.metric}.")


def whole_search(model: Any, split: Any, naive_seconds: float, evaluations: int, *, greedy_too: bool) -> dict[str, Any]:
    """Compares the CPU seconds until A* removes so many heads with those of greedy elimination in the naive loop."""
    whole: dict[str, Any] = {"naive_cpu_seconds": naive_seconds}
    if greedy_too:
        found = search_over_plans(anatomy_of(model), evaluator_on(model, split), GREEDY, algorithm=greedy)
        whole["greedy"] = {"removed": found.gain, "evaluations": found.evaluations}
    for name, refits in (("refitted", True), ("as it is", False)):
        rows: dict[float, dict[str, float]] = {}
        started = time.process_time()

        def note(progress: Progress, rows: dict[float, dict[str, float]] = rows, started: float = started) -> None:
            removed, seconds = progress.best.gain, time.process_time() - started
            naive = plans_of_greedy(int(removed)) * naive_seconds
            row = {"removed": removed, "evaluations": progress.evaluations, "cpu_seconds": seconds}
            rows.setdefault(removed, row | {"greedy_cpu_seconds": naive, "ratio": naive / seconds})

        settings = replace(SEARCH, max_evaluations=evaluations, tuning=SearchTuning(refit=refits))
        search_over_plans(anatomy_of(model), evaluator_on(model, split), settings, on_progress=note)
        whole[name] = [row for removed, row in sorted(rows.items()) if removed]
    return whole


def plans_of_greedy(removed: int, units: int = 72) -> int:
    """Counts the plans that greedy backward elimination measures until it has removed so many units, if it does."""
    return sum(units - step for step in range(removed))


def growth(shapes: Any) -> list[dict[str, Any]]:
    """Measures one plan without half of the heads and FFN units exactly, on models with random weights."""
    rows = []
    for layers, hidden, examples, length in shapes:
        torch.manual_seed(0)
        sizes = {"hidden_size": hidden, "num_attention_heads": 12, "intermediate_size": 4 * hidden}
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **sizes)).eval()
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.normal(length, length / 2, examples).astype(int), 3, 2 * length)
        data = [{"input_ids": rng.integers(5, 9000, n).tolist(), "labels": int(i % 2)} for i, n in enumerate(lengths)]
        naive = NaiveLoop(model, data)
        evaluator = ExampleEvaluator(model, length_sorted_batches(data, PadRight(0), batch_size=32))
        full = PruningPlan.of(model)
        question: Any = Question(evaluator(full).margins)  # type: ignore[arg-type]
        evaluator.probe(full, question)  # the first one tries what the model allows
        plans = [
            full.replace(
                kept_heads=dict.fromkeys(full.kept_heads, range(first, 12, 2)),
                kept_ffn=dict.fromkeys(full.kept_ffn, range(first, 4 * hidden, 2)),
            )
            for first in (0, 1)
        ]
        seconds: dict[str, list[float]] = {"loop": [], "search": []}
        for plan in plans:
            for name, measure in (("loop", naive), ("search", partial(evaluator.probe, question=question))):
                started = time.process_time()
                measure(plan)
                seconds[name].append(time.process_time() - started)
        row = {"layers": layers, "hidden_size": hidden, "examples": examples, "mean_length": float(lengths.mean())}
        row |= {f"{name}_cpu_seconds": float(np.mean(each)) for name, each in seconds.items()}
        row["ratio"] = row["loop_cpu_seconds"] / row["search_cpu_seconds"]
        rows.append(row)
        print("growth", row, flush=True)
    return rows


def main() -> None:
    """Runs the comparison and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="where fine-tuned models are kept")
    parser.add_argument("--smoke", action="store_true", help="64 rows, a few evaluations")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--part", choices=PARTS, help="one part, into the same file")
    parser.add_argument("--greedy", action="store_true", help="run greedy elimination, too: an hour more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("sst2", limit=64 if options.smoke else None)
    model = fine_tuned(task, 0, options.work, smoke=options.smoke)
    out = options.out or (options.work / "search_speed.json" if options.smoke else RESULTS / "search_speed.json")
    kept = {name: part for name, part in read_json(out).items() if name in PARTS}
    content = {**kept, **environment(), "seed": 0, "examples": len(task.dev)}
    if options.part in (None, "kinds"):
        content |= measured_kinds(model, task.dev, smoke=options.smoke)
        write_json(out, content)
    if options.part in (None, "growth"):
        content["growth"] = growth(((2, 48, 20, 8),) if options.smoke else GROWTH)
        write_json(out, content)
    if options.part in (None, "whole"):
        naive_seconds = float(np.mean([row["naive_cpu_seconds"] for row in content["kinds"]]))
        evaluations = 12 if options.smoke else WHOLE_EVALUATIONS
        content["whole"] = whole_search(model, task.dev, naive_seconds, evaluations, greedy_too=options.greedy)
        print("whole search:", content["whole"], flush=True)
        write_json(out, content)


def measured_kinds(model: Any, split: Any, *, smoke: bool) -> dict[str, Any]:
    """Records a search, measures a sample of each kind of verdict naively, and returns the ratios and peak memory."""
    recorder, naive = Recorder(evaluator_on(model, split)), NaiveLoop(model, split)
    search_over_plans(anatomy_of(model), recorder, replace(SEARCH, max_evaluations=14) if smoke else SEARCH)
    rows = compare(recorder, naive, 2 if smoke else SAMPLE)
    for row in rows:
        print(
            f"{row['kind']}: {row['plans']} plans, ratio {row['ratio']:.2f}, of all {row['ratio_of_all']:.2f}",
            flush=True,
        )
    return {"kinds": rows, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    main()
