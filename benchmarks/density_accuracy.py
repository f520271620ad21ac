"""Accuracy of MiniLM at a given density of its linear weights: second-order removal against what others do.

Density is the share of the entries of all attention and FFN matrices that is left; every model is really cut. Three
groups of runs; within a group all runs share data, steps, learning rate and batch order:

- published: sst2, 2 epochs at batch 16 and a teacher that trained 1.5 epochs, the setting of nn_pruning's own run in
  Lagunas et al. 2021's code (one seed: 74 % density, dev 87.0, test 89.2). Densities 74, 50, 35 and 25 %; and that
  run's own recipe, whose density is what its penalty makes of it, with other seeds.
- budget: sst2, snli (10 000 pairs) and qamr (F1), 300 steps at batch 32, densities 50 and 25 %, no teacher:
  second-order removal after 60 % of the steps, and after half of them with a rewound learning rate, which is what
  `density` does where a third or less is kept; the hybrid of gates for heads and movement scores for FFN units; block
  movement alone (units); gates for heads with the FFN by magnitude; magnitude; second-order costs, and Fisher scores
  (Kwon et al. 2022, arXiv 2204.09656, without its mask tuning), after dense training and without any other, the costs
  at 10 % too, with output projections alone refitted, and with the refit in order; and second-order removal's own sizes
  per layer, filled with heads and units drawn at random, trained as long.
- layers: what one would try first, on the tasks of the budget group: every other layer of the pretrained model dropped,
  then fine-tuned for 300 or 600 steps, with or without the dense model of the budget group as a teacher.
- questions: squad_v1_dev, dense; second-order removal with a teacher, at 50 and 26 %, in the midst of a training from
  the pretrained model, at 26 % also with a rewound rate; at 26 % the removal from the dense model, and a training after
  it, as `headprune prune --recover`; with one seed (a run takes up to an hour of a core) hybrid_filled with a teacher
  and a second run at both; and all of them at 26 % with 4, 8 and 16 epochs (up to four hours), whose teacher has two.

Run: OMP_NUM_THREADS=1 python -m benchmarks.density_accuracy [--only budget] [--work FOLDER] [--smoke]
     python -m benchmarks.density_accuracy --collect
Every run is cached in `--work`; several processes share the queue.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.arena import kwon
from benchmarks.arena.case import Case, plan_of
from benchmarks.recovery import LEARNING_RATE
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.run_queue import RunQueue, key_of, summary
from benchmarks.tasks import Task, copied, load_task
from benchmarks.training import Recipe, build_trainer, score, train_and_score
from hf_headprune import (
    BlockMovement,
    Distillation,
    HeadPruneCallback,
    PruningPlan,
    SecondOrder,
    SubsetGates,
    anatomy_of,
    linear_density,
    plan_for_budget,
    prune_model_,
)
from hf_headprune.budgets import budgets
from hf_headprune.callback.distillation import distil
from hf_headprune.callback.plain_recovery import PlainRecovery
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.choice import choose
from hf_headprune.refit.one_shot import ExampleLosses, second_order_plan
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import Trainer

RESULT = RESULTS / "density_accuracy.json"
SEEDS = (0, 1, 2)
DENSE, SECOND_ORDER, HYBRID, FILLED = "dense", "second order", "hybrid", "hybrid_filled"
THEN = "second order, then"
REWOUND = "second order, rewound"
LONGER = {  # than the two epochs of the recipe of questions: the method, and its epochs
    f"{method}, {epochs} epochs": (method, epochs)
    for epochs, method in product((4, 8, 16), (DENSE, SECOND_ORDER, THEN, FILLED))
}
ONE_SEED = (FILLED, *LONGER)
PENALTY = "block movement, penalty 10"
# Of nn_pruning's own run: 866 steps, of which the first 50 and the last 200 hold the threshold still.
THEIR_RECIPE = BlockMovement.hybrid(
    10.0, ffn_penalty=1.0, score_learning_rate=3e-2, width_multiple=1, warmup_ratio=50 / 866, ramp_end=1 - 200 / 866
)
RANDOM_UNITS, FISHER, ONE_SHOT = "random units", "Fisher, one-shot", "second order, one-shot"
IN_ORDER = "second order, one-shot, in order"
WITHOUT_TRAINING = (FISHER, ONE_SHOT, IN_ORDER)
LAYERS = tuple("layers dropped" + words for words in ("", ", 600 steps", ", teacher", ", teacher, 600 steps"))
IN_TRAINING = (SECOND_ORDER, HYBRID, "movement", "gates, FFN by magnitude", "magnitude")
TEACHER = Recipe(epochs=1.5, batch_size=16, learning_rate=5e-5)
RECIPES = {
    "teacher": TEACHER,
    "published": replace(TEACHER, epochs=2.0),
    "budget": Recipe(max_steps=300),
    "layers": Recipe(max_steps=300),
    "questions": Recipe(epochs=2.0, attention_dropout=False),
}


@dataclass(frozen=True)
class Run:
    """One training run; a density of 1.0 is that of the dense model."""

    group: str
    task: str
    method: str
    density: float
    seed: int


def all_runs() -> Iterator[Run]:
    """Yields every run, seed by seed; what another run needs comes first."""
    published = [Run("teacher", "sst2", DENSE, 1.0, 0), Run("published", "sst2", DENSE, 1.0, 0)]
    ours = product((SECOND_ORDER, HYBRID), (0.74, 0.5, 0.35, 0.25))
    published += [Run("published", "sst2", *cell, 0) for cell in (*ours, (PENALTY, 0.74))]
    budget = []
    for task in ("sst2", "snli", "qamr"):
        budget.append(Run("budget", task, DENSE, 1.0, 0))
        budget += [
            Run("budget", task, *cell, 0)
            for cell in product((*IN_TRAINING, *WITHOUT_TRAINING, RANDOM_UNITS, REWOUND), (0.5, 0.25))
        ]
        budget += [Run("budget", task, method, 0.1, 0) for method in (ONE_SHOT, IN_ORDER)]
    layers = [Run("layers", task, method, 0.5, 0) for task in ("sst2", "snli", "qamr") for method in LAYERS]
    questions = [Run("questions", "squad_v1_dev", DENSE, 1.0, 0)]
    cells = [*product((SECOND_ORDER, FILLED), (0.26, 0.5)), (THEN, 0.26), (REWOUND, 0.26)]
    cells += [(name, 1.0 if method == DENSE else 0.26) for name, (method, _) in LONGER.items()]
    questions += [Run("questions", "squad_v1_dev", *cell, 0) for cell in cells]
    for runs in (published, budget, layers, questions):
        for seed in SEEDS:
            yield from (replace(run, seed=seed) for run in runs if run.method not in ONE_SEED or seed == SEEDS[0])


def needed_by(run: Run) -> Run | None:
    """Returns the run whose model or sizes a run needs."""
    if run.method == RANDOM_UNITS:
        return replace(run, method=SECOND_ORDER)
    if run.group == "layers":
        return Run("budget", run.task, DENSE, 1.0, run.seed) if "teacher" in run.method else None
    if run.method in WITHOUT_TRAINING or (run.group == "questions" and run.density < 1.0):
        return replace(run, method=DENSE, density=1.0)
    if run.group == "published" and run.method != DENSE:
        return Run("teacher", run.task, DENSE, 1.0, run.seed)
    return None


@cache
def cached_task(name: str, limit: int | None) -> Task:
    """Loads a task once per process."""
    return load_task(name, limit=limit)


def perform(run: Run, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Trains, cuts and scores one run; a dense one leaves its model for those that need it."""
    task = cached_task(run.task, 16 if smoke else None)
    method, epochs = LONGER.get(run.method, (run.method, RECIPES[run.group].epochs))
    recipe = replace(RECIPES[run.group], epochs=epochs)
    recipe = replace(recipe, max_steps=4, batch_size=4) if smoke else recipe
    if "600 steps" in run.method and not smoke:
        recipe = replace(recipe, max_steps=600)
    build = partial(build_trainer, task, recipe, seed=run.seed)
    if run.method in WITHOUT_TRAINING:
        trainer = build(callback=None, model=saved_model(run, task, work))
        plan, refit = cut_at_once(run, trainer, task, examples=4 if smoke else 1024)
        prune_model_(plain(trainer), RefittedPlan(plan, refit))
        return {**score(trainer, task), **sizes(plan, task)}
    if run.method == RANDOM_UNITS:
        source: Any = needed_by(run)
        model = task.model()
        kept = RunQueue((source,), work, RESULT).result_of(source)["kept"]
        plan = random_plan(PruningPlan.of(model), kept, run.seed)
        trainer = build(callback=None, model=prune_model_(model, plan))
        return {**train_and_score(trainer, task), **sizes(plan, task)}
    if run.group == "layers":
        trainer = build(callback=None, model=every_other_layer(task.model()))
        if needed_by(run) is not None:
            distil(trainer, Distillation(saved_model(run, task, work)))
        return {**train_and_score(trainer, task), "reached_density": 0.5}
    if method == THEN:
        return cut_and_trained_on(run, saved_model(run, task, work), task, build, work / key_of(run), epochs)
    callback = None if method == DENSE else callback_of(replace(run, method=method), task, work)
    trainer = build(callback=callback)
    result = train_and_score(trainer, task)
    if callback is None:
        trainer.save_model(str(work / key_of(run)))
        return result
    return {**result, **sizes(callback.plan, task), **file_size(trainer, work / key_of(run))}


def cut_and_trained_on(
    run: Run, model: Any, task: Task, build: Callable[..., Trainer], folder: Path, epochs: float
) -> dict[str, Any]:
    """Cuts a fine-tuned model, trains it on, taught by what it was, and scores it, as `headprune prune --recover`."""
    started = time.perf_counter()
    recover = PlainRecovery(task.train, Batching(), epochs, LEARNING_RATE)
    found = plan_for_budget(model, task.train, density=run.density, recover=recover, seed=run.seed)
    trainer = build(callback=None, model=prune_model_(model, found))
    seconds = time.perf_counter() - started
    return {**score(trainer, task), "train_seconds": seconds, **sizes(found.plan, task), **file_size(trainer, folder)}


def every_other_layer(model: Any) -> Any:
    """Drops every second layer of a BERT, in place: 0, 2 and 4 of six are kept."""
    model.base_model.encoder.layer = model.base_model.encoder.layer[::2]
    model.config.num_hidden_layers = len(model.base_model.encoder.layer)
    return model


def cut_at_once(run: Run, trainer: Trainer, task: Task, *, examples: int) -> tuple[PruningPlan, Any]:
    """Returns what a one-shot method keeps of a fine-tuned model, and what refits the model to it."""
    if run.method == FISHER:
        case = Case(plain(trainer).eval(), task, run.density, run.seed)
        grads = kwon.gradients(case.model, case.sites, case.batches)
        return plan_of(case.model, kwon.search(case.sites, grads, case.budget)), None
    settings = SecondOrder(density=run.density, tuning=SecondOrderTuning(scoring_examples=examples, seed=run.seed))
    model = plain(trainer).eval()
    if run.method == ONE_SHOT:
        losses = ExampleLosses(model, trainer.train_dataset, examples, run.seed)
        return choose(model, settings, PruningPlan.full(anatomy_of(model)), losses)
    found = second_order_plan(model, trainer.train_dataset, settings)
    return found.plan, found.refit


def callback_of(run: Run, task: Task, work: Path) -> HeadPruneCallback:
    """Builds the callback of one method."""
    teacher = None
    if run.group in ("published", "questions"):
        teacher = Distillation(saved_model(run, task, work))
    if run.method == FILLED:
        movement = BlockMovement.hybrid_filled(density=run.density)
        return HeadPruneCallback(gates=None, search=None, movement=movement, distillation=teacher, latency=None)
    if run.method == PENALTY:
        return HeadPruneCallback(movement=THEIR_RECIPE, distillation=teacher, latency=None)
    if run.method in (SECOND_ORDER, REWOUND):
        freeze_at, rewind = (0.5, 2.0) if run.method == REWOUND else (0.6, None)
        costs = SecondOrder(density=run.density, freeze_at=freeze_at, tuning=SecondOrderTuning(rewind=rewind))
        return HeadPruneCallback(second_order=costs, search=None, distillation=teacher, latency=None)
    if run.method == HYBRID:
        return HeadPruneCallback(
            gates=SubsetGates(), search=None, density=run.density, distillation=teacher, latency=None
        )
    if run.method == "gates, FFN by magnitude":
        found = budgets(anatomy_of(task.model()), run.density)
        ffn = BlockMovement.ffn_units(found.kept_ffn, method="magnitude")
        return HeadPruneCallback(
            gates=SubsetGates(kept_heads=found.kept_heads), search=None, movement=ffn, latency=None
        )
    method = "magnitude" if run.method == "magnitude" else "top_k"
    units = BlockMovement(attention_block="unit", method=method, density=run.density)
    return HeadPruneCallback(gates=None, search=None, movement=units, latency=None)


def saved_model(run: Run, task: Task, work: Path) -> Any:
    """Loads the model that a run needs."""
    return copied(type(task.model()), work / key_of(needed_by(run)))


def random_plan(full: PruningPlan, kept: dict[str, int], seed: int) -> PruningPlan:
    """Draws as many units of each site as another plan kept."""
    draws = np.random.default_rng(seed)

    def drawn(sites: Any) -> dict[str, tuple[int, ...]]:
        return {name: tuple(sorted(map(int, draws.permutation(units)[: kept[name]]))) for name, units in sites.items()}

    ffn = {name: len(units) for name, units in full.kept_ffn.items()}
    return full.replace(kept_heads=drawn(full.num_heads), kept_ffn=drawn(ffn))


def sizes(plan: Any, task: Task) -> dict[str, Any]:
    """Returns what a plan keeps: its density, and units per site."""
    kept = {name: len(units) for name, units in {**plan.kept_heads, **plan.kept_ffn}.items()}
    return {"reached_density": linear_density(plan, anatomy_of(task.model())), "kept": kept}


def file_size(trainer: Trainer, folder: Path) -> dict[str, float]:
    """Saves the model and returns the size of its weights on disk and in memory, in MB."""
    trainer.save_model(str(folder))
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    in_memory = sum(tensor.numel() * tensor.element_size() for tensor in plain(trainer).state_dict().values())
    return {"file_mb": on_disk / 1e6, "weights_mb": in_memory / 1e6}


def plain(trainer: Trainer) -> Any:
    """Returns the Trainer's model without what mixed precision wrapped around it."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def model_of(run: Run, work: Path) -> Path | None:
    """Returns where a dense run leaves its model."""
    return work / key_of(run) if run.method == DENSE else None


def queue(options: argparse.Namespace) -> RunQueue[Run]:
    """Builds the queue; of a smoke run, one of each method on few rows."""
    only, smoke, work = options.only, options.smoke, options.work
    sources = {"published": ("teacher", DENSE), "layers": ("budget", DENSE)}  # what others start from
    runs = [run for run in all_runs() if only in (None, run.group) or (run.group, run.method) == sources.get(only)]
    runs = [run for run in runs if options.methods is None or run.method in (DENSE, *options.methods)]
    runs = [run for run in runs if run.seed in options.seeds and (options.tasks is None or run.task in options.tasks)]
    if smoke:
        questions = {(DENSE, 1.0), (FILLED, 0.5), (THEN, 0.26)}
        budget = [run for run in runs if (run.group, run.task) == ("budget", "sst2") and run.density in (1.0, 0.5)]
        runs = [*budget, *(run for run in runs if run.group == "questions" and (run.method, run.density) in questions)]
        runs = [run for run in runs if run.seed == 0]
    return RunQueue(tuple(runs), work, Path("no such file") if smoke else RESULT)


def main() -> None:
    """Works through the queue, or collects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/density_accuracy"), help="cache of finished runs")
    parser.add_argument("--only", choices=("published", "budget", "layers", "questions"))
    parser.add_argument("--methods", nargs="+", help="of these methods alone, such as 'second order', and dense")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of these seeds alone")
    parser.add_argument("--tasks", nargs="+", help="of these tasks alone")
    parser.add_argument("--collect", action="store_true", help="summarise what is finished")
    parser.add_argument("--smoke", action="store_true", help="a few steps of one run of each method")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    waiting = queue(options)
    if not options.collect:
        waiting.work_through(
            partial(perform, work=options.work, smoke=options.smoke),
            source_of=needed_by,
            model_of=partial(model_of, work=options.work),
        )
    elif not options.smoke:
        waiting = RunQueue(tuple(all_runs()), options.work, RESULT)  # a result file never loses what was not asked for
        runs = waiting.finished()
        measures = ("dev", "test", "reached_density", "file_mb", "weights_mb")
        rows = summary(runs, ("group", "task", "method", "density"), measures)
        content = {"seeds": SEEDS, "missing": len(waiting.runs) - len(runs), "summary": rows, "runs": runs}
        write_json(RESULT, {**environment(), **content})


if __name__ == "__main__":
    main()
