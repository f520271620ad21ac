"""Computes answers of plans batch by batch, without products for the units that a plan removes."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from hf_headprune.masking import evaluating
from hf_headprune.search.evaluation.closed_units import ClosedUnits

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.tasks.answers import Answers
    from hf_headprune.tasks.scorer import Scorer


class PlanRunner:
    """A model that answers for plans.

    Attributes:
        takes_out: Whether units that a plan removes are left out of the products, whose other shapes round otherwise
            than a plain evaluation.
    """

    def __init__(
        self, model: nn.Module, scorer: Scorer, sample: dict[str, torch.Tensor], *, refit: Refit | None = None
    ) -> None:
        """Tries on a few examples what the model allows.

        Args:
            model: Its weights must not change from now on.
            scorer: Of the model's task.
            sample: A small batch with labels.
            refit: Refits output projections to each plan.
        """
        self._refit = refit
        self._model = model
        self._scorer = scorer
        self._units = ClosedUnits(model)
        self._closed: PruningPlan | None = None
        # Continuous scores would show another rounding.
        self.takes_out = not scorer.is_continuous and self._units.can_take_out(scorer.inputs(sample))

    def check_fits(self, plan: PruningPlan) -> None:
        """Checks that a plan was made for this model.

        Raises:
            InvalidPlanError: It was not.
        """
        plan.check_fits(self._units.anatomy)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Makes the model ready for `answers`; it is left as it was."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            if self._refit is not None:
                stack.enter_context(self._refit.restoring(self._model))
            stack.enter_context(self._units.attached())  # it restores first
            self._closed = None
            yield

    def answers(self, entries: dict[str, torch.Tensor], plan: PruningPlan) -> Answers:
        """Runs a plan on a batch; only while open."""
        if plan is not self._closed:
            if self._refit is not None:
                self._units.open()
                self._refit.apply_(self._model, plan)
            self._units.close(plan)
            if self.takes_out:
                self._units.take_out(plan)
            self._closed = plan
        return self._scorer.answers(self._model(**self._scorer.inputs(entries)), entries)
