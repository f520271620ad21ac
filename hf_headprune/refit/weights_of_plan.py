"""WeightsOfPlan: weights of a whole model as an update that belongs to one plan."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch

from hf_headprune.errors import InvalidPlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from hf_headprune.plan import PruningPlan


class WeightsOfPlan:
    """Weights that something has made of a model for one plan, each in its place in the model before pruning.

    Attributes:
        kind: What they are, in words.
        fits: The model that they are for, in words.
        belong: Says to which plan they belong.
        other: What to take for another plan, in words.
    """

    kind: ClassVar[str]
    fits: ClassVar[str]
    belong: ClassVar[str]
    other: ClassVar[str]

    def __init__(self, weights: Mapping[str, torch.Tensor], plan: PruningPlan) -> None:
        """Keeps them.

        Args:
            weights: By the names of the model's parameters and buffers.
            plan: What they were made for.
        """
        self._weights, self._plan = dict(weights), plan

    def check_fits(self, model: nn.Module) -> None:
        """Checks that a model has the weights, of these shapes.

        Raises:
            InvalidPlanError: One is missing or has another shape.
        """
        present = tensors_of(model)
        wrong = [name for name, it in self._weights.items() if name not in present or present[name].shape != it.shape]
        if wrong:
            raise InvalidPlanError(
                f"These {self.kind} do not fit the model: it has no {wrong[0]} of shape "
                f"{tuple(self._weights[wrong[0]].shape)}. Pass them to the {self.fits}."
            )

    @torch.no_grad()
    def apply_(self, model: nn.Module, plan: PruningPlan) -> None:
        """Gives the model, in place, the weights; `restoring` takes them back.

        Raises:
            InvalidPlanError: It is another plan than the one that they were made for.
        """
        if plan != self._plan:
            raise InvalidPlanError(
                f"{self.belong}, received another one. Prune to the plan of the same result, or {self.other}."
            )
        self._give(model, self._weights, copy=True)

    @contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Puts the weights back at the end of a `with` block, after an error too."""
        before = {name: it.data for name, it in tensors_of(model).items() if name in self._weights}
        try:
            yield
        finally:
            self._give(model, before)

    @staticmethod
    @torch.no_grad()
    def _give(model: nn.Module, weights: Mapping[str, torch.Tensor], *, copy: bool = False) -> None:
        """Replaces the data of tensors; what was there stays whole."""
        for name, tensor in tensors_of(model).items():
            if name in weights:
                tensor.data = weights[name].to(tensor.device, tensor.dtype, copy=copy)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns parameters and buffers by their names."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
