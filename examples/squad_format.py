"""Extractive question answering in SQuAD's format: read it, cut it into windows, find answers in logits, score them.

One row per question everywhere: `id`, `title`, `context`, `question` and `answers` with the lists `text` and
`answer_start`, as data sets on the Hub have it.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerFast

COLUMNS = ("id", "title", "context", "question", "answers")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
WINDOW_COLUMNS = ("question_index", "offsets")
NO_CONTEXT = -1
Answer = dict[str, Any]
Logits = tuple[Sequence[np.ndarray], ...]


def read_squad(path: Path) -> Dataset:
    """Reads a SQuAD v1.1 file: articles of paragraphs, each with questions."""
    rows = [
        {
            "id": question["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    return Dataset.from_list(rows)


def check(name: str, split: Dataset) -> None:
    """Refuses a split in which a question has no answer, an answer is not where it should be, or an id comes twice.

    Raises:
        ValueError: Says how many rows are wrong and names the first.
    """
    missing = sorted(set(COLUMNS) - set(split.column_names))
    if missing:
        raise ValueError(f"{name}: there is no column {missing} among {split.column_names}.")
    rows = list(split.select_columns(["id", "context", "answers"]))
    unanswered = [row["id"] for row in rows if not row["answers"]["text"]]
    if unanswered:
        raise ValueError(
            f"{name}: {len(unanswered)} of {len(rows)} questions have no answer (SQuAD v2), first {unanswered[0]!r}. "
            "Every question must have one here: leave the others out of the data."
        )
    misplaced = [row["id"] for row in rows if not all(_stands_at(row["context"], *at) for at in _answers(row))]
    if misplaced:
        raise ValueError(
            f"{name}: {len(misplaced)} answers are not in their context at answer_start, first {misplaced[0]!r}."
        )
    repeated = [found for found, count in Counter(split["id"]).items() if count > 1]
    if repeated:
        raise ValueError(f"{name}: {len(repeated)} ids are not unique, first {repeated[0]!r}.")


def split_off(split: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Parts whole articles from a split, so that no context is on both sides.

    Args:
        split: With titles.
        fraction: Of the questions that the second part reaches, at least.
        seed: Of the order of the articles.
    """
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


@dataclass(frozen=True)
class Windows:
    """How a context becomes windows that a model can read: the question, then a part of the context.

    Attributes:
        tokenizer: A fast one.
        max_length: Tokens of a window.
        stride: Tokens of the context that neighbouring windows share.
    """

    tokenizer: PreTrainedTokenizerFast
    max_length: int
    stride: int

    def encode(self, split: Dataset) -> Dataset:
        """Returns one row per window: inputs, the first answer's token positions, and where each token came from.

        A window without the whole answer points at its first token. `offsets` holds first and last character of every
        token, shape `(length, 2)`, and -1 outside of the context.
        """
        self._check_room(split)
        options = {"batched": True, "with_indices": True, "keep_in_memory": True}
        return split.map(self._encode_batch, remove_columns=split.column_names, **options)

    def _check_room(self, split: Dataset) -> None:
        """Refuses questions that leave a window no more of a longer context than neighbouring windows share."""
        fixed = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        lengths = {
            name: [len(ids) for ids in self.tokenizer(split[name][:], add_special_tokens=False)["input_ids"]]
            for name in ("question", "context")
        }
        for name, question, context in zip(split["id"], lengths["question"], lengths["context"], strict=True):
            room = fixed - question
            if room <= self.stride and context > room:
                raise ValueError(
                    f"Question {name!r} has {question} tokens, which leaves {room} of a window of {self.max_length} "
                    f"for the {context} of its context, no more than the {self.stride} that neighbouring windows "
                    "share. Raise --max_seq_length or lower --doc_stride."
                )

    def _encode_batch(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        encoded = self.tokenizer(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources = encoded.pop("overflow_to_sample_mapping")
        mappings = encoded.pop("offset_mapping")
        rows: dict[str, list[Any]] = {**encoded, "question_index": [indices[source] for source in sources]}
        rows |= {name: [] for name in ("offsets", "start_positions", "end_positions")}
        for window, (source, mapping) in enumerate(zip(sources, mappings, strict=True)):
            is_context = np.array([part == 1 for part in encoded.sequence_ids(window)])
            offsets = np.where(is_context[:, None], np.array(mapping), NO_CONTEXT)
            answer = batch["answers"][source]
            start, end = token_span(offsets, answer["answer_start"][0], answer["text"][0])
            rows["offsets"].append(offsets)
            rows["start_positions"].append(start)
            rows["end_positions"].append(end)
        return rows


def token_span(offsets: np.ndarray, answer_start: int, text: str) -> tuple[int, int]:
    """Returns first and last token of an answer, or (0, 0) where the window does not hold all of it.

    Args:
        offsets: First and last character of every token, shape `(length, 2)`; -1 outside of the context.
        answer_start: Character of the context.
        text: The answer; space around it does not count.
    """
    answer_start += len(text) - len(text.lstrip())
    answer_end = answer_start + len(text.strip())
    context = np.flatnonzero(offsets[:, 0] != NO_CONTEXT)
    tokens = np.flatnonzero((offsets[:, 0] < answer_end) & (offsets[:, 1] > answer_start))
    if not len(tokens) or offsets[context[0], 0] > answer_start or offsets[context[-1], 1] < answer_end:
        return 0, 0
    return int(tokens[0]), int(tokens[-1])


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


def _answers(row: Mapping[str, Any]) -> list[tuple[int, str]]:
    return list(zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True))


def _stands_at(context: str, start: int, text: str) -> bool:
    return text != "" and context[start : start + len(text)] == text
