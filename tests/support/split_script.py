"""Started twice by tests/faults/test_split_models.py: FSDP2 over two processes on the CPU, by accelerate's own code."""

import json
import os
import sys

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_headprune import HeadPruneCallback, anatomy_of
from hf_headprune.callback.gathering import is_split
from tests.support.models import tiny_bert
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
            state_dict_type="FULL_STATE_DICT",
        )
        self.is_fsdp_enabled = True


def main() -> None:
    folder = sys.argv[1]
    callback = HeadPruneCallback(max_drop=0.05, latency=None)
    arguments = TrainingArguments(
        output_dir=folder,
        **{**LEARNS, "per_device_train_batch_size": 8, "max_steps": 30},
        use_cpu=True,
        ddp_backend="gloo",
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Fsdp(
        model=tiny_bert(),
        args=arguments,
        train_dataset=attended_rows(64, 0),
        eval_dataset=attended_rows(80, 1),
        callbacks=[callback],
    )
    seen = []
    step = trainer.training_step
    trainer.training_step = lambda *given, **named: (seen.append(is_split(trainer.model)), step(*given, **named))[1]
    trainer.train()
    trainer.save_model(folder + "/saved")
    trainer.accelerator.wait_for_everyone()
    loaded = AutoModelForSequenceClassification.from_pretrained(folder + "/saved")
    outcome = {
        "rank": arguments.process_index,
        "was split": all(seen) and len(seen) > 0,
        "is split": is_split(trainer.model),
        "kept": [list(callback.plan.kept(site)) for site in (*callback.plan.num_heads, *callback.plan.num_ffn)],
        "heads": anatomy_of(trainer.model).num_heads,
        "reloads alike": torch.equal(logits_of(loaded), logits_of(trainer.model)),
        "accuracy": trainer.evaluate()["eval_loss"],
    }
    sys.stdout.write(f"OUTCOME {json.dumps(outcome)}\n")
    sys.stdout.flush()
    torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
