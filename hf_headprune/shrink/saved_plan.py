"""The plan beside the weights: which heads and FFN units a pruned model has kept, numbered as in the dense model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_headprune._beside_weights import file_beside, write_text
from hf_headprune._strict_json import read_text
from hf_headprune.anatomy import anatomy_of, base_model, family_of
from hf_headprune.errors import InvalidPlanError
from hf_headprune.plan import PruningPlan

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

PLAN_NAME = "headprune_plan.json"


def plan_from_dense(model: nn.Module) -> PruningPlan | None:
    """Returns what a model has kept of the dense model that it was cut from, in the numbering of the dense model.

    Args:
        model: Of a declared family; a dense one has kept everything.

    Returns:
        The plan, or None where it is not known: the model was loaded without its plan, or cut by other means.
    """
    attached = getattr(base_model(model), "headprune_plan", None)
    if isinstance(attached, PruningPlan) and _misfit(attached, model) is None:
        return attached
    full = PruningPlan.of(model)
    return full if _misfit(full, model) is None else None


def composed(first: PruningPlan | None, second: PruningPlan) -> PruningPlan | None:
    """Returns what two cuts one after the other keep, in the numbering of the model before the first.

    Args:
        first: What the first cut has kept, or None where that is not known.
        second: What the second keeps of it, in the numbering between the cuts.
    """
    if first is None:
        return None
    heads = {site: [first.kept(site)[unit] for unit in units] for site, units in second.kept_heads.items()}
    ffn = {site: [first.kept(site)[unit] for unit in units] for site, units in second.kept_ffn.items()}
    return first.replace(kept_heads=heads, kept_ffn=ffn)


def attach_plan_(model: nn.Module, plan: PruningPlan | None) -> None:
    """Lets a pruned model write a plan beside its weights whenever it is saved.

    Args:
        model: Pruned model; its base model holds the plan, whatever head is put on it.
        plan: In the numbering of the dense model, or None where it is not known.
    """
    holder: Any = base_model(model)
    holder.headprune_plan = plan


def attach_saved_plan_(model: nn.Module, source: Any, options: dict[str, Any]) -> None:
    """Attaches the plan that lies beside loaded weights; one that is damaged or of another model is not used.

    Args:
        model: Loaded model.
        source: What it was loaded from: a folder, or a name on the Hub, from which the file is downloaded.
        options: Of `from_pretrained`: where in the source.
    """
    file = file_beside(PLAN_NAME, source, options, downloads=True)
    if file is None:
        return
    found = _read(file, model)
    if isinstance(found, PruningPlan):
        attach_plan_(model, found)
        return
    logger.warning(
        "%s is not used: %s. The model is loaded without it; which heads and units of the dense model it has kept is "
        "then not known.",
        file,
        found,
    )


def remove_other_plan_(model: nn.Module, folder: str | Path) -> None:
    """Removes the plan of other weights from a folder before those of a model are saved there.

    An interruption then leaves weights without a plan, and never weights with a wrong one.

    Args:
        model: Pruned model.
        folder: Where its weights will be saved.
    """
    file, plan = Path(folder, PLAN_NAME), plan_from_dense(model)
    if not file.exists() or (plan is not None and _read(file, model) == plan):
        return
    if plan is None:
        logger.warning("%s is not known to be about the weights that are saved there now; it is removed.", file)
    file.unlink()


def write_plan_(model: nn.Module, folder: str | Path) -> None:
    """Writes the plan of a pruned model beside its weights, where it is known.

    Args:
        model: Pruned model.
        folder: Where its weights are saved.
    """
    plan = plan_from_dense(model)
    if plan is not None:
        write_text(Path(folder, PLAN_NAME), plan.to_json())


def _read(file: Path, model: nn.Module) -> PruningPlan | str:
    """Returns the plan in a file, or why it is not used."""
    try:
        plan = PruningPlan.from_json(read_text(file, error=InvalidPlanError))
    except InvalidPlanError as error:
        return f"it is damaged ({error})"
    return _misfit(plan, model) or plan


def _misfit(plan: PruningPlan, model: Any) -> str | None:
    """Returns in what a plan in dense numbering differs from a model, or None where it fits."""
    sites = anatomy_of(model).sites
    dense = {site.name: site.dense_units(model.config) for site in sites}
    if plan.model_type != family_of(model).model_type or {**plan.num_heads, **plan.num_ffn} != dense:
        return "it is about another model, of another family or with other numbers of heads or FFN units"
    different = [site.name for site in sites if len(plan.kept(site.name)) != site.units]
    return f"it keeps other numbers of heads or FFN units in {', '.join(different[:3])}" if different else None
