"""Makes search and certification splits out of one labelled data set, so that no example is on two sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_headprune._checks import is_above, is_whole
from hf_headprune.errors import DataLeakError, InvalidSettingError, shown
from hf_headprune.guarantee.examples import ExampleFingerprints, groups_of, rows_of, window_column

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ThreeWaySplit:
    """Search and certification split of one data set, beside the split that the model was trained on.

    Attributes:
        search: Examples that a search may look at as often as it likes; of the type of the data set where it has
            `select`, else a list.
        certify: Examples that are looked at once, after the search.
        search_indices: Their indices in the data set, ascending.
        certify_indices: Their indices in the data set, ascending.
        leaked_indices: Examples that were left out, since the training split holds them or one of their group.
    """

    search: Any
    certify: Any
    search_indices: tuple[int, ...]
    certify_indices: tuple[int, ...]
    leaked_indices: tuple[int, ...]


@dataclass(frozen=True)
class SplitSettings:
    """How a data set is split.

    Attributes:
        certify_share: Share of the examples that certify, in (0, 1).
        seed: Another seed makes another split; the order of the examples does not matter.
        on_leak: What happens to examples that the training split holds too: "error", or "drop" to leave them out.
        group_column: Examples with the same value of this column stay together, such as questions on one paragraph.
            None: windows of one example do, see `CertificationData`.

    Raises:
        InvalidSettingError: A setting is out of range.
    """

    certify_share: float = 0.5
    seed: int = 0
    on_leak: Literal["error", "drop"] = "error"
    group_column: str | None = None

    def __post_init__(self) -> None:
        """Checks every setting."""
        if not (is_above(self.certify_share, 0) and self.certify_share < 1):
            raise InvalidSettingError(
                f"SplitSettings: certify_share must be in (0, 1), received {shown(self.certify_share)}. Pass 0.5 for "
                "half."
            )
        if not is_whole(self.seed, at_least=0):
            raise InvalidSettingError(
                f"SplitSettings: seed must be a whole number of at least 0, received {shown(self.seed)}. Pass one."
            )
        if self.group_column is not None and not isinstance(self.group_column, str):
            raise InvalidSettingError(
                f"SplitSettings: group_column must be a name, received {shown(self.group_column)}. Pass one, or None."
            )
        if not isinstance(self.on_leak, str) or self.on_leak not in ("error", "drop"):
            raise InvalidSettingError(
                f"SplitSettings: on_leak must be 'error' or 'drop', received {shown(self.on_leak)}. Choose one."
            )


def three_way_split(dataset: Any, train: Any = None, settings: SplitSettings = SplitSettings()) -> ThreeWaySplit:
    """Splits labelled examples into those that search and those that certify.

    Examples that are equal after normalisation, and those of one group, stay on one side. Both sides have about
    the same shares of each label.

    Args:
        dataset: Sized and indexable; examples are mappings.
        train: What the model was trained on, or None when that can't be looked at; may be `ExampleFingerprints`.
        settings: How to split.

    Raises:
        DataLeakError: Examples are in the training split too, and `on_leak` is "error"; or the two can't be compared.
        InvalidSettingError: The data set is malformed, an example lacks a column, or there are too few for two sides.
    """
    if not isinstance(settings, SplitSettings):
        raise InvalidSettingError(f"three_way_split: settings must be SplitSettings(...), received {shown(settings)}.")
    return split_known(dataset, ExampleFingerprints.of(dataset), train, settings)


def split_known(dataset: Any, prints: ExampleFingerprints, train: Any, settings: SplitSettings) -> ThreeWaySplit:
    """Splits a data set whose fingerprints were read already; see `three_way_split`."""
    leaked = set(_leaked(prints, train, settings))
    clusters = [found for found in _clusters(dataset, prints, settings) if leaked.isdisjoint(found)]
    left_out = sorted(set(range(len(prints))) - {index for found in clusters for index in found})
    search, certify = _dealt(_by_label(clusters, prints), prints, settings)
    if not search or not certify:
        raise InvalidSettingError(
            f"three_way_split: both sides need examples, received {len(clusters)} different ones, of which "
            f"{len(search)} would search and {len(certify)} certify; {len(left_out)} more are in the training split "
            "too. Pass more examples, or another certify_share."
        )
    return ThreeWaySplit(
        rows_of(dataset, search), rows_of(dataset, certify), tuple(search), tuple(certify), tuple(left_out)
    )


def _leaked(prints: ExampleFingerprints, train: Any, settings: SplitSettings) -> tuple[int, ...]:
    if train is None:
        return ()
    known = ExampleFingerprints.of(train)
    shared = prints.shared_with(known)
    if shared and settings.on_leak == "error":
        raise DataLeakError(
            f"three_way_split: no example may be in the training split too, received {len(shared)} of {len(prints)} "
            f"that are (indices {list(shared[:5])}). Remove them, or pass SplitSettings(on_leak='drop')."
        )
    return shared


def _clusters(dataset: Any, prints: ExampleFingerprints, settings: SplitSettings) -> list[tuple[int, ...]]:
    """Joins the examples that share a fingerprint or a group; ascending within each."""
    keys: list[Sequence[Any]] = list(prints.kinds.values())
    column = window_column(dataset) if settings.group_column is None else settings.group_column
    if column is not None:
        keys.append(groups_of(dataset, column, where="SplitSettings(group_column=...)"))
    parents = list(range(len(prints)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for values in keys:
        first: dict[Any, int] = {}
        for index, value in enumerate(values):
            parents[root(index)] = root(first.setdefault(value, index))
    joined = defaultdict(list)
    for index in range(len(prints)):
        joined[root(index)].append(index)
    return [tuple(members) for members in joined.values()]


def _by_label(clusters: list[tuple[int, ...]], prints: ExampleFingerprints) -> dict[bytes, list[tuple[int, ...]]]:
    strata = defaultdict(list)
    for members in clusters:
        labels = [prints.labels[index] for index in members]
        strata[max(sorted(set(labels)), key=labels.count)].append(members)
    return dict(strata)


def _dealt(
    strata: dict[bytes, list[tuple[int, ...]]], prints: ExampleFingerprints, settings: SplitSettings
) -> tuple[list[int], list[int]]:
    """Deals clusters to search and certification, label by label, each to the side that lacks most."""
    sides: dict[bool, list[int]] = {False: [], True: []}
    seed = str(settings.seed).encode()
    for label in sorted(strata, key=lambda label: hashlib.sha256(seed + label).digest()):
        for members in sorted(strata[label], key=lambda members: _draw(prints, members, settings.seed)):
            # Counting over all labels, not within each, keeps the share where every label is another one.
            dealt = len(sides[False]) + len(sides[True]) + len(members)
            certifies = len(sides[True]) + len(members) / 2 <= settings.certify_share * dealt
            sides[certifies] += members
    return sorted(sides[False]), sorted(sides[True])


def _draw(prints: ExampleFingerprints, members: tuple[int, ...], seed: int) -> bytes:
    """Returns the lot of a cluster: it hangs on the seed and on what the examples are, not on their order."""
    contents = sorted(prints.kinds[prints.kind][index] for index in members)
    return hashlib.sha256(str(seed).encode() + b"".join(contents)).digest()
