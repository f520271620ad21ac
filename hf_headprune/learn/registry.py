"""Which pruner serves which settings: a further method is one folder and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.pruner import MovementPruner
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.learn.pruner import Pruner
from hf_headprune.learn.second_order.pruner import SecondOrderPruner
from hf_headprune.learn.second_order.settings import SecondOrder
from hf_headprune.masking import plain_copy, temporary_parts

if TYPE_CHECKING:
    from torch import nn

# In the order in which they join a model: gates may freeze all parameters that they find.
PRUNERS: dict[type[Any], type[Pruner[Any]]] = {
    SubsetGates: GatePruner,
    BlockMovement: MovementPruner,
    SecondOrder: SecondOrderPruner,
}


def detach_pruners(model: nn.Module) -> None:
    """Frees a model of the pruners of an earlier training that did not end.

    Raises:
        TrainingStateError: Units of it were removed already, and the others refitted: it is not the model that it was.
    """
    found = [part for part in temporary_parts(model) if isinstance(part, Pruner)]
    for pruner in found:
        pruner.reset()
    for pruner in found:
        pruner.detach(model)


def freed_copy(model: nn.Module) -> nn.Module:
    """Copies a model in training, in evaluation mode, without its pruners: whole, whatever they have closed."""
    twin = plain_copy(model)
    for part in temporary_parts(twin):
        if isinstance(part, Pruner):
            part.detach(twin)
    return twin
