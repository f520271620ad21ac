"""Torch-Pruning's own package: its dependency graph, its Taylor scores, its ranking of heads and of FFN units.

Source: Fang et al. 2023 (arXiv 2301.12900), `pip install torch-pruning`. Heads are ranked against heads and FFN units
against FFN units, over all layers; the share that is removed of both grows by one head at a time, as the package's own
examples prune step by step, until the budget is met. Gradients are those of the dense model's loss, summed over the
training examples once. The package removes no block whole: a layer whose last heads, or last units, are the next to
leave keeps them. It prunes a copy here, and what it has kept is then cut out of the model, whose heads it can't count.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from benchmarks.arena.case import Case, plan_of, weights_of
from hf_headprune import prune_model_
from hf_headprune.anatomy import base_model

try:
    import torch_pruning
except ImportError:  # one way of many needs it
    torch_pruning = None

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hf_headprune.anatomy import Site

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LEAVES = (nn.Linear, nn.Embedding, nn.LayerNorm)
EDGE = 1e-6  # shares of heads are a trace below whole numbers of heads, so that none is rounded to one more


def cut(case: Case) -> None:
    """Prunes a model in place.

    Raises:
        SystemExit: The package is missing.
    """
    if torch_pruning is None:
        raise SystemExit("The way Torch-Pruning needs its package: pip install --no-deps torch-pruning==1.6.1")
    kept = {site.name: list(range(site.units)) for site in case.sites}
    weights = sum(weights_of(site) * site.units for site in case.sites)
    for site, positions in _removals(case):
        weights -= weights_of(site) * len(positions)
        kept[site.name] = [unit for place, unit in enumerate(kept[site.name]) if place not in positions]
        if weights <= case.budget:
            break
    prune_model_(case.model, plan_of(case.model, kept))


def _removals(case: Case) -> Iterator[tuple[Site, set[int]]]:
    """Yields what the package removes, one group after the other: a site, and positions among its remaining units."""
    twin = copy.deepcopy(case.model)
    for batch in case.batches:
        (twin(**batch).loss * len(batch["input_ids"])).backward()
    base = base_model(twin)
    outputs = {base.get_submodule(site.output): site for site in case.sites}
    parts = {base.get_submodule(part.path): site for site in case.sites for part in site.parts}
    pruner = _pruner(twin, parts, {name: part for name, part in case.batches[-1].items() if name in INPUTS})
    widths = {module: site.unit_width for module, site in parts.items() if site.is_attention}
    for _ in range(pruner.iterative_steps):
        for group in pruner.step(interactive=True):
            found = [(outputs[dep.target.module], places) for dep, places in group if dep.target.module in outputs]
            group.prune()
            yield from ((site, {place // site.unit_width for place in places}) for site, places in found)
        for module, width in widths.items():  # it also counts heads as removed whose removal it has refused
            pruner.num_heads[module] = pruner.out_channel_groups[module] = module.out_features // width


def _pruner(model: Any, parts: Mapping[Any, Site], inputs: Mapping[str, Any]) -> Any:
    """Returns the package's pruner of a model with gradients; all that is no head and no FFN unit is left alone."""
    heads = {module: site.units for module, site in parts.items() if site.is_attention}
    scopes = tuple(heads), tuple(module for module in parts if module not in heads)
    others = [module for module in model.modules() if module not in parts and isinstance(module, LEAVES)]
    return torch_pruning.pruner.BasePruner(
        model,
        inputs,
        torch_pruning.importance.TaylorImportance(),
        global_pruning=True,
        pruning_ratio_dict=dict.fromkeys(scopes, 1.0),
        head_pruning_ratio=1.0,
        iterative_steps=sum(site.units for site in set(parts.values()) if site.is_attention),
        iterative_pruning_ratio_scheduler=lambda ratio, steps: [ratio * i / steps - EDGE for i in range(steps + 1)],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=others,
        forward_fn=lambda module, given: next(iter(module(**given).values())),
    )
