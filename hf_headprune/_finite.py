"""Whether what a model is made of are numbers: a NaN in a weight may leave every answer finite, and wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._checks import first_of
from hf_headprune._distributed import is_part, own
from hf_headprune._offloaded import is_offloaded, tensor_of
from hf_headprune.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

SHOWN = 3


def are_finite(model: nn.Module) -> dict[str, bool]:
    """Tells of each parameter and each buffer that is saved, by its name, whether all of it is finite.

    Of a model that is split over processes, it tells what this process holds.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        path, _, attribute = name.rpartition(".")
        is_elsewhere = getattr(tensor, "is_meta", False)
        found[name] = is_finite(tensor_of(model.get_submodule(path), attribute) if is_elsewhere else own(tensor))
    return found


def check_finite(model: nn.Module) -> None:
    """Checks all that `are_finite` looks at.

    Raises:
        UnsupportedModelError: Something is NaN or infinite; the message names it.
    """
    found = are_finite(model)
    bad = [name for name, holds in found.items() if not holds]
    if bad:
        raise UnsupportedModelError(
            f"{type(model).__name__} holds NaN or infinity in {len(bad)} of its {len(found)} tensors: "
            f"{first_of(bad, SHOWN, ', ')}. Whatever is measured or pruned of it would mean nothing. Load an earlier "
            "checkpoint, or load it in a precision that holds its values."
        )


def is_finite(tensor: Any) -> bool:
    """Tells whether a tensor holds neither NaN nor infinity; in one pass over it, which needs no memory."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    if is_packed(tensor):  # into whole numbers
        return True
    values = tensor.detach()
    values = values.float() if values.element_size() == 1 else values  # of eight bits, nothing is compared
    smallest, largest = values.aminmax()
    return bool(smallest.isfinite() & largest.isfinite())


def is_packed(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor wraps others, as torchao's quantized weights do, so that nothing reads values or bytes."""
    return hasattr(tensor, "__tensor_flatten__") and not is_part(tensor)


def check_plain_tensors(model: nn.Module, *, where: str, advice: str) -> None:
    """Sees that the state of a model is made of plain tensors alone.

    Args:
        model: Of torch.
        where: Name of the public function.
        advice: What to do instead.

    Raises:
        UnsupportedModelError: It is not.
    """
    state = model.state_dict().items()
    packed = [name for name, value in state if not isinstance(value, torch.Tensor) or is_packed(value)]
    if packed:
        raise UnsupportedModelError(
            f"{where}: {packed[0]} of a {type(model).__name__} is no plain tensor, as in models that torch or torchao "
            f"has quantized. {advice}"
        )


def check_loaded(model: nn.Module) -> None:
    """Sees that a model has its weights, or something that loads them, and that gradients can be computed.

    Raises:
        UnsupportedModelError: Some are on the meta device, or were made in inference mode.
    """
    state = {} if is_offloaded(model) else model.state_dict()
    nowhere = [name for name, value in state.items() if isinstance(value, torch.Tensor) and value.is_meta]
    if nowhere:
        raise UnsupportedModelError(
            f"{len(nowhere)} weights of a {type(model).__name__} are on the meta device ({nowhere[0]}), and nothing "
            "loads them. Load the model with its weights."
        )
    frozen = [name for name, value in state.items() if isinstance(value, torch.Tensor) and value.is_inference()]
    if frozen:
        raise UnsupportedModelError(
            f"{len(frozen)} weights of a {type(model).__name__} were made in torch.inference_mode ({frozen[0]}), so "
            "nothing can be differentiated for. Load the model outside of it."
        )
