"""Rehearses, at the first optimizer step, what follows the last one: an error there must not cost the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import trainer_compat
from hf_headprune.callback.evaluation import same_randomness
from hf_headprune.callback.gathering import is_split, whole_copy
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.registry import freed_copy
from hf_headprune.masking import evaluating, plain_copy
from hf_headprune.pipeline.holdout import Holdout
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.choice import no_gradient
from hf_headprune.refit.moments import without_gradient
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.shrink.trained_weights import TrainedWeights

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.callback.certification import Splits
    from hf_headprune.callback.settings import Settings


def rehearse(trainer: Trainer, settings: Settings, splits: Splits) -> None:
    """Does at small scale, and on a copy, what will be done after training: copy, cut, score, and the loss of a batch.

    Args:
        trainer: Has made a step, so that the model holds whatever a forward pass leaves in it.
        settings: Of the run, resolved.
        splits: Examples of the search and of the certificate.

    Raises:
        TrainingStateError: Something fails that would fail after training; the message holds what.
    """
    model: Any = model_of(trainer)
    with same_randomness(trainer):
        try:
            twin = whole_copy(model) if is_split(model) else freed_copy(model)
            if settings.follows or settings.prunes_by_costs or settings.recovers:
                _try_gradients(trainer)
            if isinstance(splits.holdout, Holdout):
                splits.holdout.rehearse(twin)
            dense = plain_copy(twin) if settings.recovers else None
            prune_model_(twin, plan := _half(twin))
            if dense is not None:
                TrainedWeights(dense, twin, plan)
            if isinstance(splits.holdout, Holdout):
                splits.holdout.rehearse(twin)
        except (torch.cuda.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise TrainingStateError(
                "HeadPruneCallback: what follows training was tried on a copy after the first step, and failed: "
                f"{type(error).__name__}: {str(error).rstrip('.')}. After the last step it would have cost the "
                "training."
            ) from error


def _half(model: Any) -> PruningPlan:
    """Returns a plan that keeps half of every site."""
    full = PruningPlan.full(anatomy_of(model))
    groups = {site: full.groups(site) for site in full.num_heads}
    return full.replace(
        kept_heads={site: sum(found[: (len(found) + 1) // 2], ()) for site, found in groups.items()},
        kept_ffn={site: range((count + 1) // 2) for site, count in full.num_ffn.items()},
    )


def _try_gradients(trainer: Trainer) -> None:
    """Takes the gradients that removal costs will be made of, of one batch."""
    batch = next(trainer_compat.scoring_batches(trainer, trainer.state.train_batch_size or 1, trainer.args.seed), None)
    if batch is None:
        return
    with evaluating(trainer.model):
        model = model_of(trainer)
        missing = without_gradient(model, anatomy_of(model).sites, lambda: trainer_compat.summed_loss(trainer, batch))
    if missing:
        raise no_gradient(missing[0])
