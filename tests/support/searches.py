"""Settings of searches, and evaluators that are plain functions."""

import dataclasses

from hf_headprune._checks import with_tuning
from hf_headprune.search.evaluation.base import Evaluator
from hf_headprune.search.settings import AStarSearch, SearchTuning

TUNING = set(SearchTuning.__dataclass_fields__)


def settings(**given):
    """Settings of a search, those of its tuning among them."""
    return AStarSearch(**with_tuning(given, SearchTuning))


def over_heads(**given):
    """Settings of a search over heads as they are, without a refit, unless other units are given."""
    return settings(**{"units": ("heads",), "objective": "heads", "refit": False, **given})


def changed(search, **changes):
    """The same settings but for some, those of the tuning among them."""
    return dataclasses.replace(search, **with_tuning({"tuning": search.tuning, **changes}, SearchTuning))


class Given(Evaluator):
    """Measures plans by a function of the plan."""

    def __init__(self, measure):
        self._measure = measure

    def __call__(self, plan):
        return self._measure(plan)
