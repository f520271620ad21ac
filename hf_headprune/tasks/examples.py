"""Turns examples as users have them into what a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

LABEL_NAMES = ("labels", "label")
SPAN_NAMES = ("start_positions", "end_positions")
INPUT_NAMES = ("input_ids", "pixel_values", "input_features", "input_values")  # tokens, images, spectrograms, sound
IGNORED_LABEL = -100
DEEPEST = 20  # lists in lists, of an example
_PLAIN = frozenset({int, float, bool, str, type(None)})
_LARGEST = 2**63 - 1


class ModelExamples:
    """View of a data set that holds only what a model's forward takes, and its labels.

    Labels are "labels", under which name "label" goes too, or for question answering the two positions of the answer.
    An example of a causal language model may have none: it is its own label; one of an embedding model needs none, and
    may be a pair of texts, each entry a list of two. A data collator of the user's is given what the data set holds,
    under its own names.
    """

    def __init__(
        self,
        dataset: Any,
        model: nn.Module,
        *,
        where: str = "search_plan",
        collate: Any = None,
        needs_labels: bool = True,
    ) -> None:
        """Checks the first example.

        Args:
            dataset: Sized and indexable; examples are mappings with model inputs and labels.
            model: The model that will read them.
            where: Name of the public function, for errors.
            collate: Data collator of the user's that will make the batches, if any.
            needs_labels: Whether there must be labels; else a data set without a column of them will do.

        Raises:
            InvalidSettingError: The data set is not sized and indexable, is empty, or has no labels or inputs.
            UnsupportedModelError: The model takes neither tokens nor images or sound.
        """
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, (Mapping, str)):
            raise InvalidSettingError(
                f"{where}: dataset must be sized and indexable, such as a list of dicts or a datasets.Dataset, "
                f"received {type(dataset).__name__}. Pass one split; turn a stream into a list."
            )
        if len(dataset) == 0:
            raise InvalidSettingError(f"{where}: dataset is empty. Pass a split with labelled examples.")
        self._dataset, self._where = dataset, where
        accepted = forward_arguments(model)
        if not set(INPUT_NAMES) & set(accepted):
            raise UnsupportedModelError(
                f"{where}: the forward pass of a {type(model).__name__} takes {[*accepted]}, no 'input_ids'. Pass the "
                "Transformers model itself, not a wrapper around it such as torch.compile's."
            )
        self._inputs = tuple(name for name in accepted if name not in LABEL_NAMES)
        self._has_spans = all(name in accepted for name in SPAN_NAMES)
        self._is_causal, self._embeds = predicts_next_token(model), embeds_texts(model)
        self._needs_labels = needs_labels and not self._embeds
        self._view = self._as_given if collate is not None else self._named
        first = dataset[0]
        self._labelled(0)  # its own words, before others are found
        if collate is not None and isinstance(first, Mapping):
            self._take_what_is_read(collate, first)
            return
        present = sorted(first) if isinstance(first, Mapping) else type(first).__name__
        wanted = "'start_positions' and 'end_positions'" if self._has_spans else "'labels' or 'label'"
        if not isinstance(first, Mapping) or not self._is_labelled(first):
            raise InvalidSettingError(
                f"{where}: examples must hold {wanted}, received {present}. Pass a labelled split."
            )
        if is_pair(first) and not self._embeds:
            raise InvalidSettingError(
                f"{where}: a {type(model).__name__} reads one list of tokens per example, received several as "
                "'input_ids'. Pass a data_collator that makes its batches."
            )
        if not any(name in first for name in INPUT_NAMES if name in accepted):
            wanted = next(name for name in INPUT_NAMES if name in accepted)
            raise InvalidSettingError(
                f"{where}: examples must hold {wanted!r}, received {present}. Tokenize the data set first, for "
                "example with dataset.map(lambda example: tokenizer(example['text'], truncation=True))."
            )

    def __len__(self) -> int:
        """Examples in the data set."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example with the model's inputs and "labels", or as the collator of the user's reads it."""
        return self._view(index)

    def _take_what_is_read(self, collate: Any, first: Any) -> None:
        """Finds out whether the collator is content with the model's inputs and labels, or reads other columns too.

        Raises:
            InvalidSettingError: It can make a batch of neither.
        """
        failed: Exception | None = None
        for view in (self._as_given, self._named, self._labelled):
            try:
                collate([view(0)])
            except Exception as error:  # noqa: BLE001 - a function of the user's raises what it likes
                failed = error
            else:
                self._view = view
                return
        raise InvalidSettingError(
            f"{self._where}: the data collator can't read the examples, which hold {shown(sorted(first))}: "
            f"{type(failed).__name__}: {failed}. Pass the examples that it is made for."
        ) from failed

    def _labelled(self, index: int) -> Any:
        """Returns an example as it is; where the data set has a column of labels, each must be given."""
        example = self._dataset[index]
        names = SPAN_NAMES if self._has_spans else LABEL_NAMES
        is_row = isinstance(example, Mapping)
        if is_row and any(name in example for name in names) and not self._is_labelled(example):
            raise InvalidSettingError(f"{self._where}: example {index} has no label. Remove unlabelled examples.")
        return example

    def _as_given(self, index: int) -> dict[str, Any]:
        example = self._labelled(index)
        return {name: example[name] for name in (*self._inputs, *LABEL_NAMES) if name in example}

    def _named(self, index: int) -> dict[str, Any]:
        example = self._dataset[index]
        inputs = {name: example[name] for name in self._inputs if name in example}
        if not self._is_labelled(example):
            raise InvalidSettingError(f"{self._where}: example {index} has no label. Remove unlabelled examples.")
        if self._has_spans:
            return inputs
        named = [example[name] for name in LABEL_NAMES if example.get(name) is not None]
        if not named:
            return {**inputs, "labels": _own_label(example)} if self._is_causal else inputs
        return {**inputs, "labels": named[0]}

    def _is_labelled(self, example: Mapping[str, Any]) -> bool:
        names = SPAN_NAMES if self._has_spans else LABEL_NAMES
        if not self._needs_labels and not any(name in example for name in names):
            return True
        if self._has_spans:
            return all(example.get(name) is not None for name in SPAN_NAMES)
        return self._is_causal or any(example.get(name) is not None for name in LABEL_NAMES)


def forward_arguments(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the arguments of a model's forward pass.

    Where a subclass passes on whatever it is given, those of the class below it, too.
    """
    found: dict[str, None] = {}
    for kind in type(model).__mro__:
        if "forward" not in vars(kind):
            continue
        given = inspect.signature(kind.forward).parameters.values()  # type: ignore[attr-defined]
        found |= dict.fromkeys(each.name for each in given if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD))
        if all(each.kind is not each.VAR_KEYWORD for each in given) or "input_ids" in found:
            break
    found.pop("self", None)
    return tuple(found)


def is_sequence_classifier(model: Any) -> bool:
    """Tells whether a model has labels per sequence: one class, several labels, or a number."""
    return is_a(model, "ForSequenceClassification")


def is_a(model: Any, name: str) -> bool:
    """Tells whether the class of a model, or one that it is derived from, has this in its name."""
    return any(name in kind.__name__ for kind in type(model).__mro__)


def _own_label(example: Mapping[str, Any]) -> list[int]:
    """Returns the tokens of a text as labels, without its padding."""
    tokens = plain(example["input_ids"])
    mask = plain(example.get("attention_mask", [1] * len(tokens)))
    return [token if kept else IGNORED_LABEL for token, kept in zip(tokens, mask, strict=True)]


def _is_tensor_entry(entry: Any, name: str) -> bool:
    if isinstance(entry, int):
        return abs(entry) <= _LARGEST
    return isinstance(entry, float) and name != "input_ids"


def _check_mask(example: Mapping[str, Any]) -> None:
    """Checks that a mask says of each token whether it counts, and that one does.

    Raises:
        InvalidSettingError: It does not.
    """
    mask, tokens = plain(example["attention_mask"]), len(example["input_ids"])
    if not isinstance(mask, list) or len(mask) != tokens or not any(mask):
        raise InvalidSettingError(
            f"attention_mask must have a number for each of the {tokens} tokens of an example, one of them not 0, "
            f"received {shown(mask)}. Pass what the tokenizer returns, or leave the mask out."
        )


def _check_columns(examples: Sequence[Mapping[str, Any]]) -> None:
    """Checks that all examples hold the same columns; only a mask may be given for some.

    Raises:
        InvalidSettingError: They do not.
    """
    first = {*examples[0], "attention_mask"}
    other = next((example for example in examples if {*example, "attention_mask"} != first), None)
    if other is not None:
        raise InvalidSettingError(
            f"examples must all hold the same columns, received one with {shown(list(examples[0]))} and one with "
            f"{shown(list(other))}. Fill in what is missing, or leave the column out."
        )


class PadRight:
    """Collates tokenized examples without a tokenizer: pads on the right and masks what was added.

    Examples without tokens, such as images of one size, are stacked.
    """

    def __init__(self, pad_token_id: int | None) -> None:
        """Stores the id that fills "input_ids"; labels are filled with -100, other sequences with zeros."""
        self._fillers = {"input_ids": pad_token_id or 0, "decoder_input_ids": pad_token_id or 0}
        self._fillers["labels"] = IGNORED_LABEL

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns a batch of tensors: `(batch, longest)` of sequences, `(batch,)` of numbers such as a class.

        Raises:
            InvalidSettingError: An example has no tokens, or other columns than the first one, or an entry is neither a
                number nor a list of numbers.
        """
        if "input_ids" not in examples[0] and set(INPUT_NAMES) & examples[0].keys():
            _check_columns(examples)
            return {name: _stacked(name, [example[name] for example in examples]) for name in examples[0]}
        lacking = next((example for example in examples if "input_ids" not in example), None)
        if lacking is not None:
            raise InvalidSettingError(
                f"examples must hold 'input_ids', received {shown(sorted(lacking))}. Tokenize the data set first, or "
                "pass a data collator that does so. A Trainer removes columns that the model's forward does not name: "
                "TrainingArguments(remove_unused_columns=False) keeps them."
            )
        _check_columns(examples)
        if any(map(is_pair, examples)):
            return self._paired(examples)
        rows = [{"attention_mask": [1] * len(example["input_ids"]), **example} for example in examples]
        for row in rows:
            _check_mask(row)
        names = [*dict.fromkeys([*examples[0], "attention_mask"])]
        return {
            name: _stacked(name, [row[name] for row in rows])
            if name in INPUT_NAMES and name != "input_ids"  # an image beside its text
            else self._tensor(name, [plain(row[name]) for row in rows])
            for name in names
        }

    def _paired(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns a batch of pairs of texts, `(batch, 2, longest)`, with the numbers of each pair, `(batch,)`."""
        rows = [{name: plain(value) for name, value in example.items()} for example in examples]
        pair = next(filter(is_pair, rows))
        count = len(pair["input_ids"])
        wrong = next((row for row in rows if not is_pair(row) or len(row["input_ids"]) != count), None)
        if wrong is not None:
            raise InvalidSettingError(
                f"examples must all hold the tokens of {count} texts, received {shown(wrong['input_ids'])}. Tokenize "
                "the texts of an example in one call: tokenizer([first, second])."
            )
        nested = [name for name, value in pair.items() if isinstance(value, list) and isinstance(value[0], list)]
        texts = [{name: row[name][place] for name in nested} for row in rows for place in range(count)]
        found = {name: tensor.unflatten(0, (-1, count)) for name, tensor in self(texts).items()}
        others = [name for name in pair if name not in nested]
        return found | {name: self._tensor(name, [row[name] for row in rows]) for name in others}

    def _tensor(self, name: str, values: Sequence[Any]) -> torch.Tensor:
        are_lists = isinstance(values[0], list)
        rows = [value if isinstance(value, list) else [value] for value in values]
        wrong = [entry for row in rows for entry in row if not _is_tensor_entry(entry, name)]
        if wrong or any(isinstance(value, list) != are_lists for value in values):
            raise InvalidSettingError(
                f"{name!r} must hold a number, or a list of numbers, for each example, received "
                f"{shown(wrong[0] if wrong else values)}. Map labels to numbers, or pass a data_collator that makes "
                "the batches."
            )
        is_float = any(isinstance(entry, float) for row in rows for entry in row)
        longest, filler = max(map(len, rows)), self._fillers.get(name, 0)
        padded = [[*row, *[filler] * (longest - len(row))] for row in rows]
        batch = torch.tensor(padded, dtype=torch.float32 if is_float else torch.long)
        return batch if are_lists else batch[:, 0]


def _stacked(name: str, values: Sequence[Any]) -> torch.Tensor:
    """Returns images or sound of one size in one tensor, `(batch, ...)`, float32, or numbers such as a class.

    Raises:
        InvalidSettingError: Their sizes differ.
    """
    arrays = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) != 1:
        raise InvalidSettingError(
            f"{name!r} must be of one size in all examples, received {sorted({array.shape for array in arrays})[:5]}. "
            "Resize or pad them first, or pass a data_collator that makes the batches."
        )
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked.float() if name in INPUT_NAMES or stacked.is_floating_point() else stacked.long()


def is_pair(example: Mapping[str, Any]) -> bool:
    """Tells whether an example holds the tokens of several texts."""
    tokens: Any = example.get("input_ids")
    if hasattr(tokens, "ndim"):
        return tokens.ndim > 1
    return bool(tokens) and (isinstance(tokens[0], (list, tuple)) or getattr(tokens[0], "ndim", 0) > 0)


def plain(value: Any, *, depth: int = 0) -> Any:
    """Returns lists and numbers where tensors and arrays were, inside of lists and mappings, too.

    Raises:
        InvalidSettingError: They are nested deeper than `DEEPEST`.
    """
    if depth > DEEPEST:
        raise InvalidSettingError(f"examples may be nested at most {DEEPEST} deep, received {shown(value)}.")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        if depth < DEEPEST and _PLAIN.issuperset(map(type, value)):  # most lists are tokens
            return list(value)
        return [plain(item, depth=depth + 1) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item, depth=depth + 1) for name, item in value.items()}
    return value


def predicts_next_token(model: Any) -> bool:
    """Tells whether the logits at a position belong to the label of the next one."""
    names = (kind.__name__ for kind in type(model).__mro__)
    is_language_model = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return is_language_model and not model.config.is_encoder_decoder


def embeds_texts(model: Any) -> bool:
    """Tells whether a model of texts has no head: its hidden states are what is used of it, as embeddings."""
    is_body = getattr(model, "base_model", None) is model and type(model).__name__.endswith(("Model", "Encoder"))
    arguments = forward_arguments(model)
    reads_text_alone = "input_ids" in arguments and "pixel_values" not in arguments
    return is_body and not model.config.is_encoder_decoder and reads_text_alone


def counted_labels(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """Marks, `(batch, length)`, the labels of tokens that the loss of a model is a mean over."""
    counts = labels.ne(IGNORED_LABEL)
    if predicts_next_token(model):
        counts[:, 0] = False
    return counts
