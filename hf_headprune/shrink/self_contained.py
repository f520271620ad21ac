"""What the code that travels with a checkpoint is made of: it needs torch and Transformers alone.

`remote_code` writes the classes and functions of this file below the declaration of one family. A model is built by the
dense class and resized, layer by layer, before its weights are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.anatomy import KEPT_HEADS
from hf_headprune.shrink.hollow import BiasOnly, NoUnits, headless_class
from hf_headprune.shrink.own_numbers import LayerNumbers
from hf_headprune.shrink.shared_bias import own_heads_class

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIGNMENT = 64  # bytes, as torch allocates on CPUs


@dataclass(frozen=True)
class Block:
    """Heads, or FFN units, in each layer of a stack. Paths are below the layer; `u` in a layout is the unit.

    Attributes:
        number: Field of the layer's entry in `per_layer_config` that says how many heads or FFN units there are.
        groups: That of the groups of heads that share a key and a value: then `u` is a group, and `r` the heads of one.
        inputs: Layout of the rows of each linear module that makes the units.
        output: Linear module whose columns belong to the units.
        columns: Layout of these columns.
        is_attention: Whether the units are attention heads.
        core: Module that computes the heads.
        sizes: Attribute of `core` for each letter of the layouts but `u`.
        attributes: Attributes of `core` that its forward pass reads.
        own_numbers: Fields of the configuration that the forward pass of `core` reads.
        tables: Parameters beside the linear modules: their dimension of units, and its layout.
        shared_bias: Argument of the forward pass with a bias of all heads of the dense model.
        runs_empty: Whether the forward pass of `core` runs without heads, too.
    """

    number: str
    inputs: Mapping[str, str]
    output: str
    groups: str | None = None
    columns: str = "u"
    is_attention: bool = False
    core: str = ""
    sizes: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    own_numbers: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    shared_bias: str | None = None
    runs_empty: bool = False


class PrunedModel:
    """Builds the dense model and resizes it to its configuration; mixed into the dense class of each task."""

    stacks: Mapping[str, tuple[Block, ...]]
    towers: Mapping[str, str] = MappingProxyType({})  # field with the configuration of a stack, if it is a tower's

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Takes what the dense class takes."""
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        resize_to_config_(self)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads as Transformers does, and aligns the weights."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        align_weights_(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves as Transformers does, with the names and shapes that the model has."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]


def resize_to_config_(model: Any) -> None:
    """Cuts a freshly built dense model, in place, to the numbers of its configuration."""
    base = getattr(model, "base_model", model)
    for layers, blocks in model.stacks.items():
        config = getattr(model.config, model.towers[layers]) if layers in model.towers else model.config
        lists = re.compile(re.escape(layers).replace(r"\*", r"\d+"))
        found = [(path, module) for path, module in base.named_modules() if lists.fullmatch(path)]
        for index, layer in enumerate(layer for _, stack in found for layer in stack):
            numbers = config.per_layer_config[index] if config.is_heterogeneous else config
            for block in blocks:
                heads = getattr(numbers, block.number)  # None where the layers of the dense model differ: all
                if heads is not None and has(layer, block.output) and has(layer, next(iter(block.inputs))):
                    groups = heads if block.groups is None else getattr(numbers, block.groups)
                    resize_block_(layer, block, groups, heads)


def resize_block_(layer: nn.Module, block: Block, units: int, heads: int) -> None:
    """Cuts one block of a layer, in place, to a number of units; without any, its output bias is left.

    Args:
        layer: With the numbers of the dense model.
        block: Its declaration.
        units: Heads, groups of heads, or FFN units.
        heads: Equal to `units` where they are no groups.
    """
    core: Any = layer.get_submodule(block.core)
    sizes = {letter: getattr(core, name) for letter, name in block.sizes.items()} | {"r": heads // max(units, 1)}
    output: Any = layer.get_submodule(block.output)
    dense_class: Any = type(core)
    inputs = {path: layout for path, layout in block.inputs.items() if has(layer, path)}
    if length(block.columns, sizes, units) == width(output, "in"):
        return
    if not units:
        empty_block_(layer, block, inputs)
        return
    for path, layout in inputs.items():
        resize_linear_(layer.get_submodule(path), "out", length(layout, sizes, units))
    resize_linear_(output, "in", length(block.columns, sizes, units))
    for path, (dim, layout) in block.tables.items():
        owner, _, name = path.rpartition(".")
        module = layer.get_submodule(owner)
        setattr(module, name, first_of(getattr(module, name), dim, length(layout, sizes, units)))
    for name, layout in block.attributes.items():
        setattr(core, name, length(layout, sizes, units))
    if block.own_numbers:
        numbers = {name: length(layout, sizes, units) for name, layout in block.own_numbers.items()}
        core.config = LayerNumbers.over(core.config, numbers)
    if block.shared_bias is not None:
        core.register_buffer(KEPT_HEADS, torch.arange(units))  # the checkpoint says which
        core.__class__ = own_heads_class(dense_class, block.shared_bias)


def empty_block_(layer: nn.Module, block: Block, inputs: Mapping[str, str]) -> None:
    """Takes all units out of a block, in place."""
    core, output = layer.get_submodule(block.core), layer.get_submodule(block.output)
    dense_class: Any = type(core)
    replace_(layer, block.output, BiasOnly(width(output, "out"), output.bias))  # type: ignore[arg-type]
    if not block.is_attention or block.runs_empty:
        for path in inputs:
            replace_(layer, path, NoUnits(width(layer.get_submodule(path), "in")))
        return
    prefix = f"{block.core}."
    for path in (*inputs, *(name.rpartition(".")[0] for name in block.tables)):
        delattr(core, path.removeprefix(prefix))
    vars(core)["_output_name"] = block.output.removeprefix(prefix) if block.output.startswith(prefix) else None
    vars(core)["_shared_bias"] = block.shared_bias
    core.__class__ = headless_class(dense_class)


def length(layout: str, sizes: Mapping[str, int], units: int) -> int:
    """Returns how many rows or columns a layout such as "u d" or "u r d + u d" has."""
    known = {**sizes, "u": units}
    sections = ([int(name) if name.isdecimal() else known[name] for name in part.split()] for part in layout.split("+"))
    return sum(map(prod, sections))


def has(layer: nn.Module, path: str) -> bool:
    """Tells whether a layer has a module."""
    return path in dict(layer.named_modules())


def width(linear: Any, side: str) -> int:
    """Returns the "in" or "out" features of a linear module; those of GPT-2 call them otherwise."""
    return getattr(linear, f"{side}_features") if hasattr(linear, "in_features") else linear.weight.shape[side == "out"]


def resize_linear_(linear: Any, side: str, size: int) -> None:
    """Keeps the first rows ("out") or columns ("in") of a linear module, in place."""
    is_transposed = not hasattr(linear, "in_features")
    linear.weight = first_of(linear.weight, int((side == "out") == is_transposed), size)
    if side == "out" and linear.bias is not None:
        linear.bias = first_of(linear.bias, 0, size)
    setattr(linear, {"in": "nx", "out": "nf"}[side] if is_transposed else f"{side}_features", size)


def first_of(parameter: nn.Parameter, dim: int, size: int) -> nn.Parameter:
    """Returns the first entries of a parameter along a dimension."""
    return nn.Parameter(parameter.data.narrow(dim, 0, size).clone(), requires_grad=parameter.requires_grad)


def replace_(layer: nn.Module, path: str, module: nn.Module) -> None:
    """Puts another module into a layer."""
    parent, _, name = path.rpartition(".")
    setattr(layer.get_submodule(parent), name, module)


def align_weights_(model: nn.Module) -> None:
    """Moves weights, in place, to where a fresh tensor would lie in memory, if they don't.

    Loaded weights are views of the file, at any offset; matrix products then sum in another order, by a last bit, and
    take longer. A saved and reloaded model thus computes bit by bit what it computed before.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
