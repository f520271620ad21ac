"""Questions in SQuAD's format as a model reads them: windows of the question and a part of its context."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLUMNS = ("id", "context", "question", "answers")
WINDOW_COLUMNS = ("question_index", "offsets")
NO_CONTEXT = -1


def squad_rows(content: Any, *, where: str) -> list[dict[str, Any]]:
    """Returns one row for each question of a SQuAD file: `COLUMNS` and the `title` of its article.

    Args:
        content: What the JSON file holds: articles of paragraphs, each with questions.
        where: Name of the file, for the message.

    Raises:
        InvalidSettingError: An entry is missing or of another type.
    """
    try:
        return [
            {
                "id": str(question["id"]),
                "title": str(article.get("title", "")),
                "context": str(paragraph["context"]),
                "question": str(question["question"]),
                "answers": {
                    "text": [str(answer["text"]) for answer in question["answers"]],
                    "answer_start": [int(answer["answer_start"]) for answer in question["answers"]],
                },
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidSettingError(
            f"{where}: a SQuAD file must hold data: [{{paragraphs: [{{context, qas: [{{id, question, answers}}]}}]}}], "
            f"received one where an entry is missing or malformed ({type(error).__name__}: {str(error)[:80]}). Use "
            "SQuAD's format, or rows with the columns id, context, question and answers."
        ) from error


def check_questions(split: Any, name: str, *, allow_unanswered: bool = False) -> None:
    """Refuses questions that nothing can be learned from or measured on.

    Args:
        split: `datasets.Dataset` with `COLUMNS`; answers hold the lists `text` and `answer_start`.
        name: Of the split, for the message.
        allow_unanswered: Whether a question may have no answer, as in SQuAD v2.

    Raises:
        InvalidSettingError: A column is missing, a question has no answer, an answer is not where it should be, or an
            id comes twice. It says how many rows are wrong and names the first.
    """
    missing = sorted(set(COLUMNS) - set(split.column_names))
    if missing:
        raise InvalidSettingError(f"{name}: there is no column {missing} among {split.column_names}.")
    rows = list(split.select_columns(["id", "context", "answers"]))
    malformed = [row["id"] for row in rows if not _is_answers(row["answers"])]
    if malformed:
        raise InvalidSettingError(
            f"{name}: answers must hold the lists 'text' and 'answer_start', received others in {len(malformed)} of "
            f"{len(rows)} rows, first {malformed[0]!r}. Give them in SQuAD's format."
        )
    unanswered = [row["id"] for row in rows if not row["answers"]["text"]]
    if unanswered and not allow_unanswered:
        raise InvalidSettingError(
            f"{name}: {len(unanswered)} of {len(rows)} questions have no answer (SQuAD v2), first {unanswered[0]!r}. "
            "Every question must have one here: leave the others out of the data."
        )
    misplaced = [row["id"] for row in rows if not all(_stands_at(row["context"], *at) for at in _answers(row))]
    if misplaced:
        raise InvalidSettingError(
            f"{name}: {len(misplaced)} answers are not in their context at answer_start, first {misplaced[0]!r}."
        )
    repeated = [found for found, count in Counter(split["id"]).items() if count > 1]
    if repeated:
        raise InvalidSettingError(f"{name}: {len(repeated)} ids are not unique, first {repeated[0]!r}.")


@dataclass(frozen=True)
class Windows:
    """How a context becomes windows that a model can read: the question, then a part of the context.

    Attributes:
        tokenizer: A fast one.
        max_length: Tokens of a window.
        stride: Tokens of the context that neighbouring windows share.
    """

    tokenizer: Any
    max_length: int
    stride: int

    def encode(self, split: Any) -> Any:
        """Returns one row per window: inputs, the first answer's token positions, and where each token came from.

        A window without the whole answer points at its first token. `offsets` holds first and last character of every
        token, shape `(length, 2)`, and -1 outside of the context; `question_index` the row that the window is of.

        Args:
            split: `datasets.Dataset` that `check_questions` accepts.

        Raises:
            InvalidSettingError: A question leaves too little of a window for its context.
        """
        self._check_room(split)
        options = {"batched": True, "with_indices": True, "keep_in_memory": True}
        return split.map(self._encode_batch, remove_columns=split.column_names, **options)

    def _check_room(self, split: Any) -> None:
        """Refuses questions that leave a window no more of a longer context than neighbouring windows share."""
        fixed = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        lengths = {
            name: [len(ids) for ids in self.tokenizer(split[name][:], add_special_tokens=False)["input_ids"]]
            for name in ("question", "context")
        }
        for name, question, context in zip(split["id"], lengths["question"], lengths["context"], strict=True):
            room = fixed - question
            if room <= self.stride and context > room:
                raise InvalidSettingError(
                    f"Question {name!r} has {question} tokens, which leaves {room} of a window of {self.max_length} "
                    f"for the {context} of its context, no more than the {self.stride} that neighbouring windows "
                    "share. Raise the length of the windows or lower what they share."
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
            start, end = 0, 0
            if answer["text"]:
                start, end = token_span(offsets, answer["answer_start"][0], answer["text"][0])
            rows["offsets"].append(offsets)
            rows["start_positions"].append(start)
            rows["end_positions"].append(end)
        return rows


def token_span(offsets: np.ndarray, answer_start: int, text: str) -> tuple[int, int]:
    """Returns first and last token of an answer, or (0, 0) if the window does not hold all of it.

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


def _is_answers(answers: Any) -> bool:
    names = ("text", "answer_start")
    if not isinstance(answers, dict) or not all(isinstance(answers.get(name), list) for name in names):
        return False
    return len(answers["text"]) == len(answers["answer_start"])


def _answers(row: Mapping[str, Any]) -> list[tuple[int, str]]:
    return list(zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True))


def _stands_at(context: str, start: int, text: str) -> bool:
    return text != "" and context[start : start + len(text)] == text
