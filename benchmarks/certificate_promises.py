"""How often the newer certificates are wrong, and what they need: few labels, clusters, several promises, early stops.

Every setting lies at the border of its hypothesis, where each certificate is wrong, and where it isn't, the power is
counted. Runs are simulated side by side, from the counts or the differences that the tests see.

- labels: only examples whose answer changed are labelled, half of them, or all; beside it all examples labelled.
- clusters: examples that share a text lose or keep their answers together; betting on clusters, and the exact test that
  takes them for independent.
- promises: four groups of unequal size; the certificate that all hold, where one is at the border or all are.
- stop: betting that stops as soon as the verdict is certain, beside the exact test on all examples.
- monitor: alarms over 10,000 live inputs although nothing changes, and how soon a rise of two points is seen. The
  certificate's own rate is drawn anew in each stream.
- Hoeffding-Bentkus: p-values made for risks in [0, 1], given paired differences, as a released script of Pareto Testing
  (Laufer-Goldshtein et al., ICLR 2023) does.

Run: python -m benchmarks.certificate_promises [--smoke]
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.special import bdtr

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune.guarantee.betting import LARGEST_BET, NUM_BETS, SMALLEST_BET
from hf_headprune.guarantee.monitor import Alarms
from hf_headprune.guarantee.outcomes import Outcome, PairedScores
from hf_headprune.guarantee.paired import critical_value, level_of, score_statistic

RUNS = 20_000
ALPHA = 0.05
SEED = 0
DROP = 0.01
BOTH_WRONG = 0.2  # of the changed answers: wrong before, and wrong in another way after
RIGHT = 0.85  # answers of the dense model
EXAMPLE_BY_EXAMPLE = 200  # runs in which the comparison itself gets labels of all, and of the changed
HORIZON = 10_000  # live inputs
DELAYS = 1000  # streams in which a rise is looked for
SMOKE = {"RUNS": 200, "HORIZON": 300, "DELAYS": 20, "EXAMPLE_BY_EXAMPLE": 20}


def passes(regressions: np.ndarray, improvements: np.ndarray, n: int, epsilon: float = DROP) -> np.ndarray:
    """Tells which counts the exact test certifies."""
    return score_statistic(regressions, improvements, n, epsilon) <= critical_value(n, epsilon, level_of(ALPHA))


def counts(n: int, changed: float, drop: float, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draws regressions, improvements, and changes among wrong answers, `(RUNS,)` each."""
    disagreeing = changed * (1 - BOTH_WRONG)
    chances = [(disagreeing + drop) / 2, (disagreeing - drop) / 2, changed * BOTH_WRONG]
    drawn = generator.multinomial(n, [*chances, 1 - sum(chances)], RUNS)
    return drawn[:, 0], drawn[:, 1], drawn[:, 2]


def labels(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Labels for the changed answers alone, for half of them, and for all examples."""
    rows = []
    for n, changed in ((1376, 0.025), (3184, 0.0625)):
        for drop in (DROP, 0.0):
            broken, fixed, wrong = counts(n, changed, drop, generator)
            half = [generator.binomial(part, 0.5) for part in (broken, fixed, wrong)]
            # What nobody labelled counts as a regression: mended answers and those wrong in both models too.
            blamed = half[0] + sum(part - known for part, known in zip((broken, fixed, wrong), half, strict=True))
            rows.append(
                {
                    "n": n,
                    "changed": changed,
                    "true_drop": drop,
                    "labels_used": float((broken + fixed + wrong).mean()),
                    "differs_with_labels_of_all": differing(n, changed, drop, generator),
                    "certified_with_labels_of_the_changed": float(passes(broken, fixed, n).mean()),
                    "certified_with_half_of_these": float(passes(blamed, half[1], n).mean()),
                }
            )
    return rows


def differing(n: int, changed: float, drop: float, generator: np.random.Generator) -> int:
    """Returns in how many runs the counts are others if all examples are labelled; the verdict follows from them."""
    differ = 0
    for _ in range(EXAMPLE_BY_EXAMPLE):
        gold = generator.integers(0, 3, n)
        dense = np.where(generator.random(n) < RIGHT, gold, (gold + 1) % 3)
        lost = differences(generator, (n,), changed * (1 - BOTH_WRONG), drop)
        pruned = np.where((lost == 1) & (dense == gold), (gold + 1) % 3, dense)
        pruned = np.where((lost == -1) & (dense != gold), gold, pruned)
        pruned = np.where(
            (generator.random(n) < BOTH_WRONG) & (dense != gold) & (pruned == dense), (gold + 2) % 3, pruned
        )
        outcomes = [Outcome((answers == gold).astype(float), answers[:, None]) for answers in (dense, pruned)]
        few = PairedScores.of(*outcomes, labelled=dense != pruned).counts
        whole = PairedScores.of(*outcomes).counts
        differ += (few.regressions, few.improvements) != (whole.regressions, whole.improvements)
    return differ


def log_gains(epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bets, `(num_bets,)`, and what each gains by a difference of 1, 0 and -1, `(3, num_bets)`."""
    bets = np.geomspace(SMALLEST_BET, LARGEST_BET, NUM_BETS) / max(1.0, 1.0 - epsilon)
    return bets, 1.0 + bets * (epsilon - np.array([1.0, 0.0, -1.0])[:, None])


def differences(generator: np.random.Generator, shape: tuple[int, ...], changed: float, drop: float) -> np.ndarray:
    """Draws 1 for a regression, -1 for an improvement, and 0."""
    drawn = generator.random(shape, dtype=np.float32)
    return (drawn < (changed + drop) / 2).astype(np.int8) - (drawn > 1 - (changed - drop) / 2).astype(np.int8)


def clusters(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Examples in clusters of eight whose answers change together with a chance of one half."""
    rows = []
    size, count, changed, epsilon = 8, 500, 0.10, 0.02
    for drop in (epsilon, -0.02):
        certified, taken_for_independent = np.zeros(RUNS, dtype=bool), np.zeros(RUNS, dtype=bool)
        for first in range(0, RUNS, 1000):
            runs = min(1000, RUNS - first)
            own, shared = (differences(generator, (runs, count, width), changed, drop) for width in (size, 1))
            lost = np.where(generator.integers(0, 2, (runs, count, size), dtype=np.int8) == 1, shared, own)
            sums = lost.sum(axis=2) / size  # (runs, count)
            bets, _ = log_gains(epsilon)
            wealth = [np.log1p(bet * (epsilon - sums)).sum(axis=1) for bet in bets]
            mean = np.logaddexp.reduce(np.stack(wealth), axis=0) - np.log(NUM_BETS)
            certified[first : first + runs] = mean >= np.log(1 / ALPHA)
            worse, better = (lost == 1).sum(axis=(1, 2)), (lost == -1).sum(axis=(1, 2))
            taken_for_independent[first : first + runs] = passes(worse, better, size * count, epsilon)
        rows.append(
            {
                "clusters": count,
                "size": size,
                "changed": changed,
                "epsilon": epsilon,
                "true_drop": drop,
                "certified": float(certified.mean()),
                "certified_if_taken_for_independent": float(taken_for_independent.mean()),
            }
        )
    return rows


def promises(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Four groups; the certificate says that all hold."""
    rows, sizes, disagreement = [], (6000, 3000, 2000, 2000), 0.02
    for name, drops in (
        ("one at the border", (0.0, 0.0, 0.0, DROP)),
        ("all at the border", (DROP,) * 4),
        ("none loses anything", (0.0,) * 4),
    ):
        together = np.ones(RUNS, dtype=bool)
        for n, drop in zip(sizes, drops, strict=True):
            chances = [(disagreement + drop) / 2, (disagreement - drop) / 2]
            drawn = generator.multinomial(n, [*chances, 1 - disagreement], RUNS)
            together &= passes(drawn[:, 0], drawn[:, 1], n)
        rows.append({"case": name, "sizes": sizes, "disagreement": disagreement, "certified": float(together.mean())})
    return rows


def stop(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Betting that looks after each example, beside the exact test of all."""
    rows, n = [], 4000
    for disagreement, drop, epsilon in ((0.02, 0.01, 0.01), (0.02, 0.0, 0.01), (0.05, 0.02, 0.02), (0.05, 0.0, 0.02)):
        _, gains = log_gains(epsilon)
        gains = gains[[1, 0, 2]]  # of no difference, a regression, an improvement
        limits = np.cumsum([1 - disagreement, (disagreement + drop) / 2])
        wealth, ended = np.ones((RUNS, NUM_BETS)), np.full(RUNS, n)
        certified = np.zeros(RUNS, dtype=bool)
        tallies = np.zeros((RUNS, 3), dtype=np.int64)
        for step in range(1, n + 1):
            drawn = np.searchsorted(limits, generator.random(RUNS), side="right")
            tallies[np.arange(RUNS), drawn] += 1
            wealth *= gains[drawn]
            now = ~certified & (wealth.mean(axis=1) >= 1 / ALPHA)
            ended[now], certified = step, certified | now
        rows.append(
            {
                "n": n,
                "disagreement": disagreement,
                "epsilon": epsilon,
                "true_drop": drop,
                "certified": float(certified.mean()),
                "certified_by_the_exact_test_of_all": float(passes(tallies[:, 1], tallies[:, 2], n, epsilon).mean()),
                "median_examples_used": float(np.median(ended)),
            }
        )
    return rows


def monitor(generator: np.random.Generator) -> list[dict[str, Any]]:
    """False alarms, and the delay of true ones."""
    rows = []
    for n, rate in ((2000, 0.03), (500, 0.01)):
        first = _alarms(n, rate, (rate,) * 2, RUNS, HORIZON, generator)
        rows.append({"n": n, "rate": rate, "steps": HORIZON, "false_alarms": float((first <= HORIZON).mean())})
    for n, before in ((2000, 0), (5000, 0), (20_000, 0), (5000, 5000)):
        first = _alarms(n, 0.03, (0.03, 0.05), DELAYS, before + 4 * HORIZON, generator, before)
        seen = first[first > before] - before
        rows.append(
            {
                "n": n,
                "rate": 0.03,
                "rises_to": 0.05,
                "rises_after": before,
                "seen_within_40000": float((seen <= 4 * HORIZON).mean()),
                "median_delay": float(np.median(seen)),
                "delay_90": float(np.quantile(seen, 0.9)),
            }
        )
    return rows


def _alarms(  # noqa: PLR0913, PLR0917 - a setting
    n: int,
    rate: float,
    live: tuple[float, float],
    streams: int,
    steps: int,
    generator: np.random.Generator,
    before: int = 0,
) -> np.ndarray:
    """Returns the number of the input at which each stream raises its alarm; steps + 1 where none is."""
    alarms, first = Alarms(generator.binomial(n, rate, streams).tolist(), n, ALPHA), np.full(streams, steps + 1)
    for step in range(1, steps + 1):
        alarms.place(generator.random(streams) < live[step > before])
        now = alarms.raised
        first[now & (first > steps)] = step
        if step % 1000 == 0 and now.all():
            break
    return first


def hoeffding_bentkus(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Its p-value, made for risks in [0, 1], of paired differences at the border."""
    rows = []
    for n, drop, disagreement in product((1000, 2000), (0.025, 0.05), (0.10, 0.20)):
        chances = [(disagreement + drop) / 2, (disagreement - drop) / 2, 1 - disagreement]
        drawn = generator.multinomial(n, chances, RUNS)
        risk = np.clip((drawn[:, 0] - drawn[:, 1]) / n, 1e-12, None)
        below = np.minimum(risk, drop)
        divergence = below * np.log(below / drop) + (1 - below) * np.log((1 - below) / (1 - drop))
        bentkus = np.e * bdtr(np.ceil(n * risk), n, drop)
        p = np.minimum(np.exp(-n * divergence), bentkus)
        shares = {f"wrong_at_{level}": float((p <= level).mean()) for level in (0.05, 0.1)}
        rows.append({"n": n, "drop": drop, "disagreement": disagreement, **shares})
    return rows


PARTS = {
    "labels": labels,
    "clusters": clusters,
    "promises": promises,
    "stop": stop,
    "monitor": monitor,
    "hoeffding_bentkus": hoeffding_bentkus,
}


def main() -> None:
    """Simulates every part and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few runs, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.smoke:
        globals().update(SMOKE)
    started, results = time.process_time(), {}
    for number, (name, simulate) in enumerate(PARTS.items()):
        results[name] = simulate(np.random.default_rng([SEED, number]))
        for row in results[name]:
            print(f"{name}: {row}", flush=True)
        print(f"{name}: {time.process_time() - started:.0f} s", flush=True)
    if not options.smoke:
        content = environment()
        content["versions"]["scipy"] = version("scipy")
        content |= {"seed": SEED, "alpha": ALPHA, "runs": RUNS, "cpu_seconds": time.process_time() - started}
        write_json(RESULTS / "certificate_promises.json", {**content, "results": results})


if __name__ == "__main__":
    main()
