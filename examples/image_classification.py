"""Train and prune a Vision Transformer on images and their classes: from a checkpoint, or a small one from scratch.

    python examples/image_classification.py --arrays_file mnist_t10k.npz --num_train_epochs 5 --learning_rate 1e-3 \
        --max_drop 0.01 --output_dir out
    python examples/image_classification.py --model_name_or_path google/vit-base-patch16-224-in21k \
        --dataset_name uoft-cs/cifar10 --image_column img --density 0.6 --output_dir out
    python examples/image_classification.py --smoke

Plans are compared by accuracy. An .npz file holds `x_train`, `y_train`, `x_test` and
`y_test`, images as (height, width) or (height, width, channels) of 0 to 255; a part of the training images then becomes
the validation split. Without --model_name_or_path, a small model is trained from scratch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

GREY_DIMS = 2


@dataclass
class ModelArguments:
    """Which model; a small one is trained from scratch if none is named."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint: a Hub name or a folder."})
    patch_size: int = field(default=7, metadata={"help": "From scratch: pixels of a patch, along one side."})
    layers: int = field(default=6, metadata={"help": "From scratch: layers."})
    hidden_size: int = field(default=96, metadata={"help": "From scratch: width; the FFN is four times as wide."})
    heads: int = field(default=6, metadata={"help": "From scratch: heads of each layer."})

    def load(self, labels: list[str], image: np.ndarray) -> Any:
        """Returns the model of the checkpoint, or a new one for images like this one, (channels, height, width)."""
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        if self.model_name_or_path is not None:
            return AutoModelForImageClassification.from_pretrained(self.model_name_or_path, **names)
        sizes = {"hidden_size": self.hidden_size, "intermediate_size": 4 * self.hidden_size}
        shape = {"num_channels": image.shape[0], "image_size": image.shape[1], "patch_size": self.patch_size}
        counts = {"num_hidden_layers": self.layers, "num_attention_heads": self.heads}
        return ViTForImageClassification(ViTConfig(**sizes, **shape, **counts, **names))


@dataclass
class DataArguments(common.DataArguments):
    """Which images."""

    arrays_file: str | None = field(default=None, metadata={"help": "An .npz file of images and classes."})
    image_column: str = field(default="image", metadata={"help": "Column of the images of a data set."})
    label_column: str = field(default="label", metadata={"help": "Column of their classes."})
    validation_fraction: float = field(default=0.1, metadata={"help": "Of the training images of an .npz file."})

    def images(self, seed: int) -> dict[str, Dataset]:
        """Returns splits with the columns "image", arrays or pictures, and "label", a number."""
        if self.arrays_file is None:
            columns = {self.image_column: "image", self.label_column: "label"}
            chosen = {name: split.select_columns(list(columns)) for name, split in self.read().items()}
            named = {old: new for old, new in columns.items() if old != new}
            return self.complete({name: split.rename_columns(named) for name, split in chosen.items()})
        with np.load(self.arrays_file) as arrays:
            train, test = (arrays[f"x_{part}"] for part in ("train", "test"))
            labels, test_labels = (arrays[f"y_{part}"] for part in ("train", "test"))
        order = np.random.default_rng(seed).permutation(len(train))
        parts = np.split(order, [round(self.validation_fraction * len(train))])
        found = {name: (train[part], labels[part]) for name, part in zip(("validation", "train"), parts, strict=True)}
        found["test"] = test, test_labels
        return self.complete(
            {name: Dataset.from_dict({"image": list(x), "label": y.tolist()}) for name, (x, y) in found.items()}
        )


class Pixels:
    """Turns images into what a model reads: by the checkpoint's processor, or from 0 to 255 into -1 to 1."""

    def __init__(self, checkpoint: str | None) -> None:
        """Loads the processor of a checkpoint; None takes the numbers of arrays."""
        self.processor = None if checkpoint is None else AutoImageProcessor.from_pretrained(checkpoint)

    def __call__(self, image: Any) -> np.ndarray:
        """Returns one image, (channels, height, width)."""
        if self.processor is not None:
            return np.asarray(self.processor(image.convert("RGB"))["pixel_values"][0], dtype=np.float32)
        pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1
        return pixels[None] if pixels.ndim == GREY_DIMS else pixels.transpose(2, 0, 1)

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch of examples with "image" and "label"."""
        pixels = np.stack([self(example["image"]) for example in examples])
        batch = {"pixel_values": torch.from_numpy(pixels)}
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the share of right answers; what a Trainer takes as `compute_metrics`."""
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}


def trainer_and_splits(arguments: list[str]) -> tuple[Trainer, dict[str, Dataset]]:
    """Returns the Trainer that the arguments ask for, and what it reads."""
    parser = HfArgumentParser((ModelArguments, DataArguments, common.PruningArguments, TrainingArguments))
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)

    splits = data_args.images(training_args.seed)
    feature = splits["train"].features["label"]
    labels = getattr(feature, "names", None) or [str(i) for i in range(max(splits["train"]["label"]) + 1)]
    pixels = Pixels(None if data_args.arrays_file else model_args.model_name_or_path)
    training_args.remove_unused_columns = False  # the collator reads the images
    training_args.metric_for_best_model = "accuracy"
    trainer = Trainer(
        model=model_args.load(labels, pixels(splits["train"][0]["image"])),
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=pixels.collate,
        processing_class=pixels.processor,
        compute_metrics=accuracy,
        callbacks=pruning_args.callbacks(),
    )
    return trainer, splits


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    return common.journey(*trainer_and_splits(arguments), AutoModelForImageClassification.from_pretrained)


def smoke_arguments(folder: Path) -> list[str]:
    """Draws bright squares in one of four corners, and returns the arguments of a run of a few seconds."""
    rng, arrays = np.random.default_rng(0), {}
    for name, size in (("train", 160), ("test", 40)):
        labels = rng.integers(0, 4, size)
        images = rng.integers(0, 60, (size, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[row : row + 4, column : column + 4] += 150
        arrays |= {f"x_{name}": images, f"y_{name}": labels}
    np.savez(folder / "images.npz", **arrays)
    model = "--patch_size 4 --layers 2 --hidden_size 32 --heads 4 --validation_fraction 0.25"
    training = "--num_train_epochs 6 --learning_rate 3e-3 --per_device_train_batch_size 16 --report_to none --use_cpu"
    how = "--save_strategy no --logging_steps 50 --max_drop 0.1 --arrays_file"
    files = [str(folder / "images.npz"), "--output_dir", str(folder / "out")]
    return [*model.split(), *training.split(), *how.split(), *files]


if __name__ == "__main__":
    common.run(main, smoke_arguments)
