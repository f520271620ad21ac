"""Problems of sets for tests of searches: small enough for brute force, or shaped like a model's margins."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np

from hf_headprune.search.problem import Measurement, SearchProblem
from tests.support.searches import over_heads

PROOF = over_heads(max_evaluations=None, max_drop=0.1, constraint_slack=0.1)


def all_sets(num_units):
    units = range(num_units)
    return [frozenset(c) for size in range(num_units + 1) for c in itertools.combinations(units, size)]


def exact_gain(gains, removed):
    return sum((Fraction(gains[unit]) for unit in removed), Fraction(0))


def brute_force(problem, max_drop):
    threshold = problem.measure(problem.start).metric - max_drop - 1e-9
    feasible = [s for s in all_sets(problem.num_units) if problem.measure(s).metric >= threshold]
    return max(exact_gain(problem.gains, s) for s in feasible)


def table_problem(seed, num_units, *, heredity, gains=None, start=frozenset(), with_order=False):
    """A random set function over 20 examples, given by a table; hereditary where every unit's damage is monotone."""
    rng = np.random.default_rng(seed)
    if heredity:
        harm = {s: max((rng.integers(0, 2) for _ in range(len(s))), default=0) for s in all_sets(num_units)}
        right = {}
        for s in all_sets(num_units):  # from small to large: never better than any subset
            below = min((right[s - {unit}] for unit in s), default=20)
            right[s] = max(0, below - int(harm[s]))
    else:
        right = {s: int(rng.integers(10, 21)) for s in all_sets(num_units)}
    order = tuple(rng.permutation(num_units).tolist()) if with_order else None
    gains = gains or (1.0,) * num_units
    return SearchProblem(gains, lambda s: Measurement(right[s] / 20), start, order, fingerprint=str(seed))


def margin_problem(seed, num_units, num_examples=40):
    """Examples with margins that units change, with interactions; more like a model than a table."""
    rng = np.random.default_rng(seed)
    base, effect = rng.normal(1.5, 1.0, num_examples), rng.normal(-0.1, 0.5, (num_examples, num_units))
    pairs = rng.normal(0, 0.2, (num_examples, num_units, num_units))

    def measure(removed):
        x = np.isin(np.arange(num_units), list(removed)).astype(float)
        margins = base + effect @ x + np.einsum("nij,i,j->n", pairs, x, x)
        return Measurement(float((margins > 0).mean()), margins)

    return SearchProblem((1.0,) * num_units, measure, fingerprint=f"margins {seed}")


class Counting:
    """A measure that counts its calls and can be killed at one of them."""

    def __init__(self, measure, kill_at=None):
        self.measure, self.kill_at, self.calls = measure, kill_at, []

    def __call__(self, removed):
        if len(self.calls) == self.kill_at:
            raise KeyboardInterrupt
        self.calls.append(removed)
        return self.measure(removed)


def with_probe(problem, share=0.25):
    """The same problem, answered one example after the other, the most doubtful first."""

    def probe(removed, question):
        exact = problem.measure(removed)
        margins, seen = exact.margins.astype(np.float32), np.zeros(exact.margins.size, dtype=bool)
        for place in np.argsort(question.expected, kind="stable"):
            seen[place] = True
            shown = np.where(seen, margins, np.nan)
            bound = 1 - float((margins[seen] <= 0).sum()) / margins.size
            if question.floor is not None and bound < question.floor - 1e-9:
                return Measurement(bound, shown, kind="bound")
            if question.floor is not None and question.tentative and share * margins.size <= seen.sum() < margins.size:
                estimate = float((np.where(seen, margins, question.expected) > 0).mean())
                if estimate >= question.floor:
                    return Measurement(estimate, shown, kind="estimate")
        return exact

    return dataclasses.replace(problem, probe=probe)


class Killed(Counting):
    """Kills the search at any call, of `measure` or of `probe`."""

    def of(self, problem):
        def probe(removed, question):
            self.measure = lambda asked: problem.probe(asked, question)
            return self(removed)

        def measure(removed):
            self.measure = problem.measure
            return self(removed)

        return dataclasses.replace(problem, measure=measure, probe=probe)
