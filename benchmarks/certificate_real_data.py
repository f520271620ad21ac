"""How often certificates are wrong on real answers: repeated random splits of snli's 9 824 test pairs.

MiniLM, fine-tuned on snli with several seeds, loses heads in the order of gradient importance, without retraining; its
answers with each number of heads are computed once for all pairs. Then, again and again, the pairs are split at random
into those that search (2 000), those that certify, and the rest. The search takes the plan that removes most within
half the drop on its pairs; the plans up to it are certified in order; and the certificate is compared with the drop on
the rest, and with that on all pairs, which is the truth for pairs drawn from them.

The result file is written seed by seed, and its seeds are not run again; answers are kept in `--work`.

Run: OMP_NUM_THREADS=1 python -m benchmarks.certificate_real_data [--smoke] [--work FOLDER]
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetuned import fine_tuned, plans_by_gradient
from benchmarks.results_file import RESULTS, environment, read_json, write_json
from benchmarks.tasks import Task, load_task
from hf_headprune import masked
from hf_headprune.guarantee.paired import critical_value, level_of, score_statistic
from hf_headprune.tasks.scores import scores_of

RESULT = RESULTS / "certificate_real_data.json"
SEEDS = (0, 1, 2)
REPETITIONS = 2000
SEARCHING = 2000
CERTIFYING = (500, 1000, 2000, 4000)
DROPS = (0.01, 0.02, 0.03)
REMOVED = range(2, 50, 4)
ALPHA = 0.05


def answers(task: Task, seed: int, work: Path, *, smoke: bool) -> np.ndarray:
    """Returns which test pairs are answered right, `(1 + plans, pairs)`: by the dense model, then the plans."""
    file = work / f"answers-{task.name}-{seed}.npy"
    if file.exists() and not smoke:
        return np.load(file)
    model: Any = fine_tuned(task, seed, work, smoke=smoke)
    rows = []
    for plan in plans_by_gradient(model, task, (0, *REMOVED)):
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


def main() -> None:
    """Runs every seed and setting and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="models and answers")
    parser.add_argument("--smoke", action="store_true", help="128 pairs, one seed, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
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
