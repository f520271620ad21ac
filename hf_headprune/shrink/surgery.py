"""Cut a live model down to a plan, in place, and prove on a probe batch that it computes what the mask computed."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from hf_headprune._certificate_file import attach_certificate_
from hf_headprune._finite import check_loaded
from hf_headprune._model_card import attach_card_
from hf_headprune._offloaded import device_of, let_go_
from hf_headprune._ownership import owned
from hf_headprune.anatomy import anatomy_of, base_model, declaration_of, family_of
from hf_headprune.errors import HeadPruneError, UnsupportedModelError
from hf_headprune.masking import evaluating, masked, plain_copy
from hf_headprune.plan import check_plan, refitted
from hf_headprune.shrink.adapters import cut_together, model_inside
from hf_headprune.shrink.config import entries_of, to_prunable
from hf_headprune.shrink.description import check_described, models_around
from hf_headprune.shrink.own_numbers import LayerNumbers
from hf_headprune.shrink.probe import probe_inputs
from hf_headprune.shrink.prunable import adopt_classes_, check_buildable, prunable_class
from hf_headprune.shrink.resize import check_can_cut, cut_site_
from hf_headprune.shrink.saved_plan import attach_plan_, composed, plan_from_dense
from hf_headprune.shrink.undo import undone_after_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.plan import PlanOrResult, PruningPlan, RefittedPlan

logger = logging.getLogger(__name__)

_MAX_RELATIVE_ERROR = 1e-3
_MAX_RELATIVE_ERROR_OF_HALF_PRECISION = 0.1  # rounding differs with the order of summation and grows with depth


def prune_model_(model: nn.Module, plan: PlanOrResult) -> nn.Module:
    """Removes, in place, what a plan does not keep: smaller weights, `Prunable*` class and configuration.

    Everything is validated before the first tensor changes. The result computes what the model computed under
    `masked(model, plan)`; that is checked on a small random batch. Training mode, dtype, device, `requires_grad` and
    tied embeddings stay as they are; an optimizer made before still holds the old parameters, so make it afterwards.
    The model remembers what it has kept of the dense model, and `save_pretrained` writes that plan beside the weights,
    with the certificate and the card of a result.

    Args:
        model: Transformers model of a declared family, with or without a task head, dense or already pruned; or one of
            PEFT, whose LoRA is cut with it.
        plan: What is kept, made for this very model. With a result, the weights that are left are those that it has
            refitted.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: The model's class has no prunable sibling, a module is no plain linear module, the model
            is not what its class and configuration say, it is a part of one that can't say that it is cut, or
            Transformers could not build it again.
        InvalidPlanError: The plan or the refit was made for another model.
        ModelInUseError: The model is masked, or another thread changes it.
        InvalidSettingError: It is called inside of `torch.inference_mode()`.
        HeadPruneError: The cut model computes something else than the masked one.

    After an error, or Ctrl-C, the model is what it was, so what is cut off stays in memory until the end. A model is
    not put back if accelerate keeps its weights elsewhere (`device_map` with offloading): it may be larger than memory.
    """
    found: Any = refitted(plan)
    inside = model_inside(model)
    family_of(inside)  # else it may be nothing that could be owned
    with (
        owned(inside, "prune_model_", alone=True),
        undone_after_errors([model]),
        cut_together(inside, found),
    ):
        _pruned(inside, found)
    card = found.card(inside)
    if card is not None:
        attach_card_(inside, card, found.report.files)
    if found.certificate_text is not None:
        attach_certificate_(inside, found.certificate_text)
    return model


def _pruned(model: nn.Module, found: RefittedPlan) -> nn.Module:
    target = prunable_class(model)
    anatomy = anatomy_of(model)
    plan, refit = found.plan, found.refit
    check_plan(plan, anatomy)
    check_can_cut(model, [site for site in anatomy.sites if len(plan.kept(site.name)) < site.units])
    check_described(model)
    around = _wholes_of(model)
    configs = _pruned_configs(model, plan, anatomy, around)
    if any(site.units and not plan.kept(site.name) for site in anatomy.attention_sites):
        check_buildable(target, configs[id(model.config)])
    from_dense = composed(plan_from_dense(model), plan)
    if refit is not None:
        refit.check_fits(model)
    with undone_after_errors(around):
        if refit is not None:
            refit.apply_(model, plan)
        with masked(model, plan):
            expected = probe(model)
        _cut_(model, plan, anatomy, configs, around)
        attach_plan_(model, from_dense)
        _check_same(expected, probe(model), model)
    logger.info("%s: kept %d heads and %d FFN units", target.__name__, plan.num_kept_heads, plan.num_kept_ffn)
    return model


def copy_to_run(model: nn.Module, plan: PlanOrResult) -> Any:
    """Returns a copy of a model, cut to a plan, to be run and thrown away: what only a saved model needs is left out.

    Nothing is checked: that the model can be cut, saved and built again is known, or found when it is cut itself.

    Args:
        model: Of a declared family; or one of PEFT, whose LoRA is cut with it.
        plan: Made for this very model; a result with a refit also refits it.
    """
    found: Any = refitted(plan)
    twin = plain_copy(model)
    inside = model_inside(twin)
    with cut_together(inside, found):
        if found.refit is not None:
            found.refit.apply_(inside, found.plan)
        anatomy = anatomy_of(inside)
        _cut_(inside, found.plan, anatomy, _pruned_configs(inside, found.plan, anatomy))
    return twin


def _cut_(
    model: nn.Module, plan: PruningPlan, anatomy: Anatomy, configs: dict[int, Any], around: Sequence[Any] = ()
) -> None:
    """Cuts, and says so in the configurations and classes of the model and of those around it."""
    base = base_model(model)
    let_go_(model)
    for site in anatomy.sites:
        cut_site_(base, site, plan.kept(site.name))
    for whole in (*around, model):  # what the part says of itself, the whole must say too
        _replace_configs_(whole, configs)
        adopt_classes_(whole)


def _wholes_of(model: Any) -> list[Any]:
    """Returns the models that a model is a part of.

    Raises:
        UnsupportedModelError: One of them could not be loaded again with the part cut.
    """
    found = models_around(model)
    for whole in found:
        if whole.config is model.config:
            prunable_class(whole)
        elif not _reads_pruned_part(whole.config, model.config):
            raise UnsupportedModelError(
                f"{type(model).__name__} is a part of a {type(whole).__name__}, whose {type(whole.config).__name__} "
                "reads it as a dense one again, so the whole could not be loaded. Prune another part, or save the part "
                "alone."
            )
    return found


def _reads_pruned_part(whole: Any, part: Any) -> bool:
    """Tells whether the configuration of a whole, saved with that of a pruned part, says so when it is read again."""
    family = declaration_of(whole)
    if family is not None and family.towers:
        return True  # it becomes that of a pruned model itself
    saved, pruned = copy.deepcopy(whole), to_prunable(part, {})
    names = [name for name, value in vars(whole).items() if value is part]
    for name in names:
        setattr(saved, name, pruned)
    read = type(saved).from_dict(saved.to_dict())
    return all(isinstance(getattr(read, name), type(pruned)) for name in names)


def _pruned_configs(
    model: nn.Module, plan: PruningPlan, anatomy: Anatomy, around: Sequence[Any] = ()
) -> dict[int, Any]:
    """Returns the new configuration for each one that a module holds, by the identity of the old one."""
    entries = entries_of((site, site.numbers(plan.kept(site.name))) for site in anatomy.sites)
    held = {id(value): value for module in model.modules() for value in vars(module).values() if _is_config(value)}
    towers = {getattr(model.config, tower).model_type: tower for tower in family_of(model).towers}
    configs = {
        key: to_prunable(config, entries.get(towers[config.model_type], {}) if towers else entries)
        for key, config in held.items()
        if not family_of(config).towers
    }
    _add_wholes_(configs, [whole.config for whole in (*around, model)])
    return configs


def _add_wholes_(configs: dict[int, Any], wholes: list[Any]) -> None:
    """Adds, in place, the new configuration of each model of towers, which holds those of its towers."""
    for whole in wholes:
        family = declaration_of(whole)
        if family is None or not family.towers:
            continue
        parts = {tower: getattr(whole, tower) for tower in family.towers}
        configs[id(whole)] = to_prunable(whole, {})
        for tower, part in parts.items():
            setattr(configs[id(whole)], tower, configs.setdefault(id(part), to_prunable(part, {})))


def _replace_configs_(model: nn.Module, configs: dict[int, Any]) -> None:
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, LayerNumbers) and id(value.model_config) in configs:
                setattr(module, name, LayerNumbers(configs[id(value.model_config)], value.numbers))
            if not _is_config(value):
                continue
            if id(value) in configs:
                setattr(module, name, configs[id(value)])
                continue
            for inner, part in list(vars(value).items()):  # of a composite, such as an encoder with a decoder
                if _is_config(part) and id(part) in configs:
                    setattr(value, inner, configs[id(part)])


def _is_config(value: Any) -> bool:
    return isinstance(value, PretrainedConfig)


def probe(model: nn.Module) -> torch.Tensor | None:
    """Returns the last hidden state of a small random batch, `(batch, tokens, hidden)`; None on the meta device.

    Those of towers are returned in one row.
    """
    base: Any = base_model(model)
    if device_of(model).type == "meta":
        return None
    with evaluating(model):
        output = base(**probe_inputs(model), return_dict=True)
    towers = [part[0].flatten() for part in output.values() if isinstance(part, ModelOutput)]
    if towers:
        return torch.cat(towers).float()
    first = output[0]  # of models that are their own base, as those of T5, the logits; of a backbone, its stages
    return (first[-1] if isinstance(first, tuple) else first).float()


def _check_same(expected: torch.Tensor | None, received: torch.Tensor | None, model: nn.Module) -> None:
    if expected is None or received is None:
        return
    if not expected.isfinite().all():
        logger.warning("The model computes infinities or NaN, so the pruned one could not be checked against the mask.")
        return
    error = ((received - expected).norm() / expected.norm().clamp_min(1e-12)).item()
    is_half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    allowed = _MAX_RELATIVE_ERROR_OF_HALF_PRECISION if is_half else _MAX_RELATIVE_ERROR
    if not error <= allowed:
        raise HeadPruneError(
            f"{type(model).__name__}: after pruning, the last hidden state of a probe batch differs from that of the "
            f"masked model by {error:.2g} of its norm, allowed is {allowed:.2g}. A module outside the declaration, or "
            "a hook, makes use of the heads or units that were cut. Take it off, or prune a model without it."
        )


def check_can_prune(model: nn.Module) -> None:
    """Checks, before any work, that a model could be pruned, saved and loaded again, whatever the plan.

    Raises:
        UnsupportedModelError: See `prune_model_`.
    """
    prunable_class(model)
    check_loaded(model)
    check_can_cut(model, anatomy_of(model).sites)
    check_described(model)
    _wholes_of(model)
