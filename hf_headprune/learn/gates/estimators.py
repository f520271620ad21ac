"""Relaxations of "keep exactly K of N heads": scores in, gates out, gradients to the scores.

All of them compute in float64 whatever the model's precision is: in bfloat16 the sum of the gates is off by up to 4.5 %
and gradients of the paper's estimator become NaN.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from hf_headprune.learn.top_k import top_k_mask

Estimator = Literal["sigmoid", "dsp", "ste", "hard_concrete"]

HARD_CONCRETE_BETA = 2 / 3
HARD_CONCRETE_STRETCH = (-0.1, 1.1)
_GRID = 64
_ROUNDS = 8


def gumbel_noise(size: int, generator: torch.Generator) -> torch.Tensor:
    """Draws standard Gumbel noise in float64, shape `(size,)`."""
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    exponential = -torch.log(uniform.clamp_min(tiny))
    return -torch.log(exponential.clamp_min(tiny))


def no_noise(size: int, generator: torch.Generator) -> torch.Tensor:
    """Returns zeros in float64, shape `(size,)`."""
    del generator
    return torch.zeros(size, dtype=torch.float64)


def logistic_noise(size: int, generator: torch.Generator) -> torch.Tensor:
    """Draws standard logistic noise in float64, shape `(size,)`."""
    uniform = torch.rand(size, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return torch.log(uniform) - torch.log1p(-uniform)


def sigmoid_gates(scores: torch.Tensor, noise: torch.Tensor, *, kept: int, temperature: float) -> torch.Tensor:
    """Threshold sigmoid: `g = sigmoid((w + noise - nu) / temperature)` with nu such that the gates sum to `kept`.

    The backward pass is that of the implicit function: with `s = g (1 - g) / temperature` and incoming gradient v it
    is `s (v - <s, v> / <s, 1>)`, bounded by `|v| / (4 temperature)`.

    Args:
        scores: Importance w, shape `(n,)`.
        noise: Shape `(n,)`; zeros for the noise-free gates.
        kept: K, between 0 and n.
        temperature: Above zero.

    Returns:
        Gates in [0, 1] that sum to K, shape `(n,)`, float64.
    """
    return _ThresholdSigmoid.apply(scores.double(), noise.double(), kept, temperature)


class _ThresholdSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, noise: torch.Tensor, kept: int, temperature: float) -> torch.Tensor:
        if kept in (0, scores.numel()):
            gates = torch.full_like(scores, float(kept > 0))
        else:
            logits = (scores + noise) / temperature
            gates = torch.sigmoid(logits - _threshold(logits, kept))
        ctx.save_for_backward(gates)
        ctx.temperature = temperature
        return gates

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gates,) = ctx.saved_tensors
        (grad,) = grad_outputs
        slope = gates * (1.0 - gates) / ctx.temperature
        mean = (slope * grad).sum() / slope.sum().clamp_min(torch.finfo(slope.dtype).tiny)
        return slope * (grad - mean), None, None, None


def _threshold(logits: torch.Tensor, kept: int) -> torch.Tensor:
    """Solves sum(sigmoid(logits - nu)) = kept by bisection with many points in parallel: few kernels, no host sync."""
    ordered = torch.sort(logits, descending=True).values
    # Beyond the K-th logit by log(n) every gate on that side is close enough to 0 or 1 for the sum to change sides.
    margin = math.log(logits.numel()) + 2.0
    low, high = ordered[kept] - margin, ordered[kept - 1] + margin
    steps = torch.linspace(0.0, 1.0, _GRID + 1, dtype=logits.dtype, device=logits.device)
    for _ in range(_ROUNDS):
        points = low + (high - low) * steps  # (grid + 1,)
        sums = torch.sigmoid(logits[None, :] - points[:, None]).sum(1)  # falls with the points
        index = (sums >= kept).sum().clamp(1, _GRID)
        low, high = points[index - 1], points[index]
    return (low + high) / 2


def dsp_gates(scores: torch.Tensor, noise: torch.Tensor, *, kept: int, temperature: float) -> torch.Tensor:
    """The paper's gates: the sum of K successive softmaxes, each without what the earlier ones took.

    Args:
        scores: Importance w, shape `(n,)`.
        noise: Gumbel noise, shape `(n,)`.
        kept: K, between 0 and n.
        temperature: Above zero. Below about 0.05 the true gradient explodes.

    Returns:
        Gates that sum to K, shape `(n,)`, float64. Single gates may exceed 1.

    Source: Li et al. 2021 (arXiv 2108.04657), equations 8-11; float64 inside, as in the authors' code.
    """
    logits = scores.double() + noise.double()
    gates = 0.0 * logits  # with a graph, also where no head stays
    tiny = torch.finfo(torch.float64).tiny
    for _ in range(kept):
        share = torch.softmax(logits / temperature, dim=0)
        gates = gates + share
        logits = logits + torch.log((1.0 - share).clamp_min(tiny))
    return gates


def ste_gates(scores: torch.Tensor, noise: torch.Tensor, *, kept: int, temperature: float) -> torch.Tensor:
    """Hard top-K without noise; the gradient passes straight through.

    Source: the straight-through variant of Li et al. 2021 (arXiv 2108.04657), made exact for ties and K = n.
    """
    del noise, temperature
    exact = scores.double()
    return top_k_mask(exact, kept) + exact - exact.detach()


def hard_concrete_gates(scores: torch.Tensor, noise: torch.Tensor, *, kept: int, temperature: float) -> torch.Tensor:
    """Hard concrete gates: independent, stretched and clamped; the number of open ones is steered by a penalty.

    Args:
        scores: Location a, shape `(n,)`.
        noise: Logistic noise, shape `(n,)`.
        kept: Not used by the gates, see `hard_concrete_penalty_grad`.
        temperature: Not used; the distribution has its own, 2/3.

    Source: Louizos et al. 2018 (arXiv 1712.01312), equations 10-12; for heads Voita et al. 2019 (arXiv 1905.09418).
    """
    del kept, temperature
    low, high = HARD_CONCRETE_STRETCH
    soft = torch.sigmoid((scores.double() + noise.double()) / HARD_CONCRETE_BETA)
    return (soft * (high - low) + low).clamp(0.0, 1.0)


def hard_concrete_penalty_grad(scores: torch.Tensor, *, kept: int, strength: float) -> torch.Tensor:
    """Gradient of `strength / (2 n) * max(0, E - K)^2`, E the expected number of open gates.

    The papers use a fixed strength times E, which reaches no number of heads in particular; the hinge stops at K.

    Args:
        scores: Location a, shape `(n,)`.
        kept: K.
        strength: Weight of the penalty.

    Returns:
        Gradient of shape `(n,)` in the dtype of the scores.
    """
    low, high = HARD_CONCRETE_STRETCH
    open_probability = torch.sigmoid(scores.detach() - HARD_CONCRETE_BETA * math.log(-low / high))
    excess = (open_probability.sum() - kept).clamp_min(0.0)
    return strength * excess / scores.numel() * open_probability * (1.0 - open_probability)


GATES = {"sigmoid": sigmoid_gates, "dsp": dsp_gates, "ste": ste_gates, "hard_concrete": hard_concrete_gates}
NOISE = {"sigmoid": gumbel_noise, "dsp": gumbel_noise, "ste": no_noise, "hard_concrete": logistic_noise}
