"""Rows of text to tokenized examples: with a class or a score, tagged tokens, questions, references."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel

from hf_headprune.cli import columns
from hf_headprune.cli.columns import NamedColumns, label_columns, listed, one_column, text_columns
from hf_headprune.cli.labels import ModelClasses, SeveralLabels, number_of
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.latency import positions_of
from hf_headprune.tasks.examples import IGNORED_LABEL, forward_arguments
from hf_headprune.tasks.windows import WINDOW_COLUMNS, Windows, check_questions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from datasets import Dataset

LABEL_OPTION, TEXT_OPTION, QUESTION_OPTION = "--label-column", "--text-column", "--question-column"
TEXT_NAMES = ("text", "text_pair")  # of the texts in tokenized examples: splits are compared by them
GROUP_NAME = "context"  # of what questions share: those on one context are not independent
HIDDEN = (-1, "-1")  # data sets on the Hub keep the labels of their tests to themselves so
LONGEST = 512
LONGEST_WINDOW, STRIDE = 384, 128
IN_MEMORY = {"batched": True, "keep_in_memory": True, "load_from_cache_file": False}


class UnlabelledError(InvalidSettingError):
    """No row of a split has a label."""


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples of one split.

    Attributes:
        rows: `datasets.Dataset` with the model's inputs, the labels, and the texts.
        unlabelled: Rows without a label, which are left out.
        columns: That were read, the labels' last.
        notes: Which texts are cut or empty, a sentence each.
    """

    rows: Dataset
    unlabelled: int
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextReader:
    """Reads single texts or pairs, each with a class, a score, or several labels.

    Attributes:
        tokenizer: Of the model.
        max_length: Tokens; longer texts are cut.
        named: Columns that the user named.
        classes: Of the model, or None for scores.
    """

    tokenizer: Any
    max_length: int
    named: NamedColumns
    classes: ModelClasses | SeveralLabels | None

    def encode(self, split: Dataset, where: str) -> Encoded:
        """Tokenizes a split.

        Raises:
            InvalidSettingError: Columns can't be found, or a label or text is invalid.
        """
        labels = self._label_columns(split, where)
        texts = text_columns(split, self.named, labels, where=where)
        labelled = _labelled(split, texts, labels, where, is_score=self.classes is None)
        split, unlabelled = split.select(labelled), len(split) - len(labelled)
        numbers = [index + 1 for index in labelled]
        targets = self._targets(split, numbers, labels, f"{where}, column{'s' * (len(labels) > 1)} {listed(labels)}")

        def rows(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            found = [batch[column] for column in texts]
            return {**self.encoded(found), "labels": [targets[i] for i in indices]}

        encoded = _encoded(split, texts, rows, where)
        return Encoded(encoded, unlabelled, (*texts, *labels), self.notes_on(encoded))

    def notes_on(self, rows: Dataset) -> tuple[str, ...]:
        """Says which texts of encoded rows are cut or empty."""
        texts = [rows[name][:] for name in TEXT_NAMES if name in rows.column_names]
        return _notes_on("texts", texts, rows["input_ids"], self.max_length, self.tokenizer)

    def encode_again(self, rows: Dataset) -> Dataset:
        """Tokenizes the texts of rows that another reader has encoded."""
        texts = [name for name in TEXT_NAMES if name in rows.column_names]
        others = [name for name in rows.column_names if name not in (*texts, "labels")]
        return rows.map(lambda batch: self.encoded([batch[name] for name in texts]), remove_columns=others, **IN_MEMORY)

    def encoded(self, texts: list[list[str]]) -> dict[str, list[Any]]:
        """Returns columns of tokens beside those of the texts, the first and the second of pairs."""
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return {**encoded, **dict(zip(TEXT_NAMES, texts, strict=False))}

    def _label_columns(self, split: Dataset, where: str) -> tuple[str, ...]:
        if isinstance(self.classes, SeveralLabels):
            names = self.classes.known.ids
            return label_columns(split, self.named.label, names, option=LABEL_OPTION, where=where)
        known = columns.SCORES if self.classes is None else columns.CLASSES
        return (one_column(split, self.named.label, known, option=LABEL_OPTION, where=where),)

    def _targets(self, split: Dataset, numbers: list[int], labels: tuple[str, ...], where: str) -> list[Any]:
        """Returns the class, the score, or the zeros and ones of each row; their numbers are for the message."""
        if not isinstance(self.classes, SeveralLabels):
            meaning = self._meaning(split, labels[0], where)
            return [meaning[value] for value in split[labels[0]]]
        if len(labels) > 1:
            rows = dict(zip(numbers, _rows_of(split, labels), strict=True))
            return self.classes.of_columns(labels, rows, where=where)
        lists = dict(zip(numbers, split[labels[0]][:], strict=True))
        return self.classes.of_lists(lists, _class_names(split, labels[0]), where=where)

    def _meaning(self, split: Dataset, label: str, where: str) -> dict[Any, int] | dict[Any, float]:
        """Returns the class or the score of each label that occurs."""
        values = split[label][:]
        lists = [value for value in values if isinstance(value, (list, dict))]
        if lists:
            raise InvalidSettingError(f"{where}: a label must be one name or number, received {listed(lists[:1])}.")
        if isinstance(self.classes, ModelClasses):
            return self.classes.classes_of(set(values), _class_names(split, label), where=where)
        scores = {value: number_of(value) for value in set(values)}
        wrong = sorted(str(value) for value, score in scores.items() if score is None)
        if wrong:
            raise InvalidSettingError(f"{where}: the model predicts a number, received {listed(wrong)}.")
        return {value: score for value, score in scores.items() if score is not None}


@dataclass(frozen=True)
class TokenReader:
    """Reads lists of words, each word with a tag; the first token of a word carries its tag.

    Attributes:
        tokenizer: Of the model, a fast one.
        max_length: Tokens; longer lists are cut.
        named: Columns that the user named.
        classes: Of the model.
    """

    tokenizer: Any
    max_length: int
    named: NamedColumns
    classes: ModelClasses

    def encode(self, split: Dataset, where: str) -> Encoded:
        """Tokenizes a split.

        Raises:
            InvalidSettingError: Columns can't be found, words and tags are not equally many, or a tag is unknown.
        """
        words = one_column(split, self.named.text, columns.TOKENS, option=TEXT_OPTION, where=where)
        tags = one_column(split, self.named.label, columns.TAGS, option=LABEL_OPTION, where=where)
        for number, row in enumerate(split.select_columns([words, tags])):
            both = row[words], row[tags]
            if not all(isinstance(value, list) for value in both) or len(both[0]) != len(both[1]) or not both[0]:
                raise InvalidSettingError(
                    f"{where}: {words!r} and {tags!r} must hold lists of equally many words and tags, received others "
                    f"in row {number + 1}. Name other columns with {TEXT_OPTION} and {LABEL_OPTION}."
                )
        found = {tag for tags_of_row in split[tags] for tag in tags_of_row}
        meaning = self.classes.classes_of(found, _class_names(split, tags), where=f"{where}, column {tags!r}")
        tags_of = split[tags][:]

        def rows(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            encoded = self.tokenizer(
                batch[words], is_split_into_words=True, truncation=True, max_length=self.max_length
            )
            labels = []
            for place, index in enumerate(indices):
                words_of_tokens, tags_of_row = encoded.word_ids(place), tags_of[index]
                before = [None, *words_of_tokens[:-1]]
                labels.append(
                    [
                        IGNORED_LABEL if word is None or word == last else meaning[tags_of_row[word]]
                        for word, last in zip(words_of_tokens, before, strict=True)
                    ]
                )
            return {**encoded, "labels": labels}

        encoded, tokenize = _encoded(split, (words,), rows, where), partial(self.tokenizer, is_split_into_words=True)
        notes = _notes_on("texts", [split[words][:]], encoded["input_ids"], self.max_length, tokenize)
        return Encoded(encoded, 0, (words, tags), notes)


@dataclass(frozen=True)
class QuestionReader:
    """Reads questions on contexts, with answers in SQuAD's format; each window of a context is an example.

    Attributes:
        windows: How contexts are cut.
        named: Columns that the user named.
    """

    windows: Windows
    named: NamedColumns

    def encode(self, split: Dataset, where: str) -> Encoded:
        """Tokenizes a split.

        Raises:
            InvalidSettingError: Columns can't be found, or an answer is not in its context.
        """
        named = self.named
        found = {
            "question": one_column(split, named.question, columns.QUESTIONS, option=QUESTION_OPTION, where=where),
            "context": one_column(split, named.text, columns.CONTEXTS, option=TEXT_OPTION, where=where),
            "answers": one_column(split, named.label, columns.ANSWERS, option=LABEL_OPTION, where=where),
        }
        ids = [str(value) for value in split["id"]] if "id" in split.column_names else [*map(str, range(len(split)))]
        for column in (found["question"], found["context"]):
            check_texts(split, column, where)
        questions = split.select_columns(list(found.values())).rename_columns({old: new for new, old in found.items()})
        questions = questions.add_column("id", ids)
        check_questions(questions, where, allow_unanswered=True)
        windows = self.windows.encode(questions)
        texts = {name: questions[name][:] for name in ("question", GROUP_NAME)}
        indices = windows["question_index"][:]
        for name, values in texts.items():
            windows = windows.add_column(name, [values[index] for index in indices])
        return Encoded(windows.remove_columns(list(WINDOW_COLUMNS)), 0, tuple(found.values()))


@dataclass(frozen=True)
class ReferenceReader:
    """Reads texts, each with the text that is to be generated from it, such as its translation or summary.

    Attributes:
        tokenizer: Of the model.
        max_length: Tokens; longer texts are cut.
        named: Columns that the user named.
    """

    tokenizer: Any
    max_length: int
    named: NamedColumns

    def encode(self, split: Dataset, where: str) -> Encoded:
        """Tokenizes a split.

        Raises:
            InvalidSettingError: Columns can't be found, or hold no text.
        """
        source = one_column(split, self.named.text, columns.SOURCES, option=TEXT_OPTION, where=where)
        target = one_column(split, self.named.label, columns.REFERENCES, option=LABEL_OPTION, where=where)
        labelled = _labelled(split, (source, target), (target,), where, is_score=False)
        split, unlabelled = split.select(labelled), len(split) - len(labelled)
        references = split[target][:]

        def rows(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            limits = {"truncation": True, "max_length": self.max_length}
            encoded = self.tokenizer(batch[source], text_target=[references[i] for i in indices], **limits)
            kept = ("input_ids", "attention_mask", "labels")
            return {**{name: encoded[name] for name in kept}, TEXT_NAMES[0]: batch[source]}

        def targets(texts: list[str], **options: Any) -> Any:
            return self.tokenizer(text_target=texts, **options)

        encoded = _encoded(split, (source,), rows, where)
        notes = (
            *_notes_on("texts", [split[source][:]], encoded["input_ids"], self.max_length, self.tokenizer),
            *_notes_on("references", [references], encoded["labels"], self.max_length, targets),
        )
        return Encoded(encoded, unlabelled, (source, target), notes)


def _notes_on(
    what: str,
    read: Sequence[Sequence[str | list[str]]],
    ids: Iterable[Sequence[int]],
    limit: int,
    tokenize: Callable[..., Any],
) -> tuple[str, ...]:
    """Says how many texts are cut, and how many are empty.

    Args:
        what: Is read: texts, or references.
        read: Its columns, each of texts or of lists of words.
        ids: Tokens of each row, at most `limit`.
        limit: Tokens that a row was cut to.
        tokenize: The tokenizer, which takes such columns.
    """
    lengths = [len(tokens) for tokens in ids]
    full = [place for place, length in enumerate(lengths) if length >= limit]  # cut, or of just that length
    cut, notes = 0, []
    if full:
        some = [[column[place] for place in full] for column in read]
        cut = sum(len(tokens) > limit for tokens in tokenize(*some, truncation=True, max_length=limit + 1)["input_ids"])
    empty = sum(any(isinstance(text, str) and not text.strip() for text in row) for row in zip(*read, strict=True))
    if cut:
        notes.append(f"{cut:,} of {len(lengths):,} {what} are cut to {limit:,} tokens.")
    if empty:
        notes.append(f"{empty:,} of {len(lengths):,} rows have an empty text, and count as examples.")
    return tuple(notes)


def _encoded(split: Dataset, read: Sequence[str], rows: Callable[..., dict[str, list[Any]]], where: str) -> Dataset:
    """Returns what a function makes of these columns and of the numbers of the rows.

    No column of labels is among them: `datasets` would give the new labels the type of an old column of their name.
    """
    return split.select_columns(list(read)).map(
        rows, with_indices=True, remove_columns=list(read), desc=where, **IN_MEMORY
    )


def groups_of_rows(rows: Dataset | None) -> str | None:
    """Returns the column whose equal values mark examples that depend on each other; None where there is none."""
    return GROUP_NAME if rows is not None and GROUP_NAME in rows.column_names else None


Reader = TextReader | TokenReader | QuestionReader | ReferenceReader


def reader_for(model: Any, tokenizer: Any, named: NamedColumns, max_length: int | None) -> Reader:
    """Returns what reads the examples of a model's task.

    Args:
        model: Classifier of sequences or tokens, regression, question answering, or sequence-to-sequence.
        tokenizer: Of the model.
        named: Columns that the user named.
        max_length: Tokens of an example; None for what the model reads, 384 for windows on a context.

    Raises:
        InvalidSettingError: The length is too large for the model, or a column was named that the task has not.
        UnsupportedModelError: The model has another task, or the task needs another tokenizer.
    """
    longest = _longest(model, tokenizer)
    if max_length is not None and not 1 < max_length <= longest:
        raise InvalidSettingError(f"--max-length must be from 2 to {longest} for this model, received {max_length}.")
    names = [kind.__name__ for kind in type(model).__mro__]
    if any("ForQuestionAnswering" in name for name in names):
        _check_fast(tokenizer, "finding answers in text")
        length = max_length or min(longest, LONGEST_WINDOW)
        return QuestionReader(Windows(tokenizer, length, min(STRIDE, length // 3)), named)
    if named.question is not None:
        raise InvalidSettingError(f"{QUESTION_OPTION} {named.question} is for question answering: leave it out.")
    length = max_length or longest
    if any("ForTokenClassification" in name for name in names):
        _check_fast(tokenizer, "giving tags to tokens")
        return TokenReader(tokenizer, length, named, ModelClasses.of(model.config))
    if any("ForSequenceClassification" in name for name in names):
        _check_padding(model)
        classes = ModelClasses.of(model.config)
        if model.config.problem_type == "multi_label_classification":
            return TextReader(tokenizer, length, named, SeveralLabels(classes))
        return TextReader(tokenizer, length, named, None if model.config.num_labels == 1 else classes)
    if model.config.is_encoder_decoder and model.can_generate():
        return ReferenceReader(tokenizer, length, named)
    raise UnsupportedModelError(
        f"{type(model).__name__}: this command prunes ...ForSequenceClassification, ...ForTokenClassification, "
        "...ForQuestionAnswering and sequence-to-sequence models: it reads labels, tags, answers and references from "
        "files. For others use search_plan or plan_for_budget in Python."
    )


def _longest(model: Any, tokenizer: Any) -> int:
    """Returns the tokens that a model reads.

    Raises:
        UnsupportedModelError: It reads none.
    """
    longest = int(min(LONGEST, positions_of(model) or LONGEST, tokenizer.model_max_length))
    if longest <= 1:
        raise UnsupportedModelError(
            f"{type(model).__name__}: it reads texts of at most {longest} tokens, by its positions and its tokenizer. "
            "Pass another tokenizer with --tokenizer."
        )
    return longest


def _check_padding(model: Any) -> None:
    """Refuses a classifier that reads the last token of a text, and can't tell where a padded one ends."""
    if model.config.pad_token_id is None and "use_cache" in forward_arguments(model):
        raise InvalidSettingError(
            f"{type(model).__name__}: its configuration has no pad_token_id, without which a model that reads the last "
            "token of a text can't tell where it ends. Set it in config.json to that of the tokenizer."
        )


def _check_fast(tokenizer: Any, what: str) -> None:
    if not tokenizer.is_fast or tokenizer.padding_side != "right":
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__}: {what} needs a fast tokenizer that pads on the right. Pass another one with "
            "--tokenizer."
        )


def _labelled(
    split: Dataset, texts: Sequence[str], labels: tuple[str, ...], where: str, *, is_score: bool
) -> list[int]:
    """Returns the rows that have a label; all of them hold texts."""
    values = _rows_of(split, labels)
    missing = {index for index, row in enumerate(values) if any(map(_is_none, row))}
    hidden = {index for index, row in enumerate(values) if any(value in HIDDEN for value in row)}
    if not is_score or len(missing | hidden) == len(values):  # a score may be -1
        missing |= hidden
    if len(missing) == len(values):
        raise UnlabelledError(
            f"{where}: no row has a label in {listed(labels)}. Name another column with {LABEL_OPTION}."
        )
    labelled = [index for index in range(len(values)) if index not in missing]
    for column in texts:
        check_texts(split, column, where, labelled)
    return labelled


def _rows_of(split: Dataset, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return list(zip(*(split[column][:] for column in columns), strict=True))


def _is_none(value: Any) -> bool:
    return value is None or value == "" or value != value  # noqa: PLR0124 - NaN


def check_texts(split: Dataset, column: str, where: str, places: Sequence[int] | None = None) -> None:
    """Sees that all rows of a column hold text, or those at some places.

    Raises:
        InvalidSettingError: Some hold nothing, or a number.
    """
    values, places = split[column][:], range(len(split)) if places is None else places
    wrong = [place for place in places if not isinstance(values[place], str)]
    if wrong:
        raise InvalidSettingError(
            f"{where}: {column!r} must hold text, received something else in {len(wrong):,} of {len(places):,} rows, "
            f"first in row {wrong[0] + 1}."
        )


def _class_names(split: Dataset, column: str) -> list[str] | None:
    """Returns the names that a data set gives the numbers in a column of labels."""
    feature = split.features[column]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None
