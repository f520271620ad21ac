"""How often certificates are wrong on real answers: repeated random splits of snli's 9 824 test pairs.

MiniLM, fine-tuned on snli with several seeds, loses heads in the order of gradient importance, without retraining; its
answers with each number of heads are computed once for all pairs. Then, again and again, the pairs are split at random
into those that search (2 000), those that certify, and the rest. The search takes the plan that removes most within
half the drop on its pairs; the plans up to it are certified in order; and the certificate is compared with the drop on
the rest, and with that on all pairs, which is the truth for pairs drawn from them.

The result file is written seed by seed, and its seeds are not run again; answers are kept in `--work`.

With --labels, models of sst2 and snli that lie in `--work` are pruned by removal costs to half of their weights, and
certified on test examples with all labels, with those alone that `disagreements` asks for, and without any.

Run: OMP_NUM_THREADS=1 python -m benchmarks.certificate_real_data [--smoke] [--work FOLDER] [--labels]
"""

from __future__ import annotations

import argparse
import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetuned import fine_tuned, plans_by_gradient
from benchmarks.results_file import RESULTS, environment, read_json, write_json
from benchmarks.tasks import Task, load_task
from hf_headprune import CertificationData, disagreements, masked, plan_for_budget, prune_model_
from hf_headprune.guarantee.claim import Claim
from hf_headprune.guarantee.evidence import evidence_of, evidence_of_changes
from hf_headprune.guarantee.outcomes import PairedScores
from hf_headprune.guarantee.paired import critical_value, level_of, score_statistic
from hf_headprune.guarantee.scored import ScoredSplit
from hf_headprune.tasks.scores import scores_of

RESULT = RESULTS / "certificate_real_data.json"
SEEDS = (0, 1, 2)
REPETITIONS = 2000
SEARCHING = 2000
CERTIFYING = (500, 1000, 2000, 4000)
DROPS = (0.01, 0.02, 0.03)
REMOVED = range(2, 50, 4)
ALPHA = 0.05
LABELS_RESULT = RESULTS / "certificate_few_labels.json"
DENSITY, CALIBRATION, LABELLED = 0.5, 1024, 4000
SAME = ("verdict", "regressions", "improvements", "p_value", "upper_bound", "regressions_to_spare", "examples_needed")


def answers(task: Task, seed: int, work: Path, *, smoke: bool) -> np.ndarray:
    """Returns which test pairs are answered right, `(1 + plans, pairs)`: by the dense model, then the plans."""
    file = work / f"answers-{task.name}-{seed}.npy"
    if file.exists() and not smoke:
        return np.load(file)
    model: Any = fine_tuned(task, seed, work, smoke=smoke)
    rows = []
    for plan in plans_by_gradient(model, task.dev, (0, *REMOVED)):
        with masked(model, plan):
            rows.append(scores_of(model, task.test))
    found = np.stack(rows).astype(np.int8)
    np.save(file, found)
    return found


def repeated(right: np.ndarray, certifying: int, epsilon: float, draws: np.random.Generator) -> dict[str, Any]:
    """Splits the pairs again and again; returns the share of the repetitions in which something happened."""
    lost = right[:1] - right[1:]  # (plans, pairs): 1 a regression, -1 an improvement
    pairs, searching = lost.shape[1], min(SEARCHING, lost.shape[1] // 4)
    critical = critical_value(certifying, epsilon, level_of(ALPHA))
    counts = dict.fromkeys(("certified", "wrong", "worse_on_the_rest", "searched_wrong", "estimated_wrong"), 0)
    removed = []
    for _ in range(REPETITIONS):
        order = draws.permutation(pairs)
        search, certify, rest = np.split(lost[:, order], [searching, searching + certifying], axis=1)
        within = np.flatnonzero(search.mean(axis=1) <= epsilon / 2)
        if not len(within):
            removed.append(0)
            continue
        deepest = int(within[-1])
        statistics = score_statistic((certify == 1).sum(1), (certify == -1).sum(1), certifying, epsilon)
        passed = np.minimum.accumulate(statistics[: deepest + 1] <= critical)
        counts["searched_wrong"] += lost[deepest].mean() >= epsilon
        counts["estimated_wrong"] += certify[deepest].mean() <= epsilon <= lost[deepest].mean()
        if passed[0]:
            last = int(passed.sum()) - 1
            counts["certified"] += 1
            counts["wrong"] += bool((lost[: last + 1].mean(axis=1) >= epsilon).any())
            counts["worse_on_the_rest"] += rest[last].mean() >= epsilon
            removed.append(REMOVED[last])
        else:
            removed.append(0)
    shares = {name: float(count) / REPETITIONS for name, count in counts.items()}
    return {**shares, "mean_removed": float(np.mean(removed))}


def compared(dense: Any, pruned: Any, data: CertificationData) -> PairedScores:
    """Runs both models on a split, as `certify` does."""
    split = ScoredSplit(data, None, dense, seen=())
    return split.compared(*(split.outcome_of(model) for model in (dense, pruned)))


def few_labels(task: Task, seed: int, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Certifies a pruned model with the labels of all test examples, of the disagreements, and of none."""
    dense: Any = fine_tuned(task, seed, work, smoke=smoke)
    calibration = task.train.select(range(min(CALIBRATION, len(task.train))))
    pruned = prune_model_(copy.deepcopy(dense), plan_for_budget(dense, calibration, density=DENSITY))
    rows = task.test.select(range(min(LABELLED, len(task.test)))).remove_columns("length")
    whole = compared(dense, pruned, CertificationData(rows))
    texts, gold = rows.remove_columns("labels"), rows["labels"][:]
    asked = disagreements(dense, pruned, texts)
    few = compared(dense, pruned, CertificationData(texts, labels={index: gold[index] for index in asked}))
    found: dict[str, Any] = {"task": task.name, "seed": seed, "examples": len(rows), "density": DENSITY}
    for drop in DROPS:
        claim = Claim("accuracy", "binary", drop, ALPHA, ALPHA)
        of_all, of_few = (evidence_of(scores, claim) for scores in (whole, few))
        same = all(getattr(of_all, name) == getattr(of_few, name) for name in SAME)
        found[f"at_{drop}"] = {"verdict": of_all.verdict, "p_value": of_all.p_value, "same_with_few_labels": same}
    changed = int(np.asarray(whole.changed).sum())
    bound = evidence_of_changes(changed, len(rows), Claim("agreement", "agreement", 0.01, ALPHA, ALPHA)).upper_bound
    found |= {"labels_used": len(asked), "regressions": of_all.regressions, "improvements": of_all.improvements}
    return {**found, "upper_bound": of_all.upper_bound, "upper_bound_without_labels": bound}


def write_few_labels(work: Path, *, smoke: bool) -> None:
    """Does so for every model that is there and not in the result yet, and writes it model by model."""
    rows = [] if smoke else read_json(LABELS_RESULT).get("results", [])
    known = {(row["task"], row["seed"]) for row in rows}
    asked = [(name, seed) for seed in (SEEDS[:1] if smoke else SEEDS) for name in ("sst2", "snli")]
    # what a Trainer saves last
    present = [it for it in asked if smoke or (work / f"{it[0]}-{it[1]}" / "training_args.bin").exists()]
    for name, seed in (it for it in present if it not in known):
        rows.append(few_labels(load_task(name, limit=128 if smoke else None), seed, work, smoke=smoke))
        print(rows[-1], flush=True)
        if not smoke:
            setting = {"alpha": ALPHA, "calibration": CALIBRATION, "missing": len(asked) - len(rows)}
            write_json(LABELS_RESULT, {**environment(), **setting, "results": rows})


def main() -> None:
    """Runs every seed and setting and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="models and answers")
    parser.add_argument("--smoke", action="store_true", help="128 pairs, one seed, no result file")
    parser.add_argument("--labels", action="store_true", help="certificates with few labels and without any")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.labels:
        write_few_labels(options.work, smoke=options.smoke)
        return
    task = load_task("snli", limit=128 if options.smoke else None)
    results = [] if options.smoke else read_json(RESULT).get("results", [])
    for seed in SEEDS[:1] if options.smoke else set(SEEDS) - {row["seed"] for row in results}:
        right = answers(task, seed, options.work, smoke=options.smoke)
        drops = (right[:1] - right[1:]).mean(axis=1)
        sizes = (32,) if options.smoke else CERTIFYING
        for number, (certifying, epsilon) in enumerate(product(sizes, DROPS)):
            cell = repeated(right, certifying, epsilon, np.random.default_rng([seed, number]))
            results.append({"seed": seed, "n": certifying, "epsilon": epsilon, **cell})
            shown = f"wrong {cell['wrong']:.4f}, certified {cell['certified']:.3f}, removed {cell['mean_removed']:.1f}"
            print(f"seed {seed} n={certifying} epsilon={epsilon}: {shown}", flush=True)
        results[-1]["drops"] = dict(zip(map(str, REMOVED), map(float, drops), strict=True))
        if not options.smoke:
            missing = len(SEEDS) * len(CERTIFYING) * len(DROPS) - len(results)
            setting = {"seeds": SEEDS, "missing": missing}
            setting |= {"alpha": ALPHA, "repetitions": REPETITIONS, "searching": SEARCHING}
            write_json(RESULT, {**environment(), **setting, "results": results})


if __name__ == "__main__":
    main()
