"""What the heads and FFN units of each block cost in time on this machine, measured on models that lack them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from hf_headprune._checks import is_whole
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.latency import LatencySettings, measured_within
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import copy_to_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from hf_headprune.anatomy import Anatomy, Site

SECONDS_PER_POINT = 3.0


def measure_latency_table(
    model: nn.Module,
    settings: LatencySettings | None = None,
    *,
    points: int = 8,
    inputs: Mapping[str, torch.Tensor] | None = None,
    progress: bool = True,
) -> dict[str, dict[int, float]]:
    """Measures what each block takes with none, some and all of its heads or FFN units, on the model's device.

    Blocks of one kind and size are measured together: a copy of the model is cut in all of them alike and runs in turns
    with the whole model, so that what a block takes is its share of the difference, overhead included. That it takes
    the same in every layer, and beside any other block, is an assumption.

    Args:
        model: Of a supported family, dense or already pruned; left unchanged. Its device and dtype are those measured.
        settings: Batch, length, threads and runs; the defaults of `LatencySettings` when left out. No number of units
            takes much longer than `SECONDS_PER_POINT`.
        points: Numbers of units measured for each kind of block beside zero, evenly spread; at least 1.
        inputs: Keyword arguments of the forward pass, batch first; random tokens without padding when left out.
        progress: Whether to show a bar.

    Returns:
        For each block its ms with each number of heads or FFN units kept, `{site: {kept: ms}}`, none being zero ms:
        what `SearchTuning(latency_ms=...)` takes, for `AStarSearch(objective="latency")`.

    Raises:
        InvalidSettingError: `points` is too small, or the settings or inputs do not fit the model.
        UnsupportedModelError: The family is unknown, or the model can't be cut.
    """
    if not is_whole(points, at_least=1):
        raise InvalidSettingError(
            f"measure_latency_table: points must be an integer of at least 1, received {points!r}."
        )
    settings = settings or LatencySettings()
    anatomy = anatomy_of(model)
    alike: dict[tuple[str, int, int], list[Site]] = {}
    for site in anatomy.sites:
        if site.units:
            block = f"{site.prefix.rpartition('.')[0]}.*.{site.block.site}"
            alike.setdefault((block, site.units, site.group), []).append(site)
    numbers = {key: [count * key[2] for count in _spread(key[1] // key[2], points)] for key in alike}  # whole groups
    whole: list[float] = []  # ms of the whole model, once per measurement
    shares: dict[tuple[str, int, int], dict[int, float]] = {key: {} for key in alike}
    with tqdm(total=sum(map(len, numbers.values())), desc="Latency", unit="model", disable=not progress) as bar:
        for key, sites in alike.items():
            for kept in numbers[key]:
                cut = _cut(model, anatomy, sites, kept)
                found = measured_within(SECONDS_PER_POINT, model, cut, settings, inputs)
                whole.append(found.before.median_ms)
                shares[key][kept] = found.after.median_ms / found.before.median_ms
                bar.update()
    base = float(np.median(whole))
    return {
        site.name: _ms(shares[key], site.units, base / len(sites)) for key, sites in alike.items() for site in sites
    }


def _spread(units: int, points: int) -> list[int]:
    """Returns the numbers of units that are measured, without all of them, which the whole model has."""
    return sorted({units * point // points for point in range(points)})


def _cut(model: nn.Module, anatomy: Anatomy, sites: list[Site], kept: int) -> nn.Module:
    plan = PruningPlan.full(anatomy)
    chosen = {site.name: range(kept) for site in sites}
    heads = {site: units for site, units in chosen.items() if site in plan.kept_heads}
    ffn = {site: units for site, units in chosen.items() if site in plan.kept_ffn}
    return copy_to_run(model, plan.replace(kept_heads=heads, kept_ffn=ffn))


def _ms(shares: dict[int, float], units: int, scale: float) -> dict[int, float]:
    """Returns the ms above those of the block without any unit, from shares of the whole model's time."""
    measured = {**shares, units: 1.0}
    return {kept: (share - measured[0]) * scale for kept, share in measured.items()}
