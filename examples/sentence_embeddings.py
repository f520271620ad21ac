"""Fine-tune and prune a SentenceTransformer on pairs of sentences with a score; Spearman's rank correlation.

    python examples/sentence_embeddings.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --train_file stsb/train.tsv --validation_file stsb/dev.tsv --test_file stsb/test.tsv --density 0.6 \
        --num_train_epochs 2 --output_dir out
    python examples/sentence_embeddings.py --model_name_or_path out-dense --train_file stsb/train.tsv \
        --validation_file stsb/dev.tsv --distil --density 0.5 --learning_rate 1e-4 --output_dir out
    python examples/sentence_embeddings.py --smoke

A row holds two sentences and a number. With --distil the scores are not looked at: the pruned model learns, on the
sentences alone, to embed them as the given model does. The metric is that of the evaluator of sentence-transformers.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from transformers import BertModel, HfArgumentParser, set_seed

from hf_headprune import Distillation

COLUMNS = ("sentence1", "sentence2", "score")


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str = field(
        metadata={"help": "SentenceTransformer, or a Transformers model to pool: a folder."}
    )
    max_seq_length: int = field(default=64, metadata={"help": "Longer sentences are cut."})
    distil: bool = field(default=False, metadata={"help": "Learn from the model's own embeddings, without scores."})


def scored(split: Dataset) -> Dataset:
    """Returns the pairs with scores from 0 to 1."""
    missing = set(COLUMNS) - set(split.column_names)
    if missing:
        raise ValueError(f"No column {sorted(missing)} among {split.column_names}: a row holds {list(COLUMNS)}.")
    scores = np.array(split["score"], dtype=float)
    largest = max(float(scores.max()), 1.0)
    pairs = {name: [*split[name]] for name in COLUMNS[:2]}
    return Dataset.from_dict({**pairs, "score": (scores / largest).tolist()})


def evaluator_of(split: Dataset, name: str) -> EmbeddingSimilarityEvaluator:
    """Returns what correlates cosine similarities with the scores."""
    return EmbeddingSimilarityEvaluator(*(list(split[column]) for column in COLUMNS), name=name, write_csv=False)


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    parser = HfArgumentParser(
        (ModelArguments, common.DataArguments, common.PruningArguments, SentenceTransformerTrainingArguments)
    )
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)

    splits = {name: scored(split) for name, split in data_args.complete(data_args.read()).items()}
    model = SentenceTransformer(model_args.model_name_or_path, device="cpu" if training_args.use_cpu else None)
    model.max_seq_length = model_args.max_seq_length
    evaluators = {name: evaluator_of(split, name) for name, split in splits.items() if name != "train"}
    results: dict[str, Any] = {
        f"{key}_before_training": value for it in evaluators.values() for key, value in it(model).items()
    }
    others = {"distillation": Distillation(copy.deepcopy(model))} if model_args.distil else {}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        loss=CosineSimilarityLoss(model),
        evaluator=evaluators["validation"],
        callbacks=pruning_args.callbacks(**others),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()

    results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    reloaded = SentenceTransformer(training_args.output_dir, device=str(model.device))
    for evaluator in evaluators.values():
        results |= evaluator(reloaded)
    few = splits["validation"]["sentence1"][:8]
    results["reload_difference"] = float(np.abs(model.encode(few) - reloaded.encode(few)).max())
    common.write_results(training_args.output_dir, results)
    return results


def smoke_arguments(folder: Path) -> list[str]:
    """Writes a tiny model with random weights and a toy task, and returns the arguments of a run of a few seconds."""
    rng = np.random.default_rng(0)
    words = ["red", "blue", "pale", "kite", "lamp", "boat", "in", "Oslo", "Lima"]
    files = []
    for split, size in (("train", 96), ("validation", 24), ("test", 24)):
        pairs = [rng.choice(words, (2, 5)) for _ in range(size)]
        rows = [f"{' '.join(one)}\t{' '.join(other)}\t{len({*one} & {*other})}" for one, other in pairs]
        path = folder / f"{split}.tsv"
        path.write_text("\n".join(["\t".join(COLUMNS), *rows, ""]), encoding="utf-8")
        files += [f"--{split}_file", str(path)]
    common.save_tiny_model(folder / "model", words, BertModel)
    folders = ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    training = "--num_train_epochs 4 --learning_rate 1e-3 --per_device_train_batch_size 16 --report_to none --use_cpu"
    return [
        *folders,
        *files,
        *training.split(),
        *["--save_strategy", "no", "--logging_steps", "50", "--density", "0.6"],
    ]


if __name__ == "__main__":
    common.run(main, smoke_arguments)
