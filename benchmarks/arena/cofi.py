"""CoFi: gates of blocks, heads and FFN units learn with the weights, and the dense model teaches layer by layer.

Source: Xia et al. 2022 (arXiv 2204.00408), with the settings of its small GLUE tasks scaled to the steps at hand: of
120 epochs 4 without gates, 20 in which the target rises, 76 at the target, and 20 for the pruned model. The steps of
gates are longer by as much as there are fewer of them than for RTE. The width of embeddings has no gates, since no way
here prunes it; weights have the arena's learning rate; and where a training has labels alone, they teach in place of
the dense model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks.arena.case import Case
from benchmarks.arena.l0 import Gates, GateSteps
from benchmarks.arena.training import LEARNING_RATE, Training
from hf_headprune import anatomy_of
from hf_headprune.learn.distillation.distiller import LABEL_NAMES, hidden_distance, logits_divergence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EPOCHS = {"open": 4, "rise": 20, "gated": 100, "all": 120}
GATE_LEARNING_RATE, PUBLISHED_STEPS = 0.01, 7_800  # of the gates: 100 epochs of RTE, 32 in a batch
PREDICTIONS, LAYERS = 0.1, 0.9  # weights of what the teacher says and of its hidden states
TEMPERATURE = 2.0
QUARTERS = 4  # of the teacher's depth: the paper's layers 3, 6, 9 and 12 of 12


def train(case: Case, training: Training) -> None:
    """Trains a model with gates, prunes it and trains it on, in place."""
    gated = round(training.steps * EPOCHS["gated"] / EPOCHS["all"])
    gates = Gates(case)
    steps = GateSteps(
        gates,
        GATE_LEARNING_RATE * max(PUBLISHED_STEPS / gated, 1.0),
        open_steps=round(training.steps * EPOCHS["open"] / EPOCHS["all"]),
        rise_steps=round(training.steps * EPOCHS["rise"] / EPOCHS["all"]),
    )
    lesson = None if training.teacher is None else Lesson(training.teacher)
    training.run(case.model, gated, callback=steps, loss=lambda compute: with_gates(compute, steps, lesson))
    gates.cut_()
    has_ffn = [site.units > 0 for site in anatomy_of(case.model).sites if not site.is_attention]
    training.run(case.model, training.steps - gated, loss=lambda compute: taught(compute, lesson, lambda: has_ffn))


class Lesson:
    """What a model learns from its teacher: its answers, and hidden states of the student's layers that come nearest.

    Attributes:
        projection: Of the student's hidden states; it learns, and begins as the identity.
    """

    def __init__(self, teacher: Any) -> None:
        """Begins without having taught."""
        self._teacher = teacher
        depth, width = teacher.config.num_hidden_layers, teacher.config.hidden_size
        self._layers = sorted({max(round(depth * quarter / QUARTERS), 1) for quarter in range(1, QUARTERS + 1)})
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.projection.weight)
        self._optimizer = torch.optim.AdamW(self.projection.parameters(), LEARNING_RATE)

    def loss(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any], has_ffn: Sequence[bool]) -> torch.Tensor:
        """Returns the loss of a batch.

        Args:
            outputs: Of the student, with hidden states.
            inputs: Of the student.
            has_ffn: Of each of its layers, whether its FFN is open: others can't be taught.
        """
        self._optimizer.step()  # by the gradient of the batch before
        self._optimizer.zero_grad()
        given = {name: value for name, value in inputs.items() if name not in LABEL_NAMES}
        with torch.no_grad():
            said = self._teacher(**given, output_hidden_states=True)
        names = [name for name in ("logits", "start_logits", "end_logits") if name in said]
        answers = [logits_divergence(outputs[name], said[name], TEMPERATURE).mean() for name in names]
        learning = [
            self.projection(outputs["hidden_states"][i + 1].float()) for i, is_on in enumerate(has_ffn) if is_on
        ]
        loss = PREDICTIONS * torch.stack(answers).mean()
        for layer in self._layers if learning else ():
            wanted = said.hidden_states[layer]
            distances = [hidden_distance(states, wanted, inputs["attention_mask"]) for states in learning]
            loss = loss + LAYERS * torch.stack(distances).min()
        return loss


def with_gates(compute_loss: Any, steps: GateSteps, lesson: Lesson | None) -> Any:
    """Returns a Trainer's `compute_loss` that draws gates first, and adds their penalty."""
    open_blocks: list[bool] = []
    learns = taught(compute_loss, lesson, lambda: open_blocks)
    sites = steps.gates.sites

    def compute(model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
        blocks = torch.ones(len(sites)) if steps.is_open else steps.gates.sample_()
        open_blocks[:] = [bool(gate > 0) for gate, site in zip(blocks, sites, strict=True) if not site.is_attention]
        loss = learns(model, inputs, **settings)
        return loss if steps.is_open else loss + steps.penalty()

    return compute


def taught(compute_loss: Any, lesson: Lesson | None, has_ffn: Callable[[], Sequence[bool]]) -> Any:
    """Returns a Trainer's `compute_loss` that a lesson takes the place of; the same one without a lesson."""
    if lesson is None:
        return compute_loss

    def compute(model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
        settings["return_outputs"] = True
        _, outputs = compute_loss(model, {**inputs, "output_hidden_states": True}, **settings)
        return lesson.loss(outputs, inputs, has_ffn())

    return compute
