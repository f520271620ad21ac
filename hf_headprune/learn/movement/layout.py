"""Which scores block movement learns in one model: their shapes, costs and places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_headprune.anatomy import base_model, matrix_of
from hf_headprune.cost import macs_price
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.learn.movement.masks import ScoreTensor

if TYPE_CHECKING:
    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.learn.movement.settings import Block, BlockMovement


def score_layout(model: nn.Module, anatomy: Anatomy, settings: BlockMovement) -> tuple[ScoreTensor, ...]:
    """Lists the score tensors of a model, in the order of the forward pass.

    Args:
        model: Live model.
        anatomy: Of that model.
        settings: What is scored, and what costs count.

    Raises:
        UnsupportedModelError: A scored matrix is no plain linear module.
        InvalidSettingError: A block or the width multiple does not divide what it cuts; or nothing is scored.
    """
    base = base_model(model)
    layout: list[ScoreTensor] = []
    problems = [f"no site's name matches {pattern!r} in blocks" for pattern in _unmatched(settings, anatomy)]
    for site in anatomy.sites:
        shape = settings.block_of(site)
        if shape is not None and site.units:
            layout += _scores_of(base, site, shape, settings, problems)
    if layout and settings.attention_block is not None and not any(t.kind.endswith("attention") for t in layout):
        none = "the model has no heads" + (f" to prune, since {anatomy.left_out}" if anatomy.left_out else "")
        cause = "blocks leave no attention" if settings.tuning.blocks else none
        problems.append(f"{cause} to score; say so with attention_block=None")
    if problems or not layout:
        problems = problems or ["the model has nothing that the settings score"]
        raise InvalidSettingError(f"BlockMovement: {'; '.join(problems)}. Change the block or width_multiple.")
    return tuple(layout)


def _scores_of(
    base: Any, site: Site, shape: Block | str, settings: BlockMovement, problems: list[str]
) -> list[ScoreTensor]:
    """Returns the score tensors of one site, and adds to the problems what does not divide it."""
    linears = {path: base.get_submodule(path) for path in (*site.inputs, site.output)}
    plain = Conv1D if site.block.transposed else nn.Linear
    strange = [path for path, linear in linears.items() if type(linear) is not plain]
    if strange:
        raise UnsupportedModelError(
            f"BlockMovement scores plain torch.nn.{plain.__name__} modules only, but {strange} are "
            f"{sorted({type(linears[path]).__name__ for path in strange})}. Merge adapters and dequantize first."
        )
    if shape == "head" and not site.is_attention:
        problems.append(f"{site.name} has no heads")
        return []
    fused = [part for part in site.parts if not part.rows.is_plain]
    if shape != "unit" and fused:
        problems.append(
            f"{fused[0].path} holds several matrices in one ({fused[0].rows.text!r}), which have no own blocks; "
            f'score {site.name} in units (with score_gradient="unit"), or not at all'
        )
        return []
    if shape == "unit" and site.is_attention and settings.tuning.score_gradient != "unit":
        problems.append(f'{site.name} in units needs score_gradient="unit"')
    if site.units % (multiple := _multiple(site, shape, settings)):
        problems.append(f"{site.name} has {site.units} units, no multiple of {multiple}")
    price = _price_of_a_weight(site, linears, settings)
    if shape == "unit":
        return [_unit_scores(site, settings, linears, price)]
    return list(_block_scores(site, linears, shape, price, problems))


def _unmatched(settings: BlockMovement, anatomy: Anatomy) -> list[str]:
    names = [site.name for site in anatomy.sites]
    return [pattern for pattern in settings.tuning.blocks or {} if not any(fnmatchcase(n, pattern) for n in names)]


def with_exact_fraction(settings: BlockMovement, layout: tuple[ScoreTensor, ...]) -> BlockMovement:
    """Returns the settings with a density, a share of the total cost, that the layout can meet exactly, if it can.

    Raises:
        InvalidSettingError: More is to be kept than there is.
    """
    total = sum(tensor.cost * tensor.numel for tensor in layout)
    kept = settings.kept
    if not settings.ranks or settings.tuning.ranking == "per_matrix":
        return settings
    if isinstance(kept, int):
        if kept > total:
            raise InvalidSettingError(
                f"BlockMovement: {kept} scores are to be kept, but the model has {round(total)}. Ask for "
                "fewer, or for a density from 0.0 to 1.0."
            )
        return _at_density(settings, kept / total)
    prices = {tensor.cost * tensor.multiple for tensor in layout}
    if len(prices) == 1:
        (chunk,) = prices
        return _at_density(settings, int(kept * total / chunk + 0.5) * chunk / total)
    return settings


def _at_density(settings: BlockMovement, density: float) -> BlockMovement:
    return replace(settings, density=density, tuning=replace(settings.tuning, kept=None))


def _price_of_a_weight(site: Site, linears: dict[str, Any], settings: BlockMovement) -> float | None:
    """Returns what one entry of the site's matrices costs; None where every score costs one."""
    if settings.tuning.counts == "scores":
        return None
    if settings.tuning.counts == "parameters":
        return 1.0
    macs = site.price(macs_price(site, settings.tuning.seq_len, settings.tuning.target_len))
    return macs / sum(linear.weight.numel() for linear in linears.values())


def _multiple(site: Site, shape: Block | str, settings: BlockMovement) -> int:
    """Returns of what the site's width is to remain a multiple."""
    if site.is_attention or (shape != "unit" and not settings.counts_cut):
        return 1
    multiple = settings.tuning.width_multiple
    return multiple if isinstance(shape, str) else math.lcm(multiple, shape[0])


def _kind(site: Site) -> str:
    return ("decoder_" if site.in_decoder else "") + ("attention" if site.is_attention else "ffn")


def _unit_scores(site: Site, settings: BlockMovement, linears: dict[str, Any], price: float | None) -> ScoreTensor:
    entries = sum(linear.weight.numel() for linear in linears.values())
    return ScoreTensor(
        name=site.name,
        paths=(*site.inputs, site.output),
        kind=_kind(site),
        shape=(site.groups,),
        cost=1.0 if price is None else price * entries / site.groups,
        multiple=1 if site.is_attention else settings.tuning.width_multiple,
        site=site.name,
        units=site.groups,
        rows=tuple(part.rows for part in site.parts),
    )


def _block_scores(
    site: Site, linears: dict[str, Any], shape: Block | str, price: float | None, problems: list[str]
) -> Iterator[ScoreTensor]:
    width = {part.path: part.rows.per_unit for part in site.parts} | {site.output: site.group_width}
    for path, linear in linears.items():
        rows, columns = matrix_of(linear).shape
        unit_rows, other = (columns, rows) if path == site.output else (rows, columns)
        block = (width[path], other) if isinstance(shape, str) else shape
        if unit_rows % block[0] or other % block[1]:
            problems.append(f"{path} of shape {(rows, columns)} can't be cut into blocks of {block}")
            continue
        counts = (unit_rows // block[0], other // block[1])
        yield ScoreTensor(
            name=path,
            paths=(path,),
            kind=_kind(site),
            shape=counts[::-1] if path == site.output else counts,
            cost=1.0 if price is None else price * block[0] * block[1],
            site=site.name,
            units=site.groups,
        )


def budget_of(settings: BlockMovement, layout: tuple[ScoreTensor, ...]) -> tuple[Any, ...]:
    """Returns what a resumed run must have in common with the one that wrote its checkpoint."""
    tuning = settings.tuning
    return (
        settings.method,
        settings.kept,
        tuning.counts,
        tuple(map(float, settings.levels)),
        *map(float, (settings.warmup_ratio, settings.freeze_at, settings.refill_ratio)),
        tuning.ramp_end,
        int(tuning.width_multiple),
        tuning.ranking,
        float(tuning.min_kept),
        tuning.mask_bias,
        tuning.score_gradient,
        (tuning.seq_len, tuning.target_len) if tuning.counts == "macs" else None,
        *((tensor.name, tensor.shape) for tensor in layout),
    )
