"""How often certificates are wrong, in simulated full runs whose true drops are known, and how often they are given.

One run: a search goes down a path of plans, at each step choosing of several candidates the one that looks best on the
search split, until nothing looks good enough; then the plans of the path are certified on fresh examples. Candidates
flip answers at random, so that the true drop of each plan is known. Two kinds of runs: on a "path", candidates differ
in how much they break, and errors of the search add up; at the "edge", every candidate loses exactly the drop that is
to be excluded, so that each certificate is wrong: the worst case. Compared: fixed-sequence testing with the exact test,
and what is done without it.

Run: python -m benchmarks.certificate_validity [--smoke]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune.guarantee.paired import (
    critical_value,
    level_of,
    rejection_limits,
    score_statistic,
    tail_probabilities,
)

EXAMPLES = (300, 872, 1821, 5000, 10_000)  # of the search split, and as many of the certification split
DISAGREEMENTS = (0.01, 0.02, 0.05, 0.10)  # answers that the last plan of a path changes
RUNS = {"path": 2000, "edge": 20_000}
STEPS = {"path": 8, "edge": 1}
CANDIDATES = 8
ACCURACY = 0.88  # of the dense model
BROKEN_SHARE = (0.6, 1.0)  # of the answers that a candidate flips, drawn for each
ALPHA = 0.05
SEED = 0
RIGHT, BROKEN, FIXED, WRONG = range(4)  # both right; only the dense model; only the pruned one; both wrong


@dataclass(frozen=True)
class Setting:
    """One cell of the table."""

    kind: str
    n: int
    disagreement: float
    epsilon: float


def rates(setting: Setting, generator: np.random.Generator, runs: int) -> np.ndarray:
    """Draws for each candidate the chances that a right answer breaks and that a wrong one is fixed, `(2, runs, K)`."""
    shape = (runs, CANDIDATES)
    if setting.kind == "edge":
        broken = np.full(shape, (setting.disagreement + setting.epsilon) / 2)
        fixed = np.full(shape, (setting.disagreement - setting.epsilon) / 2)
    else:
        flipped = setting.disagreement / STEPS[setting.kind]
        broken = flipped * generator.uniform(*BROKEN_SHARE, shape)
        fixed = flipped - broken
    return np.stack([broken / ACCURACY, fixed / (1 - ACCURACY)])


def moved(states: np.ndarray, flips: list[np.ndarray]) -> np.ndarray:
    """Moves flipped answers between the states `(..., 4)`; flips are those of each state."""
    right, broken, fixed, wrong = flips
    change = np.stack([broken - right, right - broken, wrong - fixed, fixed - wrong], axis=-1)
    return states + change


def drawn(states: np.ndarray, chances: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Flips the answers of each state `(..., 4)` at random; chances are of breaking and of fixing, `(2, ...)`."""
    by_state = (chances[0], chances[1], chances[0], chances[1])  # the pruned model is right in states 0 and 2
    return moved(states, [generator.binomial(states[..., i], by_state[i]) for i in range(4)])


def expected(states: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Does the same to the shares of all data."""
    by_state = (chances[0], chances[1], chances[0], chances[1])
    return moved(states, [states[..., i] * by_state[i] for i in range(4)])


def start(setting: Setting, generator: np.random.Generator, runs: int) -> np.ndarray:
    """Draws how many answers of the dense model are right, `(runs, 4)`."""
    right = generator.binomial(setting.n, ACCURACY, runs)
    states = np.zeros((runs, 4), dtype=np.int64)
    states[:, RIGHT], states[:, WRONG] = right, setting.n - right
    return states


def drop(states: np.ndarray) -> np.ndarray:
    """Broken less fixed answers."""
    return states[..., BROKEN] - states[..., FIXED]


def simulated(setting: Setting, generator: np.random.Generator) -> dict[str, Any]:
    """Runs one setting; returns rates over its runs."""
    runs = RUNS[setting.kind]
    rows = np.arange(runs)
    search, certify = start(setting, generator, runs), start(setting, generator, runs)
    truth = np.tile(np.array([ACCURACY, 0.0, 0.0, 1 - ACCURACY]), (runs, 1))
    critical = critical_value(setting.n, setting.epsilon, level_of(ALPHA))
    searching = np.ones(runs, dtype=bool)  # the search still goes on
    passing = np.ones(runs, dtype=bool)  # and no plan so far failed the test
    wrong = np.zeros(runs, dtype=bool)
    certified, sound, depth = (np.zeros(runs, dtype=np.int64) for _ in range(3))
    final_drop, final_seen = np.zeros(runs), np.zeros(runs)
    for _ in range(STEPS[setting.kind]):
        chances = rates(setting, generator, runs)
        candidates = drawn(np.repeat(search[:, None], CANDIDATES, axis=1), chances, generator)  # (runs, K, 4)
        best = drop(candidates).argmin(axis=1)
        chosen = chances[:, rows, best]
        search, truth = candidates[rows, best], expected(truth, chosen)
        certify = drawn(certify, chosen, generator)
        # At the edge the one plan is always tested: a search that gives up would hide the error.
        searching &= (drop(search) <= setting.epsilon * setting.n) | (setting.kind == "edge")
        passing &= searching & (
            score_statistic(certify[:, BROKEN], certify[:, FIXED], setting.n, setting.epsilon) <= critical
        )
        is_wrong = drop(truth) >= setting.epsilon - 1e-12
        wrong |= passing & is_wrong
        certified += passing
        sound += searching & ~is_wrong
        depth += searching
        final_drop = np.where(searching, drop(truth), final_drop)
        final_seen = np.where(searching, drop(certify) / setting.n, final_seen)
    ends_wrong = (depth > 0) & (final_drop >= setting.epsilon - 1e-12)
    return {
        "runs": runs,
        "wrong_certificates": float(wrong.mean()),
        "something_certified": float((certified > 0).mean()),
        "certified_depth": float(certified.mean()),
        "sound_depth": float(sound.mean()),
        "searched_depth": float(depth.mean()),
        "wrong_on_search_split_only": float(ends_wrong.mean()),
        "wrong_by_fresh_estimate": float((ends_wrong & (final_seen <= setting.epsilon)).mean()),
    }


def exact_error(setting: Setting) -> float:
    """Returns the probability of a certificate at the edge, from the trinomial itself."""
    critical = critical_value(setting.n, setting.epsilon, level_of(ALPHA))
    limits = rejection_limits(critical, setting.n, setting.epsilon)
    return float(tail_probabilities(limits, setting.n, np.array([setting.disagreement]), setting.epsilon)[0])


def settings(*, smoke: bool) -> list[Setting]:
    """Returns every cell of the table."""
    # One in a hundred answers changed can't lose one in a hundred and fix any: a smaller drop is excluded there.
    epsilons = {disagreement: 0.005 if disagreement <= 0.01 else 0.01 for disagreement in DISAGREEMENTS}  # noqa: PLR2004
    sizes, changes = (EXAMPLES[:1], DISAGREEMENTS[2:3]) if smoke else (EXAMPLES, DISAGREEMENTS)
    return [Setting(kind, n, q, epsilons[q]) for kind in STEPS for n in sizes for q in changes]


def main() -> None:
    """Simulates every setting and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two settings, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    results = []
    for number, setting in enumerate(settings(smoke=options.smoke)):
        result = {**asdict(setting), **simulated(setting, np.random.default_rng([SEED, number]))}
        result["exact_error"] = exact_error(setting) if setting.kind == "edge" else None
        results.append(result)
        print(
            f"{setting.kind} n={setting.n} q={setting.disagreement} epsilon={setting.epsilon}: wrong "
            f"{result['wrong_certificates']:.4f}, certified {result['something_certified']:.3f}, without a test "
            f"{result['wrong_on_search_split_only']:.3f}",
            flush=True,
        )
    if not options.smoke:
        content = environment()
        content["versions"]["scipy"] = version("scipy")
        content |= {"seed": SEED, "alpha": ALPHA, "cpu_seconds": time.process_time() - started, "results": results}
        write_json(RESULTS / "certificate_validity.json", content)


if __name__ == "__main__":
    main()
