"""Find the units that zeros have made dead, and fold what they still contribute into a bias: the function stays.

A head contributes nothing but a constant when its value rows are all zero (the softmax averages the same bias whatever
its weights are), and nothing at all when its columns of the output projection are zero. Dead query or key rows alone
leave an average over all tokens, which depends on the input: such a head stays. A unit of an FFN contributes
`activation(bias)` when its row is zero, and nothing when its column is.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.anatomy import anatomy_of, base_model, matrix_of
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from hf_headprune.anatomy import Site

REFILLED = 0.01  # deviation of what refills zeros, over that of the weight


@torch.no_grad()
def fold_dead_units_(model: nn.Module) -> PruningPlan:
    """Makes every dead unit contribute exactly zero, in place, and returns the plan without the dead units.

    The constant that a dead unit contributes moves into the bias of its site's output projection, and the unit's own
    weights and biases become zero. In evaluation mode the model computes what it computed before, and so does
    `prune_model_(model, plan)`. A dead unit with a constant stays where the output projection has no bias to take it.

    Args:
        model: Live model of a declared family with all its weights present; masks are zeros in them.

    Returns:
        The plan that keeps all other units.

    Raises:
        UnsupportedModelError: The model's family is not declared, or its weights are on the meta device.
    """
    anatomy = anatomy_of(model)
    if next(model.parameters()).is_meta:
        raise UnsupportedModelError(
            f"{type(model).__name__} is on the meta device, so it has no zeros to find. Load its weights first."
        )
    sites = [site for site in anatomy.sites if site.units]
    with _first_inputs(model, sites) as inputs:
        probe(model)
    kept = {site.name: _fold_site_(base_model(model), site, inputs[site.name]) for site in sites}
    heads = {site.name: kept.get(site.name, ()) for site in anatomy.attention_sites}
    ffn = {site.name: kept.get(site.name, ()) for site in anatomy.ffn_sites}
    return PruningPlan.full(anatomy).replace(kept_heads=heads, kept_ffn=ffn)


@torch.no_grad()
def refill_zeros_(model: nn.Module, *, seed: int) -> int:
    """Refills, in place, the zeros inside the weight matrices of all sites, to train them on without masks.

    Each zero of a weight W becomes a draw from N(mean(W), (0.01 std(W))^2); the mean and the deviation include the
    zeros. Biases and matrices without zeros stay.

    Args:
        model: Live model, usually after `prune_model_`.
        seed: Of the draws.

    Returns:
        How many entries were refilled.

    Source: Lagunas et al. 2021 (arXiv 2109.04838), section 4, "hybrid filled".
    """
    base, generator, count = base_model(model), torch.Generator().manual_seed(seed), 0
    for site in anatomy_of(model).sites:
        for path in (*site.inputs, site.output) if site.units else ():
            weight: Any = base.get_submodule(path).weight
            zeros = weight == 0
            draws = torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype)
            weight.copy_(torch.where(zeros, weight.mean() + REFILLED * weight.std() * draws, weight))
            count += int(zeros.sum())
    return count


def _fold_site_(base: nn.Module, site: Site, first_input: torch.Tensor) -> tuple[int, ...]:
    """Folds the dead units of one site, of grouped heads the groups that are dead as a whole; returns what is kept.

    Args:
        base: Base model.
        site: With units.
        first_input: What the output projection received for one token, `(units * unit_width,)`.
    """
    output: Any = base.get_submodule(site.output)
    weight = matrix_of(output)  # (hidden_size, units * unit_width)
    source: Any = base.get_submodule(site.parts[-1].path)  # value, or the last matrix of what an FFN begins with
    rows = site.parts[-1].rows.last_part()
    columns_dead = (weight == 0).all(0).view(site.groups, -1).all(1)
    rows_dead = (matrix_of(source)[rows] == 0).all(1).view(site.groups, -1).all(1)
    if site.is_gated and source.bias is not None:  # a constant times what the other row yields is none
        rows_dead &= (source.bias[rows] == 0).view(site.groups, -1).all(1)
    # What rows of zeros yield is the same for every token: the bias, or the activation of it.
    constant = first_input.view(site.groups, -1) * rows_dead[:, None]
    if output.bias is None:
        rows_dead &= (constant == 0).all(1)
    elif rows_dead.any():
        precision = torch.promote_types(weight.dtype, torch.float32)
        columns = weight.to(precision).reshape(len(weight), site.groups, -1)
        contribution = torch.einsum("huw,uw->h", columns, constant.to(precision))
        output.bias.copy_(output.bias.to(precision) + contribution)
    dead = rows_dead | columns_dead
    weight[:, dead.repeat_interleave(site.group_width)] = 0.0
    for part in site.parts:
        linear: Any = base.get_submodule(part.path)
        entries = dead[torch.tensor(part.rows.owners(), device=dead.device)]
        matrix_of(linear)[entries] = 0.0
        if linear.bias is not None:
            linear.bias[entries] = 0.0
    return tuple(site.units_of((~dead).nonzero().flatten().tolist()))


@contextmanager
def _first_inputs(model: nn.Module, sites: list[Site]) -> Iterator[dict[str, torch.Tensor]]:
    """Records what each output projection receives for the first token of the next forward pass."""
    found: dict[str, torch.Tensor] = {}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            del module
            hidden = args[0]
            found[name] = hidden.detach().flatten(0, -2)[0].clone()

        return record

    base = base_model(model)
    handles = [base.get_submodule(site.output).register_forward_pre_hook(recorder(site.name)) for site in sites]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
