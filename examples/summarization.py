"""Train and prune a model that summarises texts: from a checkpoint, or a small one from scratch; ROUGE.

    python examples/summarization.py --model_name_or_path facebook/bart-base --train_file scitldr/train.jsonl \
        --validation_file scitldr/dev.jsonl --test_file scitldr/test.jsonl --density 0.6 --output_dir out
    python examples/summarization.py --dataset_name EdinburghNLP/xsum --text_column document --summary_column summary \
        --model_name_or_path facebook/bart-base --output_dir out
    python examples/summarization.py --smoke

A column may hold a text or a list of sentences; of several summaries the first one counts. Plans are compared by the
likelihood of the summaries, and ROUGE is measured with what the model writes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import text_pairs
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, HfArgumentParser, Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

ROUGES = ("rouge1", "rouge2", "rougeL")


@dataclass
class DataArguments(common.DataArguments):
    """Which data, and which columns of it."""

    text_column: str = field(default="source", metadata={"help": "Column of the text."})
    summary_column: str = field(default="target", metadata={"help": "Column of the summary."})

    def pairs(self) -> dict[str, Dataset]:
        """Returns splits with the columns "source" and "target"."""
        named = {"source": self.text_column, "target": self.summary_column}
        splits = {}
        for name, split in self.read().items():
            missing = set(named.values()) - set(split.column_names)
            if missing:
                raise ValueError(
                    f"{name}: no column {sorted(missing)} among {split.column_names}. Name them with --text_column and "
                    "--summary_column."
                )
            whole = {"source": " ".join, "target": lambda parts: parts[0]}
            splits[name] = Dataset.from_dict(
                {
                    ours: [value if isinstance(value, str) else whole[ours](value) for value in split[theirs]]
                    for ours, theirs in named.items()
                }
            )
        return self.complete(splits)


class Rouge:
    """One ROUGE, the mean F of all pairs, 0 to 1."""

    def __init__(self, name: str) -> None:
        """Keeps the name: rouge1, rouge2 or rougeL."""
        self._name = name

    def __call__(self, predicted: list[str], gold: list[str]) -> float:
        """Returns the mean of all pairs."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self._name], use_stemmer=True)
        pairs = zip(gold, predicted, strict=True)
        return float(np.mean([scorer.score(*pair)[self._name].fmeasure for pair in pairs]))


def trainer_and_splits(arguments: list[str]) -> tuple[Seq2SeqTrainer, dict[str, Dataset]]:
    """Returns the Trainer that the arguments ask for, and what it reads."""
    parser = HfArgumentParser(
        (text_pairs.ModelArguments, DataArguments, common.PruningArguments, Seq2SeqTrainingArguments)
    )
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)
    metrics = {name: Rouge(name) for name in ROUGES}
    return text_pairs.trainer_and_splits(data_args.pairs(), model_args, pruning_args, training_args, metrics)


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    return common.journey(*trainer_and_splits(arguments), AutoModelForSeq2SeqLM.from_pretrained)


TOPICS = ["cats", "ships", "tea", "maps"]
FILLERS = ["We looked long.", "There were many.", "It was late."]


def smoke_arguments(folder: Path) -> list[str]:
    """Writes toy texts, whose first sentence names what they are about, and returns the arguments of a short run."""
    rng = np.random.default_rng(0)

    def pair() -> tuple[Any, Any]:
        topic = str(rng.choice(TOPICS))
        return [f"This text is about {topic}.", *map(str, rng.choice(FILLERS, 2))], [f"On {topic}"]

    own = "--vocab_size 90 --max_source_length 32 --max_target_length 8 --num_train_epochs 6 --density 0.6"
    return text_pairs.smoke_arguments(folder, ("source", "target"), pair, own)


if __name__ == "__main__":
    common.run(main, smoke_arguments)
