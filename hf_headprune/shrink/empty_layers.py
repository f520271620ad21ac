"""Layers that have lost all their units: which of them a model can do without, and how the others are numbered then."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.anatomy import anatomy_of, base_model, family_of, layer_lists
from hf_headprune.shrink.surgery import probe

if TYPE_CHECKING:
    from collections.abc import Mapping

BY_LAYER = "layer_types"  # the field of a configuration that has an entry for each layer


@dataclass(frozen=True)
class EmptyLayers:
    """Layers with neither heads nor FFN units.

    Attributes:
        path: Of the list of layers, in the whole model.
        depth: Field of the configuration with the number of layers.
        indices: Of the layers, zero-based; there are others.
        acting: Those of them that change what they are given, by a norm of the residual stream or a bias.
    """

    path: str = ""
    depth: str = ""
    indices: tuple[int, ...] = ()
    acting: tuple[int, ...] = ()

    @property
    def left_out(self) -> tuple[int, ...]:
        """The layers that the model can do without; there are none as soon as one acts."""
        return () if self.acting else self.indices

    def renumbered(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns weights without those of the layers that are left out, by the names of a model that lacks them."""
        found = {}
        for name, tensor in weights.items():
            within = name.removeprefix(f"{self.path}.")
            if not self.left_out or within == name:
                found[name] = tensor
                continue
            number, _, rest = within.partition(".")
            if int(number) not in self.left_out:
                before = sum(index < int(number) for index in self.left_out)
                found[f"{self.path}.{int(number) - before}.{rest}"] = tensor
        return found

    def leave_out_(self, config: Any) -> None:
        """Lets a configuration say that the layers are missing."""
        if not self.left_out:
            return
        setattr(config, self.depth, getattr(config, self.depth) - len(self.left_out))
        by_layer = getattr(config, BY_LAYER, None)
        if by_layer is not None:
            setattr(config, BY_LAYER, [it for index, it in enumerate(by_layer) if index not in self.left_out])


def empty_layers(model: Any) -> EmptyLayers:
    """Finds the empty layers of a pruned model whose layers are one stack, numbered by one field.

    Whether one acts is seen on a random batch: one that does not act returns the very bits that it is given.
    """
    family, base = family_of(model), base_model(model)
    (stack, *others), lists = family.stacks, layer_lists(dict(base.named_modules()), family.stacks[0])
    if others or len(lists) > 1 or stack.uses is not None or stack.config or not isinstance(stack.depth, str):
        return EmptyLayers()
    sites = anatomy_of(model).sites
    prefixes = {site.prefix: site.layer for site in sites}
    full = {site.layer for site in sites if site.units}
    empty = {prefix: layer for prefix, layer in prefixes.items() if layer not in full}
    if not empty or not full:
        return EmptyLayers()
    layers = base.get_submodule(lists[0])
    path = next(name for name, module in model.named_modules() if module is layers)
    passing = _passing(model, base, empty)
    return EmptyLayers(path, stack.depth, tuple(empty.values()), tuple(sorted(set(empty.values()) - passing)))


def _passing(model: Any, base: Any, layers: Mapping[str, int]) -> set[int]:
    """Returns the numbers of the layers that hand on what they are given."""
    passing: set[int] = set()
    with ExitStack() as stack:
        for prefix, layer in layers.items():

            def look(_: Any, args: Any, kwargs: Any, output: Any, layer: int = layer) -> None:
                given = args[0] if args else kwargs["hidden_states"]
                if torch.equal(given, output[0] if isinstance(output, tuple) else output):
                    passing.add(layer)

            hook = base.get_submodule(prefix).register_forward_hook(look, with_kwargs=True)
            stack.callback(hook.remove)
        probe(model)
    return passing
