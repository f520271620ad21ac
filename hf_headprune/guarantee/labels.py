"""Labels for some examples of a split, given apart from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_headprune._checks import is_whole
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.tasks.examples import LABEL_NAMES


class PartlyLabelled:
    """View of a data set in which some examples have a label.

    Attributes:
        labels: Label of each example that has one, by its index.
    """

    def __init__(self, dataset: Any, labels: Mapping[int, Any], *, filler: Any = None) -> None:
        """Holds the examples.

        Args:
            dataset: Sized and indexable; examples are mappings, whose own labels are passed over.
            labels: By index.
            filler: Label of all others; None gives them none.
        """
        self.labels = labels
        self._dataset, self._filler = dataset, filler

    def __len__(self) -> int:
        """Examples in the data set."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example, with its label if it has one."""
        example = self._dataset[index]
        if not hasattr(example, "keys"):
            return example
        plain = {name: example[name] for name in example if name not in LABEL_NAMES}
        label = self.labels.get(index, self._filler)
        return plain if label is None else {**plain, LABEL_NAMES[0]: label}


def labels_by_index(given: Any, dataset: Any) -> dict[int, Any]:
    """Returns the labels that were given for some examples of a data set, by index.

    Args:
        given: Mapping of indices to labels, or a sequence with a label or None for each example.
        dataset: Whose examples have no labels of their own.

    Raises:
        InvalidSettingError: They are neither, name examples that there are not, or the examples have labels already.
    """
    found = given if isinstance(given, Mapping) else None
    if found is None and isinstance(given, (list, tuple)) and len(given) == len(dataset):
        found = dict(enumerate(given))
    known = found is not None and all(is_whole(index, at_least=0) and index < len(dataset) for index in found)
    if found is None or not known:
        raise InvalidSettingError(
            "labels must be a mapping of indices of examples to their labels, or a list with a label or None for each "
            f"of the {len(dataset)} examples, received {shown(given)}. Pass labels={{index: label}} for those that "
            "hf_headprune.disagreements names."
        )
    if own_labels(dataset):
        raise InvalidSettingError(
            "labels= is for examples without labels of their own, received examples with a label too. Leave labels= "
            "out, or remove the column of the labels."
        )
    return {int(index): label for index, label in found.items() if label is not None}


def with_labels(dataset: Any, labels: Any) -> Any:
    """Returns a data set with labels that were given apart from it; as it is where labels are None."""
    return dataset if labels is None else PartlyLabelled(dataset, labels_by_index(labels, dataset))


def own_labels(dataset: Any) -> dict[int, Any]:
    """Returns the labels that examples hold themselves, by index; those of None are none."""
    found = {}
    for index in range(len(dataset)):
        example = dataset[index]
        labels = [example[name] for name in LABEL_NAMES if hasattr(example, "keys") and example.get(name) is not None]
        if labels:
            found[index] = labels[0]
    return found
