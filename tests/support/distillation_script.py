"""Started twice by test_distillation.py: each process distils on half of a batch; the first writes the weights."""

import json
import os
import sys
from pathlib import Path

import torch

from hf_headprune.learn.distillation.settings import Distillation
from tests.learn.test_distillation import _rows, _task, train_one_step


def main() -> None:
    folder = Path(sys.argv[1])
    found = {}
    for task in ("classification", "token classification"):
        student, teacher, batch = _task(task)
        arguments = {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "ddp_backend": "gloo",
            "ddp_find_unused_parameters": True,
        }
        # Two micro-batches of one in each of two processes: the whole batch of four.
        model = train_one_step(folder, student, _rows(batch), Distillation(teacher), arguments=arguments)
        found[task] = {name: value.detach() for name, value in model.named_parameters()}
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "weights.pt")
        (folder / "world.json").write_text(json.dumps(torch.distributed.get_world_size()), encoding="utf-8")
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # the interpreter's end may find the backend's threads running, and the process aborts


if __name__ == "__main__":
    main()
