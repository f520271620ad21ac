"""Started twice by test_distributed.py: each process trains its half of each batch and prints what it ended with."""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from hf_headprune import AStarSearch, HeadPruneCallback, anatomy_of
from tests.support.models import tiny_bert
from tests.support.settings import gates, movement, second_order
from tests.support.trainers import accuracy_of, attended_rows

SEARCH = AStarSearch(max_drop=0.05, max_evaluations=10)
MODES = {
    "gates": lambda: {"gates": gates(kept_heads=5, scoring_examples=8), "search": SEARCH},
    "second_order": lambda: {"second_order": second_order(kept_heads=5, scoring_examples=8), "search": SEARCH},
    "movement": lambda: {
        "movement": movement(attention_block="unit", penalty=1.0, warmup_ratio=0.0, width_multiple=8),
        "search": SEARCH,
    },
    "default": lambda: {"max_drop": 0.05},
    "seen drop": lambda: {"max_drop": 0.05, "confidence": None},
    "own number": lambda: {"max_drop": 5.0},
}


def percent(prediction):
    return {"accuracy": 100 * accuracy_of(prediction)["accuracy"]}


def outcome_of(mode: str, folder: Path) -> dict:
    callback = HeadPruneCallback(**MODES[mode](), latency=None)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=10,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=2,
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,  # as it is with activation checkpointing
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Trainer(
        model=tiny_bert(),
        args=arguments,
        train_dataset=attended_rows(64, 0),
        eval_dataset=attended_rows(80, 1),
        callbacks=[callback],
        compute_metrics=percent if mode == "own number" else None,
    )
    trainer.train()
    trainer.save_model()
    return {
        "mode": mode,
        "rank": arguments.process_index,
        "world": arguments.world_size,
        "kept": [list(callback.plan.kept(site)) for site in (*callback.plan.num_heads, *callback.plan.num_ffn)],
        "heads": anatomy_of(trainer.model).num_heads,
        "scores": [score for bank in callback._parts.banks if bank.learns_scores for score in bank.scores.tolist()],
        "weights": sum(float(parameter.double().abs().sum()) for parameter in trainer.model.parameters()),
        "metric": None if callback.report.metric is None else callback.report.metric.after,
        "certifies": callback.certificate is not None,
    }


def main() -> None:
    for mode in MODES:
        outcome = outcome_of(mode, Path(sys.argv[1], mode))
        sys.stdout.write(f"OUTCOME {json.dumps(outcome)}\n")
        sys.stdout.flush()
    torch.distributed.destroy_process_group()
    os._exit(0)  # the interpreter's end may find the backend's threads running, and the process aborts


if __name__ == "__main__":
    main()
