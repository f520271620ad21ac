"""Masks that other libraries save beside a dense model, written into its weights as factors of output columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.anatomy import anatomy_of, base_model, matrix_of
from hf_headprune.errors import InvalidConfigError, UnsupportedModelError, shown

if TYPE_CHECKING:
    from hf_headprune.anatomy import Site

HEAD_MASK, COFI = "head_mask.pt", "zs.pt"
MASK_FILES = (HEAD_MASK, COFI)
_OF_UNITS = {"head_z": True, "intermediate_z": False}  # of each, whether it is about attention
_OF_BLOCKS = {"head_layer_z": True, "mlp_z": False}
_OF_HIDDEN = "hidden_z"


@torch.no_grad()
def apply_masks_(model: Any, name: str, content: Any) -> None:
    """Multiplies, in place, the columns of each output projection by the factors of their units.

    Factors between 0 and 1 are exact, too: scaling what a unit computes is scaling its columns.

    Args:
        model: Dense, with one attention per layer.
        name: One of `MASK_FILES`.
        content: Of `head_mask.pt` a tensor `(layers, heads)`. Of `zs.pt` a mapping: `head_z` and `intermediate_z` with
            a factor for each unit of each layer, `head_layer_z` and `mlp_z` with one for each block, `hidden_z`.

    Raises:
        InvalidConfigError: A mask has another shape than the model.
        UnsupportedModelError: It masks hidden dimensions, or a whole block.

    Source: Xia et al. 2022 (arXiv 2204.00408), section 3.1, and the repository's `update_params`.
    """
    sites = anatomy_of(model).sites
    twice = len({(site.layer, site.is_attention) for site in sites}) < len(sites)
    if twice:
        raise UnsupportedModelError(
            f"{name}: a {type(model).__name__} has several attentions in a layer of that number, and the mask does not "
            "say which it means. Mask and prune the model with this package."
        )
    masks = {"head_z": content} if name == HEAD_MASK else content
    _check(name, masks)
    for site in sites:
        units = _row(name, masks, _OF_UNITS, site, sites)
        block = _row(name, masks, _OF_BLOCKS, site, sites)
        if units is None and block is None:
            continue
        if name == COFI and any(row is not None and not row.any() for row in (units, block)):
            raise UnsupportedModelError(
                f"{name}: it removes all of {site.name}. CoFi then skips the layer norm of that block, which no model "
                "of Transformers does, so the result would compute something else. It can't be migrated."
            )
        _scale_(model, site, units, block)


def _check(name: str, masks: Any) -> None:
    known = {*_OF_UNITS, *_OF_BLOCKS, _OF_HIDDEN}
    if not isinstance(masks, Mapping) or not all(isinstance(mask, torch.Tensor) for mask in masks.values()):
        raise InvalidConfigError(f"{name}: it must hold {_expected(name)}, received {shown(type(masks).__name__)}.")
    if unknown := sorted(map(str, masks.keys() - known)):
        raise InvalidConfigError(f"{name}: unknown masks {shown(unknown)} (known: {', '.join(sorted(known))}).")
    if _OF_HIDDEN in masks and not (masks[_OF_HIDDEN] == 1).all():
        raise UnsupportedModelError(
            f"{name}: {_OF_HIDDEN} removes dimensions of the hidden state, which all layers and their layer norms "
            "share, and this package prunes heads and FFN units alone. It can't be migrated."
        )


def _expected(name: str) -> str:
    return "a tensor (layers, heads)" if name == HEAD_MASK else "tensors by their names"


def _row(
    name: str, masks: Mapping[str, torch.Tensor], kinds: Mapping[str, bool], site: Site, sites: tuple[Site, ...]
) -> torch.Tensor | None:
    """Returns the factors that masks of some kinds have for a site, `(units,)` or `(1,)`, or None."""
    key = next(key for key, is_attention in kinds.items() if is_attention == site.is_attention)
    if key not in masks:
        return None
    mask = masks[key]
    layers = sum(other.is_attention == site.is_attention for other in sites)
    size = site.units if kinds is _OF_UNITS else 1
    if not mask.dim() or len(mask) != layers or mask.numel() != layers * size:
        raise InvalidConfigError(
            f"{name}: {key} must have {layers} layers with {size} factors each, received a tensor of shape "
            f"{tuple(mask.shape)}. Pass the mask that was made for this model."
        )
    row = mask.reshape(layers, size)[site.layer]
    if not row.isfinite().all():
        raise InvalidConfigError(f"{name}: {key} has factors that are no finite numbers in layer {site.layer}.")
    return row


def _scale_(model: Any, site: Site, units: torch.Tensor | None, block: torch.Tensor | None) -> None:
    output: Any = base_model(model).get_submodule(site.output)
    weight = matrix_of(output)
    if units is not None:
        weight *= units.to(weight.dtype).repeat_interleave(site.unit_width)
    if block is not None:
        weight *= block.to(weight.dtype)
        if output.bias is not None:
            output.bias *= block.to(weight.dtype)
