"""Turns examples as users have them into what a model takes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

LABEL_NAMES = ("labels", "label")


class ModelExamples:
    """View of a data set that holds only what a model's forward takes, and one label under the name "labels"."""

    def __init__(self, dataset: Any, model: nn.Module, *, where: str = "search_plan") -> None:
        """Checks the first example.

        Args:
            dataset: Sized and indexable; examples are mappings with model inputs and "labels" or "label".
            model: The model that will read them.
            where: Name of the public function, for errors.

        Raises:
            InvalidSettingError: The data set is not sized and indexable, is empty, or has no labels or inputs.
        """
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, (dict, str)):
            raise InvalidSettingError(
                f"{where}: dataset must be sized and indexable, such as a list of dicts or a datasets.Dataset, "
                f"received {type(dataset).__name__}. Pass one split; turn a stream into a list."
            )
        if len(dataset) == 0:
            raise InvalidSettingError(f"{where}: dataset is empty. Pass a split with labelled examples.")
        self._dataset, self._where = dataset, where
        self._inputs = tuple(name for name in inspect.signature(model.forward).parameters if name not in LABEL_NAMES)
        first = dataset[0]
        present = sorted(first) if hasattr(first, "keys") else type(first).__name__
        if not hasattr(first, "keys") or not any(name in first for name in LABEL_NAMES):
            raise InvalidSettingError(
                f"{where}: examples must hold 'labels' or 'label', received {present}. Pass a labelled split."
            )
        if "input_ids" not in first:
            raise InvalidSettingError(
                f"{where}: examples must hold 'input_ids', received {present}. Tokenize the data set first, for "
                "example with dataset.map(lambda example: tokenizer(example['text'], truncation=True))."
            )

    def __len__(self) -> int:
        """Examples in the data set."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example with the model's inputs and "labels"."""
        example = self._dataset[index]
        inputs = {name: example[name] for name in self._inputs if name in example}
        label = next((example[name] for name in LABEL_NAMES if name in example), None)
        if label is None:
            raise InvalidSettingError(f"{self._where}: example {index} has no label. Remove unlabelled examples.")
        return {**inputs, "labels": label}


class PadRight:
    """Collates tokenized examples without a tokenizer: pads on the right and masks what was added."""

    def __init__(self, pad_token_id: int | None) -> None:
        """Stores the id that fills "input_ids"; other inputs are filled with zeros."""
        self._pad_token_id = pad_token_id or 0

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns a batch of tensors `(batch, longest)` and labels `(batch,)`."""
        length = max(len(example["input_ids"]) for example in examples)
        names = [name for name in examples[0] if name != "labels"]
        rows: dict[str, list[list[int]]] = {name: [] for name in [*names, "attention_mask"]}
        for example in examples:
            size = len(example["input_ids"])
            given = {"attention_mask": [1] * size, **{name: example[name] for name in names}}
            for name, values in given.items():
                filler = self._pad_token_id if name == "input_ids" else 0
                rows[name].append([*map(int, values), *[filler] * (length - size)])
        batch = {name: torch.tensor(values) for name, values in rows.items()}
        batch["labels"] = torch.tensor([int(example["labels"]) for example in examples])
        return batch
