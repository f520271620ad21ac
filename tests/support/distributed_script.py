"""Started twice by test_distributed.py: each process trains its half of each batch and prints what it ended with."""

import json
import os
import sys

import torch
from transformers import Trainer, TrainingArguments

from hf_headprune import AStarSearch, BlockMovement, HeadPruneCallback, SecondOrder, SubsetGates, anatomy_of
from hf_headprune.learn.gates.settings import GateTuning
from hf_headprune.learn.movement.settings import MovementTuning
from hf_headprune.refit.settings import SecondOrderTuning
from tests.support.models import tiny_bert


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 100, (64, 6), generator=generator)
    dataset = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[0] > 50)} for row in ids]
    search = AStarSearch(max_drop=0.05, max_evaluations=10)
    callback = {
        "gates": HeadPruneCallback(
            gates=SubsetGates(kept_heads=5, tuning=GateTuning(scoring_examples=8)), search=search
        ),
        "second_order": HeadPruneCallback(
            second_order=SecondOrder(kept_heads=5, tuning=SecondOrderTuning(scoring_examples=8)), search=search
        ),
        "movement": HeadPruneCallback(
            search=search,
            movement=BlockMovement(
                attention_block="unit", penalty=1.0, warmup_ratio=0.0, tuning=MovementTuning(width_multiple=8)
            ),
        ),
    }[sys.argv[2]]
    arguments = TrainingArguments(
        output_dir=sys.argv[1],
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
        model=tiny_bert(), args=arguments, train_dataset=dataset, eval_dataset=dataset[:16], callbacks=[callback]
    )
    trainer.train()
    trainer.save_model()
    weights = sum(float(parameter.double().abs().sum()) for parameter in trainer.model.parameters())
    outcome = {
        "rank": arguments.process_index,
        "world": arguments.world_size,
        "kept": {site: list(kept) for site, kept in callback.plan.kept_heads.items()},
        "heads": anatomy_of(trainer.model).num_heads,
        "scores": [score for bank in callback._parts.banks if bank.learns_scores for score in bank.scores.tolist()],
        "weights": weights,
    }
    sys.stdout.write(f"OUTCOME {json.dumps(outcome)}\n")
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # the interpreter's end may find the backend's threads running, and the process aborts


if __name__ == "__main__":
    main()
