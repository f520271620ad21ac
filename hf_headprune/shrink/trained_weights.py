"""TrainedWeights: what further training made of a pruned model, as an update that prunes the dense model to it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.refit.weights_of_plan import WeightsOfPlan, tensors_of
from hf_headprune.shrink.resize import cut_site_

if TYPE_CHECKING:
    from hf_headprune.plan import PruningPlan


class TrainedWeights(WeightsOfPlan):
    """All weights of a pruned model that was trained on, each in its place in the dense model.

    With it, `prune_model_` makes the trained model of the dense one; a refit may change fewer.
    """

    kind = "trained weights"
    fits = "dense model that was pruned and trained on"
    belong = "Trained weights belong to the plan that they were trained with"
    other = "take the refit of a search"

    def __init__(self, dense: nn.Module, trained: nn.Module, plan: PruningPlan) -> None:
        """Copies the weights.

        Args:
            dense: From which the other was pruned; unchanged.
            trained: Pruned, and trained on.
            plan: To which it was pruned.
        """
        places = _places(dense, trained, plan)
        shapes = {name: tensor.shape for name, tensor in tensors_of(dense).items()}
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in tensors_of(trained).items():
            if name not in shapes:  # a buffer that the cut leaves, and will leave again
                continue
            flat = tensor.detach().to("cpu", copy=True)
            if name in places:
                values, flat = flat, flat.new_zeros(shapes[name].numel())
                flat[places[name].flatten()] = values.flatten()
            weights[name] = flat.view(shapes[name])
        super().__init__(weights, plan)


def _places(dense: nn.Module, trained: nn.Module, plan: PruningPlan) -> dict[str, torch.Tensor]:
    """Returns, for each tensor that pruning made smaller, where its entries are in the dense one's, flattened.

    The dense model is copied with numbered entries in place of such tensors, and cut in the same way.
    """
    after = {name: tensor.shape for name, tensor in tensors_of(trained).items()}
    smaller, memo = set(), {}
    for name, tensor in tensors_of(dense).items():
        is_smaller = name in after and after[name] != tensor.shape
        smaller |= {name} if is_smaller else set()
        numbers = torch.arange(tensor.numel()).view(tensor.shape) if is_smaller else tensor.detach().to("meta")
        is_weight = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(numbers, requires_grad=False) if is_weight else numbers
    numbered: Any = copy.deepcopy(dense, memo)
    for site in anatomy_of(numbered).sites:
        cut_site_(base_model(numbered), site, plan.kept(site.name))
    return {name: tensor.detach() for name, tensor in tensors_of(numbered).items() if name in smaller}
