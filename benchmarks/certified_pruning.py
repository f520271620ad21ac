"""How much of MiniLM goes with a certificate at 95 %, with and without training.

- without training: a fine-tuned model is searched on dev by A* within half the drop, output projections refitted, on
  1 024 training examples, to the heads that stay; or heads and FFN units are cut by second-order costs on those
  examples, to a quarter of the linear weights. Of the plans on the way there, on which what costs least leaves first,
  twelve are certified on test, the least pruned first, against the model itself.
- with training: gates keep 54, 43, 36, 29 and 24 of 72 heads, second-order removal 54, 43 and 29, each in a run of its
  own; the models are certified on test, the least pruned first, against a dense model trained with the same steps.

Both on sst2 (n = 1 821) and snli (n = 9 824), for drops of 1 and 2 %. Every run is cached in `--work`; several
processes share the queue.

Run: OMP_NUM_THREADS=1 python -m benchmarks.certified_pruning [--only untrained] [--work FOLDER] [--smoke]
     python -m benchmarks.certified_pruning --collect
"""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.finetuned import RECIPES, batches_of, evaluator_on, fine_tuned, some_of
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.run_queue import RunQueue, key_of
from benchmarks.tasks import SEARCH_EXAMPLES, Task, load_task, minilm_path
from benchmarks.training import build_trainer, train_and_score
from hf_headprune import (
    AStarSearch,
    CertificationData,
    HeadPruneCallback,
    PruningPlan,
    SecondOrder,
    SubsetGates,
    anatomy_of,
    certify_path,
    cost_of,
    prune_model_,
)
from hf_headprune.anatomy import Anatomy
from hf_headprune.cost import weights_price
from hf_headprune.guarantee.claim import Claim
from hf_headprune.guarantee.outcomes import PairedScores
from hf_headprune.guarantee.path import certify_in_order
from hf_headprune.guarantee.sequence import evenly_spaced
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.plans_between import plans_between
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.search.plans import search_over_plans
from hf_headprune.tasks.scores import scores_of

RESULT = RESULTS / "certified_pruning.json"
SEEDS = (0, 1, 2)
TASKS = ("sst2", "snli")
DROPS = (0.01, 0.02)
ALPHA = 0.05
MILESTONES = 12
SEARCH = AStarSearch(max_evaluations=100, units=("heads",), objective="heads")
COSTS = SecondOrder(density=0.25, tuning=SecondOrderTuning(scoring_examples=1024))
HEADS = 72
DENSE, SEARCH_AFTER, COSTS_AFTER = "dense", "search", "second order, one-shot"
GATES, SECOND_ORDER = "gates", "second order"
WITHOUT_TRAINING = (SEARCH_AFTER, COSTS_AFTER)
KEPT_HEADS = {GATES: (54, 43, 36, 29, 24), SECOND_ORDER: (54, 43, 29)}


@dataclass(frozen=True)
class Run:
    """A training run that keeps some heads, or a way without training, which has a drop and no budget of heads."""

    task: str
    method: str
    kept_heads: int
    drop: float
    seed: int


def all_runs() -> tuple[Run, ...]:
    """Returns every run, seed by seed; what trains nothing comes after the dense run whose model it needs."""
    runs = []
    for seed in SEEDS:
        runs += [Run(task, DENSE, HEADS, 0.0, seed) for task in TASKS]
        for task, method in product(TASKS, KEPT_HEADS):
            runs += [Run(task, method, kept, 0.0, seed) for kept in KEPT_HEADS[method]]
        runs += [Run(task, SEARCH_AFTER, 0, drop, seed) for drop in DROPS for task in TASKS]
        runs += [Run(task, COSTS_AFTER, 0, 0.0, seed) for task in TASKS]  # its plans are the same for every drop
    return tuple(runs)


def source_of(run: Run) -> Run | None:
    """Returns the dense run whose model a way without training needs."""
    return Run(run.task, DENSE, HEADS, 0.0, run.seed) if run.method in WITHOUT_TRAINING else None


def model_of(run: Run, work: Path) -> Path | None:
    """Returns where a dense run leaves its model; `fine_tuned` looks for it there."""
    return work / f"{run.task}-{run.seed}" if run.method == DENSE else None


@cache
def cached_task(name: str, limit: int | None) -> Task:
    """Loads a task once per process."""
    return load_task(name, limit=limit)


def perform(run: Run, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Does one run."""
    task = cached_task(run.task, 64 if smoke else None)
    of = {SEARCH_AFTER: searched, COSTS_AFTER: cut_by_costs}.get(run.method, trained)
    return of(run, task, work, smoke=smoke)


def trained(run: Run, task: Task, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Trains and keeps the answers on test."""
    recipe = replace(RECIPES[run.task], max_steps=4) if smoke else RECIPES[run.task]
    callback = None
    if run.method == GATES:
        callback = HeadPruneCallback(gates=SubsetGates(kept_heads=run.kept_heads), search=None, latency=None)
    if run.method == SECOND_ORDER:
        callback = HeadPruneCallback(second_order=SecondOrder(kept_heads=run.kept_heads), search=None, latency=None)
    trainer = build_trainer(task, recipe, seed=run.seed, callback=callback)
    scores = train_and_score(trainer, task)
    if (folder := model_of(run, work)) is not None:
        trainer.save_model(str(folder))
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    right = np.packbits(scores_of(model, task.test).astype(np.uint8)).tobytes().hex()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scores["trained_in_bf16"] = recipe.in_bf16
    return {**scores, "parameters": parameters, "examples": len(task.test), "right": right}


def searched(run: Run, task: Task, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Searches a fine-tuned model on dev and certifies plans on the way to what it found on test."""
    model: Any = fine_tuned(task, run.seed, work, smoke=smoke)
    anatomy = anatomy_of(model)
    dev = task.dev.select(range(min(len(task.dev), SEARCH_EXAMPLES)))
    evaluator = evaluator_on(model, dev, calibration=batches_of(model, some_of(task.train, run.seed)))
    settings = replace(
        SEARCH, max_drop=run.drop / 2, seed=run.seed, max_evaluations=8 if smoke else SEARCH.max_evaluations
    )
    found = search_over_plans(
        anatomy, evaluator, settings, journal=work / f"{key_of(run)}.jsonl", fingerprint=evaluator.fingerprint()
    )
    full = PruningPlan.of(model)
    plans = evenly_spaced(plans_between(full, found.plan, found.refit), MILESTONES)
    data = CertificationData(task.test, search=dev)
    path = certify_path(model, [RefittedPlan(plan, found.refit) for plan in plans], data, max_drop=run.drop)
    certified = full if path.certified_index is None else plans[path.certified_index]
    on_test = evaluator_on(model, task.test)
    right = {"dense": on_test(full).metric}
    on_test.refit = found.refit
    right["pruned"] = on_test(certified).metric
    return {
        "dev": 100 * found.metric,
        "test": 100 * right["pruned"],
        "dense_test": 100 * right["dense"],
        "found_removed": found.plan.num_removed_heads,
        **size_of(certified, model),
        "evaluations": found.evaluations,
        "steps": [vars(step) | {"name": ""} for step in path.steps],
    }


def cut_by_costs(run: Run, task: Task, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Cuts a fine-tuned model by its second-order costs and certifies plans on the way on test, for each drop."""
    model: Any = fine_tuned(task, run.seed, work, smoke=smoke)
    found = second_order_plan(
        model, some_of(task.train, run.seed), replace(COSTS, tuning=replace(COSTS.tuning, seed=run.seed))
    )
    full = PruningPlan.of(model)
    plans = [full, *evenly_spaced(plans_between(full, found.plan, found.refit), MILESTONES)]

    @cache
    def right(number: int) -> np.ndarray:
        cut = prune_model_(copy.deepcopy(model), RefittedPlan(plans[number], found.refit))
        return scores_of(cut, task.test).astype(float)

    def compared(number: int) -> PairedScores:
        return PairedScores(right(0), right(number))

    certified = []
    for drop in DROPS:
        candidates = [(str(n), partial(compared, n)) for n in range(1, len(plans))]
        path = certify_in_order(compared(0), candidates, Claim("accuracy", "binary", drop, ALPHA, ALPHA), "test")
        last = 0 if path.certified_index is None else path.certified_index + 1
        steps = [vars(step) for step in path.steps]
        size = size_of(plans[last], model)
        certified.append({"max_drop": drop, "test": 100 * float(right(last).mean()), **size, "steps": steps})
    dev, test = (100 * float(answers.mean()) for answers in (scores_of(model, task.dev), right(0)))
    return {"dev": dev, "test": test, "dense_test": test, "certified": certified}  # of the model that is cut


def size_of(plan: PruningPlan, model: Any) -> dict[str, int]:
    """Returns what is certified to go, and the parameters left of how many."""
    parameters = [cost_of(it, anatomy_of(model), seq_len=128).parameters for it in (plan, PruningPlan.of(model))]
    return {
        "certified_removed": plan.num_removed_heads,
        "certified_removed_ffn": plan.num_removed_ffn,
        "certified_parameters": parameters[0],
        "parameters": parameters[1],
    }


def certified_of_trained(runs: list[dict[str, Any]], budgets: tuple[int, ...], drop: float) -> dict[str, Any] | None:
    """Certifies the models of one task, seed and way to train, or returns None where a run is missing."""
    of_kept = {run["kept_heads"]: run for run in runs}
    if any(kept not in of_kept for kept in (HEADS, *budgets)):
        return None
    right = {kept: right_of(run) for kept, run in of_kept.items()}
    candidates = [(str(kept), partial(PairedScores, right[HEADS], right[kept])) for kept in budgets]
    path = certify_in_order(
        PairedScores(right[HEADS], right[HEADS]), candidates, Claim("accuracy", "binary", drop, ALPHA, ALPHA), "test"
    )
    last = path.certified_index
    kept = HEADS if last is None else budgets[last]
    return {
        "certified_removed": HEADS - kept,
        "certified_parameters": of_kept[kept]["parameters"],
        "parameters": of_kept[HEADS]["parameters"],
        "dense_test": of_kept[HEADS]["test"],
        "test": of_kept[kept]["test"],
        "steps": [vars(step) for step in path.steps],
    }


def right_of(run: dict[str, Any]) -> np.ndarray:
    """Returns which test examples a trained model answered right, from the bits in its result."""
    bits = np.frombuffer(bytes.fromhex(run["right"]), dtype=np.uint8)
    return np.unpackbits(bits, count=run["examples"]).astype(float)


def collect(waiting: RunQueue[Run]) -> dict[str, Any]:
    """Gathers what is certified."""
    runs = waiting.finished()
    rows = [{"way": SEARCH_AFTER, "max_drop": run["drop"], **run} for run in runs if run["method"] == SEARCH_AFTER]
    for run in runs:
        about = {name: run[name] for name in ("task", "seed", "dense_test") if name in run}
        rows += [{"way": COSTS_AFTER, **about, **certified} for certified in run.get("certified", ())]
    for way, task, seed, drop in product(KEPT_HEADS, TASKS, SEEDS, DROPS):
        mine = [r for r in runs if r["method"] in (DENSE, way) and (r["task"], r["seed"]) == (task, seed)]
        found = certified_of_trained(mine, KEPT_HEADS[way], drop)
        if found is not None:
            rows.append({"way": way, "task": task, "seed": seed, "max_drop": drop, **found})
    anatomy = anatomy_of(AutoModelForSequenceClassification.from_pretrained(minilm_path()))
    rows = [{**row, "weights_removed": weights_removed(row, anatomy)} for row in rows]
    ways = len(WITHOUT_TRAINING) + len(KEPT_HEADS)
    return {"missing": len(TASKS) * len(SEEDS) * len(DROPS) * ways - len(rows), "results": rows, "runs": runs}


def weights_removed(row: dict[str, Any], anatomy: Anatomy) -> float:
    """Returns the share of the entries of all attention and FFN matrices that goes."""
    per_head, per_unit = (weights_price(sites[0]).per_unit for sites in (anatomy.attention_sites, anatomy.ffn_sites))
    gone = per_head * row["certified_removed"] + per_unit * row.get("certified_removed_ffn", 0)
    return gone / sum(site.price(weights_price(site)) for site in anatomy.sites)


def main() -> None:
    """Works through the queue, or collects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/certified"), help="cache of models and finished runs")
    parser.add_argument("--only", choices=("untrained", "trained"), help="with or without training")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="of these tasks alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of these seeds alone")
    parser.add_argument("--kept", nargs="+", type=int, help="of these numbers of heads alone")
    parser.add_argument("--collect", action="store_true", help="certify and summarise what is finished")
    parser.add_argument(
        "--smoke", action="store_true", help="each way without training, and two runs of four steps, on 64 rows"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    runs = all_runs()
    if options.only is not None:  # both begin with a dense model
        runs = tuple(
            r for r in runs if r.method == DENSE or (r.method in WITHOUT_TRAINING) == (options.only == "untrained")
        )
    runs = tuple(run for run in runs if run.task in options.tasks and run.seed in options.seeds)
    runs = tuple(run for run in runs if options.kept is None or run.kept_heads in options.kept)
    if options.smoke:
        runs = tuple(
            r for r in runs if (r.task, r.seed) == ("sst2", 0) and r.kept_heads in (0, HEADS, 43) and r.method != GATES
        )
    waiting = RunQueue(runs, options.work, Path("no such file") if options.smoke else RESULT)
    if options.collect and not options.smoke:
        waiting = RunQueue(all_runs(), options.work, RESULT)  # a result file never loses what was not asked for
    else:
        waiting.work_through(
            partial(perform, work=options.work, smoke=options.smoke),
            source_of=source_of,
            model_of=partial(model_of, work=options.work),
        )
    content = collect(waiting)
    for row in content["results"]:
        gone = 1 - row["certified_parameters"] / row["parameters"]
        print(
            row["way"], row["task"], row["seed"], row["max_drop"], "heads removed:", row["certified_removed"], end=", "
        )
        print(f"parameters removed: {gone:.1%}")
    if options.collect and not options.smoke:
        setting = {"seeds": SEEDS, "alpha": ALPHA, "heads": HEADS}
        write_json(RESULT, {**environment(), **setting, **content})


if __name__ == "__main__":
    main()
