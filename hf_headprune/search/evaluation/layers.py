"""Enters the layers of a model late and leaves them early, so that what plans share is computed once."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune._offloaded import device_of
from hf_headprune.anatomy import anatomy_of, base_model, family_of, layer_lists
from hf_headprune.masking import UnitScale, attach
from hf_headprune.search.evaluation.weight_slices import WeightSlices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hf_headprune.plan import PruningPlan

Inputs = dict[str, torch.Tensor]
Kept = tuple[tuple[int, ...], ...]


class LayerStack:
    """The layers of a model whose hidden states run through one list of layers, one after the other.

    Whether they do is not declared but tried: see `ModelCapabilities`.

    Attributes:
        model: Whose layers they are.
        anatomy: Of the model.
        layers: In the order of the one list that the model runs through.
        has_one_list: Whether there is one list; an encoder and a decoder are two.
        depth: Number of layers.
    """

    def __init__(self, model: nn.Module) -> None:
        """Finds the layers.

        Raises:
            UnsupportedModelError: The model's family is not declared.
        """
        self.model = model
        self.anatomy = anatomy_of(model)
        self._sites = self.anatomy.sites
        base = base_model(model)
        present = dict(base.named_modules())
        lists = [path for stack in family_of(model).stacks for path in layer_lists(present, stack)]  # a decoder: one
        parent, _, self._name = lists[0].rpartition(".")
        self._parent = base.get_submodule(parent)
        self.layers: list[nn.Module] = list(getattr(self._parent, self._name))
        self._scales: dict[str, UnitScale] = {}
        self._kept: dict[str, tuple[int, ...]] = {}
        self._slices = WeightSlices(model, self._sites)
        self.has_one_list = len(lists) == 1
        self.depth = len(self.layers) if self.has_one_list else 1 + max(site.layer for site in self._sites)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches one scale per site for the length of a `with` block; `close` sets them."""
        with ExitStack() as stack:
            stack.callback(self.open)
            self._scales = {site.name: UnitScale(site.unit_width) for site in self._sites if site.units}
            for site in self._sites:
                if site.units:
                    stack.callback(attach(self.model, site, self._scales[site.name]).remove)
            yield

    def open(self) -> None:
        """Makes every site whole; only while attached."""
        for name, scale in self._scales.items():
            self._slices.restore(name)
            scale.scale = None
        self._kept = {}

    def close(self, plan: PruningPlan) -> None:
        """Closes exactly the units that a plan removes; only while attached.

        Sites that keep the same as before stay as they are: a plan differs from its parent in few.
        """
        device = device_of(self.model)
        for site in self._sites:
            kept = plan.kept(site.name)
            if not site.units or self._kept.get(site.name) == kept:
                continue
            self._slices.restore(site.name)
            scale = torch.zeros(site.units, device=device)
            scale[list(kept)] = 1.0
            self._scales[site.name].scale = None if len(kept) == site.units else scale
            self._kept[site.name] = kept

    def take_out(self, plan: PruningPlan) -> None:
        """Takes the units that `close` has closed out of the products, until it opens them; only while attached."""
        for name in self._slices.take_out(plan):
            self._scales[name].scale = None

    def kept_per_layer(self, plan: PruningPlan) -> tuple[Kept, ...]:
        """Returns what a plan keeps in each layer, site by site."""
        kept: list[list[tuple[int, ...]]] = [[] for _ in range(self.depth)]
        for site in self._sites:
            kept[site.layer].append(plan.kept(site.name))
        return tuple(map(tuple, kept))

    def outputs(self, inputs: Inputs, first: int = 0, state: torch.Tensor | None = None) -> Any:
        """Runs a forward pass that enters at a layer, and returns what the model does.

        Args:
            inputs: Of the model, without labels.
            first: Layer to enter at.
            state: Its input, `(batch, length, hidden_size)`; None for `first=0`.
        """
        with self._only(first, self.depth, state):
            return self.model(**inputs)

    def states(
        self, inputs: Inputs, first: int, last: int, state: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        """Returns the inputs of the layers `first + 1 ... last`, from that of layer `first`."""
        found: dict[int, torch.Tensor] = {}

        def note(place: int, module: nn.Module, args: Any, output: Any) -> None:
            found[place] = output[0] if isinstance(output, tuple) else output

        with ExitStack() as stack:
            for place in range(first + 1, last + 1):
                stack.callback(self.layers[place - 1].register_forward_hook(partial(note, place)).remove)
            with self._only(first, last, state):
                self.model(**inputs)
        return found

    @contextmanager
    def first_token_only(self) -> Iterator[None]:
        """Lets the last layer compute no more than what a head that reads only the first token needs.

        The last output projection and FFN get the first token alone; the residual connections spread its output over
        the others, whose values are then wrong and not read.
        """
        base = base_model(self.model)
        last = [site for site in self._sites if site.layer == self.depth - 1]
        with ExitStack() as stack:
            first = [(site.output,) if site.is_attention else site.inputs for site in last if site.units]
            for path in (path for paths in first for path in paths):
                stack.callback(base.get_submodule(path).register_forward_pre_hook(_first_token).remove)
            yield

    @contextmanager
    def _only(self, first: int, last: int, state: torch.Tensor | None) -> Iterator[None]:
        """Leaves only the layers `first ... last - 1` in the model's list, and gives the first one its input."""

        def enter(module: nn.Module, args: Any) -> Any:
            return (state, *args[1:])

        with ExitStack() as stack:
            stack.callback(setattr, self._parent, self._name, getattr(self._parent, self._name))
            if first or last < self.depth:
                setattr(self._parent, self._name, nn.ModuleList(self.layers[first:last]))
            if state is not None:
                stack.callback(self.layers[first].register_forward_pre_hook(enter).remove)
            yield


def digests_of(kept: Sequence[Kept]) -> tuple[str, ...]:
    """Returns what identifies the units kept in the first 0, 1, ... layers."""
    digest, found = hashlib.sha256(), [""]
    for units in kept:
        digest.update(repr(units).encode())
        found.append(digest.hexdigest())
    return tuple(found)


def logits_in(outputs: Any) -> torch.Tensor:
    """Returns all logits of a model's output in one tensor: those of classes or tokens, or of both ends of spans.

    Without a head: its last hidden states.
    """
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def _first_token(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0][:, :1], *args[1:])
