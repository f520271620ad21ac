"""Cut the tensors of one site: rows of its input modules, columns of its output projection."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_headprune._compat import accelerate_hooks, let_class_run_
from hf_headprune._finite import check_finite
from hf_headprune._layouts import HEADS, Entries
from hf_headprune._offloaded import device_of, keeper_of, put_, tensor_of
from hf_headprune.anatomy import anatomy_of, base_model, transposed
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.masking import is_scaled, temporary_parts
from hf_headprune.shrink.hollow import BiasOnly, NoUnits, hollow_attention_
from hf_headprune.shrink.own_numbers import LayerNumbers
from hf_headprune.shrink.shared_bias import take_heads_of_bias_

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hf_headprune.anatomy import Site


def cut_site_(base: nn.Module, site: Site, kept: Sequence[int]) -> None:
    """Cuts a site, in place, down to the given units.

    Linear modules stay the same objects, with new parameters that keep dtype, device and `requires_grad`. A site that
    loses all its units keeps nothing but the bias of its output projection.

    Args:
        base: Base model, below which the paths of the site start.
        site: What to cut, as `anatomy_of` finds it in this model.
        kept: Units that stay, ascending.
    """
    if len(kept) == site.units:
        return
    if kept:
        _keep_units_(base, site, kept)
    else:
        _empty_(base, site)


def _keep_units_(base: nn.Module, site: Site, kept: Sequence[int]) -> None:
    for part in site.parts:
        _keep_rows_(base.get_submodule(part.path), torch.tensor(site.rows(part, kept), device="cpu"))
    _keep_columns_(base.get_submodule(site.output), torch.tensor(site.columns(kept), device="cpu"))
    core: Any = base.get_submodule(site.core)
    for name, (dim, layout) in site.block.tables.items():
        path, _, attribute = name.rpartition(".")
        owner: Any = base.get_submodule(f"{site.prefix}.{path}")
        rows = Entries.of(layout, {**site.sizes, "u": site.units}).indices(kept)
        _select_(owner, attribute, dim, torch.tensor(rows, device="cpu"))
    for attribute, layout in site.block.attributes.items():
        setattr(core, attribute, site.number(layout, kept))
    if site.group > 1:
        setattr(core, site.block.sizes[HEADS], len(kept) // len(site.groups_of(kept)))
    if site.block.own_numbers:
        core.config = LayerNumbers.over(
            core.config, {name: site.number(layout, kept) for name, layout in site.block.own_numbers.items()}
        )
    if site.block.shared_bias is not None:
        take_heads_of_bias_(core, kept, argument=site.block.shared_bias)
    let_class_run_(core)


def _empty_(base: nn.Module, site: Site) -> None:
    output: Any = base.get_submodule(site.output)
    bias = output.bias
    if bias is not None and bias.is_meta and keeper_of(output) is not None:  # too small to be kept elsewhere
        bias = nn.Parameter(tensor_of(output, "bias").to(device_of(output)), requires_grad=bias.requires_grad)
    base.set_submodule(site.output, BiasOnly(site.hidden_size, bias).train(output.training))
    if not site.is_attention or site.block.runs_empty:
        for part in site.parts:
            linear: Any = base.get_submodule(part.path)
            base.set_submodule(part.path, NoUnits(site.hidden_size).train(linear.training))
        return
    prefix = f"{site.core}."
    is_part = site.output.startswith(prefix)
    tables = (f"{site.prefix}.{name.rpartition('.')[0]}" for name in site.block.tables)
    core = base.get_submodule(site.core)
    hollow_attention_(
        core,
        parts=tuple(path.removeprefix(prefix) for path in (*site.inputs, *tables)),
        output_name=site.output.removeprefix(prefix) if is_part else None,
        shared_bias=site.block.shared_bias,
    )
    let_class_run_(core)


def check_can_cut(model: nn.Module, sites: Iterable[Site]) -> None:
    """Checks that every module of the sites is a plain linear module whose tensors are here, whole and its own.

    No site of the model may carry gates or a mask, be it cut or not, and all tensors of the model must be finite.

    Raises:
        UnsupportedModelError: At least one is not; the message lists every offender. Or accelerate moves the weights in
            a way that is not known here, or the model carries what chooses units during training, or NaN.
    """
    parts = [part.part for part in temporary_parts(model)]
    if parts:
        raise UnsupportedModelError(
            f"{type(model).__name__} can't be cut: it carries {' and '.join(parts)} of a training that did not end, "
            "and its weights still depend on them. Train to the end (trainer.train(resume_from_checkpoint=True)), or "
            "load the model without them: AutoModel...from_pretrained(folder) ignores them."
        )
    _check_hooks(model)
    base = base_model(model)
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    problems = [
        f"{site.output} still carries gates or a mask"
        for site in anatomy_of(model).sites
        if is_scaled(base.get_submodule(site.output))
    ]
    for site in sites:
        if not site.units:  # an earlier cut has left nothing to cut
            continue
        kind = Conv1D if site.block.transposed else nn.Linear
        for part in site.parts:
            problems += _problems(part.path, base.get_submodule(part.path), kind, (part.rows.total, None), owners)
        width = (None, site.units * site.unit_width)
        problems += _problems(site.output, base.get_submodule(site.output), kind, width, owners)
    if problems:
        raise UnsupportedModelError(
            f"{type(model).__name__} can't be cut: only plain torch.nn.Linear modules with their own whole weights "
            f"can. {'; '.join(problems)}. Merge adapters (merge_and_unload of PEFT), remove gates and "
            "parametrizations, dequantize or gather the weights first."
        )
    check_finite(model)


def _check_hooks(model: nn.Module) -> None:
    """Refuses hooks of accelerate that load the weights of several modules together, or do something else."""
    for name, module in model.named_modules():
        for hook in accelerate_hooks(module):
            if not hasattr(hook, "weights_map") or (hook.offload and hook.place_submodules):
                raise UnsupportedModelError(
                    f"{type(model).__name__} can't be cut: {name or 'the model'} has a {type(hook).__name__} of "
                    "accelerate that does more than to load the weights of one module. Spread the model by a "
                    "device_map without preload_module_classes, or take the hooks off with "
                    "accelerate.hooks.remove_hook_from_submodules(model)."
                )


def _problems(
    path: str, linear: Any, kind: Any, expected: tuple[int | None, int | None], owners: Counter[int]
) -> Iterator[str]:
    if type(linear) is not kind:
        yield f"{path} is a {type(linear).__module__}.{type(linear).__qualname__}"
        return
    if "weight" not in dict(linear.named_parameters(recurse=False)) or type(linear.weight.data) is not torch.Tensor:
        yield f"{path}.weight is no ordinary parameter"
        return
    shape = tuple(linear.weight.shape)
    shape = shape[::-1] if transposed(linear) else shape
    wanted = tuple(size if want is None else want for size, want in zip(shape, expected, strict=False))
    if len(shape) != len(expected) or shape != wanted:
        yield f"{path}.weight has shape {shape} instead of {wanted}"
    if any(owners[id(parameter)] > 1 for parameter in linear.parameters()):
        yield f"{path} shares a parameter with another module"


def _keep_rows_(linear: Any, rows: torch.Tensor) -> None:
    _select_(linear, "weight", 1 if transposed(linear) else 0, rows)
    if linear.bias is not None:
        _select_(linear, "bias", 0, rows)
    setattr(linear, "nf" if transposed(linear) else "out_features", len(rows))


def _keep_columns_(linear: Any, columns: torch.Tensor) -> None:
    _select_(linear, "weight", 0 if transposed(linear) else 1, columns)
    setattr(linear, "nx" if transposed(linear) else "in_features", len(columns))


def _select_(module: nn.Module, name: str, dim: int, index: torch.Tensor) -> None:
    """Cuts a parameter of a module down to some entries of a dimension."""
    whole = tensor_of(module, name)
    index = torch.empty_like(index, device="meta") if whole.is_meta else index.to(whole.device)
    put_(module, name, whole.index_select(dim, index).contiguous())
