"""Shows a running search on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from hf_headprune._distributed import number_of_processes

if TYPE_CHECKING:
    from hf_headprune.search.problem import Progress

TYPICAL_SHARE = 0.4  # of the examples, over the plans that a search measures: many are decided early


class SearchBar:
    """Progress bar of a search; silent on every process but the first."""

    def __init__(self, *, disable: bool = False, unit_name: str = "heads") -> None:
        """Opens no bar yet: its length is known with the first evaluation."""
        self._unit_name = unit_name
        self._disable = disable or (number_of_processes() > 1 and torch.distributed.get_rank() != 0)
        self._bar: Any = None

    def __enter__(self) -> SearchBar:
        """Returns the bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the bar, after an error too."""
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """Shows the state of the search after an evaluation."""
        if self._bar is None:
            self._bar = tqdm(total=progress.max_evaluations, desc="Search", unit="plan", disable=self._disable)
        best = progress.best
        state = f"{len(best.removed)} {self._unit_name} removed, metric {best.metric:.4f}"
        rate = f"{progress.evaluations_per_second:.2f} new plans/s"  # the bar's own rate counts replayed ones too
        self._bar.set_postfix_str(f"{state}, {rate}", refresh=False)
        self._bar.update(progress.evaluations - self._bar.n)
