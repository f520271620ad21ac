"""What the example scripts share: their arguments, how they read data, and a tiny model for --smoke."""

from __future__ import annotations

import gzip
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerFast, Trainer

from hf_headprune import AStarSearch, HeadPruneCallback, SubsetGates
from hf_headprune.cli.files import DataSource

logger = logging.getLogger("examples")
DEFAULT_DROP = 0.01
TextMetric = Callable[[list[str], list[str]], float]


@dataclass
class CheckpointArguments:
    """Which model."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint of a supported family: a Hub name or a folder."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})


@dataclass
class DataArguments:
    """Which data."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a folder in its format."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration, such as sst2."})
    train_file: str | None = field(default=None, metadata={"help": "Local file, see above."})
    validation_file: str | None = field(default=None, metadata={"help": "Plans are tested on this file."})
    test_file: str | None = field(default=None, metadata={"help": "Evaluated once, after pruning."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first ones."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation and test."})

    def read(self) -> dict[str, Dataset]:
        """Returns the splits that there are of "train", "validation" and "test"."""
        files = self.train_file, self.validation_file, self.test_file
        return DataSource(*(file or None for file in files), self.dataset_name, self.dataset_config_name).read()

    def complete(self, splits: dict[str, Dataset]) -> dict[str, Dataset]:
        """Returns the first rows of each split, as many as asked for; refuses data without one to search on."""
        missing = {"train", "validation"} - splits.keys()
        if missing:
            raise ValueError(
                f"No data for {sorted(missing)}: give --dataset_name, or --train_file and --validation_file."
            )
        limits = {"train": self.max_train_samples}
        sizes = {name: limits.get(name, self.max_eval_samples) or len(split) for name, split in splits.items()}
        return {name: split.select(range(min(sizes[name], len(split)))) for name, split in splits.items()}


@dataclass
class PruningArguments:
    """How to prune: at most one of max_drop, density, speedup, size_mb and kept_heads; a drop of one point without."""

    max_drop: float | None = field(default=None, metadata={"help": "Drop of the metric that is allowed, 0.01 a point."})
    density: float | None = field(default=None, metadata={"help": "Share of the attention and FFN weights kept."})
    speedup: float | None = field(default=None, metadata={"help": "Multiply-accumulates before over after."})
    size_mb: float | None = field(default=None, metadata={"help": "Size of model.safetensors in MB."})
    kept_heads: str | None = field(default=None, metadata={"help": "Heads kept: a number, or a share such as 0.5."})
    gates: bool = field(default=False, metadata={"help": "Learn during training which --kept_heads to keep."})
    estimator: str | None = field(default=None, metadata={"help": "Of the gates: ste, sigmoid, dsp or hard_concrete."})
    mode: str = field(default="joint", metadata={"help": "Of the gates: joint, or pipelined for a fine-tuned model."})
    search: bool = field(default=False, metadata={"help": "Search with A* after training, within --max_drop."})
    metric: str | None = field(default=None, metadata={"help": "Of the search; the task's if left out."})
    max_evaluations: int = field(default=150, metadata={"help": "Plans that the search may evaluate."})
    confidence: str = field(default="auto", metadata={"help": "Of the certificate, such as 0.95; none: without one."})
    no_pruning: bool = field(default=False, metadata={"help": "Train the dense model, for comparison."})

    def __post_init__(self) -> None:
        """Refuses options that another one would silence."""
        of_gates = {"--estimator": self.estimator is not None, "--mode": self.mode != "joint"}
        silenced = [option for option, given in of_gates.items() if given]
        if silenced and not self.gates:
            raise ValueError(f"{', '.join(silenced)}: for gates only. Pass --gates, too.")

    def callbacks(self, **others: Any) -> list[HeadPruneCallback]:
        """Returns what to hand to the Trainer.

        Args:
            **others: Further arguments of the callback.
        """
        if self.no_pruning:
            return []
        kept: Any = self.kept_heads
        if kept is not None:
            kept = float(kept) if "." in kept else int(kept)
        budgets = {"density": self.density, "speedup": self.speedup, "size_mb": self.size_mb}
        if self.gates:
            others["gates"] = SubsetGates(kept_heads=kept or 0.5, estimator=self.estimator, mode=self.mode)
        else:
            budgets["kept_heads"] = kept
        if self.search:
            drop = DEFAULT_DROP if self.max_drop is None else self.max_drop
            others["search"] = AStarSearch(max_drop=drop, metric=self.metric, max_evaluations=self.max_evaluations)
        else:
            budgets["max_drop"] = self.max_drop
        levels: dict[str, Any] = {"auto": "auto", "none": None}
        level = levels[self.confidence] if self.confidence in levels else float(self.confidence)
        return [HeadPruneCallback(**budgets, **others, confidence=level)]


def run(main: Callable[[list[str]], Any], smoke_arguments: Callable[[Path], list[str]]) -> None:
    """Runs a script on what was typed, or with `--smoke` for a few seconds on data that it makes itself.

    Args:
        main: Takes the arguments.
        smoke_arguments: Writes data into a folder, and returns the arguments of a run on them.
    """
    if "--smoke" not in sys.argv[1:]:
        main(sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        main(smoke_arguments(Path(folder)))


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a text file, perhaps compressed."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return [line.strip() for line in file]


def encoded(splits: dict[str, Dataset], encode: Callable[[dict[str, list[Any]]], dict[str, Any]]) -> dict[str, Dataset]:
    """Returns the splits as a model reads them, without the columns that they had."""
    return {
        name: split.map(encode, batched=True, remove_columns=split.column_names, keep_in_memory=True)
        for name, split in splits.items()
    }


def journey(
    trainer: Trainer, splits: dict[str, Dataset], load: Callable[[str], PreTrainedModel], *, num_compared: int = 4
) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results, which it also writes to `results.json`.

    Args:
        trainer: With the callback, or without for comparison.
        splits: What it reads: "train", "validation", and "test" where there is one.
        load: Reads the saved model.
        num_compared: Examples on which the model in memory and the reloaded one are compared.
    """
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()
    model: Any = trainer.model
    results: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    for name in ("validation", "test"):
        if name in splits:
            results |= trainer.evaluate(splits[name], metric_key_prefix=name)
    results |= before_and_after(trainer)
    few = splits["validation"].select(range(min(num_compared, len(splits["validation"]))))
    results["reload_difference"] = reload_difference(trainer, few, load)
    write_results(trainer.args.output_dir, results)
    return results


def before_and_after(trainer: Trainer) -> dict[str, float]:
    """Returns the metric that the callback has measured before and after pruning, where it did."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, HeadPruneCallback) and callback.report is not None:
            change = callback.report.unseen or callback.report.metric
            return {} if change is None else {"before_pruning": change.before, "after_pruning": change.after}
    return {}


def write_results(folder: str, results: dict[str, Any]) -> None:
    """Writes results beside the model, and says them."""
    text = json.dumps(results, indent=2)
    (Path(folder) / "results.json").write_text(text, encoding="utf-8")
    logger.info("%s", text)


def load_metric(name: str, stand_in: Callable[..., Any], of: str = "scikit-learn") -> Callable[..., Any]:
    """Returns `compute` of a module of `evaluate`, or a stand-in with its arguments where that can't be loaded."""
    try:
        module = import_module("evaluate").load(name)
    except (ImportError, OSError) as error:
        logger.warning("%s is that of %s: evaluate can't load it (%s)", name, of, str(error).partition("\n")[0])
        return stand_in
    return module.compute


def reload_difference(
    trainer: Trainer, examples: Dataset, load: Callable[[str], PreTrainedModel], outputs: tuple[str, ...] = ("logits",)
) -> float:
    """Returns the largest difference between the outputs of the model in memory and of the one that was saved."""
    # Mixed precision wraps the forward pass of the model that was trained, not of one that is loaded.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    batch = {name: tensor.to(model.device) for name, tensor in trainer.data_collator(list(examples)).items()}
    reloaded = load(trainer.args.output_dir).to(model.device).eval()
    with torch.no_grad():
        here, there = model(**batch), reloaded(**batch)
    return max(float((here[name] - there[name]).abs().max()) for name in outputs)


def save_tiny_model(folder: Path, words: list[str], model_class: type[PreTrainedModel], **settings: Any) -> None:
    """Saves a tiny BERT with random weights, and a tokenizer that knows a few words; settings are of its config."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.1, **sizes, **settings
    )
    model_class(config).save_pretrained(folder)
