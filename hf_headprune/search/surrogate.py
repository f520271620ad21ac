"""Predicts what a set would measure from sets already measured, to decide what to evaluate first.

A prediction never excludes a set: it only orders those that compete for the next evaluations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.search.problem import units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.search.bounds import ExactGains
    from hf_headprune.search.ledger import Evaluated

LEAST_SHARE = 1e-6  # of the largest share
MANY_UNITS = 128  # a path of more takes several units a step, so that its time grows with their number and no faster
TIE_BREAK = 1e-3  # weight of the mean squashed margin: it decides between sets that get equally many examples right


class Surrogate:
    """The additive-margin model: `margin_i(S + A) = margin_i(S) + sum of effect_i(h) for h in A`.

    `effect(h)`, of shape `(num_examples,)`, is the change of the margins that the removal of h made where it was
    last seen; it starts from single removals and is refreshed by every set that differs from a known one in one
    unit. Without margins the metric itself plays the part of the one margin. Units whose effect has not been seen
    are ranked by the order given, or in a random one, and take turns with the others.
    """

    def __init__(self, gains: ExactGains, order: Sequence[int] | None, rng: np.random.Generator) -> None:
        """Starts without effects.

        Args:
            gains: Gain of each unit.
            order: Units in the order in which they are removed first; others follow. None for a random order.
            rng: Source of that order.
        """
        num_units = len(gains.weights)
        self._gains = gains
        self._prior = np.full(num_units, float(num_units))
        places = list(rng.permutation(num_units) if order is None else order)  # none where the start keeps nothing
        self._prior[places] = np.arange(len(places))
        self._effects: dict[int, np.ndarray] = {}

    def learn(self, parent: Evaluated, child: Evaluated) -> None:
        """Takes the effect of a unit from two sets that differ in it alone. Others, and forgotten ones, teach none."""
        changed = units_of(parent.mask ^ child.mask)
        if len(changed) == 1 and child.evidence.size == parent.evidence.size:
            effect = child.evidence - parent.evidence  # examples not seen keep the effect that was predicted
            self._effects[changed[0]] = effect if child.mask > parent.mask else -effect

    def expected(self, base: Evaluated, mask: int) -> np.ndarray:
        """Predicts the evidence of a set from that of a measured one; unseen effects count as none."""
        changed = units_of(base.mask ^ mask)
        known = [self._effects[unit] * (1 if mask >> unit & 1 else -1) for unit in changed if unit in self._effects]
        return (base.evidence + sum(known)).astype(np.float32)

    def ranked(self, base: Evaluated, targets: Sequence[int]) -> list[int]:
        """Orders sets that gain more than a measured one, the most promising first.

        The order is by predicted loss per gain. Sets with an unseen unit follow in the order of the prior and take
        turns with those.
        """
        seen = [mask for mask in targets if all(unit in self._effects for unit in units_of(mask ^ base.mask))]
        unseen = sorted(set(targets) - set(seen), key=lambda mask: (self._prior_of(base.mask, mask), mask))
        quality = self._predicted(base, seen) - self._quality(base.evidence[None], base)[0]
        keys = {}
        for mask, change in zip(seen, quality.tolist(), strict=True):
            gained = (self._gains.share(mask) - self._gains.share(base.mask)) / max(self._gains.shares)
            gained = max(gained, LEAST_SHARE)  # a swap of joint savings may have a smaller share
            keys[mask] = (-change / gained if change < 0 else -change * gained, mask)
        return _alternate(sorted(seen, key=keys.__getitem__), unseen)

    def path(self, base: Evaluated) -> list[int]:
        """Returns growing sets from a measured one up to the set of all units, greedily by prediction.

        Units whose effect has not been seen come last, in the order of the prior.
        """
        masks, mask, evidence = [], base.mask, base.evidence.astype(np.float64)
        left = [unit for unit in units_of(self._gains.everything & ~mask) if unit in self._effects]
        while left:
            candidates = evidence + np.stack([self._effects[unit] for unit in left])  # (num_left, num_examples)
            quality = self._quality(candidates, base) - self._quality(evidence[None], base)[0]
            weights = np.array([self._gains.shares[unit] / max(self._gains.shares) for unit in left])
            value = np.where(quality < 0, quality / weights, quality * weights)
            for unit in [left[place] for place in np.argsort(-value, kind="stable")[: 1 + len(left) // MANY_UNITS]]:
                evidence = evidence + self._effects[unit]
                mask |= 1 << unit
                left.remove(unit)
                masks.append(mask)
        for unit in sorted(units_of(self._gains.everything & ~mask), key=lambda unit: (self._prior[unit], unit)):
            mask |= 1 << unit
            masks.append(mask)
        return masks

    def prior_order(self, mask: int) -> list[int]:
        """Returns the units outside a set in the order of the prior."""
        return sorted(units_of(self._gains.everything & ~mask), key=lambda unit: (self._prior[unit], unit))

    def _predicted(self, base: Evaluated, targets: Sequence[int]) -> np.ndarray:
        """Predicts the quality of sets whose units have all been seen, shape `(num_targets,)`."""
        if not targets:
            return np.zeros(0)
        units = sorted({unit for mask in targets for unit in units_of(mask ^ base.mask)})
        if not units:
            return self._quality(np.repeat(base.evidence[None], len(targets), axis=0), base)
        signs = np.zeros((len(targets), len(units)), dtype=np.float32)
        for row, mask in enumerate(targets):
            for column, unit in enumerate(units):
                signs[row, column] = (mask >> unit & 1) - (base.mask >> unit & 1)
        effects = np.stack([self._effects[unit] for unit in units])  # (num_units, num_examples)
        return self._quality(base.evidence + signs @ effects, base)

    def _prior_of(self, base: int, mask: int) -> float:
        removed, restored = units_of(mask & ~base), units_of(base & ~mask)
        return sum(self._prior[unit] for unit in removed) - sum(self._prior[unit] for unit in restored)

    @staticmethod
    def _quality(evidence: np.ndarray, base: Evaluated) -> np.ndarray:
        """Turns margins `(num_sets, num_examples)` into the share of right examples, `(num_sets,)`."""
        if base.measurement.margins is None:
            return evidence[:, 0]
        return (evidence > 0).mean(axis=1) + TIE_BREAK * np.tanh(evidence).mean(axis=1)


def _alternate(first: list[int], second: list[int]) -> list[int]:
    both = min(len(first), len(second))
    mixed = [mask for pair in zip(first, second, strict=False) for mask in pair]
    return mixed + first[both:] + second[both:]
