"""One-shot pruning of a fine-tuned model to a budget: without training, on some thousand examples."""

from __future__ import annotations

import copy
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._offloaded import device_of
from hf_headprune._seen_splits import remember_seen_
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.choice import choose
from hf_headprune.refit.in_order import Runs
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.refit.reach import check_budget
from hf_headprune.refit.rounds import planned_in_rounds
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.tasks.batches import collated, longest_first, running
from hf_headprune.tasks.examples import (
    IGNORED_LABEL,
    LABEL_NAMES,
    SPAN_NAMES,
    ModelExamples,
    PadRight,
    counted_labels,
    embeds_texts,
    forward_arguments,
    plain,
)
from hf_headprune.tasks.own_answers import projected, projected_embeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

MOST_DIGESTED = 20_000  # examples among which some are drawn by their content


def second_order_plan(  # noqa: PLR0913 - a model, its examples and how they are read, and what measures a plan
    model: nn.Module,
    dataset: Any,
    settings: SecondOrder,
    *,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    speed_up_of: Callable[[PruningPlan], float] | None = None,
    where: str = "second_order_plan",
) -> RefittedPlan:
    """Finds what of a fine-tuned model to keep within a budget, without training.

    What remains is refitted to what the whole model computes, module by module; see `hf_headprune.refit.in_order`. The
    model is left as it was, and remembers the examples that were looked at.

    Args:
        model: Of a supported family, fine-tuned; its forward pass returns a loss.
        dataset: Sized and indexable; tokenized examples with "labels" (or "label" for a class), or with
            "start_positions" and "end_positions". Training examples do. Without a column of labels, what the model
            answers itself stands for them, unless it writes a text. Other columns are ignored.
        settings: The budget, its rounds, and how many of the examples are looked at. Each round takes as long as one
            alone, and what is left is refitted before the next. Examples are drawn by their content: the same
            examples in another order, or in batches of another size, give the same plan up to rounding. (Of more than
            20,000, those at as many places are candidates.)
        data_collator: Makes the batches; when left out, examples are padded on the right.
        batch_size: Examples per batch.
        speed_up_of: See `choose`.
        where: The function that errors name.

    Raises:
        InvalidSettingError: The data set is empty, labelled in part or not tokenized, a label is no class, or the model
            can't meet the budget.
        TrainingStateError: The loss does not depend on the model, or is not finite.
        UnsupportedModelError: The model's family is not supported, or it returns no loss.
    """
    check_budget(settings, anatomy_of(model))
    tuning = settings.tuning
    seed = tuning.seed or 0
    losses = ExampleLosses(model, dataset, tuning.scoring_examples, seed, data_collator, batch_size, where=where)
    remember_seen_(model, calibration=losses.drawn)
    if settings.rounds > 1:
        return planned_in_rounds(model, settings, losses, speed_up_of)
    full = PruningPlan.full(anatomy_of(model))
    plan, refit = choose(model, settings, full, losses, speed_up_of=speed_up_of)
    return RefittedPlan(plan, RefitInOrder(refit, plan, full, losses.runs()).fit())


class ExampleLosses:
    """Losses of drawn examples, summed over each batch; each is computed when it is asked for.

    Where examples have no labels, or the model no head, random projections of what it answers are in their place.

    Attributes:
        drawn: The examples, as they are in the data set.
    """

    def __init__(  # noqa: PLR0913 - a model, its examples, and how they are read
        self,
        model: nn.Module,
        dataset: Any,
        count: int,
        seed: int,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int = 32,
        *,
        where: str = "second_order_plan",
    ) -> None:
        """Draws the examples.

        Args:
            model: Its forward pass returns a loss.
            dataset: Sized and indexable; tokenized examples, labelled where the model writes a text.
            count: How many are drawn at most.
            seed: Of the draw.
            data_collator: Makes the batches; when left out, examples are padded on the right.
            batch_size: Examples per batch.
            where: Name of the public function, for errors.

        Raises:
            InvalidSettingError: The data set is empty, not tokenized, or lacks labels; or no gradient can be computed.
        """
        if torch.is_inference_mode_enabled():
            raise InvalidSettingError(
                f"{where}: removal costs come from gradients, which torch.inference_mode() forbids. Call it outside."
            )
        seed = int(seed)  # torch's generators take no number of numpy's
        self._model, self._batch_size, self._where, self._seed = model, batch_size, where, seed
        writes = bool(getattr(model.config, "is_encoder_decoder", False))
        examples = ModelExamples(dataset, model, where=where, collate=data_collator, needs_labels=writes)
        order = [index for index in _drawn(examples, count, seed) if _has_label(examples[index])]
        if not order:
            raise InvalidSettingError(
                f"{where}: no example has a label that counts: all are {IGNORED_LABEL}. Pass labelled examples."
            )
        drawn = [examples[index] for index in order]
        self._examples = [drawn[place] for place in longest_first(drawn)]
        self._collate = data_collator or PadRight(getattr(model.config, "pad_token_id", None))
        self.drawn = [dataset[index] for index in order]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields a loss for each batch.

        Raises:
            InvalidSettingError: A label is no class.
            UnsupportedModelError: The model returns no loss.
        """
        drawn = torch.Generator().manual_seed(self._seed)  # directions of projections
        for batch, items in self._batches():
            if embeds_texts(self._model):
                yield projected_embeddings(self._model, batch, drawn)
            else:
                yield self._loss(batch, items, drawn)

    def _loss(self, batch: dict[str, torch.Tensor], items: int, drawn: torch.Generator) -> torch.Tensor:
        """Returns the sum of losses of a batch, or what is in its place."""
        model, where = self._model, self._where
        _check_classes(model, batch, where)
        asked = {"return_loss": True} if "return_loss" in forward_arguments(model) else {}  # of CLIP, none else
        with running(model, batch, where):
            outputs = model(**batch, **asked)
        loss = getattr(outputs, "loss", None)
        if loss is not None:
            return loss * items
        if isinstance(outputs, tuple):
            raise UnsupportedModelError(
                f"{where}: the outputs of a {type(model).__name__} are a tuple. Set model.config.return_dict = True."
            )
        if any(name in batch for name in (*LABEL_NAMES, *SPAN_NAMES)):
            raise UnsupportedModelError(
                f"{where}: a {type(model).__name__} returns no loss for {sorted(batch)}. Pass a model with the head of "
                "its task."
            )
        return projected(model, outputs, batch, drawn, where=where)

    def on(self, model: nn.Module) -> ExampleLosses:
        """Returns the losses of another model on the same examples."""
        found = copy.copy(self)
        found._model = model
        return found

    def runs(self) -> Runs:
        """Returns, for each loss, a forward pass on its examples."""
        return Runs(self._model, [partial(_run, batch=batch) for batch, _ in self._batches()])

    def _batches(self) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        """Yields each batch, and of how many items its loss is the mean; batches of none are left out."""
        device = device_of(self._model)
        for first in range(0, len(self._examples), self._batch_size):
            chosen = self._examples[first : first + self._batch_size]
            batch = {name: value.to(device) for name, value in collated(self._collate, chosen).items()}
            if _has_several_labels(self._model) and "labels" in batch:  # zeros and ones, which may be whole numbers
                batch["labels"] = batch["labels"].float()
            items = 1 if embeds_texts(self._model) else _items(self._model, batch, len(chosen))
            if items:  # else the mean over none is no number
                yield batch, items


def _has_several_labels(model: Any) -> bool:
    return getattr(model.config, "problem_type", None) == "multi_label_classification"


def _run(model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    return model(**batch)


def _drawn(examples: ModelExamples, count: int, seed: int) -> list[int]:
    """Draws examples by a digest of their content, so that neither the choice nor its order depends on theirs."""
    places = [*range(len(examples))]
    if len(places) > MOST_DIGESTED:
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        places = order[:MOST_DIGESTED].tolist()
    digests = {place: blake2b(f"{seed} {plain(examples[place])}".encode(), digest_size=8).digest() for place in places}
    return sorted(digests, key=digests.__getitem__)[:count]


def _has_label(example: dict[str, Any]) -> bool:
    """Tells whether the loss counts a label of an example."""
    labels = plain(example.get("labels", example.get("label")))
    return not isinstance(labels, list) or any(label != IGNORED_LABEL for label in labels)


def _items(model: Any, batch: dict[str, torch.Tensor], examples: int) -> int:
    """Returns how many items the loss of a batch is the mean of: labels of tokens, or examples."""
    labels = batch.get("labels")
    if labels is None or labels.ndim == 1 or labels.is_floating_point():
        return examples
    return int(counted_labels(model, labels).sum())


def _answers(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """Returns how many answers a label names one of: the classes of a model, or the choices of each example."""
    tokens = batch.get("input_ids")
    if tokens is not None and tokens.ndim == 3:  # noqa: PLR2004 - (batch, choices, length)
        return tokens.shape[1]
    return getattr(model.config, "num_labels", 0)


def _check_classes(model: nn.Module, batch: dict[str, torch.Tensor], where: str) -> None:
    labels, classes = batch.get("labels"), _answers(model, batch)
    is_class = labels is not None and labels.ndim == 1 and not labels.is_floating_point() and classes > 1
    wrong = [label for label in labels.tolist() if not 0 <= label < classes] if is_class else []  # type: ignore[union-attr]
    if wrong:
        raise InvalidSettingError(
            f"{where}: labels must be 0..{classes - 1}, received {sorted(set(wrong))[:5]}. Remove unlabelled "
            "examples, or map the labels to the classes of the model."
        )
