"""Settings of a method and of its tuning in one call, by name."""

from __future__ import annotations

from typing import Any

from hf_headprune._checks import with_tuning
from hf_headprune.learn.gates.settings import GateTuning, SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement, MovementTuning
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning


def gates(**settings: Any) -> SubsetGates:
    return SubsetGates(**with_tuning(settings, GateTuning))


def movement(**settings: Any) -> BlockMovement:
    return BlockMovement(**with_tuning(settings, MovementTuning))


def second_order(**settings: Any) -> SecondOrder:
    return SecondOrder(**with_tuning(settings, SecondOrderTuning))
