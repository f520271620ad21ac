"""Scores of a model on the examples of a data set, in the order of the data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune._finite import check_finite
from hf_headprune._offloaded import device_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import evaluating
from hf_headprune.tasks.answers import Answers
from hf_headprune.tasks.batches import Batching, ordered_batches, running
from hf_headprune.tasks.examples import ModelExamples
from hf_headprune.tasks.registry import scorer_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def scores_of(model: nn.Module, dataset: Any, metric: Any = None, batching: Batching = Batching()) -> np.ndarray:
    """Returns the score of each example of a data set, in its order; the model is left as it was.

    Args:
        model: Of a task that `scorer_for` knows.
        dataset: Sized and indexable; tokenized, labelled examples.
        metric: As `scorer_for` takes it; None for the first of the task.
        batching: How examples become batches.

    Returns:
        `(n,)` for a metric that is a mean of scores; else rows `(n, num_rows)`, of which `Scorer.aggregate` makes it.

    Raises:
        InvalidSettingError: The data set is empty, unlabelled or not tokenized, or a label is out of range.
        UnsupportedModelError: The model has no such task, or its weights or outputs are not finite.
    """
    return ScoredExamples(model, dataset, metric, batching, where="scores_of").scores_of(model)


class ScoredExamples:
    """Examples in batches, and the scores that models get on them.

    Attributes:
        scorer: Of the task of the model; it knows the labels.
    """

    def __init__(
        self, model: nn.Module, dataset: Any, metric: Any = None, batching: Batching = Batching(), *, where: str
    ) -> None:
        """Reads all examples and their labels. See `scores_of` for arguments and errors.

        The model is not run, unless it is what others are compared with: then it comes before pruning.
        """
        self._where = where
        examples = ModelExamples(dataset, model, where=where, collate=batching.data_collator)
        scorer = scorer_for(model, metric, where=where, tokenizer=batching.processing_class)
        batches, self._order = ordered_batches(examples, batching.collate_for(model), batch_size=batching.batch_size)
        self._batches = scorer.with_references(model, batches)
        self.scorer = scorer.check(self._batches, where=where)
        weights = np.concatenate([self.scorer.weights(batch) for batch in self._batches])
        if len(weights) != len(self._order):
            raise InvalidSettingError(
                f"{where}: the data collator makes {len(weights)} rows of {len(self._order)} examples, as where texts "
                "are packed, and a score is one of an example. Let it make a row of each (packing=False)."
            )
        empty = self._order[weights == 0]
        if len(empty):
            raise InvalidSettingError(
                f"{where}: every example needs a label, received none for {len(empty)} of {len(weights)} (indices "
                f"{sorted(empty.tolist())[:5]}). Remove them: they would make any drop look smaller."
            )

    def scores_of(self, model: nn.Module) -> np.ndarray:
        """Returns the scores of a model in the order of the data set, `(n,)` or `(n, num_rows)`.

        Raises:
            UnsupportedModelError: The model returned something else than its task needs.
        """
        answers = self.answers_of(model)
        return answers.scores if self.scorer.is_mean else answers.rows

    def answers_of(self, model: nn.Module) -> Answers:
        """Returns all that a model answers, in the order of the data set.

        Raises:
            InvalidSettingError: The examples hold tokens that the model does not embed.
            UnsupportedModelError: The model returned something else than its task needs, or holds NaN.
        """
        self._check_tokens(model)
        check_finite(model)
        with evaluating(model):
            answers = Answers.joined([self._answers(model, batch) for batch in self._batches])
        return answers.taken(np.argsort(self._order))

    def rehearse(self, model: nn.Module) -> None:
        """Scores the batch of the shortest examples: what would fail in `scores_of` fails here.

        Raises:
            UnsupportedModelError: The model returned something else than its task needs.
        """
        with evaluating(model):
            self._answers(model, self._batches[-1])

    def _check_tokens(self, model: nn.Module) -> None:
        tokens = [batch["input_ids"] for batch in self._batches if "input_ids" in batch]
        get: Any = getattr(model, "get_input_embeddings", None)
        size = getattr(get(), "num_embeddings", None) if tokens and get is not None else None
        if size is None:
            return
        ends = [int(end) for batch in tokens for end in batch.aminmax()]
        wrong = [token for token in ends if not 0 <= token < size]
        if wrong:
            raise InvalidSettingError(
                f"{self._where}: the examples hold token {wrong[0]:,}, and a {type(model).__name__} embeds {size:,}: "
                "another tokenizer has encoded them. Encode them with the tokenizer of this model; certify takes two "
                "models with a tokenizer each."
            )

    def _answers(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Answers:
        device = device_of(model)
        entries = {name: tensor.to(device) for name, tensor in batch.items()}
        with running(model, entries, self._where):
            return self.scorer.answers_of(model, entries)
