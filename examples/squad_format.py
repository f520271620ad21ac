"""Extractive question answering in SQuAD's format: read it, find answers in logits, score them.

One row per question everywhere: `id`, `title`, `context`, `question` and `answers` with the lists `text` and
`answer_start`, as data sets on the Hub have it.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel

from hf_headprune.tasks.windows import NO_CONTEXT, Windows, squad_rows

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Answer = dict[str, Any]
Logits = tuple[Sequence[np.ndarray], ...]


def read_squad(path: Path) -> Dataset:
    """Reads a SQuAD v1.1 file: articles of paragraphs, each with questions."""
    return Dataset.from_list(squad_rows(json.loads(path.read_text(encoding="utf-8")), where=str(path)))


def split_off(split: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Parts whole articles from a split, so that no context is on both sides.

    Args:
        split: With titles.
        fraction: Of the questions that the second part reaches, at least.
        seed: Of the order of the articles.
    """
    if "title" not in split.column_names:
        raise ValueError(
            f"There is no column 'title' among {split.column_names}, which names the article of a question."
        )
    titles = sorted(set(split["title"]))
    counts = Counter(split["title"])
    order = np.random.default_rng(seed).permutation(len(titles))
    taken: set[str] = set()
    for index in order:
        if sum(counts[title] for title in taken) >= fraction * len(split):
            break
        taken.add(titles[index])
    if len(taken) == len(titles):
        raise ValueError(f"{len(titles)} articles are too few to part {fraction:.0%} of the questions from the rest.")
    inside = np.array([title in taken for title in split["title"]])
    return split.select(np.flatnonzero(~inside)), split.select(np.flatnonzero(inside))


@dataclass(frozen=True)
class QuestionScorer:
    """Scores each question by a model's best answer: what a certificate compares two models by.

    Attributes:
        windows: How contexts are read.
        metric: "f1" or "exact_match".
        max_tokens: Longer answers do not count.
        batch_size: Windows per batch.
    """

    windows: Windows
    metric: str
    max_tokens: int
    batch_size: int = 32

    def __call__(self, model: PreTrainedModel, split: Dataset) -> list[float]:
        """Returns one score between 0 and 1 per question, in their order."""
        encoded = self.windows.encode(split)
        inputs = encoded.select_columns([name for name in encoded.column_names if name in INPUTS])
        starts: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        for first in range(0, len(inputs), self.batch_size):
            rows = inputs.select(range(first, min(first + self.batch_size, len(inputs))))
            output = model(**self.windows.tokenizer.pad(list(rows), return_tensors="pt").to(model.device))
            starts += list(output.start_logits.float().cpu().numpy())
            ends += list(output.end_logits.float().cpu().numpy())
        return SquadMetrics(split, encoded, n_best=1, max_tokens=self.max_tokens).scores((starts, ends))[self.metric]


def best_spans(
    start_logits: np.ndarray, end_logits: np.ndarray, offsets: np.ndarray, *, n_best: int, max_tokens: int
) -> list[tuple[float, int, int]]:
    """Returns the best spans of a window: sum of both logits, first and last token; best first.

    Args:
        start_logits: Shape `(padded_length,)`.
        end_logits: The same.
        offsets: Shape `(length, 2)`; only tokens of the context may begin or end an answer.
        n_best: How many, unless there are fewer.
        max_tokens: Longer spans do not count.
    """
    length = len(offsets)
    closed = np.where(offsets[:, 0] == NO_CONTEXT, -np.inf, 0.0)
    ends = np.concatenate([end_logits[:length] + closed, np.full(max_tokens - 1, -np.inf)])
    later = np.lib.stride_tricks.sliding_window_view(ends, max_tokens)  # (length, max_tokens)
    scores = ((start_logits[:length] + closed)[:, None] + later).ravel()
    count = min(n_best, scores.size)
    top = np.argpartition(scores, -count)[-count:]
    top = top[np.lexsort((top, -scores[top]))]
    spans = [(float(scores[i]), int(i // max_tokens), int(i // max_tokens + i % max_tokens)) for i in top]
    return [span for span in spans if span[0] > -np.inf]


class SquadMetrics:
    """`compute_metrics` of one split: exact match and F1 between 0 and 1.

    Unlike SQuAD's script it looks at every span of the context up to the longest answer, not only at pairs of the 20
    best starts and ends.
    """

    def __init__(self, split: Dataset, windows: Dataset, *, n_best: int, max_tokens: int) -> None:
        """Remembers the questions and where the tokens of each window came from."""
        self.ids, self.contexts = list(split["id"]), list(split["context"])
        self.truths = [answers["text"] for answers in split["answers"]]
        self.questions = list(windows["question_index"])
        self.offsets = [np.array(offsets) for offsets in windows["offsets"]]
        self.positions = [np.array(windows[name]) for name in ("start_positions", "end_positions")]
        self.n_best, self.max_tokens = n_best, max_tokens

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns the mean over the questions.

        Raises:
            ValueError: The rows are not those of the windows, in their order.
        """
        labels = prediction.label_ids
        if labels is not None and not all(map(np.array_equal, labels, self.positions)):
            raise ValueError(
                "The rows are not in the order of the windows. Grouping by length changes that of evaluation, too: "
                'leave out train_sampling_strategy="group_by_length".'
            )
        return {name: float(np.mean(scores)) for name, scores in self.scores(prediction.predictions).items()}

    def scores(self, logits: Logits) -> dict[str, list[float]]:
        """Returns exact match and F1 of the best answer to every question.

        Args:
            logits: Of starts and ends, one row per window.
        """
        texts = [answers[0]["text"] for answers in self.answers(logits, n_best=1).values()]
        pairs = list(zip(texts, self.truths, strict=True))
        return {
            name: [max(compare(text, truth) for truth in truths) for text, truths in pairs]
            for name, compare in (("exact_match", exact_match), ("f1", token_f1))
        }

    def answers(self, logits: Logits, *, n_best: int | None = None) -> dict[str, list[Answer]]:
        """Returns the best answers to every question by id, best first, each with its probability among them.

        Args:
            logits: Of starts and ends, one row per window.
            n_best: How many; as many as the settings say when left out.
        """
        n_best = n_best or self.n_best
        starts, ends = logits[:2]
        if len(starts) != len(self.offsets):
            raise ValueError(f"{len(starts)} rows of logits for {len(self.offsets)} windows: is this the right split?")
        found: list[list[tuple[float, str]]] = [[] for _ in self.ids]
        for window, (question, offsets) in enumerate(zip(self.questions, self.offsets, strict=True)):
            options = {"n_best": n_best, "max_tokens": self.max_tokens}
            for score, first, last in best_spans(starts[window], ends[window], offsets, **options):
                text = self.contexts[question][offsets[first, 0] : offsets[last, 1]]
                found[question].append((score, text))
        return {name: _with_probability(spans, n_best) for name, spans in zip(self.ids, found, strict=True)}


def normalised(text: str) -> list[str]:
    """Returns the words that count: lower case, without punctuation and articles, as SQuAD's script has it."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_match(text: str, truth: str) -> float:
    """Tells whether the words are the same, 1.0 or 0.0."""
    return float(normalised(text) == normalised(truth))


def token_f1(text: str, truth: str) -> float:
    """Returns the harmonic mean of precision and recall of the words, each counted as often as it comes."""
    words, wanted = normalised(text), normalised(truth)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


def _with_probability(spans: list[tuple[float, str]], n_best: int) -> list[Answer]:
    if not spans:
        return [{"text": "", "probability": 0.0}]  # the context has no tokens
    best = sorted(spans, key=lambda span: -span[0])[:n_best]
    weights = np.exp(np.array([score for score, _ in best]) - best[0][0])
    return [
        {"text": text, "probability": float(weight)}
        for (_, text), weight in zip(best, weights / weights.sum(), strict=True)
    ]
