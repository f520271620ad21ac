"""Reads labelled examples from files or the Hub, as `datasets.Dataset`s with one row per example."""

from __future__ import annotations

import csv
import json
import logging
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Value, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetsError

from hf_headprune.cli.columns import listed
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.tasks.windows import squad_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
# Splits of data sets on the Hub that stand for ours where none is named; MNLI has two validation splits.
HUB_SPLITS = {"train": ("train",), "validation": ("validation", "validation_matched", "dev"), "test": ("test",)}
_LARGE_FIELD = 2**31 - 1


@dataclass(frozen=True)
class DataSource:
    """Where the splits come from: local files, or a data set on the Hub.

    Attributes:
        train: File, or name of a split of the data set, such as "train[:90%]".
        validation: The same.
        test: The same.
        dataset: Name of a data set on the Hub, or a folder in its format; None for files.
        config: Name of its configuration.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    dataset: str | None = None
    config: str | None = None

    def names(self) -> list[str]:
        """Returns the files, or the data set, that are read."""
        return [name for name in (self.train, self.validation, self.test, self.dataset) if name is not None]

    def read(self) -> dict[str, Dataset]:
        """Returns the splits that there are by name: "train", "validation", "test".

        Raises:
            InvalidSettingError: A file or data set can't be read, or a split has no rows.
        """
        named = {name: getattr(self, name) for name in HUB_SPLITS}
        if self.dataset is None:
            return {name: read_file(Path(file)) for name, file in named.items() if file is not None}
        with _one_line(f"--dataset {self.dataset}"):
            present = get_dataset_split_names(self.dataset, self.config)
            for name, standing in HUB_SPLITS.items():
                named[name] = named[name] or next((split for split in standing if split in present), None)
            return {
                name: load_dataset(self.dataset, self.config, split=split)
                for name, split in named.items()
                if split is not None
            }


def read_file(path: Path) -> Dataset:
    """Reads one split from a file.

    All values of a .csv or .tsv are text, "NA" and "007" too, and each row has one for each column; a .tsv is read
    without quoting. A .json holds SQuAD's articles, or rows like a .jsonl.

    Raises:
        InvalidSettingError: It is missing, empty, malformed, or of another kind.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidSettingError(f"{path}: the name must end with one of {', '.join(SUFFIXES)}, received {suffix!r}.")
    if not path.is_file():
        raise InvalidSettingError(f"{path}: there is no such file.")
    with tempfile.TemporaryDirectory() as cache, _one_line(str(path)):
        options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
        if suffix in (".csv", ".tsv"):
            return _read_table(path)
        if suffix == ".parquet":
            return _filled(Dataset.from_parquet(str(path), **options))
        text = path.read_text(encoding="utf-8-sig")
        content = _parsed(text) if suffix == ".json" else None
        if isinstance(content, dict) and "data" in content:
            return Dataset.from_list(squad_rows(content, where=str(path)))
        if isinstance(content, dict) and all(isinstance(value, list) for value in content.values()):
            raise ValueError(f"it holds one object with the columns {listed(content)}. Write a list of rows")
        return _filled(Dataset.from_json(str(path), **options)) if text.strip() else _filled([])


def _read_table(path: Path) -> Dataset:
    dialect: dict[str, Any] = {"strict": True}
    if path.suffix.lower() == ".tsv":
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with path.open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(_LARGE_FIELD)
        reader = csv.reader(file, **dialect)
        header, rows = next(reader, []), []
        if header and not header[0]:  # the row numbers that pandas writes, under the name that it reads them by
            header[0] = "Unnamed: 0"
        if len({*header}) < len(header) or not all(header):
            raise ValueError(f"the columns in its first line must have different names, received {listed(header)}")
        for row in reader:
            if row and len(row) != len(header):  # a value more moves all others into columns that are not theirs
                raise ValueError(f"line {reader.line_num} has {len(row)} values for the {len(header)} columns")
            rows += [row] if row else []
    columns: Any = zip(*_filled(rows), strict=True)
    features = Features({name: Value("string") for name in header})
    return Dataset.from_dict(dict(zip(header, map(list, columns), strict=True)), features=features)


def _parsed(text: str) -> Any:
    """Returns what a JSON text holds; None for one object per line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _filled(rows: Any) -> Any:
    if len(rows) == 0:
        raise ValueError("it has no rows")
    return rows


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turns what a reader raises into one line that names the file; `datasets` logs the same at length otherwise."""
    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except HeadPruneError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error, DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise InvalidSettingError(f"{where}: it can't be read: {reason[:300].rstrip('.')}.") from error
    finally:
        log.setLevel(level)
