"""Adapters of PEFT: LoRA is cut together with its base, PEFT's defaults hold, and one of another shape is refused.

A LoRA layer adds `B A x` to what its base layer computes. Where the base loses rows, B loses the same; where it loses
columns, A does.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._checks import first_of
from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.families import PRUNABLE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from hf_headprune.anatomy import Site
    from hf_headprune.plan import RefittedPlan

DEFAULTS = "peft.utils.constants"
WEIGHTS = "lora_"
SHOWN = 2


def let_peft_know(model_type: str) -> None:
    """Gives a type of pruned models, in PEFT where it is imported, the target modules of the dense type."""
    dense, constants = model_type.removeprefix(PRUNABLE_PREFIX), sys.modules.get(DEFAULTS)
    for name, defaults in ({} if constants is None else vars(constants)).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and dense in defaults:
            defaults.setdefault(model_type, defaults[dense])


def model_inside(model: Any) -> Any:
    """Returns the Transformers model in a model of PEFT; any other model as it is."""
    peft = sys.modules.get("peft")
    return model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model


@contextmanager
def cut_together(model: Any, found: RefittedPlan) -> Iterator[None]:
    """Takes adapters out of a model for the length of a `with` block that cuts it, and puts them back, cut alike.

    A refit was computed for the weights with the active adapters in them. They are merged for as long as the block
    lasts, so that the update of both goes into the base.

    Args:
        model: Transformers model, with or without adapters; after an error it has them again as they were.
        found: What the block cuts it down to.

    Raises:
        UnsupportedModelError: An adapter is no plain LoRA.
    """
    wrappers = _wrappers_of(model)
    if not wrappers:
        yield
        return
    sites, start = anatomy_of(model).sites, _path_of(base_model(model), model)
    _check_plain(model, {start + path for site in sites for path in (*site.inputs, site.output)}, wrappers)
    layers = [module for module in wrappers.values() if _is_active(module)] if found.refit is not None else []
    gone: set[str] = set()
    with _merged(layers):
        for path, module in wrappers.items():
            model.set_submodule(path, _inside(module))
        try:
            yield
            for site in sites:
                gone |= _cut_(wrappers, start, site, found.plan.kept(site.name))
        finally:
            for path in wrappers.keys() - gone:
                model.set_submodule(path, wrappers[path])
    if gone:
        _leave_out_(model, {path.removeprefix(start) for path in gone})


@contextmanager
def _merged(layers: list[Any]) -> Iterator[None]:
    """Merges layers of LoRA for the length of a `with` block; after an error their bases are what they were."""
    before = [layer.base_layer.weight.data for layer in layers]
    for layer, weight in zip(layers, before, strict=True):
        layer.base_layer.weight.data = weight.clone()  # which the merge writes into
        layer.merge()
    try:
        yield
    except BaseException:  # unmerging alone would leave what rounding makes of the weights
        for layer, weight in zip(layers, before, strict=True):
            layer.merged_adapters.clear()
            layer.base_layer.weight.data = weight
        raise
    for layer in layers:
        layer.unmerge()


def _wrappers_of(model: nn.Module) -> dict[str, Any]:
    """Returns the modules of PEFT that stand where others were, by path, without those inside others."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if _is_wrapper(module) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def _is_wrapper(module: Any) -> bool:
    """Tells whether a module of PEFT stands where one of the model was: of an adapter, or trained beside one."""
    name = type(module).__module__
    return name.startswith("peft.") and (hasattr(module, "base_layer") or hasattr(module, "original_module"))


def _inside(wrapper: Any) -> Any:
    return wrapper.base_layer if hasattr(wrapper, "base_layer") else wrapper.original_module


def _is_active(wrapper: Any) -> bool:
    """Tells whether a wrapper adds a LoRA to its base, which has not been merged."""
    return hasattr(wrapper, "lora_A") and not wrapper.merged and not wrapper.disable_adapters


def _check_plain(model: Any, cut: set[str], wrappers: Mapping[str, Any]) -> None:
    """Refuses what is no plain LoRA on a linear module: it can't be cut row by row and column by column."""
    plain = sys.modules["peft.tuners.lora.layer"].Linear
    problems = [
        f"{path} is a {type(module).__module__}.{type(module).__qualname__}{' with a variant such as DoRA' * is_plain}"
        for path, module in wrappers.items()
        if path in cut and (not (is_plain := type(module) is plain) or module.lora_variant)
    ]
    if problems:
        raise UnsupportedModelError(
            f"{type(model).__name__}: of adapters, only plain LoRA on linear modules can be cut with the model: "
            f"{first_of(problems, SHOWN)}. Merge the adapter (merge_and_unload of PEFT) and prune what comes "
            "out."
        )


def _path_of(base: nn.Module, model: nn.Module) -> str:
    """Returns what the names of a base model's modules begin with in the whole model."""
    return next(f"{path}." if path else "" for path, module in model.named_modules() if module is base)


def _cut_(wrappers: Mapping[str, Any], start: str, site: Site, kept: Sequence[int]) -> set[str]:
    """Cuts the adapters of a site; returns the paths of those that are gone, since the site has no units any more."""
    paths = {start + path for path in (*site.inputs, site.output)} & wrappers.keys()
    if len(kept) == site.units or not kept:
        return paths if site.units and not kept else set()
    for part in site.parts:
        if start + part.path in paths:
            _keep_rows_(wrappers[start + part.path], torch.tensor(site.rows(part, kept)))
    if start + site.output in paths:
        _keep_columns_(wrappers[start + site.output], torch.tensor(site.columns(kept)))
    return set()


def _keep_rows_(layer: Any, rows: torch.Tensor) -> None:
    for last in layer.lora_B.values():
        _select_(last, "weight", 0, rows)
        if last.bias is not None:
            _select_(last, "bias", 0, rows)
        last.out_features = len(rows)
    layer.out_features = len(rows)


def _keep_columns_(layer: Any, columns: torch.Tensor) -> None:
    for first in layer.lora_A.values():
        _select_(first, "weight", 1, columns)
        first.in_features = len(columns)
    layer.in_features = len(columns)


def _select_(module: nn.Module, name: str, dim: int, index: torch.Tensor) -> None:
    whole: Any = getattr(module, name)
    cut = whole.detach().index_select(dim, index.to(whole.device)).contiguous()
    setattr(module, name, torch.nn.Parameter(cut, requires_grad=whole.requires_grad))


def _leave_out_(model: Any, paths: set[str]) -> None:
    """Lets the configuration of each adapter say that blocks without units have none, for whoever loads it."""
    for config in model.peft_config.values():
        old = config.exclude_modules
        if isinstance(old, str):
            config.exclude_modules = "|".join(
                [f"(?:{old})", *(rf"(?:.*\.)?{re.escape(path)}" for path in sorted(paths))]
            )
        else:
            config.exclude_modules = {*(old or ()), *paths}


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
    return UnsupportedModelError(
        f"{type(model).__name__}: this adapter was made for a model of another shape, such as the one before pruning: "
        f"{first_of(problems, SHOWN)}. Prune that model with the adapter in it (prune_model_), or "
        "train a new adapter on the pruned model. The model in hand has part of the adapter now: load it again."
    )
