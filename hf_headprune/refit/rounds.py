"""Prunes in several rounds without training: what is left is refitted, and looked at anew, before more is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.masking import masked, plain_copy
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.choice import choose
from hf_headprune.refit.in_order import Runs
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.refit.weights_of_plan import WeightsOfPlan

if TYPE_CHECKING:
    from collections.abc import Callable

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


class WeightsOfRounds(WeightsOfPlan):
    """The weights that several rounds of pruning and refitting have changed."""

    kind = "refitted weights"
    fits = "model that was looked at"
    belong = "Weights that several rounds have refitted belong to the plan of the last one"
    other = "ask for one round: SecondOrder(rounds=1)"

    def __init__(self, model: nn.Module, twin: nn.Module, plan: PruningPlan) -> None:
        """Copies the weights of a model that differ from those of another.

        Args:
            model: Before the rounds.
            twin: After them, of the same shapes.
            plan: What they keep.
        """
        before = dict(model.named_parameters())
        changed = {name: it for name, it in twin.named_parameters() if not torch.equal(it, before[name])}
        super().__init__({name: it.detach().clone() for name, it in changed.items()}, plan)
