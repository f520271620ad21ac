"""One training step with gates, or with gates and FFN units that learn, over the same plain Trainer step.

Two real Trainers run in two threads of which exactly one is awake: after each optimizer step the other one has its
turn. A step is timed from one `on_step_begin` to the next, so everything that the Trainer and the callback do counts.
Reported is the median ratio of neighbouring steps, in CPU seconds of the stepping thread (with one torch thread, as
set here, that is the whole step's work), and in wall seconds beside it. With a teacher in the phase "learn", the plain
Trainer runs the teacher's forward pass, too, so that the ratio says what distillation costs on top of it. In the phase
"second epoch", when the teacher's logits are stored, it is over a plain step alone.

Cells that are measured take the place of those of the same name in the result file; the others stay.

Run: python -m benchmarks.step_cost [--smoke] [--models MiniLM] [--parts "hybrid, teacher"] [--phases decided]
     [--precisions fp32]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from benchmarks.results_file import RESULTS, environment, read_json, write_json
from benchmarks.tasks import minilm
from hf_headprune import BlockMovement, Distillation, HeadPruneCallback, SecondOrder, SubsetGates
from hf_headprune.callback.distillation import distil
from hf_headprune.learn.gates.settings import GateTuning

WARMUP_STEPS = 3
EPOCH_STEPS = 4
PHASES = {"learn": 1.0, "decided": 0.0}  # fraction of the run at which the choice is fixed
STORED = "second epoch"
HALF = "half of the weights"
PARTS = {
    "gates": tuple(PHASES),
    "hybrid": ("learn",),
    "hybrid, teacher": ("learn",),
    "teacher": (STORED,),
    HALF: ("decided",),
}


class Turns(TrainerCallback):
    """Lets two Trainers step in turns and records the seconds of each step."""

    def __init__(self, mine: threading.Semaphore, other: threading.Semaphore) -> None:
        """Takes the semaphore that starts this Trainer's turn and the one that starts the other's."""
        self.mine, self.other = mine, other
        self.cpu_seconds: list[float] = []
        self.wall_seconds: list[float] = []
        self.started: tuple[float, float] | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Ends the clock of the last step, lets the other Trainer step, waits, and starts the clock."""
        if self.started is not None:
            self.cpu_seconds.append(time.thread_time() - self.started[0])
            self.wall_seconds.append(time.perf_counter() - self.started[1])
            self.other.release()
        self.mine.acquire()
        self.started = time.thread_time(), time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Lets the other Trainer finish."""
        self.other.release()


def bert_base(num_labels: int) -> BertForSequenceClassification:
    """Builds BERT-base with random weights."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_labels=num_labels))


def build(model: Any, shape: tuple[int, int], steps: int, callbacks: list[TrainerCallback], *, bf16: bool) -> Trainer:
    """Builds a Trainer whose batches all have the given shape `(batch, length)`."""
    batch, length = shape
    ids = torch.randint(1000, 20_000, (batch * EPOCH_STEPS, length), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 2} for i, row in enumerate(ids)]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="headprune-bench-"),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=5e-5,
        use_cpu=True,
        bf16=bf16,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    return Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=callbacks)


def pruning(part: str, phase: str, teacher: nn.Module | None) -> HeadPruneCallback:
    """Builds the callback: gates, or with movement scores of FFN units and a teacher; or removal costs."""
    if part == HALF:
        return HeadPruneCallback(second_order=SecondOrder(density=0.5, freeze_at=PHASES[phase]))
    gates = SubsetGates(
        kept_heads=0.5, warmup_ratio=0.0, freeze_at=PHASES[phase], tuning=GateTuning(scoring_examples=1)
    )
    movement = BlockMovement.ffn_units(0.5, warmup_ratio=0.0, ramp_end=PHASES[phase], freeze_at=PHASES[phase])
    return HeadPruneCallback(
        gates=gates,
        search=None,
        movement=None if part == "gates" else movement,
        distillation=None if teacher is None else Distillation(teacher),
    )


def run_beside(trainer: Trainer, teacher: nn.Module) -> None:
    """Lets each forward pass of a Trainer's model run that of a teacher, whose answers nobody looks at."""

    @torch.no_grad()
    def run(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        with trainer.accelerator.autocast():
            teacher(**{name: tensor for name, tensor in inputs.items() if name != "labels"})

    trainer.model.register_forward_pre_hook(run, with_kwargs=True)


def measure(
    make_model: Any, shape: tuple[int, int], part: str, phase: str, *, steps: int, bf16: bool
) -> dict[str, Any]:
    """Measures `steps` steps of a gated and of a plain Trainer in turns."""
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    clocks = [Turns(turns[0], turns[1]), Turns(turns[1], turns[0])]
    warmup = WARMUP_STEPS + (EPOCH_STEPS if phase == STORED else 0)
    total = steps + warmup + 1
    teachers = [make_model(2).eval() for _ in clocks] if "teacher" in part else [None, None]
    added = [] if phase == STORED else [pruning(part, phase, teachers[1])]
    trainers = [
        build(make_model(2), shape, total, [clocks[0]], bf16=bf16),
        build(make_model(2), shape, total, [clocks[1], *added], bf16=bf16),
    ]
    if phase == STORED:
        distil(trainers[1], Distillation(teachers[1]))
    else:
        if teachers[0] is not None:
            run_beside(trainers[0], teachers[0])
        added[0].on_train_end = lambda *a, **k: None  # only steps count, not the cut
    threads = [threading.Thread(target=trainer.train) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result: dict[str, Any] = {"shape": list(shape), "part": part, "phase": phase, "bf16": bf16, "steps": steps}
    for name in ("cpu_seconds", "wall_seconds"):
        plain, gated = (np.array(getattr(clock, name)[warmup:]) for clock in clocks)
        ratios = gated / plain
        result[name] = {
            "plain_median": float(np.median(plain)),
            "gated_median": float(np.median(gated)),
            "ratio_of_medians": float(np.median(gated) / np.median(plain)),
            "ratio_quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75])],
        }
    return result


def cell_of(result: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what names a measurement."""
    return result["model"], tuple(result["shape"]), result["part"], result["phase"], result["bf16"]


def main() -> None:
    """Measures all shapes and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps of one small shape")
    parser.add_argument("--models", nargs="+", default=("MiniLM", "BERT-base shapes"), help="of these models alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS), help="of these parts alone")
    parser.add_argument("--phases", nargs="+", choices=(*PHASES, STORED), default=(*PHASES, STORED))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.smoke:
        cases = [("MiniLM", minilm, (2, 8), 2)]
    else:
        cases = [
            ("MiniLM", minilm, (32, 32), 60),
            ("MiniLM", minilm, (8, 32), 150),
            ("BERT-base shapes", bert_base, (8, 128), 16),
        ]
    out = options.out or (None if options.smoke else RESULTS / "step_cost.json")
    known = {} if out is None else {cell_of(result): result for result in read_json(out).get("results", [])}
    for name, make_model, shape, steps in (case for case in cases if case[0] in options.models):
        cells = ((part, phase) for part in options.parts for phase in PARTS[part] if phase in options.phases)
        for (part, phase), precision in product(cells, ("fp32",) if options.smoke else options.precisions):
            bf16 = precision == "bf16"
            result = {"model": name, **measure(make_model, shape, part, phase, steps=steps, bf16=bf16)}
            known[cell_of(result)] = result
            ratio = result["cpu_seconds"]["ratio_quartiles"][1]
            print(name, shape, part, phase, f"bf16={bf16}", f"{ratio:.3f}", flush=True)
            if out is not None:
                write_json(out, {**environment(), "seed": 0, "results": list(known.values())})


if __name__ == "__main__":
    main()
