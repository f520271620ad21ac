"""Fine-tuned MiniLM models that the search benchmarks share, kept in a folder between runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForSequenceClassification

from benchmarks.search_baselines import loss_effects
from benchmarks.training import Recipe, build_trainer
from hf_headprune import AStarSearch, PruningPlan, anatomy_of
from hf_headprune.callback.search_metric import CALIBRATION
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.units import units_of_search
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import ModelExamples, PadRight

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from benchmarks.tasks import Task

RECIPES = {"sst2": Recipe(epochs=3.0), "snli": Recipe(epochs=2.0)}


def fine_tuned(task: Task, seed: int, work: Path, *, smoke: bool = False) -> nn.Module:
    """Returns MiniLM fine-tuned on a task, from the folder where it was left, else trained and left there.

    Weights are copied: those that Transformers loads are aligned by chance, and the chance changes the speed.
    """
    folder = work / f"{task.name}-{seed}"
    if not (folder / "config.json").exists():
        recipe = replace(RECIPES[task.name], max_steps=4) if smoke else RECIPES[task.name]
        trainer = build_trainer(task, recipe, seed=seed, callback=None)
        trainer.train()
        trainer.save_model(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def evaluator_on(model: Any, split: Any, *, batch_size: int = 32, **settings: Any) -> ExampleEvaluator:
    """Returns an evaluator of a model on one split of a task."""
    return ExampleEvaluator(model, batches_of(model, split, batch_size=batch_size), **settings)


def batches_of(model: Any, split: Any, *, batch_size: int = 32) -> list[dict[str, Any]]:
    """Returns one split of a task in batches, as an evaluator takes them."""
    return length_sorted_batches(
        ModelExamples(split, model), PadRight(model.config.pad_token_id), batch_size=batch_size
    )


def some_of(split: Any, seed: int) -> Any:
    """Draws the training examples on which output projections are refitted."""
    return split.select(np.random.default_rng(seed).permutation(len(split))[:CALIBRATION])


def plans_by_gradient(model: Any, split: Any, removed: Iterable[int]) -> list[PruningPlan]:
    """Returns the plans without so many heads each, those whose removal changes the loss of examples least first."""
    full = PruningPlan.of(model)
    units = units_of_search(anatomy_of(model), full, AStarSearch(units=("heads",)))
    effects = loss_effects(model, evaluator_on(model, split), units)
    order = np.abs(effects).mean(axis=1).argsort()
    heads = [(site, head) for site, count in full.num_heads.items() for head in range(count)]
    plans = []
    for count in removed:
        gone = {heads[i] for i in order[:count]}
        kept = {site: [h for h in hs if (site, h) not in gone] for site, hs in full.kept_heads.items()}
        plans.append(full.replace(kept_heads=kept))
    return plans
