"""Fine-tune and prune a BERT-like model on extractive question answering: SQuAD v1.1 from the Hub or local files.

    python examples/question_answering.py --model_name_or_path bert-base-uncased --dataset_name rajpurkar/squad \
        --validation_fraction 0.1 --max_drop 0.01 --num_train_epochs 2 --learning_rate 3e-5 --output_dir out
    python examples/question_answering.py --model_name_or_path path/to/model --train_file train.json \
        --validation_file dev.json --test_file test.json --density 0.5 --output_dir out
    python examples/question_answering.py --model_name_or_path path/to/model --train_file train.json \
        --validation_file dev.json --recipe hybrid_filled --density 0.26 --teacher_name_or_path path/to/tuned/model \
        --num_train_epochs 20 --output_dir out
    python examples/question_answering.py --smoke

Plans are tested on the validation split; only the test split says how good the result is on other data, and
--certify prunes what is seen to lose at most --max_drop there, and writes down what that shows. With
--validation_fraction whole articles of the training split become the validation split, and a data set's own validation
split becomes the test split. Exact match and F1 are between 0 and 1, so --max_drop 0.01 is one point of F1. Every
question must have an answer: SQuAD v2 is refused.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import reload_difference, save_tiny_model, write_results
from datasets import Dataset
from squad_format import QuestionScorer, SquadMetrics, split_off
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForQuestionAnswering,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_headprune import BlockMovement, CertificationData, Distillation, HeadPruneCallback, Metric
from hf_headprune.tasks.windows import WINDOW_COLUMNS, Windows, check_questions

logger = logging.getLogger("question_answering")


@dataclass
class ModelArguments:
    """Which model, and how it reads."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint of a supported family: a Hub name or a folder."})
    max_seq_length: int = field(default=384, metadata={"help": "Tokens of a window: question and part of a context."})
    doc_stride: int = field(default=128, metadata={"help": "Tokens of a context that neighbouring windows share."})
    n_best_size: int = field(default=20, metadata={"help": "Answers written for every question."})
    max_answer_length: int = field(default=30, metadata={"help": "Longer answers, in tokens, are not considered."})


@dataclass
class DataArguments(common.DataArguments):
    """Which data, in SQuAD's format."""

    validation_fraction: float = field(default=0.0, metadata={"help": "Part these articles of train off to search on."})


@dataclass
class PruningArguments(common.PruningArguments):
    """How to prune."""

    recipe: str | None = field(
        default=None, metadata={"help": "Block movement as published: hybrid, hybrid_filled or struct."}
    )
    penalty: float | None = field(default=None, metadata={"help": "Of the recipe, in place of a density."})
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "A trained model of the same task that helps."}
    )
    metric: str = field(default="f1", metadata={"help": "f1 or exact_match."})
    max_evaluations: int = field(default=60, metadata={"help": "Plans that the search may evaluate."})
    certify: bool = field(
        default=False, metadata={"help": "Certify on the test split how little of the metric was lost."}
    )

    def __post_init__(self) -> None:
        """Refuses options that another one would silence."""
        super().__post_init__()
        if self.penalty is not None and not self.recipe:
            raise ValueError(f"--penalty {self.penalty} is one of a --recipe. Name the recipe, too.")
        if self.recipe and (self.gates or self.kept_heads or self.search):
            raise ValueError("--recipe chooses what to keep by block movement: leave out gates, heads and search.")

    def for_questions(self, splits: dict[str, Dataset], scorer: QuestionScorer) -> list[HeadPruneCallback]:
        """Returns what to hand to the Trainer.

        Args:
            splits: Questions.
            scorer: What a certificate compares models by.
        """
        if self.certify and (self.no_pruning or "test" not in splits):
            raise ValueError("--certify says what pruning lost on the test split: it needs both.")
        others: dict[str, Any] = {}
        if self.teacher_name_or_path and not self.no_pruning:
            teacher = AutoModelForQuestionAnswering.from_pretrained(self.teacher_name_or_path)
            others["distillation"] = Distillation(teacher)
        if self.certify:  # questions on one context depend on each other
            seen = {"train": splits["train"], "search": splits["validation"]}
            others["certification_dataset"] = CertificationData(splits["test"], **seen, groups="context")
            others["certification_metric"] = Metric(self.metric, "bounded", score=scorer)
        if self.recipe:
            return [] if self.no_pruning else [HeadPruneCallback(movement=self.movement(), **others)]
        return self.callbacks(**others)

    def movement(self) -> BlockMovement:
        """Returns the settings of the published recipe that was asked for."""
        recipes = {
            "hybrid": BlockMovement.hybrid,
            "hybrid_filled": BlockMovement.hybrid_filled,
            "struct": BlockMovement.struct,
        }
        if self.recipe not in recipes or (self.penalty is not None and self.density is not None):
            raise ValueError(
                f"--recipe {self.recipe} must be one of {list(recipes)}, with --penalty or --density, not both: "
                f"received {self.penalty} and {self.density}."
            )
        return recipes[self.recipe](**({} if self.penalty is None else {"penalty": self.penalty}), density=self.density)


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    parser = HfArgumentParser((ModelArguments, DataArguments, PruningArguments, TrainingArguments))
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)

    splits = load_splits(data_args, training_args.seed)
    logger.info("questions: %s", {name: len(split) for name, split in splits.items()})
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    if not tokenizer.is_fast or tokenizer.padding_side != "right":
        raise ValueError(
            f"{type(tokenizer).__name__}: finding answers in the text needs a fast tokenizer, right padded."
        )
    model = AutoModelForQuestionAnswering.from_pretrained(model_args.model_name_or_path)
    windows = Windows(tokenizer, max_length=model_args.max_seq_length, stride=model_args.doc_stride)
    encoded = {name: windows.encode(split) for name, split in splits.items()}
    scorer = QuestionScorer(windows, pruning_args.metric, model_args.max_answer_length)
    options = {"n_best": model_args.n_best_size, "max_tokens": model_args.max_answer_length}
    metrics = {name: SquadMetrics(splits[name], encoded[name], **options) for name in splits if name != "train"}
    inputs = {name: split.remove_columns(list(WINDOW_COLUMNS)) for name, split in encoded.items()}
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=metrics["validation"],
        callbacks=pruning_args.for_questions(splits, scorer),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()

    folder = Path(training_args.output_dir)
    results: dict[str, Any] = {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    for name, scores in metrics.items():
        trainer.compute_metrics = scores
        output = trainer.predict(inputs[name], metric_key_prefix=name)
        results |= output.metrics
        found = json.dumps(scores.answers(output.predictions), indent=1, ensure_ascii=False)
        (folder / f"predictions_{name}.json").write_text(found, encoding="utf-8")
    results["reload_difference"] = reload_difference(
        trainer,
        inputs["validation"].take(4),
        AutoModelForQuestionAnswering.from_pretrained,
        ("start_logits", "end_logits"),
    )
    write_results(training_args.output_dir, results)
    return results


def load_splits(arguments: DataArguments, seed: int) -> dict[str, Dataset]:
    """Returns the splits "train", "validation" and, where there is one, "test"."""
    splits = arguments.read()
    for name, split in splits.items():
        check_questions(split, name)
    if arguments.validation_fraction:
        splits = with_own_validation(splits, arguments.validation_fraction, seed)
    return arguments.complete(splits)


def with_own_validation(splits: dict[str, Dataset], fraction: float, seed: int) -> dict[str, Dataset]:
    """Parts a validation split off the training split; the given validation split becomes the test split."""
    rest = {name: split for name, split in splits.items() if name != "train"}
    if not 0 < fraction < 1 or "train" not in splits or len(rest) > 1:
        raise ValueError(
            f"--validation_fraction {fraction} must be between 0 and 1, and needs a training split and at most one "
            f"other; there are {sorted(splits)}."
        )
    train, validation = split_off(splits["train"], fraction, seed)
    parted = {"train": train, "validation": validation}
    return parted | ({"test": next(iter(rest.values()))} if rest else {})


NAMES, VERBS = ["Anna", "Ben", "Cleo", "Dan"], ["found", "sold", "drew"]
COLOURS, THINGS, PLACES = ["red", "blue", "pale"], ["kite", "lamp", "boat"], ["Oslo", "Lima", "Kyoto"]


def toy_paragraphs(size: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Makes sentences of who did what where, with a question about each of the three."""
    paragraphs = []
    for _ in range(size):
        name, verb, colour, thing, place = (str(rng.choice(w)) for w in (NAMES, VERBS, COLOURS, THINGS, PLACES))
        context = f"{name} {verb} a {colour} {thing} in {place}."
        answers = {"Who?": name, "What?": f"{colour} {thing}", "Where?": place}
        questions = [
            {"question": question, "answers": [{"text": text, "answer_start": context.index(text)}]}
            for question, text in answers.items()
        ]
        paragraphs.append({"context": context, "qas": questions})
    return paragraphs


def smoke_arguments(folder: Path) -> list[str]:
    """Writes a tiny model with random weights and a toy task, and returns the arguments of a run of a few seconds."""
    rng = np.random.default_rng(0)
    for name, size in (("train", 64), ("test", 24)):
        articles = [{"title": f"{name} {i}", "paragraphs": toy_paragraphs(size // 8, rng)} for i in range(8)]
        questions = [question for a in articles for paragraph in a["paragraphs"] for question in paragraph["qas"]]
        for number, question in enumerate(questions):
            question["id"] = f"{name}-{number}"
        (folder / f"{name}.json").write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")
    words = [*NAMES, *VERBS, *COLOURS, *THINGS, *PLACES, "Who", "What", "Where", "?", "a", "in", "."]
    save_tiny_model(folder / "model", words, BertForQuestionAnswering)
    # Ten tokens do not hold question and context: most contexts become two windows.
    data = ["--train_file", str(folder / "train.json"), "--test_file", str(folder / "test.json")]
    reading = "--validation_fraction 0.25 --max_seq_length 10 --doc_stride 3 --max_answer_length 4"
    training = "--num_train_epochs 12 --learning_rate 3e-3 --per_device_train_batch_size 16 --report_to none --use_cpu"
    pruning = "--save_strategy no --logging_steps 20"
    folders = ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    return [*folders, *data, *reading.split(), *training.split(), *pruning.split()]


if __name__ == "__main__":
    common.run(main, smoke_arguments)
