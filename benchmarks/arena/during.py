"""Ways that prune while a model trains: ours, and the rivals that need a training.

All start from the fine-tuned dense model and have as many steps as the others have after their cut. Left out are the
deterministic gates of arXiv 2603.08065, whose surrogate we know from its abstract alone, and swaps as those of OSSCAR
(arXiv 2403.12983), which gained nothing over removal one by one when we tried them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.arena import cofi
from hf_headprune import BlockMovement, HeadPruneCallback

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.arena.case import Case
    from benchmarks.arena.training import Training


def ours(case: Case, training: Training) -> None:
    """Second-order costs in the midst of the steps: what a `density` of the callback does."""
    callback = HeadPruneCallback(
        density=case.density, distillation=training.distillation, confidence=None, latency=None
    )
    training.run(case.model, training.steps, callback=callback)


def block_movement(case: Case, training: Training) -> None:
    """Block movement (Lagunas et al. 2021, arXiv 2109.04838): the published `hybrid_filled`, at a density.

    Scores of 32 x 32 blocks of attention and of FFN units learn in the first 80 % of the steps; then the zeros inside
    of what is kept are refilled, and the pruned model trains on. Phases have the published shares of the first run.
    """
    movement = BlockMovement.hybrid_filled(density=case.density)
    callback = HeadPruneCallback(movement=movement, distillation=training.distillation, confidence=None, latency=None)
    training.run(case.model, round(training.steps / (1 + movement.refill_ratio)), callback=callback)


DURING: dict[str, Callable[[Case, Training], None]] = {
    "ours, during": ours,
    "CoFi": cofi.train,
    "block movement": block_movement,
}
