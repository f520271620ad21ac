"""Adapters of PEFT on a pruned model: PEFT's defaults are those of the family; one of another shape is refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hf_headprune.errors import UnsupportedModelError
from hf_headprune.families import PRUNABLE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

DEFAULTS = "peft.utils.constants"
WEIGHTS = "lora_"
SHOWN = 2


def let_peft_know(model_type: str) -> None:
    """Gives a type of pruned models, in PEFT where it is imported, the target modules of the dense type."""
    dense, constants = model_type.removeprefix(PRUNABLE_PREFIX), sys.modules.get(DEFAULTS)
    for name, defaults in ({} if constants is None else vars(constants)).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and dense in defaults:
            defaults.setdefault(model_type, defaults[dense])


def check_adapter_fits(model: nn.Module, state: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Checks that the weights of an adapter that are about to be loaded were made for a model of this shape.

    Args:
        model: Pruned, with the adapter's modules in it.
        state: All that is loaded, by name.
        prefix: Of the names that are the model's.

    Raises:
        UnsupportedModelError: They were made for another one, such as the model before it was pruned.
    """
    names = [name.removeprefix(prefix) for name in state if name.startswith(prefix) and f".{WEIGHTS}" in name]
    if not names:
        return
    modules, present = {name for name, _ in model.named_modules()}, dict(model.named_parameters())
    problems = [
        f"{name} has shape {tuple(state[prefix + name].shape)} and needs {tuple(present[name].shape)}"
        for name in names
        if name in present and present[name].shape != state[prefix + name].shape
    ]
    paths = dict.fromkeys(name.split(f".{WEIGHTS}")[0] for name in names)
    problems += [f"{path} is not there any more" for path in paths if path not in modules]
    if problems:
        raise stale_adapter(model, problems)


def stale_adapter(model: Any, problems: list[str]) -> UnsupportedModelError:
    """Returns the error about an adapter that does not fit, with the first problems."""
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return UnsupportedModelError(
        f"{type(model).__name__}: this adapter was made for a model of another shape, such as the one before pruning: "
        f"{'; '.join(problems[:SHOWN])}{more}. Merge it into that model (merge_and_unload) and prune what comes out, "
        "or train a new adapter on the pruned model. The model in hand has part of the adapter now: load it again."
    )
