"""The examples on which two models disagree: the only ones whose labels decide whether one is as good as the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune.guarantee.external import bare, check_external, first_reader, has_own_rows, is_external
from hf_headprune.guarantee.scored import ScoredSplit, data_of
from hf_headprune.guarantee.wording import AGREEMENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from hf_headprune.plan import PlanOrResult


def disagreements(
    dense: nn.Module, pruned: nn.Module | Sequence[PlanOrResult] | Any, dataset: Any
) -> dict[int, tuple[Any, ...]]:
    """Returns the examples that two models answer differently; labels for these are all that `certify` needs.

    The test of a drop counts what got worse and better. Where both answer alike neither happens, whatever is right. The
    choice looks at the models' answers alone, so the test stays exact. Both may be wrong on an example: it changes
    nothing then, and one that stays without a label counts as worse.

    Args:
        dense: The model that the pruned one is compared with.
        pruned: The pruned model, or what `certify` takes in its place, but for a list of answers; or plans of the dense
            one, as `certify_path` takes them, of which the union is returned.
        dataset: Examples without labels, or `CertificationData`; labels that they hold are not looked at.

    Returns:
        The index of each such example, ascending, and the different answers to it. Answers are sorted: their order does
        not tell which model gave which.

    Raises:
        InvalidSettingError: The data set is malformed, or a plan is none.
        UnsupportedModelError: The models' task has no answers that can be compared.
    """
    plans: Any = pruned if isinstance(pruned, (list, tuple)) and not has_own_rows(pruned) else None
    models = (dense, pruned) if plans is None else (dense,)
    check_external(models, "disagreements")
    seen = bare(dense), *filter(is_external, models[1:])
    split = ScoredSplit(data_of(dataset), AGREEMENT, first_reader((dense, pruned)), seen=seen)
    first = split.outcome_of(dense)
    others = [split.outcome_of(pruned)] if plans is None else [split.outcome_of_plan(dense, plan) for plan in plans]
    answers = [np.asarray(outcome.answers) for outcome in (first, *others)]
    place = {int(index): place for place, index in enumerate(split.prints.order)}
    found = {}
    for index in range(len(place)):
        given = {_plain(each[place[index]]) for each in answers}
        if len(given) > 1:
            found[index] = tuple(sorted(given, key=lambda answer: (str(type(answer)), answer)))
    return found


def _plain(row: np.ndarray) -> Any:
    """Returns an answer as whole numbers: a class, or the labels of a list."""
    values = [int(value) if isinstance(value, float) else value for value in row.tolist()]
    return values[0] if len(values) == 1 else tuple(values)
