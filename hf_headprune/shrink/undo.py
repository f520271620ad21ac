"""Puts a model back as it was where what changes it in place fails, or is interrupted."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PretrainedConfig

from hf_headprune._offloaded import keeper_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn


@contextmanager
def undone_after_errors(models: Iterable[nn.Module]) -> Iterator[None]:
    """Puts models back as they were if the `with` block ends with an error, or with Ctrl-C.

    Weights that the block replaces stay in memory for as long as it lasts; weights that it writes into are not put
    back, nor is a model whose weights accelerate keeps elsewhere, since it may be larger than the memory.

    Args:
        models: That the block changes; they may share modules.
    """
    modules = {id(module): module for model in models for module in model.modules()}
    if any(keeper_of(module) is not None for module in modules.values()):
        yield
        return
    before = [_Before.of(each) for each in (*modules.values(), *_configs_of(modules.values()))]
    try:
        yield
    except BaseException:
        for each in before:
            each.restore_()
        raise


def _configs_of(owners: Iterable[Any]) -> list[Any]:
    """Returns the configurations that modules hold, and those inside of them."""
    found: dict[int, Any] = {}
    waiting = list(owners)
    while waiting:
        values = vars(waiting.pop()).values()
        new = [it for it in values if isinstance(it, PretrainedConfig | GenerationConfig) and id(it) not in found]
        found |= {id(it): it for it in new}
        waiting += new
    return list(found.values())


@dataclass(frozen=True, eq=False)
class _Before:
    """A module or a configuration, and what it was.

    Attributes:
        owner: The object.
        kind: Its class.
        attributes: By name.
        entries: Containers among them, such as those of parameters and hooks, each with a copy of what it holds.
        data: Its tensors, each with the memory that it has.
    """

    owner: Any
    kind: type[Any]
    attributes: dict[str, Any]
    entries: list[tuple[Any, Any]]
    data: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, owner: Any) -> _Before:
        attributes = dict(vars(owner))
        entries = [(value, copy.copy(value)) for value in attributes.values() if isinstance(value, dict | list | set)]
        held = (value for found, _ in entries if isinstance(found, dict) for value in found.values())
        data = [(value, value.data) for value in held if isinstance(value, torch.Tensor)]
        return cls(owner, type(owner), attributes, entries, data)

    def restore_(self) -> None:
        self.owner.__class__ = self.kind
        vars(self.owner).clear()
        vars(self.owner).update(self.attributes)
        for held, copied in self.entries:  # the same objects again: whoever has registered a hook holds on to them
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(copied)
        for tensor, data in self.data:
            tensor.data = data
