"""Train and prune a translation model: from a checkpoint, or a small one from scratch; BLEU and chrF.

    python examples/translation.py --source_lang de --target_lang en --train_file "multi30k/train.{lang}.gz" \
        --validation_file "multi30k/val.{lang}.gz" --test_file "multi30k/test_2016_flickr.{lang}.gz" \
        --num_train_epochs 10 --learning_rate 1e-3 --label_smoothing_factor 0.1 --output_dir out
    python examples/translation.py --model_name_or_path Helsinki-NLP/opus-mt-de-en --dataset_name wmt/wmt16 \
        --dataset_config_name de-en --source_lang de --target_lang en --density 0.6 --output_dir out
    python examples/translation.py --smoke

Files have one sentence per line, `{lang}` standing for each language, or rows with a column "translation" or one column
for each language. Plans are compared by the likelihood of the references; BLEU and chrF are measured with what the
model writes. Without --model_name_or_path, a model of Marian's shape is trained from scratch, with a vocabulary of the
training texts.
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


@dataclass
class DataArguments(common.DataArguments):
    """Which data, and which languages."""

    source_lang: str = field(default="de", metadata={"help": "Language that is read."})
    target_lang: str = field(default="en", metadata={"help": "Language that is written."})

    def pairs(self) -> dict[str, Dataset]:
        """Returns splits with the columns "source" and "target"."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        languages = self.source_lang, self.target_lang
        if any(text_pairs.PLACE in file for file in files.values() if file):
            splits = {name: text_pairs.parallel_lines(file, languages) for name, file in files.items() if file}
        else:
            splits = {name: self._columns(split) for name, split in self.read().items()}
        return self.complete(splits)

    def _columns(self, split: Dataset) -> Dataset:
        rows: Any = split["translation"] if "translation" in split.column_names else split
        named = {"source": self.source_lang, "target": self.target_lang}
        return Dataset.from_dict({name: [row[language] for row in rows] for name, language in named.items()})


def bleu(predicted: list[str], gold: list[str]) -> float:
    """BLEU of a corpus, 0 to 100."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(predicted, [gold]).score)


def chrf(predicted: list[str], gold: list[str]) -> float:
    """Character F-score of a corpus, 0 to 100."""
    import sacrebleu

    return float(sacrebleu.corpus_chrf(predicted, [gold]).score)


def trainer_and_splits(arguments: list[str]) -> tuple[Seq2SeqTrainer, dict[str, Dataset]]:
    """Returns the Trainer that the arguments ask for, and what it reads."""
    parser = HfArgumentParser(
        (text_pairs.ModelArguments, DataArguments, common.PruningArguments, Seq2SeqTrainingArguments)
    )
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)
    metrics = {"bleu": bleu, "chrf": chrf}
    return text_pairs.trainer_and_splits(data_args.pairs(), model_args, pruning_args, training_args, metrics)


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    return common.journey(*trainer_and_splits(arguments), AutoModelForSeq2SeqLM.from_pretrained)


NOUNS = {"der Hund": "the dog", "die Katze": "the cat", "der Mann": "the man", "das Kind": "the child"}
VERBS = {"sieht": "sees", "hört": "hears", "sucht": "seeks"}


def smoke_arguments(folder: Path) -> list[str]:
    """Writes a toy language, and returns the arguments of a run of a few seconds."""
    rng = np.random.default_rng(0)

    def pair() -> tuple[str, str]:
        (one, other), verb = rng.choice(list(NOUNS), 2), rng.choice(list(VERBS))
        return f"{one} {verb} {other}", f"{NOUNS[one]} {VERBS[verb]} {NOUNS[other]}"

    own = "--vocab_size 80 --max_source_length 16 --max_target_length 16 --num_train_epochs 12 --max_drop 0.1"
    return text_pairs.smoke_arguments(folder, ("de", "en"), pair, own)


if __name__ == "__main__":
    common.run(main, smoke_arguments)
