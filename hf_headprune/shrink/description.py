"""Whether a live model is what its class and its configuration say, and whether what it is a part of will say so."""

from __future__ import annotations

import copy
import gc
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_headprune._checks import first_of
from hf_headprune.anatomy import base_model
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.masking import temporary_parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHOWN = 3


def check_described(model: nn.Module) -> None:
    """Checks that a model has the weights that its class and configuration say: those that loading it will look for.

    Names and shapes of the whole state dict are compared with a skeleton without memory.

    Raises:
        UnsupportedModelError: Names or shapes differ, or the class can't be built from its configuration.
    """
    expected, found = _shapes(_skeleton(model).state_dict()), _shapes(_own_state(model))
    differing = expected.keys() ^ found.keys()
    if base_model(model) is model:  # it may be that of a task
        differing = {name for name in differing if not is_of_some_tasks(name, model)}
    problems = [f"{name} has no place in it" for name in found if name in differing]
    problems += [f"{name} is missing" for name in expected if name in differing]
    problems += [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise UnsupportedModelError(
            f"{type(model).__name__}: the model is not what its class and its configuration say, so what is saved of "
            f"it could not be loaded again: {first_of(problems, SHOWN)}. Set the configuration to what the "
            "model is (num_hidden_layers after dropping layers, vocab_size, num_labels), or give a head of your own a "
            "class of its own, a subclass of the family's PreTrainedModel that builds it."
        )


def is_of_some_tasks(key: str, model: Any) -> bool:
    """Tells whether a weight, by its name in the state dict, is of the pooler or a mask token: some tasks lack them."""
    name = key.removeprefix(f"{model.base_model_prefix}.")
    return name.startswith("pooler.") or name.rpartition(".")[2] == "mask_token"


def _own_state(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Returns the weights without those of what joined the model for a training."""
    parts = {part.module_name() for part in temporary_parts(model)}
    return {name: tensor for name, tensor in model.state_dict().items() if not parts & set(name.split("."))}


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _skeleton(model: Any) -> nn.Module:
    """Builds a model anew from its configuration, on the meta device."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return type(model)(copy.deepcopy(model.config))
    except TypeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} can't be built from its configuration alone, as from_pretrained does it: {error}. "
            "Let its constructor take the configuration, and read what else it needs from there."
        ) from error


def models_around(model: Any) -> list[Any]:
    """Finds the Transformers models that a model is a part of: what they save must say that it is cut.

    Args:
        model: The part that is to be cut, or a model that is no part of any.

    Raises:
        UnsupportedModelError: The configuration of one does not hold that of the part, so it could not say so.
    """
    found = list(_models_around(model)) if _may_be_part(model) else []
    for whole in found:
        if whole.config is not model.config and not any(part is model.config for part in vars(whole.config).values()):
            raise UnsupportedModelError(
                f"{type(model).__name__} is a part of a {type(whole).__name__}, whose configuration does not hold that "
                "of the part and would not say that it is cut, so the whole could not be loaded again. Let both share "
                "one configuration, or prune the part before it is put into the whole."
            )
    return found


def _may_be_part(model: Any) -> bool:
    """Tells whether to look for a whole, which takes a while: for a body, or where others hold the configuration."""
    config, name, lone = model.config, "config", object()
    held = sum(vars(module).get(name) is config for module in model.modules())
    return base_model(model) is model or sys.getrefcount(config) > held + sys.getrefcount(lone)  # each has a name here


def _models_around(model: nn.Module) -> Iterator[Any]:
    """Yields the Transformers models that a module is a part of; a module does not know, but the interpreter does."""
    level, seen = [model], {id(model)}
    while level:
        parents = [parent for parent in _parents(level) if id(parent) not in seen]
        seen |= {id(parent) for parent in parents}
        yield from (parent for parent in parents if isinstance(parent, PreTrainedModel))
        level = [parent for parent in parents if not isinstance(parent, PreTrainedModel)]


def _parents(children: list[nn.Module]) -> list[nn.Module]:
    """Returns the modules that hold some of the given ones directly."""
    wanted = {id(child) for child in children}
    tables = [
        table
        for table in gc.get_referrers(*children)
        if type(table) is dict
        and any(id(value) in wanted for value in table.values())
        and all(value is None or isinstance(value, nn.Module) for value in table.values())
    ]
    if not tables:
        return []
    owners = [owner for owner in gc.get_referrers(*tables) if owner is not tables]
    spaces = [owner for owner in owners if type(owner) is dict]
    owners += gc.get_referrers(*spaces) if spaces else []
    held = {id(table) for table in tables}
    return [
        owner
        for owner in owners
        if issubclass(type(owner), nn.Module) and any(id(value) in held for value in vars(owner).values())
    ]
