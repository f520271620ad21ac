"""Post-training pruning by Fisher scores, with masks that are rearranged and tuned; no retraining.

Source: Kwon et al. 2022 (arXiv 2204.09656): scores and search (equations 6 and 7, algorithm 1), rearrangement inside of
a layer by its block of the Fisher matrix (section 4.2), and masks tuned to the dense model's outputs, layer by layer
(section 4.3). A weight counts in the place of a FLOP; the least squares of the masks are solved in closed form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from benchmarks.arena.case import Case, plan_of, real_tokens, weights_of
from hf_headprune import prune_model_
from hf_headprune.anatomy import base_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hf_headprune.anatomy import Site

DAMPING = 1.0  # of the masks, as in the authors' solver
LARGEST = 10.0  # a layer whose masks would change by more keeps them
Kept = dict[str, list[int]]


def cut(case: Case) -> None:
    """Prunes a model in place."""
    grads = gradients(case.model, case.sites, case.batches)
    kept = search(case.sites, grads, case.budget)
    kept = {site.name: rearranged(grads[site.name], kept[site.name]) for site in case.sites}
    _tune_(case, kept)
    prune_model_(case.model, plan_of(case.model, kept))


def gradients(model: Any, sites: Sequence[Site], batches: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Returns the gradient of each example's loss for the mask of each unit, `{site: (examples, units)}`."""
    found: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites}
    for batch in batches:
        masks = [torch.ones(len(batch["input_ids"]), site.units, requires_grad=True) for site in sites]
        handles = [_mask(model, site, mask) for site, mask in zip(sites, masks, strict=True)]
        loss = model(**batch).loss * len(batch["input_ids"])  # the sum, so that a row is the gradient of one example
        for site, grad in zip(sites, torch.autograd.grad(loss, masks), strict=True):
            found[site.name].append(grad)
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _mask(model: Any, site: Site, mask: torch.Tensor) -> Any:
    def scale(module: Any, args: Any) -> tuple[Any, ...]:
        return (args[0] * mask.repeat_interleave(site.unit_width, dim=1)[:, None], *args[1:])

    return base_model(model).get_submodule(site.output).register_forward_pre_hook(scale)


def search(sites: Sequence[Site], grads: Mapping[str, torch.Tensor], budget: float) -> Kept:
    """Returns the best heads and the best FFN units, in the numbers whose removed scores have the least sum.

    Args:
        sites: Of a model whose heads all cost the same, and whose FFN units do.
        grads: See `gradients`.
        budget: Number of weights that may be kept.
    """
    kinds = [[site for site in sites if site.is_attention is kind] for kind in (True, False)]
    heads, units = (_ranked(kind, grads) for kind in kinds)
    head_weights, unit_weights = (weights_of(kind[0]) for kind in kinds)
    best = (float("inf"), 0, 0)
    for kept_heads in range(len(heads) + 1):
        kept_units = min(int((budget - kept_heads * head_weights) // unit_weights), len(units))
        if kept_units >= 0:
            lost = sum(it[0] for it in heads[kept_heads:]) + sum(it[0] for it in units[kept_units:])
            best = min(best, (lost, kept_heads, kept_units))
    kept: Kept = {site.name: [] for site in sites}
    for _, name, unit in heads[: best[1]] + units[: best[2]]:
        kept[name].append(unit)
    return kept


def _ranked(sites: Sequence[Site], grads: Mapping[str, torch.Tensor]) -> list[tuple[float, str, int]]:
    """Returns Fisher score, site and number of all units, the best first."""
    scores = {site.name: grads[site.name].square().sum(0) for site in sites}
    return sorted(((float(s), name, i) for name, row in scores.items() for i, s in enumerate(row)), reverse=True)


def rearranged(grads: torch.Tensor, kept: Sequence[int]) -> list[int]:
    """Returns as many units of one layer, chosen one by one: what is removed sums up least in the Fisher block.

    Args:
        grads: Of the examples for the layer's masks, `(examples, units)`.
        kept: Units that the search has kept.
    """
    units, squares = grads.shape[1], grads.square().sum(0)
    gone = torch.zeros(grads.shape[0])
    removed: list[int] = []
    for _ in range(units - len(kept)):  # each the one whose leaving adds least, given those that have left
        costs = squares + 2 * gone @ grads
        costs[removed] = float("inf")
        removed.append(int(costs.argmin()))
        gone += grads[:, removed[-1]]
    return [unit for unit in range(units) if unit not in removed]


@torch.no_grad()
def _tune_(case: Case, kept: Kept) -> None:
    """Scales the columns of units that stay, layer by layer, so that outputs come near those of the dense model."""
    model = case.model
    base = base_model(model)
    dense = _recorded(case, {site.name: site.output for site in case.sites})
    for site in case.sites:
        output: Any = base.get_submodule(site.output)
        wanted = dense[site.name] @ output.weight.T
        gone = sorted(set(range(site.units)) - set(kept[site.name]))
        output.weight[:, site.columns(gone)] = 0.0
        if kept[site.name]:
            given = _recorded(case, {site.name: site.output})[site.name]
            factors = _masks(output.weight, given, wanted, site, kept[site.name])
            output.weight[:, site.columns(kept[site.name])] *= factors.repeat_interleave(site.unit_width)


def _masks(
    weight: torch.Tensor, given: torch.Tensor, wanted: torch.Tensor, site: Site, kept: Sequence[int]
) -> torch.Tensor:
    """Returns the factor of each unit that stays, `(units,)`, pulled to 1."""
    columns = site.columns(kept)
    inputs, part = given[:, columns].double(), weight[:, columns].double()
    missing = wanted.double() - inputs @ part.T
    shape = len(kept), site.unit_width
    products = (inputs.T @ inputs * (part.T @ part)).view(*shape, *shape).sum((1, 3))
    target = (inputs.T @ missing * part.T).sum(1).view(shape).sum(1)
    change = torch.linalg.solve(products + DAMPING * torch.eye(len(kept)).double(), target)
    change = torch.zeros_like(change) if change.abs().max() > LARGEST else change
    return (1 + change).to(weight)


@torch.no_grad()
def _recorded(case: Case, outputs: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Returns what output projections are given of real tokens, `{site: (tokens, width)}`."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in outputs}
    seen: dict[str, torch.Tensor] = {}
    base, handles = base_model(case.model), []
    for name, path in outputs.items():

        def keep(module: Any, args: Any, name: str = name) -> None:
            seen[name] = args[0]

        handles.append(base.get_submodule(path).register_forward_pre_hook(keep))
    for batch in case.batches:
        case.model(**batch)
        for name, parts in found.items():
            parts.append(real_tokens(batch, seen[name]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}
