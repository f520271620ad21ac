"""`--vocabulary`: a copy of the model with the pieces that a corpus uses; each model reads the examples by its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_headprune._beside_weights import CONFIG_NAME
from hf_headprune.cli.columns import NamedColumns, text_columns
from hf_headprune.cli.examples import TextReader, reader_for
from hf_headprune.cli.models import NoTokenizerError, load_tokenizer
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.guarantee.external import is_external
from hf_headprune.masking import plain_copy
from hf_headprune.shrink.vocabulary import prune_vocabulary_

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_headprune.cli.examples import Reader

TRAIN = "train"


@dataclass(frozen=True)
class SmallerVocabulary:
    """What becomes of a model whose vocabulary is cut.

    Attributes:
        model: A copy, with fewer embeddings.
        tokenizer: Its own.
        note: What was kept, in words.
        dense: The model before.
        reader: Of its examples.
    """

    model: Any
    tokenizer: Any
    note: str
    dense: Any
    reader: TextReader

    def reference(self, rows: Dataset | None) -> tuple[Any, Dataset] | None:
        """Returns the model before, with the examples as its own tokenizer encodes them; None where there are none."""
        return None if rows is None else (self.dense, self.reader.encode_again(rows))

    @classmethod
    def of(cls, corpus: str, model: Any, reader: Reader, train: Dataset) -> SmallerVocabulary:
        """Keeps the pieces that a corpus uses.

        Args:
            corpus: Text file with a text a line, or "train" for the texts of the training examples.
            model: Left as it is.
            reader: Of its examples.
            train: Training examples.

        Raises:
            InvalidSettingError: The corpus can't be read.
            UnsupportedModelError: The task is another than one of texts or pairs of texts.
        """
        if not isinstance(reader, TextReader):
            raise UnsupportedModelError(
                f"--vocabulary is for ...ForSequenceClassification, received {type(model).__name__}: its examples are "
                "words, windows or references, which another tokenizer splits into others, so they can't be compared "
                "one by one. Leave it out, or cut the vocabulary in Python with prune_vocabulary_."
            )
        smaller = plain_copy(model)
        tokenizer = prune_vocabulary_(smaller, reader.tokenizer, _texts(corpus, reader, train))
        counts = f"{len(tokenizer):,} of {len(reader.tokenizer):,}"
        source = "the training texts" if corpus == TRAIN else corpus
        note = f"Vocabulary: {counts} pieces, those of {source} and all single characters."
        return cls(smaller, tokenizer, note, model, reader)


def own_reader(dense: Any, pruned: Any, place: Path, tokenizer: Any, max_length: int | None) -> TextReader | None:
    """Returns what encodes examples anew for a model, if the tokenizer beside it has another vocabulary; else None.

    Args:
        dense: The model that it is compared with.
        pruned: The model, or its exported file.
        place: Where it was loaded from.
        tokenizer: That the examples are encoded with.
        max_length: Tokens of an example; None for as many as the model reads.

    Raises:
        UnsupportedModelError: The vocabulary is another one, and the examples of the task are no texts.
    """
    model, source = dense if is_external(pruned) else pruned, folder_of(place)
    try:
        own = load_tokenizer(source, model)
    except NoTokenizerError:
        return None
    if own.get_vocab() == tokenizer.get_vocab():
        return None
    reader = reader_for(model, own, NamedColumns(), max_length)
    if not isinstance(reader, TextReader):
        raise UnsupportedModelError(
            f"{source}: its tokenizer has another vocabulary, and only the texts of ...ForSequenceClassification can "
            f"be encoded for each model, received {type(model).__name__}. Certify it in Python, with the examples "
            "beside each model."
        )
    return reader


def folder_of(place: Path) -> Path:
    """Returns the folder of a model; that of an exported file lies above onnx/ and openvino/."""
    return next((it for it in (place, *place.parents[:2]) if (it / CONFIG_NAME).exists()), place)


def _texts(corpus: str, reader: TextReader, train: Dataset) -> list[str]:
    if corpus == TRAIN:
        named = reader.named
        labels = () if named.label is None else (named.label,)
        columns = text_columns(train, named, labels or ("label", "labels", "score"), where=TRAIN)
        return [text for column in columns for text in train[column] if isinstance(text, str)]
    path = Path(corpus)
    if not path.is_file():
        raise InvalidSettingError(
            f"--vocabulary {corpus}: there is no such file. Pass a text file with a text a line, or {TRAIN!r} for the "
            "texts of the training examples."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidSettingError(f"--vocabulary {corpus}: it must be text in UTF-8: {error}.") from error
    return [line for line in lines if line.strip()]
