"""A small run of the Trainer, and what it ends with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, logging

from hf_headprune import AStarSearch, HeadPruneCallback, SubsetGates
from hf_headprune._fingerprints import sha256_of

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
MODES = {
    "default": lambda: {"max_drop": 0.05},
    "search": lambda: {"search": AStarSearch(max_drop=0.05, max_evaluations=20)},
    "density": lambda: {"density": 0.5},
    "gates": lambda: {"gates": SubsetGates(kept_heads=3)},
}
STEPS, LAST = 24, 12


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Examples whose class the last token decides."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 11, (count, 6), generator=generator)
    ids[:, -1] = torch.randint(11, 13, (count,), generator=generator)
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": int(row[-1] == LAST)} for row in ids]


def model(seed: int = 0) -> BertForSequenceClassification:
    """A tiny classifier."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**SIZES))


def trainer(mode: str, folder: Path) -> tuple[Trainer, HeadPruneCallback]:
    """Builds a Trainer that keeps a checkpoint every six steps."""
    logging.set_verbosity_error()
    callback = HeadPruneCallback(**MODES[mode](), latency=None)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        save_strategy="steps",
        save_steps=6,
        logging_steps=6,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    built = Trainer(model(), arguments, train_dataset=rows(128, 0), eval_dataset=rows(240, 1), callbacks=[callback])
    return built, callback


def outcome(mode: str, folder: Path, *, resumes: bool = False) -> dict[str, Any]:
    """Trains to the end, saves, and returns what was pruned and the sha256 of what is left."""
    built, callback = trainer(mode, folder)
    resumes = resumes and any(folder.glob("checkpoint-*"))
    built.train(resume_from_checkpoint=resumes or None)
    built.save_model(str(folder / "saved"))
    state = built.model.state_dict()
    plan = hashlib.sha256(callback.plan.to_json().encode()).hexdigest()
    files = sorted(path.name for path in (folder / "saved").iterdir())
    return {
        "plan": plan,
        "weights": sha256_of("", state),
        "files": files,
        "report": json.loads(callback.report.to_json())["metric"],
    }
