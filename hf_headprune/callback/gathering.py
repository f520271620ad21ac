"""Weights that FSDP2 or DeepSpeed ZeRO split over the processes, made whole once, after training.

Every process calls these functions. Tensors are gathered one at a time, so that no process holds more than the whole
model and one of its tensors besides.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._distributed import own
from hf_headprune._seen_splits import share_seen_
from hf_headprune.masking import temporary_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import Trainer

# What tells a split parameter: FSDP2's are distributed tensors, ZeRO-3's have a number.
DISTRIBUTED, PARTITIONED = "full_tensor", "ds_id"


def is_split(model: nn.Module) -> bool:
    """Tells whether some weights of a model are split over the processes."""
    return any(hasattr(parameter, name) for parameter in model.parameters() for name in (DISTRIBUTED, PARTITIONED))


def whole_copy(model: Any) -> Any:
    """Builds a whole copy of a split model, in evaluation mode, on the device of its parts."""
    kind = _class_before(type(model))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        twin: Any = kind(copy.deepcopy(model.config))
    joined = {part.module_name() for part in temporary_parts(model)}  # of a training: they join the copy by themselves
    places = {name: it for name, it in model.named_parameters() if not joined & set(name.split("."))}
    twin = twin.to_empty(device=own(next(iter(places.values()))).device)
    twin.tie_weights()
    given = dict(twin.named_parameters())
    with torch.no_grad():
        for name, parameter in places.items():
            with _whole(parameter) as tensor:
                given[name].data = tensor.to(given[name].device, copy=True)
            given[name].requires_grad_(parameter.requires_grad)
        for name, buffer in model.named_buffers():
            if joined & set(name.split(".")):
                continue
            twin.get_buffer(name).data = own(buffer).detach().clone()
    twin.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    share_seen_(twin, model)
    return twin.eval()


def make_whole_(trainer: Trainer) -> bool:
    """Gives a Trainer whose training has ended a whole copy of its split model in place of it.

    Returns:
        Whether FSDP or DeepSpeed trained it; else nothing is done.
    """
    owner: Any = trainer
    if not (owner.is_fsdp_enabled or owner.is_deepspeed_enabled):
        return False
    model = owner.model
    whole = whole_copy(model) if is_split(model) else model
    owner.model = owner.model_wrapped = owner.callback_handler.model = whole
    # From now on it is saved and evaluated as any model is.
    owner.is_fsdp_enabled = owner.is_deepspeed_enabled = False
    owner.deepspeed = None
    return True


def _class_before(kind: type[Any]) -> type[Any]:
    """Returns the class that a model had before FSDP2 put one of its own in its place."""
    return next(base for base in kind.__mro__ if not base.__name__.startswith("FSDP"))


@contextmanager
def _whole(parameter: Any) -> Iterator[torch.Tensor]:
    """Gathers a parameter for the length of a `with` block."""
    if hasattr(parameter, DISTRIBUTED):
        yield parameter.full_tensor().detach()
    elif hasattr(parameter, PARTITIONED):
        with import_module("deepspeed").zero.GatheredParameters([parameter]):
            yield parameter.detach()
    else:
        yield parameter.detach()
