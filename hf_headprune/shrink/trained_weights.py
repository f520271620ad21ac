"""TrainedWeights: what further training made of a pruned model, as an update that prunes the dense model to it."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.errors import InvalidPlanError
from hf_headprune.shrink.resize import cut_site_

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hf_headprune.plan import PruningPlan


class TrainedWeights:
    """All weights of a pruned model that was trained on, each in its place in the dense model.

    With it, `prune_model_` makes the trained model of the dense one; a refit changes the output projections alone.
    """

    def __init__(self, dense: nn.Module, trained: nn.Module, plan: PruningPlan) -> None:
        """Copies the weights.

        Args:
            dense: From which the other was pruned; unchanged.
            trained: Pruned, and trained on.
            plan: To which it was pruned.
        """
        self._plan = plan
        places = _places(dense, trained, plan)
        shapes = {name: tensor.shape for name, tensor in _tensors(dense).items()}
        self._weights: dict[str, torch.Tensor] = {}
        for name, tensor in _tensors(trained).items():
            flat = tensor.detach().to("cpu", copy=True)
            if name in places:
                values, flat = flat, flat.new_zeros(shapes[name].numel())
                flat[places[name].flatten()] = values.flatten()
            self._weights[name] = flat.view(shapes[name])

    def check_fits(self, model: nn.Module) -> None:
        """Checks that a model has the weights, of these shapes.

        Raises:
            InvalidPlanError: One is missing or has another shape.
        """
        present = _tensors(model)
        wrong = [
            name for name, tensor in self._weights.items() if name not in present or present[name].shape != tensor.shape
        ]
        if wrong:
            raise InvalidPlanError(
                f"These trained weights do not fit the model: it has no {wrong[0]} of shape "
                f"{tuple(self._weights[wrong[0]].shape)}. Pass them to the dense model that was pruned and trained on."
            )

    @torch.no_grad()
    def apply_(self, model: nn.Module, plan: PruningPlan) -> None:
        """Gives the model, in place, the trained weights; `restoring` takes them back.

        Raises:
            InvalidPlanError: It is another plan than the one that was trained.
        """
        if plan != self._plan:
            raise InvalidPlanError(
                "Trained weights belong to the plan that they were trained with, received another one. Prune to the "
                "plan of the same result, or take the refit of a search."
            )
        for name, tensor in _tensors(model).items():
            if name in self._weights:
                tensor.copy_(self._weights[name])

    @contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Puts all weights back at the end of a `with` block, after an error too."""
        before = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _tensors(model).items():
                    tensor.copy_(before[name])


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _places(dense: nn.Module, trained: nn.Module, plan: PruningPlan) -> dict[str, torch.Tensor]:
    """Returns, for each tensor that pruning made smaller, where its entries are in the dense one's, flattened.

    The dense model is copied with numbered entries in place of such tensors, and cut in the same way.
    """
    after = {name: tensor.shape for name, tensor in _tensors(trained).items()}
    smaller, memo = set(), {}
    for name, tensor in _tensors(dense).items():
        is_smaller = name in after and after[name] != tensor.shape
        smaller |= {name} if is_smaller else set()
        numbers = torch.arange(tensor.numel()).view(tensor.shape) if is_smaller else tensor.detach().to("meta")
        is_weight = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(numbers, requires_grad=False) if is_weight else numbers
    numbered: Any = copy.deepcopy(dense, memo)
    for site in anatomy_of(numbered).sites:
        cut_site_(base_model(numbered), site, plan.kept(site.name))
    return {name: tensor.detach() for name, tensor in _tensors(numbered).items() if name in smaller}
