"""Ways to make a fine-tuned model smaller without training: ours, and what others do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks.arena import kprune, kwon, packaged
from benchmarks.arena.case import Case, best_units, plan_of, weights_of
from hf_headprune import PruningPlan, SecondOrder, prune_model_
from hf_headprune.anatomy import base_model
from hf_headprune.learn.distillation.distiller import LABEL_NAMES
from hf_headprune.pipeline.cost_path import CALIBRATION
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.moments import record_moments
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.projections import Refit
from hf_headprune.refit.removal_costs import elimination
from hf_headprune.refit.settings import SecondOrderTuning

if TYPE_CHECKING:
    from hf_headprune.anatomy import Site

JUDGED = 8  # batches on which sets of layers are compared
MULTIPLE = 32  # FFN widths, as ours are chosen


def ours(case: Case, *, labelled: bool = True, rounds: int = 1, examples: int = CALIBRATION) -> None:
    """Second-order costs, and every linear module refitted in order, as `plan_for_budget` does.

    Args:
        case: The model.
        labelled: Whether labels are looked at; else the model's own answers stand for them.
        rounds: Each looks anew at what the rounds before have left.
        examples: Of the training examples, that are looked at; as many as all ways look at when left out.
    """
    train = case.task.train
    if not labelled:
        train = train.remove_columns([name for name in train.column_names if name in LABEL_NAMES])
    tuning = SecondOrderTuning(scoring_examples=examples, seed=case.seed)
    settings = SecondOrder(density=case.density, rounds=rounds, tuning=tuning)
    prune_model_(case.model, second_order_plan(case.model, train, settings))


def equal_outputs(case: Case) -> None:
    """Costs of removal that count every output alike, and a refit: the price of ZipLM (arXiv 2302.04089).

    Each layer's error counts as a share of what the layer adds, and the cheapest next removal is taken.
    """
    model, full = case.model, PruningPlan.of(case.model)
    recorded = record_moments(model, case.sites, lambda: [model(**batch) for batch in case.batches])
    refit = Refit(model, full, recorded)
    paths = {site.name: elimination(refit.blocks[site.name], full.kept(site.name)) for site in case.sites}
    left = dict.fromkeys(paths, 0)
    spare = sum(weights_of(site) * site.units for site in case.sites) - case.budget
    while spare > 0:
        ahead = [path[left[name]] for name, path in paths.items() if left[name] < len(path)]
        cheapest = min(ahead, key=lambda it: it.cost / it.saved)
        left[cheapest.site] += 1
        spare -= cheapest.saved
    gone = {name: {u for step in path[: left[name]] for u in step.units} for name, path in paths.items()}
    kept = {name: [unit for unit in full.kept(name) if unit not in units] for name, units in gone.items()}
    prune_model_(model, RefittedPlan(plan_of(model, kept), refit))


def fewer_layers(case: Case) -> None:
    """Whole layers dropped: of all sets of so many layers, the one whose loss on training examples is least.

    So many as come nearest to the density, one at least.
    """
    encoder: Any = base_model(case.model).encoder
    layers = list(encoder.layer)
    count = max(1, round(case.density * len(layers)))

    def loss_of(kept: tuple[int, ...]) -> float:
        _keep_layers_(case.model, [layers[i] for i in kept])
        with torch.no_grad():
            return sum(
                float(case.model(**batch).loss) * len(batch["input_ids"]) for batch in case.batches[::4][:JUDGED]
            )

    best = min(combinations(range(len(layers)), count), key=loss_of)
    _keep_layers_(case.model, [layers[i] for i in best])


def _keep_layers_(model: Any, layers: list[nn.Module]) -> None:
    base_model(model).encoder.layer = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)


def uniform(case: Case) -> None:
    """The same share of each block, by the norm of the weights of a unit."""
    kept = {}
    for site in case.sites:
        multiple = 1 if site.is_attention else MULTIPLE
        count = max(multiple, round(case.density * site.units / multiple) * multiple)
        kept[site.name] = norms(case.model, site).topk(count).indices.tolist()
    prune_model_(case.model, plan_of(case.model, kept))


def magnitude(case: Case) -> None:
    """The units with the largest mean square of their weights, wherever they are."""
    scores = {site.name: norms(case.model, site) / weights_of(site) for site in case.sites}
    prune_model_(case.model, plan_of(case.model, best_units(case.sites, scores, case.budget)))


@torch.no_grad()
def norms(model: Any, site: Site) -> torch.Tensor:
    """Returns the squared norm of the weights of each unit of a block, `(units,)`."""
    base, found = base_model(model), []
    for unit in range(site.units):
        total = base.get_submodule(site.output).weight[:, site.columns([unit])].square().sum()
        for part in site.parts:
            total = total + base.get_submodule(part.path).weight[site.rows(part, [unit])].square().sum()
        found.append(total)
    return torch.stack(found)


WAYS: dict[str, Callable[[Case], None]] = {
    "ours": ours,
    "ours, no labels": partial(ours, labelled=False),
    "ours, 3 rounds": partial(ours, rounds=3),
    "ours, 4,096 examples": partial(ours, examples=4096),
    "ours, 3 rounds, 4,096 examples": partial(ours, rounds=3, examples=4096),
    "layers dropped": fewer_layers,
    "uniform width": uniform,
    "magnitude": magnitude,
    "ZipLM's price": equal_outputs,
    "Kwon et al.": kwon.cut,
    "K-prune": kprune.cut,
    "Torch-Pruning": packaged.cut,
}
