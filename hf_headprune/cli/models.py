"""Loads models and tokenizers for the command line; what fails is an error of one line."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from hf_headprune.cli.columns import listed
from hf_headprune.errors import HeadPruneError, InvalidSettingError, UnsupportedModelError
from hf_headprune.guarantee.external import SUFFIXES
from hf_headprune.shrink.prunable import class_names, prunable_named
from hf_headprune.tasks.examples import is_a

if TYPE_CHECKING:
    from collections.abc import Iterator

_OF_TOKENIZERS = re.compile(
    r"(tokeniz|vocab|spiece|sentencepiece|merges|source\.spm|target\.spm|bpe)|.*\.(model|tiktoken)$"
)


def load_model(source: str | Path) -> Any:
    """Loads a model as the class that its configuration names, in evaluation mode.

    Args:
        source: Folder, or name on the Hub.

    Raises:
        UnsupportedModelError: There is none, it can't be read, its class is unknown, or weights are missing.
    """
    with _one_line(source, "model"):
        config: Any = transformers.AutoConfig.from_pretrained(source)
        name = (config.architectures or ["none"])[0]
        kind = prunable_named(name) if name in class_names() else getattr(transformers, name, None)
        if kind is None:
            raise UnsupportedModelError(
                f"{source}: its configuration names the class {name!r}, which Transformers does not have. Pass the "
                "checkpoint of one of its models."
            )
        model, loading = kind.from_pretrained(source, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedModelError(
            f"{source}: its checkpoint lacks {listed(missing)}, so it is no fine-tuned {name}. Pass a model that was "
            "trained for its task."
        )
    return model.eval()


def load_deployed(source: str | Path) -> Any:
    """Loads a model, on the accelerator where there is one; of an ONNX or OpenVINO file, returns the path.

    Raises:
        UnsupportedModelError: As of `load_model`.
    """
    return path if (path := Path(source)).suffix in SUFFIXES else to_accelerator_(load_model(source))


class NoTokenizerError(InvalidSettingError):
    """There is no tokenizer where one was looked for."""


def load_tokenizer(source: str | Path, model: Any) -> Any:
    """Loads the tokenizer of a model.

    Args:
        source: Folder, or name on the Hub.
        model: Its vocabulary must hold all tokens.

    Raises:
        NoTokenizerError: There is none.
        InvalidSettingError: It can't be read, or is another model's.
    """
    nothing = NoTokenizerError(f"{source}: there is no tokenizer. Name one with --tokenizer.")
    files = [file.name for file in Path(source).iterdir()] if Path(source).is_dir() else None
    if files is not None and not any(_OF_TOKENIZERS.match(name) for name in files):
        raise nothing
    with _one_line(source, "tokenizer"):
        # Words of a list are told from parts of words by the space before them.
        splits_words = is_a(model, "ForTokenClassification")
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, **({"add_prefix_space": True} if splits_words else {})
        )
        size, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
        if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) == 0:  # made up from the configuration
            raise nothing
    if size > rows:
        raise InvalidSettingError(
            f"{source}: the tokenizer has {size:,} tokens and the model {rows:,} embeddings. Name the tokenizer that "
            "the model was trained with, --tokenizer."
        )
    return tokenizer


def to_accelerator_(model: Any) -> Any:
    """Moves a model, in place, to the accelerator where there is one."""
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model


@contextmanager
def _one_line(source: str | Path, what: str) -> Iterator[None]:
    is_path = str(source).startswith((".", "/", "~")) or str(source).count("/") > 1
    try:
        yield
    except HeadPruneError:
        raise
    except Exception as error:
        kind = InvalidSettingError if what == "tokenizer" else UnsupportedModelError
        if is_path and not Path(source).is_dir():
            raise kind(f"{source}: there is no such folder.") from error
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        place = "this folder" if Path(source).is_dir() else "this name on the Hub, or a folder of that name"
        raise kind(f"{source}: no {what} can be read from {place}: {first_line[:300]}") from error
