"""What the contract tests of all families share: models, plans with empty blocks, and what generation is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_headprune._compat import is_older_than
from hf_headprune.families import FAMILIES
from hf_headprune.plan import PruningPlan
from tests.support.models import TINY_FAMILIES


def made(name: str, *, seed: int = 0, **settings: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Makes a tiny model of a family and its inputs; skips the test where the installed Transformers is too old."""
    since = FAMILIES[name].since
    if since is not None and is_older_than(since):
        pytest.skip(f"{name} is supported from Transformers {since} on")
    family = TINY_FAMILIES[name]
    return family.make(seed=seed, **settings), family.inputs(seed=seed)


def implementations(name: str) -> tuple[str, ...]:
    """Returns the implementations of attention that a family has."""
    return ("eager", "sdpa") if TINY_FAMILIES[name].sdpa else ("eager",)


def random_plan(model: Any, *, seed: int) -> PruningPlan:
    """Draws a plan in which, site by site, some lose units, some all, and some none; another one for each seed.

    Grouped heads lose whole groups with odd seeds; with even ones, also heads of each group that stays.
    """
    full, generator = PruningPlan.of(model), torch.Generator().manual_seed(seed)

    def drawn(place: int, units: int) -> tuple[int, ...]:
        if (place + seed) % 4 == 1:
            return ()
        if (place + seed) % 4 == 3:
            return tuple(range(units))
        count = int(torch.randint(1, max(units, 2), (1,), generator=generator))
        return tuple(sorted(torch.randperm(units, generator=generator)[:count].tolist()))

    def drawn_heads(place: int, units: int, group: int) -> list[int]:
        groups = drawn(place, units // group)
        is_whole = group == 1 or seed % 2 == 1 or (place + seed) % 4 == 3
        each = group if is_whole else int(torch.randint(1, group, (1,), generator=generator))
        chosen = [sorted(torch.randperm(group, generator=generator)[:each].tolist()) for _ in groups]
        return [number * group + head for number, heads in zip(groups, chosen, strict=True) for head in heads]

    sizes = enumerate(full.num_heads.items())
    heads = {site: drawn_heads(place, units, full.heads_per_group.get(site, 1)) for place, (site, units) in sizes}
    ffn = {site: drawn(place + 1, units) for place, (site, units) in enumerate(full.num_ffn.items())}
    return full.replace(kept_heads=heads, kept_ffn=ffn)


def prompts(name: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what generation starts from: the source, or a prompt with its padding on the left."""
    given = {key: tensor for key, tensor in inputs.items() if not key.startswith("decoder")}
    is_source = TINY_FAMILIES[name].auto != "AutoModelForCausalLM"
    return given if is_source else {key: tensor.flip(1) for key, tensor in given.items()}
