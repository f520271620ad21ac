"""Stand-ins for `model(head_mask=...)` and `model.prune_heads(...)` of Transformers 4, for code written for it.

Transformers 5 has removed both, and ignores the argument `head_mask` without a word. New code takes `masked` and
`prune_model_`, which know FFN units and encoder-decoder models, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._checks import is_whole
from hf_headprune._compat import traced_anew
from hf_headprune._finite import is_finite
from hf_headprune._ownership import owned
from hf_headprune.anatomy import anatomy_of, attention_by_layer
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, UnsupportedModelError, shown
from hf_headprune.masking import UnitScale, attach
from hf_headprune.plan import PruningPlan, listed
from hf_headprune.shrink.saved_plan import plan_from_dense
from hf_headprune.shrink.surgery import prune_model_

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_PER_LAYER, _PER_SAMPLE = 2, 3  # dimensions of a mask


@contextmanager
def head_mask(model: nn.Module, mask: torch.Tensor) -> Iterator[nn.Module]:
    """Multiplies the output of each head by a factor, for the length of a `with` block.

    It does what the argument `head_mask` did in Transformers 4: 0 closes a head, 1 leaves it alone, and what is between
    scales it. Gradients reach a mask that requires them. Unlike there, it works with every attention implementation.

    Args:
        model: Of a supported family, with one stack of layers.
        mask: Factors `(heads,)` for all layers, `(layers, heads)`, or `(layers, batch, heads)` for each sample. It may
            be changed in place inside the block.

    Yields:
        The model itself.

    Raises:
        InvalidSettingError: The mask is no floating-point tensor of such a shape; or the block ends and the model has
            not run in it, so that the mask had no effect.
        UnsupportedModelError: The family is not declared, or encoder and decoder have layers of the same number.
        ModelInUseError: Another thread changes the model.
    """
    attention_by_layer(model)  # refuses two stacks
    sites = [site for site in anatomy_of(model).attention_sites if site.units]
    _check_mask(model, mask, {site.layer: site.units for site in sites})
    with ExitStack() as stack:
        stack.enter_context(owned(model, "head_mask"))
        stack.enter_context(traced_anew())
        hooks = []
        for site in sites:
            factors = mask[site.layer] if mask.dim() > 1 else mask
            hooks.append(_Factors(site.unit_width, factors))
            stack.callback(attach(model, site, hooks[-1]).remove)
        yield model
        if not any(hook.has_run for hook in hooks):
            raise InvalidSettingError(
                f"head_mask: this {type(model).__name__} did not run inside the block, so the mask had no effect. Run "
                "the very model that head_mask was given, not a copy of it."
            )


def prune_heads(model: nn.Module, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
    """Removes heads in place, as `model.prune_heads` did in Transformers 4.

    The model gets its `Prunable...` class, in which it can be saved and loaded. A layer may lose all its heads.

    Args:
        model: Of a supported family, dense or pruned.
        heads_to_prune: `{layer: heads}`, numbered as in the dense model, also in a second call. Heads that have gone
            already may be among them.

    Raises:
        InvalidPlanError: A layer or a head does not exist, no head would go, groups of query heads would keep different
            numbers of them, or the model was pruned by other means, so that the numbers of its heads in the dense model
            are not known.
        UnsupportedModelError: See `prune_model_`; or encoder and decoder have layers of the same number.
    """
    sites, dense = attention_by_layer(model), plan_from_dense(model)
    if dense is None:
        raise InvalidPlanError(
            f"prune_heads: which heads of the dense model this {type(model).__name__} has kept is not known, since "
            "it was loaded without its plan. Number them as they are now: prune_model_(model, "
            "PruningPlan.of(model).replace(kept_heads={...}))."
        )
    heads_to_prune = listed(heads_to_prune)
    _check_heads(heads_to_prune, {layer: dense.num_heads[site.name] for layer, site in sites.items()})
    kept = {}
    for layer, heads in heads_to_prune.items():
        present, gone = dense.kept(sites[layer].name), {*heads}
        kept[sites[layer].name] = [place for place, head in enumerate(present) if head not in gone]
    plan = PruningPlan.of(model).replace(kept_heads=kept)
    if not plan.num_removed_heads:
        named = any(heads_to_prune.values())
        problem = f"the model has none of the heads {shown(dict(heads_to_prune))}" if named else "no head is named"
        raise InvalidPlanError(
            f"prune_heads: {problem}, so nothing would be pruned. Pass {{layer: [heads]}} with heads that are still "
            "there."
        )
    prune_model_(model, plan)


class _Factors(UnitScale):
    """Factors for all samples, `(heads,)`, or for each, `(batch, heads)`, and whether they were used.

    Attributes:
        has_run: Whether the module has run.
    """

    def __init__(self, unit_width: int, factors: torch.Tensor) -> None:
        super().__init__(unit_width, factors)
        self.has_run = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Scales the first argument, `(batch, tokens, heads * head_dim)`."""
        self.has_run = True
        factors, hidden = self.scale, args[0]
        if factors is None or factors.dim() == 1:
            return super().__call__(module, args)
        if len(hidden) != len(factors):
            raise InvalidSettingError(
                f"head_mask: the mask has factors for {len(factors)} samples, and the model runs {len(hidden)}. Pass "
                "(layers, batch, heads) with the batch size of this very pass."
            )
        columns = factors.to(dtype=hidden.dtype, device=hidden.device).repeat_interleave(self.unit_width, dim=-1)
        between = (1,) * (hidden.dim() - columns.dim())
        return (hidden * columns.view(len(factors), *between, -1), *args[1:])


def _check_mask(model: nn.Module, mask: Any, heads: Mapping[int, int]) -> None:
    """Checks a mask against the number of heads of each layer that has any."""
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point():
        raise InvalidSettingError(
            f"head_mask: the mask must be a floating-point tensor, received {shown(mask)}. Pass "
            "torch.ones(layers, heads) with zeros for the heads to close."
        )
    if not is_finite(mask):
        raise InvalidSettingError(f"head_mask: a mask must hold finite numbers, received {shown(mask)}.")
    numbers = sorted(set(heads.values()))
    if len(numbers) != 1:
        raise UnsupportedModelError(
            f"head_mask: the layers of this {type(model).__name__} have {numbers or 'no'} heads, and a mask has as "
            "many for all. Use masked(model, plan), whose plan names the heads of each layer."
        )
    layers = max(attention_by_layer(model)) + 1
    fits = mask.shape[-1:] == (numbers[0],) and (mask.dim() == 1 or len(mask) == layers)
    if not 1 <= mask.dim() <= _PER_SAMPLE or not fits:
        raise InvalidSettingError(
            f"head_mask: the mask must have the shape ({numbers[0]},), ({layers}, {numbers[0]}) or ({layers}, batch, "
            f"{numbers[0]}), received {tuple(mask.shape)}."
        )


def _check_heads(heads_to_prune: Any, present: Mapping[int, int]) -> None:
    """Checks layers and heads against the number of heads that each layer of the dense model has."""
    if not isinstance(heads_to_prune, Mapping):
        raise InvalidPlanError(
            f"prune_heads: pass a mapping from layers to lists of heads, received {shown(heads_to_prune)}."
        )
    problems = []
    for layer, heads in heads_to_prune.items():
        if not is_whole(layer) or layer not in present:
            problems.append(f"there is no layer {shown(layer)}")
        elif not isinstance(heads, Iterable) or isinstance(heads, str):
            problems.append(f"layer {layer}: the heads must be a list, received {shown(heads)}")
        else:
            wrong = [head for head in heads if not is_whole(head, at_least=0) or head >= present[layer]]
            problems += [f"layer {layer} has {present[layer]} heads, and no head {shown(head)}" for head in wrong]
    if problems:
        raise InvalidPlanError(f"prune_heads: {'; '.join(problems)}. Layers and heads are counted from 0.")
