"""What a speed-up is: counted, by a table of blocks, or as models are measured here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidSettingError
from hf_headprune.latency import LatencySettings, measure_latency
from hf_headprune.pipeline.holdout import pruned_copy
from hf_headprune.shrink.latency_table import measure_latency_table

if TYPE_CHECKING:
    from typing import Any

    from hf_headprune.cost import LatencyTable
    from hf_headprune.latency import LatencyChange
    from hf_headprune.plan import PruningPlan


class Speed:
    """The speed of the plans of a model.

    Attributes:
        table: The ms of each block; None where a speed-up is counted.
        changes: What was measured of each plan, the last time.
    """

    def __init__(self, model: Any, latency: LatencySettings | LatencyTable | None, speedup: Any) -> None:
        """Measures the blocks of a model, where that is asked for.

        Raises:
            InvalidSettingError: No speed-up is asked for, or what is measured does not fit the model.
        """
        if latency is not None and speedup is None:
            raise InvalidSettingError("plan_for_budget: latency belongs to speedup=, which is not given. Leave it out.")
        self._model: Any = model
        self._settings: LatencySettings | None = None
        self.table: LatencyTable | None
        is_watched = sys.stderr.isatty()  # it takes a minute
        if isinstance(latency, LatencySettings):
            self._settings, self.table = latency, measure_latency_table(model, latency, progress=is_watched)
        else:
            self.table = latency
        self.changes: dict[PruningPlan, LatencyChange] = {}

    @property
    def is_measured(self) -> bool:
        """Whether pruned copies are measured."""
        return self._settings is not None

    def of(self, plan: PruningPlan) -> float:
        """Measures a plan: time of the whole model before over after."""
        self.changes[plan] = change = measure_latency(self._model, pruned_copy(self._model, plan), self._settings)
        return change.before.median_ms / change.after.median_ms
