"""Fingerprints of examples: which splits share examples, and which examples a certificate is about."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_headprune.errors import DataLeakError, InvalidSettingError, shown
from hf_headprune.tasks.examples import LABEL_NAMES, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

TOKENS, TEXT, CONTENT = "input_ids", "text", "content"
_NAMES_OF_NUMBERS = ("id", "idx", "index", "guid", "uid", "uuid")
_NAMES_OF_LABELS = ("label", "labels")
_WORD_IN_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
INPUT_BYTES, LABEL_BYTES = 8, 4  # kept of each sha256 in a certificate
COUNTED = "overflow_to_sample_mapping"  # by tokenizers
WINDOW_COLUMNS = ("example_id", COUNTED)
LARGE = 1024  # numbers; so many of an entry, such as those of an image, are fingerprinted by their bytes
READ_TWICE = 8  # examples; that chance leaves a random transform unseen in all of them is unlikely
SECONDS_WITHOUT_BAR = 10
MOST_OF_A_TEXT = 10  # different tokens that a text has on average, such as the windows of a context, if it names them


class ChangingExamplesError(InvalidSettingError):
    """Examples differ each time they are read, as a random transform makes them."""


@dataclass(frozen=True)
class ExampleFingerprints:
    """What identifies each example of a split.

    Attributes:
        kinds: For each way of comparing inputs, one digest per example: "input_ids" without padding, "text" in the same
            letter case and spacing; "content" (every field but labels and numbers of examples) where an example has
            neither.
        labels: Digest of each label.
        columns: Text columns that were read, or the fields of the content.
    """

    kinds: Mapping[str, tuple[bytes, ...]]
    labels: tuple[bytes, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Any, *, columns: Sequence[str] | None = None) -> ExampleFingerprints:
        """Reads a split; fingerprints are returned as they were read.

        Args:
            dataset: Sized and indexable; examples are mappings. Or the fingerprints of a split.
            columns: Text columns. None reads all whose values are texts, without those named after labels or numbers of
                examples ("gold_label"; "id", "idx", "guid" and the like, also as the last word of a name). Beside token
                ids, texts that are the same for many different ones, such as a language or a source, are left out, too.

        Raises:
            ChangingExamplesError: An example differs each time it is read.
            InvalidSettingError: The data set is no such thing, or an example lacks a column that the first one has.
        """
        if isinstance(dataset, cls):
            return dataset
        check_dataset(dataset)
        check_columns(columns)
        if not _is_repeatable(dataset):
            raise ChangingExamplesError(
                "an example of a split must be the same each time it is read, and another came at the second reading: "
                "a random transform can't be told from a new example. Pass the split without it, as evaluation reads "
                "examples."
            )
        first = dataset[0]
        names = tuple(columns) if columns is not None else _text_columns(first)
        present = [name for name, holds in ((TOKENS, TOKENS in first), (TEXT, bool(names))) if holds] or [CONTENT]
        names = _content_fields(first) if present == [CONTENT] else names
        digests: dict[str, list[bytes]] = {kind: [] for kind in present}
        labels = []
        padding = _padding_without_mask(dataset) if TOKENS in first else frozenset()
        bar = tqdm(range(len(dataset)), "Fingerprints", unit=" examples", leave=False, delay=SECONDS_WITHOUT_BAR)
        for index in bar:
            example = _row(dataset, index)
            try:
                for kind in present:
                    digests[kind].append(_digest(_input_of(example, kind, names, padding)))
            except KeyError as error:
                raise InvalidSettingError(
                    f"example {index} has no column {error}, received {shown(sorted(example))}. Pass examples that all "
                    "hold the columns of the first, or name the text columns."
                ) from error
            labels.append(_digest([plain(example[name]) for name in LABEL_NAMES if name in example]))
        if columns is None and TOKENS in digests and not _names_examples(digests.get(TEXT, ()), digests[TOKENS]):
            del digests[TEXT]
            names = ()
        return cls({kind: tuple(found) for kind, found in digests.items()}, tuple(labels), names)

    @classmethod
    def of_training(cls, dataset: Any) -> ExampleFingerprints | None:
        """Reads a training set; None where a random transform makes its examples others each time.

        Args:
            dataset: As `of` takes it.

        Raises:
            InvalidSettingError: As `of` raises it.
        """
        try:
            return cls.of(dataset)
        except ChangingExamplesError:
            logger.warning(
                "Examples of the training set differ each time they are read, so a certificate can't tell whether its "
                "own are among them. CertificationData(train=...) names the training set without its random transform."
            )
            return None

    def __len__(self) -> int:
        """Examples in the split."""
        return len(self.labels)

    def taken(self, indices: Sequence[int] | np.ndarray) -> ExampleFingerprints:
        """Returns the fingerprints of some examples."""
        kinds = {kind: tuple(digests[index] for index in indices) for kind, digests in self.kinds.items()}
        return ExampleFingerprints(kinds, tuple(self.labels[index] for index in indices), self.columns)

    @property
    def kind(self) -> str:
        """The closest to what the model reads: token ids, else text, else everything."""
        return next(kind for kind in (TOKENS, TEXT, CONTENT) if kind in self.kinds)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Input and label of each example, `INPUT_BYTES + LABEL_BYTES` long."""
        inputs = self.kinds[self.kind]
        return tuple(i[:INPUT_BYTES] + g[:LABEL_BYTES] for i, g in zip(inputs, self.labels, strict=True))

    @property
    def order(self) -> np.ndarray:
        """Indices of the examples, `(n,)`, in the order of their full fingerprints: that of no data set."""
        pairs = list(zip(self.kinds[self.kind], self.labels, strict=True))
        return np.array(sorted(range(len(pairs)), key=pairs.__getitem__), dtype=np.int64)

    def sha256(self) -> str:
        """Returns the fingerprint of the split: of its inputs and labels, in whatever order."""
        digest = hashlib.sha256(f"{self.kind} {' '.join(self.columns if self.kind == TEXT else ())}".encode())
        for pair in sorted(zip(self.kinds[self.kind], self.labels, strict=True)):
            digest.update(b"".join(pair))
        return digest.hexdigest()

    def compared_with(self, other: ExampleFingerprints) -> tuple[str, ...]:
        """Returns the ways in which another split can be compared with this one; none where nothing would be shown."""
        common = [kind for kind in self.kinds if kind in other.kinds]
        return tuple(kind for kind in common if kind == TOKENS or self.columns == other.columns)

    def shared_with(self, other: ExampleFingerprints) -> tuple[int, ...]:
        """Returns the indices of the examples whose input also is in another split, compared in each common way.

        Texts are looked for in columns of other names too; that none is found there shows nothing.

        Raises:
            DataLeakError: The splits can't be compared.
        """
        if not self.compared_with(other):
            raise DataLeakError(
                "splits can be compared by token ids or by the same columns of text or fields of content, received "
                f"{sorted(self.kinds)} {list(self.columns)} and {sorted(other.kinds)} {list(other.columns)}. Pass both "
                "tokenized, or both with their texts, or name the text columns."
            )
        seen = {kind: set(other.kinds[kind]) for kind in self.kinds if kind in other.kinds}
        return tuple(
            i for i in range(len(self)) if any(self.kinds[kind][i] in digests for kind, digests in seen.items())
        )

    def alike(self, other: ExampleFingerprints) -> str:
        """Returns in what another split has examples of this one, in words."""
        words = {TOKENS: "token ids", TEXT: f"columns of text ({', '.join(self.columns)})", CONTENT: "all fields"}
        kinds = [kind for kind in self.kinds if kind in other.kinds]
        return " and ".join(words[kind] for kind in kinds if set(self.kinds[kind]) & set(other.kinds[kind]))

    def shares_with(self, other: ExampleFingerprints) -> bool:
        """Tells whether an input is known to be in another split too."""
        return bool(self.compared_with(other)) and bool(self.shared_with(other))


def check_disjoint(certify: ExampleFingerprints, other: ExampleFingerprints, *, name: str) -> None:
    """Refuses splits that share an input.

    Args:
        certify: The split that must be new.
        other: A split that the model or the search has seen.
        name: Of the other split, for the message.

    Raises:
        DataLeakError: They do, or can't be compared.
    """
    shared = certify.shared_with(other)
    if shared:
        raise DataLeakError(
            f"certify: no example may be in the {name} split too, after normalisation of text and padding; received "
            f"{len(shared)} of {len(certify)} that are (indices {list(shared[:5])}), alike in {certify.alike(other)}. "
            f"What the {name} split has shown can't certify anything. Remove them, or make the splits with "
            "three_way_split; CertificationData(columns=...) names the columns to compare."
        )


def check_dataset(dataset: Any) -> None:
    """Refuses what is no split.

    Raises:
        InvalidSettingError: It is not sized, indexable and full of mappings.
    """
    if not _is_indexable(dataset) or isinstance(dataset, (Mapping, str)):
        raise InvalidSettingError(
            "a split must be sized and indexable, such as a list of dicts or a datasets.Dataset, received "
            f"{type(dataset).__name__}. Pass one split; turn a stream into a list."
        )
    if len(dataset) == 0:
        raise InvalidSettingError(
            f"a split must hold examples, received an empty {type(dataset).__name__}. Pass one with examples."
        )
    if not isinstance(dataset[0], Mapping):
        raise InvalidSettingError(
            f"examples must be mappings such as {{'input_ids': ..., 'labels': ...}}, received "
            f"{type(dataset[0]).__name__}. Turn each example into a dict; of a datasets.Dataset, with_format(None)."
        )


def _is_repeatable(dataset: Any) -> bool:
    """Tells whether examples are the same when they are read again, as far as the first ones show."""

    def digest(index: int) -> bytes:
        return _digest({name: _entry(value) for name, value in _row(dataset, index).items()})

    return all(digest(index) == digest(index) for index in range(min(READ_TWICE, len(dataset))))


def check_columns(columns: Any) -> None:
    """Refuses what are no names of columns.

    Raises:
        InvalidSettingError: They are neither None nor a list or tuple of names.
    """
    if columns is None or (isinstance(columns, (list, tuple)) and all(isinstance(name, str) for name in columns)):
        return
    raise InvalidSettingError(f"columns must be a tuple of names, or None, received {shown(columns)}.")


def rows_of(dataset: Any, indices: Sequence[int]) -> Any:
    """Returns some examples of a split, as the kind of data set that it is where that can be."""
    return dataset.select(indices) if hasattr(dataset, "select") else [dataset[index] for index in indices]


def window_column(dataset: Any) -> str | None:
    """Returns the column that tells which windows are of one example, where one has several; else None.

    It is known by the names that the scripts of Transformers and its tokenizers give it. A tokenizer counts anew in
    each batch that `Dataset.map` gives it: such numbers tell nothing.

    Raises:
        InvalidSettingError: Some examples, of which windows share one, have no value there.
    """
    first = _row(dataset, 0)
    for column in (name for name in WINDOW_COLUMNS if name in first):
        values: list[Any] = [_row(dataset, index).get(column) for index in range(len(dataset))]
        known = [value for value in values if not is_missing(value)]
        if len(set(map(str, known))) == len(known):
            continue
        if len(known) < len(values):
            raise InvalidSettingError(
                f"the column {column!r} tells which windows are of one example, and {len(values) - len(known)} of "
                f"{len(values)} examples have no value there. Give each one; or remove the column, and all "
                "examples count as independent."
            )
        if column == COUNTED and any(after < before for before, after in pairwise(known)):
            if any(after == before for before, after in pairwise(known)):
                logger.warning(
                    "The column %r counts anew in each batch, so it does not tell which windows are of one example, "
                    "and each counts as an example of its own. Add a column 'example_id'.",
                    column,
                )
            continue
        return column
    return None


def is_missing(value: Any) -> bool:
    """Tells whether an example has no value in a column."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def groups_of(dataset: Any, column: str, *, where: str) -> list[str]:
    """Returns the group of each example, as text, from the column that names it.

    Args:
        dataset: Sized and indexable; examples are mappings.
        column: Name of the column.
        where: Name of the public function or setting, for the message.

    Raises:
        InvalidSettingError: An example lacks the column, or has no value there.
    """
    found = []
    for index in range(len(dataset)):
        example = _row(dataset, index)
        if column not in example:
            raise InvalidSettingError(
                f"{where}: every example must hold the column {column!r}, received {shown(sorted(example))} for "
                f"example {index}. Name a column that they all have."
            )
        value = example[column]
        if is_missing(value):  # all those would be one group
            raise InvalidSettingError(
                f"{where}: every example must have a group in the column {column!r}, received {value!r} for example "
                f"{index}. Give an example that depends on no other a group of its own."
            )
        found.append(str(value))
    return found


def _is_indexable(dataset: Any) -> bool:
    try:
        return len(dataset) >= 0 and hasattr(dataset, "__getitem__")
    except TypeError:
        return False


def _row(dataset: Any, index: int) -> Mapping[str, Any]:
    example = dataset[index]
    if not isinstance(example, Mapping):
        raise InvalidSettingError(f"example {index} must be a mapping, as the first is, received {shown(example)}.")
    return example


def _tokens_of(example: Mapping[str, Any]) -> list[Any]:
    tokens = plain(example[TOKENS])
    if not isinstance(tokens, list):
        raise InvalidSettingError(f"{TOKENS!r} must be a list of whole numbers, received {shown(tokens)}.")
    return tokens


def _names_examples(texts: Sequence[bytes], tokens: Sequence[bytes]) -> bool:
    """Tells whether texts beside token ids are those that were tokenized, and not what many examples have in common."""
    return not texts or MOST_OF_A_TEXT * len({*texts}) >= len({*tokens})


def _text_columns(example: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        name
        for name in sorted(example)
        if isinstance(example[name], str) and name not in LABEL_NAMES and not is_number_or_label(name)
    )


def _content_fields(example: Mapping[str, Any]) -> tuple[str, ...]:
    fields = [name for name in sorted(example) if name not in LABEL_NAMES]
    return tuple(name for name in fields if not is_number_or_label(name)) or tuple(fields)


def is_number_or_label(column: str) -> bool:
    """Tells whether a column names its examples, as "pairID" and "guid" do, or their labels, as "gold_label" does."""
    words = [word.lower() for word in _WORD_IN_NAME.findall(column)]
    return bool(words) and (words[-1] in _NAMES_OF_NUMBERS or any(word in _NAMES_OF_LABELS for word in words))


def _padding_without_mask(dataset: Any) -> frozenset[int]:
    """Returns the tokens that pad examples without a mask: those that mostly end one twice or more in a row.

    Not all that do: one text that ends in two separators must not cost the others theirs.
    """
    if "attention_mask" in getattr(dataset, "column_names", ()):
        return frozenset()  # every example has one, and none need be read
    last: Counter[int] = Counter()
    repeated: Counter[int] = Counter()
    for index in range(len(dataset)):
        example = _row(dataset, index)
        tokens = [] if "attention_mask" in example or TOKENS not in example else _tokens_of(example)
        if len(tokens) > 1 and isinstance(tokens[-1], int):
            last[tokens[-1]] += 1
            repeated[tokens[-1]] += tokens[-1] == tokens[-2]
    return frozenset(token for token, count in repeated.items() if 2 * count >= last[token])


def _input_of(example: Mapping[str, Any], kind: str, columns: tuple[str, ...], padding: frozenset[int]) -> Any:
    if kind == TEXT:
        return [normalised(example[name]) for name in columns]
    if kind == TOKENS:
        tokens = _tokens_of(example)
        if "attention_mask" in example:
            return [t for t, m in zip(tokens, _mask_of(example, len(tokens)), strict=True) if m]
        if tokens and isinstance(tokens[0], list):  # choices
            return tokens
        return tokens[: next((end for end in range(len(tokens), 0, -1) if tokens[end - 1] not in padding), 0)]
    return {name: _entry(example[name]) for name in columns}


def _entry(value: Any) -> Any:
    """Returns what a digest is made of: of many numbers their shape and bytes, since to write them takes long."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    if hasattr(value, "__array_interface__") or isinstance(value, (torch.Tensor, list, tuple)):
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            return plain(value)
        if array.size >= LARGE and array.dtype.kind in "biuf":
            array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64, order="C")
            return array.dtype.kind, array.shape, hashlib.sha256(array.tobytes()).hexdigest()
        value = value if isinstance(value, (list, tuple)) else array
    return plain(value)


def _mask_of(example: Mapping[str, Any], length: int) -> list[Any]:
    mask = plain(example["attention_mask"])
    if not isinstance(mask, list) or len(mask) != length:
        raise InvalidSettingError(
            f"'attention_mask' must have an entry for each of the {length} tokens, received {shown(mask)}."
        )
    return mask


def normalised(text: Any) -> str:
    """Returns a text without differences of letter case, spacing and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", str(text)).casefold().split())


def _digest(content: Any) -> bytes:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).digest()
