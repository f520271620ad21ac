"""What removal costs come from where examples have no labels: what the model itself answers.

How far the answers move when a unit leaves has no gradient where nothing was removed. Its curvature, the Fisher
information of the model's own answers, is the mean of the squared gradients of random projections of its logits.

Source: the true Fisher matrix, in place of that of labels (Martens 2020, arXiv 1412.1193, section 5). Answers need not
be drawn for it: signs, which are weighted by a root of the covariance of an answer, vary less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.errors import UnsupportedModelError
from hf_headprune.tasks.embeddings import MASK, embedded, signs_like, texts_of
from hf_headprune.tasks.scorer import finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

ENDS = ("start_logits", "end_logits")  # of spans
NEVER = -1e9  # the logit of padding, which is no answer
OF_TOKENS = 3  # dimensions of logits, (batch, length, classes)


def projected(
    model: nn.Module, outputs: Any, batch: Mapping[str, torch.Tensor], generator: torch.Generator, *, where: str
) -> torch.Tensor:
    """Returns a random projection of what a model answers to each example, summed over the batch.

    The mean of its squared gradients is the curvature of the distance to these answers: the divergence of classes, of
    tokens, of several labels or of the ends of spans; the squared error of numbers.

    Args:
        model: With the head of a task.
        outputs: Of the model.
        batch: What it was given, without labels.
        generator: On the CPU; draws signs, example by example.
        where: Name of the public function, for errors.

    Raises:
        UnsupportedModelError: There are no logits.
    """
    found, ends = getattr(outputs, "logits", None), [getattr(outputs, name, None) for name in ENDS]
    are_ends = all(values is not None for values in ends)  # then one of the tokens is the answer
    if are_ends:
        found = torch.stack(ends, dim=-1)  # type: ignore[arg-type]
    if found is None:
        raise UnsupportedModelError(
            f"{where}: a {type(model).__name__} returns neither a loss nor logits for {sorted(batch)}. Pass a model "
            "with the head of its task, or labelled examples."
        )
    logits, real = finite(found), batch.get(MASK)
    real = real.bool() if logits.ndim == OF_TOKENS and real is not None and real.shape == logits.shape[:2] else None
    if are_ends and real is not None:
        logits = logits.masked_fill(~real[..., None], NEVER)
    return (logits * _direction(model, logits.detach(), real, 1 if are_ends else -1, generator)).sum()


def projected_embeddings(
    model: nn.Module, batch: Mapping[str, torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    """Returns the same of a model without a head: the embeddings of texts, each projected on a random direction.

    Args:
        model: Without a head.
        batch: Texts, or pairs of them.
        generator: See `projected`.
    """
    inputs = texts_of(batch)
    embeddings = embedded(model(**inputs), inputs)
    return (embeddings * signs_like(embeddings, generator)).sum()


def _direction(
    model: Any, logits: torch.Tensor, real: torch.Tensor | None, classes: int, generator: torch.Generator
) -> torch.Tensor:
    """Returns random signs times a root of the covariance of what a model would draw from these logits.

    Args:
        model: Whose configuration names the kind of its answers.
        logits: Shape `(batch, ...)`.
        real: Whether a token is no padding, `(batch, length)`, where logits are of tokens.
        classes: Dimension of logits that holds what an answer is one of.
        generator: Draws the signs.
    """
    signs = _signs(logits, real, generator)
    if getattr(model.config, "problem_type", None) == "multi_label_classification":
        share = logits.sigmoid()
        return signs * (share * (1 - share)).sqrt()
    if logits.shape[classes] == 1:  # a number
        return signs
    share = logits.softmax(classes)
    rooted = share.sqrt() * signs
    return rooted - share * rooted.sum(classes, keepdim=True)


def _signs(logits: torch.Tensor, real: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    """Returns random signs of the shape of logits; zero where these are of padding, for which none are drawn."""
    if real is None:
        return signs_like(logits, generator)
    signs = torch.zeros_like(logits)
    for row, mask in enumerate(real):
        signs[row, mask] = signs_like(logits[row, mask][None], generator)[0]
    return signs
