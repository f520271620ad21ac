"""Prunes in several rounds without training: what is left is refitted, and looked at anew, before more is removed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError
from hf_headprune.masking import masked, plain_copy
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.choice import choose
from hf_headprune.refit.in_order import Runs
from hf_headprune.refit.projections import RefitInOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from hf_headprune.refit.one_shot import ExampleLosses
    from hf_headprune.refit.settings import SecondOrder


def planned_in_rounds(
    model: nn.Module,
    settings: SecondOrder,
    losses: ExampleLosses,
    speed_up_of: Callable[[PruningPlan], float] | None = None,
) -> RefittedPlan:
    """Returns the plan that several rounds reach, with the weights that they leave.

    In each round the costs are those of the model that the rounds before have left, and the refit in order aims at what
    the whole model computes. Recording moments anew between rounds is done in Optimal BERT Surgeon (Kurtic et al. 2022,
    arXiv 2203.07259) and in ZipLM.

    Args:
        model: It is left as it was.
        settings: The budget, and its rounds.
        losses: Of the model.
        speed_up_of: See `choose`; of the last round.
    """
    twin, plan = plain_copy(model), PruningPlan.full(anatomy_of(model))
    for number in range(1, settings.rounds + 1):
        measure = speed_up_of if number == settings.rounds else None
        with masked(twin, plan):
            share = number / settings.rounds
            smaller, refit = choose(twin, settings, plan, losses.on(twin), share=share, speed_up_of=measure)
        runs = Runs(model, losses.runs().each, recorded=twin)
        ordered = RefitInOrder(refit, smaller, plan, runs).fit()
        ordered.apply_(twin, smaller)
        plan = smaller
    return RefittedPlan(plan, WeightsOfRounds(model, twin, plan))


class WeightsOfRounds:
    """The weights that several rounds of pruning and refitting have changed; those of one plan."""

    def __init__(self, model: nn.Module, twin: nn.Module, plan: PruningPlan) -> None:
        """Copies the weights of a model that differ from those of another.

        Args:
            model: Before the rounds.
            twin: After them, of the same shapes.
            plan: What they keep.
        """
        before = dict(model.named_parameters())
        changed = {name: it for name, it in twin.named_parameters() if not torch.equal(it, before[name])}
        self._plan, self._weights = plan, {name: it.detach().clone() for name, it in changed.items()}

    def check_fits(self, model: nn.Module) -> None:
        """Checks that a model has the weights, of these shapes.

        Raises:
            InvalidPlanError: One is missing or has another shape.
        """
        present = dict(model.named_parameters())
        wrong = [name for name, it in self._weights.items() if name not in present or present[name].shape != it.shape]
        if wrong:
            raise InvalidPlanError(
                f"These refitted weights do not fit the model: it has no {wrong[0]} of shape "
                f"{tuple(self._weights[wrong[0]].shape)}. Pass them to the model that was looked at."
            )

    @torch.no_grad()
    def apply_(self, model: nn.Module, plan: PruningPlan) -> None:
        """Gives the model, in place, the weights; `restoring` takes them back.

        Raises:
            InvalidPlanError: It is another plan.
        """
        if plan != self._plan:
            raise InvalidPlanError(
                "Weights that several rounds have refitted belong to the plan of the last one, received another. Prune "
                "to the plan of the same result, or ask for one round: SecondOrder(rounds=1)."
            )
        present = dict(model.named_parameters())
        for name, tensor in self._weights.items():
            present[name].copy_(tensor)

    @contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Puts the weights back at the end of a `with` block, after an error too."""
        present = dict(model.named_parameters())
        before = {name: present[name].detach().clone() for name in self._weights}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    present[name].copy_(tensor)
