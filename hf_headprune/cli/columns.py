"""Which columns a model reads: named by the user, or found by known names and by no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.examples import is_number_or_label

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset

TEXTS = ("sentence", "text")
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
CLASSES = ("label", "labels")
SCORES = ("label", "labels", "score")
TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels")
SOURCES, REFERENCES = ("source", "text", "document", "article"), ("target", "reference", "summary", "highlights")
QUESTIONS, CONTEXTS, ANSWERS = ("question",), ("context",), ("answers",)
_SHOWN = 12
_STRINGS = ("string", "large_string")


@dataclass(frozen=True)
class NamedColumns:
    """Columns as the user named them; None for those that known names find.

    Attributes:
        text: Of the text, of the tokens, or of the context of questions.
        text_pair: Of the second text of a pair.
        label: Of the class, the score, the tags, or the answers; of several labels also their columns, with commas.
        question: Of the question.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    question: str | None = None


def one_column(split: Dataset, named: str | None, known: tuple[str, ...], *, option: str, where: str) -> str:
    """Returns the column that the user named, or the only one with a known name.

    Args:
        split: Rows.
        named: By the user, or None.
        known: Names that are found.
        option: With which a user names the column.
        where: Name of the split, for the message.

    Raises:
        InvalidSettingError: There is no such column, or several have known names.
    """
    if named is not None:
        return _present(split, named, option=option, where=where)
    found = [name for name in known if name in split.column_names]
    if len(found) != 1:
        problem = f"{listed(found)} could all be meant" if found else f"no column is named {' or '.join(known)}"
        raise InvalidSettingError(
            f"{where}: {problem}, among the columns {listed(split.column_names)}. Name one with {option}."
        )
    return found[0]


def label_columns(
    split: Dataset, named: str | None, names: Iterable[str], *, option: str, where: str
) -> tuple[str, ...]:
    """Returns the columns of several labels per example: one that holds lists, or one for each label.

    Args:
        split: Rows.
        named: By the user, with commas between them; or None for one with a known name, or those named as the labels.
        names: Of the model's labels.
        option: With which a user names the columns.
        where: Name of the split, for the message.

    Raises:
        InvalidSettingError: There are no such columns.
    """
    if named is not None:
        parts = [named] if named in split.column_names else [part.strip() for part in named.split(",")]
        return tuple(_present(split, part, option=option, where=where) for part in parts)
    known = [name for name in CLASSES if name in split.column_names]
    by_name = {name.casefold(): name for name in split.column_names}
    wanted = [name.casefold() for name in names]
    if not known and all(name in by_name for name in wanted):
        return tuple(by_name[name] for name in wanted)
    if len(known) != 1:
        raise InvalidSettingError(
            f"{where}: this model gives each example several labels, and no single column is named "
            f"{' or '.join(CLASSES)}, nor is there one for each of {listed(names)}, among the columns "
            f"{listed(split.column_names)}. Name a column of lists, or one for each label, with {option} A,B,C."
        )
    return (known[0],)


def text_columns(split: Dataset, named: NamedColumns, labels: tuple[str, ...], *, where: str) -> tuple[str, ...]:
    """Returns the column of the text, or the two of a pair.

    Columns with known names are found if no other column holds text: a second text that the model was or was not
    trained with can't be told from a note or a finer label. Columns named after labels or numbers of examples
    ("gold_label", "idx") hold none.

    Args:
        split: Rows.
        named: By the user.
        labels: Columns of the labels.
        where: Name of the split, for the message.

    Raises:
        InvalidSettingError: A named column is missing, or others hold text and must be named.
    """
    if named.text_pair is not None and named.text is None:
        raise InvalidSettingError(
            f"{where}: --text-pair-column {named.text_pair} is the second of two. Name the first with --text-column."
        )
    if named.text is not None:
        both = [("--text-column", named.text), ("--text-pair-column", named.text_pair)]
        return tuple(_present(split, name, option=option, where=where) for option, name in both if name is not None)
    texts = [name for name in split.column_names if name not in labels and _holds_text(split, name)]
    known: tuple[tuple[str, ...], ...] = (*((name,) for name in TEXTS), *PAIRS)
    for names in known:
        if set(names) == set(texts):
            return names
    beside = [names for names in known if set(names) <= set(texts)]
    if beside:
        problem, first = f"the columns {listed(texts)} all hold text", max(beside, key=len)[0]
    else:
        shown = ", ".join("/".join(names) for names in known)
        problem = f"no column of text is named {shown}; the columns of text are {listed(texts)}"
        first = texts[0] if len(texts) == 1 else "NAME"
    raise InvalidSettingError(
        f"{where}: {problem}. Name what the model reads: --text-column {first}, and --text-pair-column for the second "
        "text of a pair."
    )


def listed(names: Iterable[Any]) -> str:
    """Returns names or labels for a message: the first dozen, each cut to 40 characters."""
    shown = [text if len(text := repr(name)) <= 40 else f"{text[:37]}..." for name in names]  # noqa: PLR2004
    more = f" and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more if shown else "none"


def _present(split: Dataset, name: str, *, option: str, where: str) -> str:
    if name not in split.column_names:
        raise InvalidSettingError(
            f"{where}: there is no column {name!r}, among the columns {listed(split.column_names)}. Change {option}."
        )
    return name


def _holds_text(split: Dataset, name: str) -> bool:
    """Tells whether a column holds text: strings that are not all numbers, under no name of a label or a number."""
    if is_number_or_label(name) or getattr(split.features[name], "dtype", None) not in _STRINGS:
        return False
    return not all(_is_number(value) for value in split[name])


def _is_number(value: Any) -> bool:
    try:
        float(value or 0)
    except (TypeError, ValueError):
        return False
    return True
