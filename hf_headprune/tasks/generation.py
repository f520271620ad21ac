"""Scores of generated texts: sentence chrF against the reference."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune.errors import InvalidSettingError, MissingExtraError
from hf_headprune.tasks.answers import Answers
from hf_headprune.tasks.likelihood import LEAST, LikelihoodScorer
from hf_headprune.tasks.scorer import LABELS, Scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

CHRF = "chrf"
LONGER = 2  # tokens that are generated at most, in lengths of the longest reference


@dataclass(frozen=True)
class ChrfScorer(LikelihoodScorer):
    """Translation, summaries and the like, scored by what the model generates; batches as for `LikelihoodScorer`.

    An example's score is the sentence chrF of the generated text against its reference, in [0, 1]. The model generates
    as its `generation_config` says, but without sampling, and at most twice as many tokens as the longest reference
    has. Margins and losses with a gradient are those of the likelihood of the reference.

    Attributes:
        tokenizer: Of the model; decodes what it generates, and the references.
        longest: Tokens of the longest reference; known after `check`.

    Source:
        Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015; as in the package sacrebleu.
    """

    tokenizer: Any = field(default=None, compare=False)
    longest: int = 0
    metric = CHRF
    scored = "chrF of the text that the model generates against its reference"
    in_words = "sentence chrF"
    generates = True

    def with_tokenizer(self, tokenizer: Any) -> Scorer:
        """Returns the scorer with a tokenizer, where it has none."""
        return self if tokenizer is None or self.tokenizer is not None else replace(self, tokenizer=tokenizer)

    def check(self, batches: Sequence[Mapping[str, torch.Tensor]], *, where: str = "ExampleEvaluator") -> Scorer:
        """Refuses batches without references; returns the scorer that knows how long these are.

        Raises:
            InvalidSettingError: References are missing or malformed, or there is no tokenizer.
            MissingExtraError: sacrebleu is not installed.
        """
        super().check(batches, where=where)
        if not callable(getattr(self.tokenizer, "batch_decode", None)):
            raise InvalidSettingError(
                f"{where}: chrF needs the tokenizer that decodes what the model generates, received "
                f"{type(self.tokenizer).__name__}. Pass processing_class=tokenizer, or "
                "Batching(processing_class=tokenizer) to CertificationData."
            )
        _sentence_chrf(["a"], ["a"])
        longest = max(int(_targets(batch).ge(0).sum(dim=1).max()) for batch in batches)
        return replace(self, longest=max(longest, self.longest))  # of a part of the examples: as for all of them

    def answers_of(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Lets the model generate, and scores the texts; nothing is a tie."""
        given = {name: tensor for name, tensor in self.inputs(batch).items() if name != LABELS}
        given.pop("decoder_input_ids", None)
        tokens = model.generate(**given, do_sample=False, max_new_tokens=LONGER * self.longest)
        found, gold = (self._texts(ids) for ids in (tokens, _targets(batch)))
        scores = _sentence_chrf(found, gold)
        odds = np.clip(scores, LEAST, 1 - LEAST)
        margins = np.log(odds / (1 - odds)).astype(np.float32)
        return Answers(margins, scores, np.full(len(scores), np.inf, dtype=np.float32), np.zeros((len(scores), 0)))

    def _texts(self, tokens: torch.Tensor) -> list[str]:
        """Returns the texts of tokens, `(batch, length)`, -1 where there is none."""
        rows = [[token for token in row if token >= 0] for row in tokens.tolist()]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)


def _targets(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the tokens of the references, `(batch, length)`, -1 where there is none."""
    return batch[LABELS].clamp_min(-1)


def _sentence_chrf(found: list[str], gold: list[str]) -> np.ndarray:
    """Returns the chrF of each text against its reference, in [0, 1].

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    try:
        metric = import_module("sacrebleu.metrics").CHRF()
    except ImportError as error:
        raise MissingExtraError(
            'chrF needs the package sacrebleu. Install it with pip install "hf-headprune[chrf]", or name the metric '
            '"likelihood".'
        ) from error
    scores = [metric.sentence_score(text, [reference]).score for text, reference in zip(found, gold, strict=True)]
    return np.clip(np.array(scores, dtype=np.float64) / 100, 0.0, 1.0)
