"""Started twice by tests/faults/test_split_models.py: FSDP2 over two processes on the CPU, by accelerate's own code."""

import json
import os
import sys

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_headprune import Distillation, HeadPruneCallback, anatomy_of
from hf_headprune.callback.gathering import is_split
from tests.support.models import tiny_bert
from tests.support.settings import gates, movement
from tests.support.trainers import LEARNS, attended_rows, logits_of


class Fsdp(Trainer):
    """Shards on the CPU: accelerate offers FSDP on accelerators alone, but its code runs on gloo, too."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
            state_dict_type="SHARDED_STATE_DICT",
        )
        self.is_fsdp_enabled = True


SAVED = 4  # steps after which a checkpoint is written: before anything is decided
MODES = {
    "default": lambda: {"max_drop": 0.05},
    "costs": lambda: {"density": 0.5, "distillation": Distillation(tiny_bert(seed=1))},
    "gates": lambda: {"gates": gates(kept_heads=5, scoring_examples=8, estimator="hard_concrete", penalty=0.1)},
    "movement": lambda: {"movement": movement(attention_block="unit", penalty=1.0, warmup_ratio=0.0, width_multiple=8)},
}


def run(trainer_class, folder, mode, *, resumes=None, **settings):
    """A Trainer whose training has ended, its callback, and for each step whether the model was split then."""
    callback = HeadPruneCallback(**MODES[mode](), latency=None)
    arguments = TrainingArguments(
        output_dir=folder,
        **{**LEARNS, "per_device_train_batch_size": 8, "max_steps": 30 if mode == "default" else 12},
        use_cpu=True,
        ddp_backend="gloo",
        save_strategy="no" if mode == "default" else "steps",
        save_steps=SAVED,
        logging_steps=5,
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    trainer = trainer_class(
        model=tiny_bert(),
        args=arguments,
        train_dataset=attended_rows(64, 0),
        eval_dataset=attended_rows(80, 1),
        callbacks=[callback],
    )
    seen = []
    step = trainer.training_step
    trainer.training_step = lambda *given, **named: (seen.append(is_split(trainer.model)), step(*given, **named))[1]
    trainer.train(resume_from_checkpoint=resumes)
    return trainer, callback, seen


def outcome_of(folder, mode):
    """What this process ends with, and how far the weights are from those of data parallelism on the same batches."""
    trainer, callback, seen = run(Fsdp, folder + "/" + mode, mode)
    trainer.save_model(folder + "/saved " + mode)
    trainer.accelerator.wait_for_everyone()
    loaded = AutoModelForSequenceClassification.from_pretrained(folder + "/saved " + mode)
    found = {
        "mode": mode,
        "rank": trainer.args.process_index,
        "was split": all(seen) and len(seen) > 0,
        "is split": is_split(trainer.model),
        "kept": [list(callback.plan.kept(site)) for site in (*callback.plan.num_heads, *callback.plan.num_ffn)],
        "heads": anatomy_of(trainer.model).num_heads,
        "reloads alike": torch.equal(logits_of(loaded), logits_of(trainer.model)),
        "accuracy": trainer.evaluate()["eval_loss"],
        "scores": [score for bank in callback._parts.banks if bank.learns_scores for score in bank.scores.tolist()],
    }
    if mode == "default":
        return found
    AcceleratorState._reset_state()
    again, same, _ = run(Fsdp, folder + "/" + mode, mode, resumes=f"{folder}/{mode}/checkpoint-{SAVED}")
    found |= {
        "plan of resumed": same.plan == callback.plan,
        "from resumed": float((logits_of(again.model) - logits_of(trainer.model)).abs().max()),
    }
    plain, other, was_split = run(Trainer, folder + "/plain " + mode, mode, ddp_find_unused_parameters=True)
    scores = [score for bank in other._parts.banks if bank.learns_scores for score in bank.scores.tolist()]
    return found | {
        "plain was split": any(was_split),
        "plan of plain": other.plan == callback.plan,
        "from plain": float((logits_of(plain.model) - logits_of(trainer.model)).abs().max()),
        "scores from plain": max((abs(a - b) for a, b in zip(scores, found["scores"], strict=True)), default=0.0),
    }


def main() -> None:
    for mode in MODES if len(sys.argv) < 3 else sys.argv[2:]:
        sys.stdout.write(f"OUTCOME {json.dumps(outcome_of(sys.argv[1], mode))}\n")
        sys.stdout.flush()
        AcceleratorState._reset_state()
    torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
