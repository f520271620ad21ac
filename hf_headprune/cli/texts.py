"""Examples to certify on, with labels or without, and the file that a labeller fills in."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import typer

from hf_headprune.cli.columns import listed, text_columns
from hf_headprune.cli.examples import IN_MEMORY, TEXT_NAMES, TextReader, check_texts, reader_for
from hf_headprune.cli.files import read_file
from hf_headprune.cli.labels import ModelClasses
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.guarantee.examples import ExampleFingerprints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset

    from hf_headprune.cli.columns import NamedColumns
    from hf_headprune.cli.examples import Encoded

ID, ANSWERS, LABEL = "id", "answers", "label"


def read_texts(file: Path, model: Any, tokenizer: Any, named: NamedColumns, max_length: int | None = None) -> Dataset:
    """Tokenizes the texts, or pairs of texts, of a file; labels in it are not read. Says which are cut or empty.

    Args:
        file: As `read_file` takes it.
        model: Classifier of sequences.
        tokenizer: Of the model.
        named: Columns that the user named.
        max_length: Tokens; None for as many as the model reads.

    Raises:
        InvalidSettingError: The file or its columns can't be read.
        UnsupportedModelError: The model is no classifier of sequences.
    """
    reader = _reader_of_texts(model, tokenizer, named, max_length)
    if reader is None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: without labels, the answers of ...ForSequenceClassification models with classes "
            "can be compared. Certify other models with labelled examples."
        )
    split = read_file(file)
    columns = text_columns(split, named, (named.label or LABEL,), where=str(file))
    for column in columns:
        check_texts(split, column, str(file))

    def rows(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return reader.encoded([batch[column] for column in columns])

    texts = split.map(rows, remove_columns=split.column_names, **IN_MEMORY)
    say_notes(file, reader.notes_on(texts))
    return texts


def read_inputs(file: Path, model: Any, tokenizer: Any, named: NamedColumns, max_length: int | None = None) -> Any:
    """Tokenizes examples that others are compared with: of a classifier of texts without labels, else as labelled ones.

    Args:
        file: As `read_file` takes it.
        model: See `reader_for`.
        tokenizer: Of the model.
        named: Columns that the user named.
        max_length: Tokens; None for as many as the model reads.

    Raises:
        InvalidSettingError: The file or its columns can't be read.
        UnsupportedModelError: The model has another task.
    """
    if _reader_of_texts(model, tokenizer, named, max_length) is not None:
        return read_texts(file, model, tokenizer, named, max_length)
    return read_labelled(file, model, tokenizer, named, max_length).rows


def _reader_of_texts(model: Any, tokenizer: Any, named: NamedColumns, max_length: int | None) -> TextReader | None:
    """Returns what reads texts without labels, or None for a model whose answers can't be compared without them."""
    reader = reader_for(model, tokenizer, named, max_length)
    return reader if isinstance(reader, TextReader) and reader.classes is not None else None


def read_labelled(
    file: Path, model: Any, tokenizer: Any, named: NamedColumns, max_length: int | None = None
) -> Encoded:
    """Tokenizes the labelled examples of a file, for whatever the model's task is. Says which are cut or empty.

    Args:
        file: As `read_file` takes it.
        model: See `reader_for`.
        tokenizer: Of the model.
        named: Columns that the user named.
        max_length: Tokens; None for as many as the model reads.

    Raises:
        InvalidSettingError: The file, its columns or labels can't be read.
        UnsupportedModelError: The model has another task.
    """
    encoded = reader_for(model, tokenizer, named, max_length).encode(read_file(file), str(file))
    say_notes(file, encoded.notes)
    return encoded


def say_notes(file: Path, notes: Sequence[str]) -> None:
    """Writes sentences about a file, away from what a command returns."""
    for note in notes:
        typer.echo(f"{file}: {note}", err=True)


def ids_of(texts: Any) -> list[str]:
    """Returns what identifies each text in the file of labels, whatever the order of the rows."""
    prints = ExampleFingerprints.of(texts)
    return [digest[:8].hex() for digest in prints.kinds[prints.kind]]


def write_to_label(file: Path, texts: Any, found: Mapping[int, tuple[Any, ...]], model: Any) -> int:
    """Writes the texts that need a label, each once, with the answers that were given, in an order that hides by whom.

    Returns:
        The number of rows.

    Raises:
        FileExistsError: There is a file already: it may hold labels.
    """
    ids, names = ids_of(texts), {int(index): name for index, name in (model.config.id2label or {}).items()}
    columns = [name for name in TEXT_NAMES if name in texts.column_names]
    rows: dict[str, list[str]] = {}
    for index, answers in found.items():
        shown = " | ".join(str(names.get(answer, answer)) for answer in answers)
        example = texts[index]
        rows.setdefault(ids[index], [ids[index], *(example[name] for name in columns), shown, ""])
    with file.open("x", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow([ID, *columns, ANSWERS, LABEL])
        writer.writerows(rows.values())
    return len(rows)


def read_labels(file: Path, texts: Any, model: Any, column: str = LABEL) -> dict[int, int]:
    """Returns the labels of a file that `write_to_label` wrote and somebody filled in, by index of the text.

    Args:
        file: As `read_file` takes it.
        texts: That `read_texts` returned.
        model: Its configuration names the classes.
        column: Of the labels.

    Raises:
        InvalidSettingError: Columns are missing, an id is of no text or has several labels, or a label is no class of
            the model.
    """
    rows = read_file(file)
    missing = {ID, column} - set(rows.column_names)
    if missing:
        raise InvalidSettingError(
            f"{file}: the columns {listed(sorted(missing))} are missing. Pass the file that headprune disagreements "
            "wrote, with its labels filled in."
        )
    filled = [row for row in rows if row[column] is not None]
    labels = [(row[ID], label) for row in filled if (label := str(row[column]).strip())]
    classes = ModelClasses.of(model.config).classes_of(
        {name for _, name in labels}, None, where=f"{file}, column {column!r}"
    )
    given: dict[str, int] = {}
    disputed = {name for name, label in labels if given.setdefault(name, classes[label]) != classes[label]}
    if disputed:
        raise InvalidSettingError(
            f"{file}: {len(disputed):,} ids have several labels, such as {listed(sorted(disputed)[:3])}. Leave one of "
            "each."
        )
    ids = ids_of(texts)
    if unknown := set(given) - set(ids):
        raise InvalidSettingError(
            f"{file}: {len(unknown):,} of {len(given):,} labels are for texts that --data does not hold. Pass the "
            "texts that headprune disagreements read, and the same tokenizer."
        )
    return {index: given[name] for index, name in enumerate(ids) if name in given}
