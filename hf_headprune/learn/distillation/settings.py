"""Distillation: the settings of learning from a teacher, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from hf_headprune._checks import check, is_above, is_rising, is_whole


@dataclass(frozen=True)
class DistillationTuning:
    """What few runs need to change of `Distillation`.

    Attributes:
        alpha_task: Weight of the task's own loss.
        layer_map: For the hidden states: student's layer -> teacher's layer, numbered from zero. Left out, every layer
            of the student learns from the teacher's layer at the same relative depth. An encoder-decoder uses it for
            both its stacks.

    Raises:
        InvalidSettingError: A value is out of range.
    """

    alpha_task: float = 0.1
    layer_map: Mapping[int, int] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Checks every value on its own."""
        pairs = self.layer_map
        if isinstance(pairs, Mapping):
            object.__setattr__(self, "layer_map", dict(pairs))
        rules = {
            "alpha_task must be a number >= 0": is_rising(0, self.alpha_task),
            "layer_map must map layers >= 0 to layers >= 0 and not be empty, or be None": pairs is None
            or (
                isinstance(pairs, Mapping)
                and len(pairs) > 0
                and all(is_whole(layer, at_least=0) for layer in (*pairs.keys(), *pairs.values()))
            ),
        }
        check(self, rules)


@dataclass(frozen=True)
class Distillation:
    """How a student learns from a teacher: `alpha_task * task + alpha_teacher * logits + alpha_hidden * hidden`.

    A student without a head, such as a `BertModel` or a `SentenceTransformer`, learns from the teacher's embeddings
    alone, by their squared distance at length 1, without labels; pass the teacher and no other setting then.

    Attributes:
        teacher: A trained model of the student's task, with its tokenizer and its labels. It is put into evaluation
            mode and moved to the student's device; it is neither trained nor saved, and does not run in evaluation.
        alpha_teacher: Weight of the divergence between the logits of teacher and student.
        temperature: Divides both logits before their softmax.
        alpha_hidden: Weight of the squared distance between hidden states; 0 switches it off.
        tuning: What few runs need to change, such as the weight of the task's own loss, 0.1.

    Raises:
        InvalidSettingError: A value is out of range.

    Source: logits, weights and temperature as in block movement pruning (Lagunas et al. 2021, arXiv 2109.04838);
    hidden states as in CoFi (Xia et al. 2022, arXiv 2204.00408, equation 4), with a fixed map of layers, without its
    learned projection and only over real positions.
    """

    teacher: nn.Module = field(repr=False)
    alpha_teacher: float = 0.9
    temperature: float = 2.0
    alpha_hidden: float = 0.0
    tuning: DistillationTuning = field(default_factory=DistillationTuning)

    def __post_init__(self) -> None:
        """Checks every value that does not depend on the student."""
        is_tuned = isinstance(self.tuning, DistillationTuning)
        rules = {
            f"teacher must be a model, not of type {type(self.teacher).__name__}": isinstance(self.teacher, nn.Module),
            "alpha_teacher must be a number >= 0": is_rising(0, self.alpha_teacher),
            "alpha_hidden must be a number >= 0": is_rising(0, self.alpha_hidden),
            "alpha_teacher or alpha_hidden must be above 0": is_above(self.alpha_teacher, 0)
            or is_above(self.alpha_hidden, 0),
            "temperature must be a number above 0": is_above(self.temperature, 0),
            "tuning must be DistillationTuning(...)": is_tuned,
            "tuning.layer_map needs alpha_hidden above 0": not is_tuned
            or self.tuning.layer_map is None
            or is_above(self.alpha_hidden, 0),
        }
        check(self, rules)
