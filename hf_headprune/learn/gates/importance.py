"""Gradient importance of heads: one backward pass per batch scores all heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._gradients import gradients_of
from hf_headprune.errors import TrainingStateError
from hf_headprune.masking import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from hf_headprune.learn.gates.pruner import GatePruner

PROBE_LEVEL = 0.5


def gradient_importance(
    model: nn.Module, gates: GatePruner, batches: Iterable[Any], loss_of: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    """Scores every head by the absolute gradient of the loss with respect to its gate, summed over the batches.

    All gates stand at 0.5 while scoring, which ranks heads better than at 1, where a trained model has little slope
    left. Scores are not normalised per layer: that hurts a choice over the whole model. The model's parameters get no
    gradient, its mode is restored and no global random state is used.

    Args:
        model: With the gates attached.
        gates: Of the model, attached.
        batches: What `loss_of` takes, one after the other.
        loss_of: Returns the loss of a batch; it runs the model in evaluation mode, with gradient.

    Returns:
        Importance of shape `(num_heads,)`, float32.

    Raises:
        TrainingStateError: The loss of a batch does not depend on the gates, or is not finite.

    Source: Michel et al. 2019 (arXiv 1905.10650), equation 2, with absolute values per batch.
    """
    total = torch.zeros(gates.num_heads, device=gates.importance_bias.device)
    try:
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                gates.probe = torch.full_like(total, PROBE_LEVEL, requires_grad=True)
                loss = loss_of(batch)
                (grad,) = gradients_of(loss, [gates.probe], model) if loss.requires_grad else (None,)
                if grad is None or not bool(torch.isfinite(grad).all()):
                    raise TrainingStateError(
                        f"Scoring heads: the loss of a training batch ({loss.item()}) gives "
                        f"{'no' if grad is None else 'a non-finite'} gradient for the gates. Check that the loss comes "
                        "from the model's forward pass and is finite, or use GateTuning(initial_scores='zeros')."
                    )
                total += grad.abs()
    finally:
        gates.probe = None
    return total


def standardised(importance: torch.Tensor) -> torch.Tensor:
    """Maps importances, shape `(num_heads,)`, to scores of mean 0 and deviation 1 on a log scale.

    Heads without any, whose removal changes nothing, come one deviation below the lowest of the others.
    """
    living = importance > 0
    logs = importance[living].log()
    if not len(logs):
        return torch.zeros_like(importance)
    scores = (logs - logs.mean()) / logs.std(correction=0).clamp_min(1e-6)
    return torch.full_like(importance, float(scores.min()) - 1.0).masked_scatter(living, scores)
