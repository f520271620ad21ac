"""How examples become batches: padded by whom, and the longest first."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding

from hf_headprune._checks import is_whole
from hf_headprune.errors import HeadPruneError, InvalidSettingError, in_one_line, shown
from hf_headprune.tasks.examples import INPUT_NAMES, PadRight, is_pair, is_sequence_classifier
from hf_headprune.tasks.scorer import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

OF_BATCHES = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # raised about what a model is given
# What a configuration says of the batches that its model can read.
LIMITS = ("vocab_size", "max_position_embeddings", "type_vocab_size", "image_size", "num_labels", "problem_type")


@dataclass(frozen=True)
class Batching:
    """How examples become batches.

    Attributes:
        processing_class: Tokenizer that pads the batches of a sequence classifier, and decodes what is generated for
            "chrf"; any other batches, and without one, are padded on the right.
        data_collator: Makes the batches instead.
        batch_size: Examples per batch.

    Raises:
        InvalidSettingError: The batch size is no positive number, or the collator no function.
    """

    processing_class: Any = None
    data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Checks batch size and collator."""
        if not is_whole(self.batch_size, at_least=1):
            raise InvalidSettingError(
                f"Batching: batch_size must be a whole number of at least 1, received {shown(self.batch_size)}."
            )
        if self.data_collator is not None and not callable(self.data_collator):
            raise InvalidSettingError(
                f"Batching: data_collator must be a function of a list of examples, received "
                f"{shown(self.data_collator)}. Pass one, or None."
            )

    def collate_for(self, model: Any) -> Callable[[list[Any]], Mapping[str, Any]]:
        """Returns the function that makes a batch for a model."""
        if self.data_collator is not None:
            return self.data_collator
        if self.processing_class is not None and is_sequence_classifier(model):
            return DataCollatorWithPadding(self.processing_class)
        return PadRight(getattr(getattr(model, "config", None), "pad_token_id", None))


def length_sorted_batches(
    dataset: Any, collate: Callable[[list[Any]], Mapping[str, Any]], *, batch_size: int
) -> list[dict[str, torch.Tensor]]:
    """Batches a data set in the order of length, so that little is padded.

    Args:
        dataset: Sized and indexable; its examples are mappings with "input_ids".
        collate: Makes a batch of a list of examples.
        batch_size: Examples per batch.

    Returns:
        Batches of tensors, the longest examples first, so that too large a batch fails early. Labels are called
        "labels".

    Raises:
        InvalidSettingError: The data set is empty or its examples are not tokenized.
    """
    return ordered_batches(dataset, collate, batch_size=batch_size)[0]


def _is_sequence(tokens: Any) -> bool:
    return isinstance(tokens, (list, tuple)) or getattr(tokens, "ndim", 0) > 0


def ordered_batches(
    dataset: Any, collate: Callable[[list[Any]], Mapping[str, Any]], *, batch_size: int
) -> tuple[list[dict[str, torch.Tensor]], np.ndarray]:
    """Returns the batches of `length_sorted_batches`, and the indices of their examples in the data set, `(n,)`."""
    if batch_size < 1:
        raise InvalidSettingError(f"length_sorted_batches: batch_size must be at least 1, received {batch_size}.")
    examples = [dataset[index] for index in range(len(dataset))]
    if not examples:
        raise InvalidSettingError("length_sorted_batches: the data set is empty. Pass one with labelled examples.")
    order = longest_first(examples)
    batches, columns = [], sorted(examples[0])
    for first in range(0, len(order), batch_size):
        taken = order[first : first + batch_size]
        batches.append(collated(collate, [examples[index] for index in taken]))
        for index in taken:  # a batch holds what they hold: images would be in memory twice
            examples[index] = None
        if not set(INPUT_NAMES) & batches[-1].keys():
            raise InvalidSettingError(
                f"length_sorted_batches: batches must hold 'input_ids', received {sorted(batches[-1])} of examples "
                f"with {shown(columns)}. Tokenize the data set first, or let the data collator do so."
            )
    return batches, np.array(order, dtype=np.int64)


def longest_first(examples: list[Any]) -> list[int]:
    """Returns the places of examples in the order of length; as they are where the collator tokenizes them.

    Raises:
        InvalidSettingError: The tokens of one are no list.
    """
    lengths = _lengths(examples) if "input_ids" in examples[0] else [0] * len(examples)
    return sorted(range(len(examples)), key=lambda index: (-lengths[index], index))


def collated(collate: Callable[[list[Any]], Mapping[str, Any]], examples: list[Any]) -> dict[str, torch.Tensor]:
    """Makes a batch, and returns its tensors; labels are called "labels".

    Raises:
        InvalidSettingError: The collator can't read the examples.
    """
    try:
        batch = dict(collate(examples))
    except HeadPruneError:
        raise
    except Exception as error:
        raise InvalidSettingError(
            f"the data collator can't make a batch of {len(examples)} examples with {shown(sorted(examples[0]))}: "
            f"{_in_short(error)}. Pass examples that it is made for, or another one."
        ) from error
    if LABELS not in batch and "label" in batch:
        batch[LABELS] = batch.pop("label")
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


@contextmanager
def running(model: Any, batch: Mapping[str, torch.Tensor], where: str) -> Iterator[None]:
    """Says of what a model raises on a batch what it was given, and what it is made for.

    Args:
        model: That is run inside of the block.
        batch: What it is given.
        where: Name of the caller.

    Raises:
        InvalidSettingError: It raises what is raised about inputs, and no error of this package or of memory.
    """
    try:
        yield
    except (HeadPruneError, torch.OutOfMemoryError):
        raise
    except OF_BATCHES as error:
        config = getattr(model, "config", None)
        given = ", ".join(map(_described, batch.items()))
        limits = [f"{name} {getattr(config, name)}" for name in LIMITS if getattr(config, name, None) is not None]
        dtypes = sorted({str(it.dtype) for it in model.parameters() if it.is_floating_point()})
        advice = "Encode the examples for this model."
        if dtypes not in ([], ["torch.float32"]):
            advice += (
                f" If it can't compute with weights in {' and '.join(dtypes)}, load it in one precision: .float()."
            )
        raise InvalidSettingError(
            f"{where}: a {type(model).__name__} can't be run on a batch of {given}: {_in_short(error)}. Its "
            f"configuration says {', '.join(limits) or 'nothing of limits'}. {advice}"
        ) from error


def _described(entry: tuple[str, torch.Tensor]) -> str:
    name, tensor = entry
    is_whole_numbers = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 0
    values = f"from {int(tensor.min())} to {int(tensor.max())}" if is_whole_numbers else f"of {tensor.dtype}"
    return f"{name} {tuple(tensor.shape)} {values}"


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {in_one_line(error).rstrip('.')}"


def _lengths(examples: list[Any]) -> list[int]:
    lacking = [index for index, example in enumerate(examples) if not _is_sequence(example.get("input_ids"))]
    if lacking:
        received = shown(examples[lacking[0]].get("input_ids"))
        raise InvalidSettingError(
            f"examples must hold lists of tokens as 'input_ids', received {received} for example {lacking[0]}."
        )
    return [sum(map(len, example["input_ids"])) if is_pair(example) else _real(example) for example in examples]


def _real(example: Mapping[str, Any]) -> int:
    return int(sum(example.get("attention_mask", [1] * len(example["input_ids"]))))
