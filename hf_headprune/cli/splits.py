"""Tokenized splits that share no example, and what of the validation split is held back to certify on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_headprune.cli.examples import UnlabelledError, groups_of_rows
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.splits import SplitSettings, split_known
from hf_headprune.pipeline.holdout import LEAST_EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset

    from hf_headprune.cli.examples import Reader


@dataclass(frozen=True)
class Splits:
    """Tokenized examples.

    Attributes:
        train: Costs and refits are computed on them.
        validation: An A* search measures plans on them; None without one.
        certify: Plans are tested and the certificate is made on them; None without one.
        seen: Fingerprints of the training examples.
        notes: What was left out, cut and held back, a sentence each.
        columns: That were read.
    """

    train: Dataset
    validation: Dataset | None
    certify: Dataset | None
    seen: ExampleFingerprints
    notes: tuple[str, ...]
    columns: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Returns the number of examples of each split that there is."""
        found = {"train": self.train, "validation": self.validation, "certify": self.certify}
        return {name: len(split) for name, split in found.items() if split is not None}


def encoded_splits(splits: Mapping[str, Dataset], reader: Reader, *, from_hub: bool) -> Splits:
    """Tokenizes splits and drops from each what an earlier one holds too.

    Args:
        splits: "train", and "validation" and "test" where there are any.
        reader: Of the model's task.
        from_hub: Whether a test split without labels is passed over.

    Raises:
        InvalidSettingError: A split can't be read by the reader, or nothing of it is left.
    """
    rows: dict[str, Dataset] = {}
    notes: list[str] = []
    columns: tuple[str, ...] = ()
    for name, split in splits.items():
        try:
            encoded = reader.encode(split, name)
        except UnlabelledError:
            if name != "test" or not from_hub:
                raise
            notes.append("test: its labels are hidden, it is not used.")
            continue
        rows[name], columns = encoded.rows, columns or encoded.columns
        if encoded.unlabelled:
            notes.append(f"{name}: {encoded.unlabelled:,} of {len(split):,} rows have no label and are left out.")
        notes += [f"{name}: {note}" for note in encoded.notes]
    rows, seen, repeats = _without_repeats(rows)
    return Splits(rows["train"], rows.get("validation"), rows.get("test"), seen, (*notes, *repeats), columns)


def held_back(splits: Splits, *, searches: bool) -> Splits:
    """Returns the splits with one to certify on, if there are enough examples.

    Args:
        splits: As they were read.
        searches: Whether an A* search sees the validation split: then half of it is held back, unless there is a test
            split. Else the one of the two that is given certifies, the test split if both are.
    """
    validation = splits.validation
    if not searches:
        return replace(splits, certify=validation if splits.certify is None else splits.certify, validation=None)
    if splits.certify is not None or validation is None:
        return splits
    if len(validation) < LEAST_EXAMPLES:
        note = (
            f"Nothing is certified: {len(validation):,} validation examples are too few to hold half of them back "
            f"(at least {LEAST_EXAMPLES}). Pass --test."
        )
        return replace(splits, notes=(*splits.notes, note))
    groups = groups_of_rows(validation)  # questions on one context stay together
    halves = split_known(
        validation, ExampleFingerprints.of(validation), None, SplitSettings(on_leak="drop", group_column=groups)
    )
    note = f"validation: {len(halves.certify):,} of {len(validation):,} examples are held back from the search."
    return replace(splits, validation=halves.search, certify=halves.certify, notes=(*splits.notes, note))


def _without_repeats(splits: Mapping[str, Any]) -> tuple[dict[str, Any], ExampleFingerprints, list[str]]:
    """Drops from each split what an earlier one holds too; returns splits, fingerprints of the first, and sentences."""
    kept: dict[str, Any] = {}
    notes = []
    seen: dict[str, ExampleFingerprints] = {}
    for name, split in splits.items():
        prints = ExampleFingerprints.of(split)
        repeated = {index for earlier in seen.values() for index in prints.shared_with(earlier)}
        if len(repeated) == len(split):
            raise InvalidSettingError(
                f"{name}: all of its examples are in {' or '.join(seen)} too. Pass another split."
            )
        if repeated:
            notes.append(
                f"{name}: {len(repeated):,} of {len(split):,} examples are in {' or '.join(seen)} too and are left out."
            )
        kept[name] = split.select([i for i in range(len(split)) if i not in repeated]) if repeated else split
        seen[name] = prints
    return kept, next(iter(seen.values())), notes
