"""What is compared, whatever it is: a model, one that reads rows of its own, a function, an ONNX file, or answers."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from hf_headprune._checks import is_whole
from hf_headprune._strict_json import path_of
from hf_headprune.errors import InvalidSettingError, MissingExtraError, shown
from hf_headprune.guarantee.neighbours import Neighbours
from hf_headprune.tasks.examples import PadRight

if TYPE_CHECKING:
    from collections.abc import Sequence

ONNX = ".onnx"
BATCH = 32
PAIR = 2  # a model, and its rows


def has_own_rows(given: Any) -> bool:
    """Tells whether something is a pair of a model and the same examples as its own tokenizer encodes them."""
    return isinstance(given, tuple) and len(given) == PAIR and isinstance(given[0], nn.Module)


def bare(given: Any) -> Any:
    """Returns a model without the rows of its own; all else as it is."""
    return given[0] if has_own_rows(given) else given


def is_model(given: Any) -> bool:
    """Tells whether something is a model of torch, alone or with rows of its own."""
    return isinstance(bare(given), nn.Module)


def is_external(given: Any) -> bool:
    """Tells whether something is no model of torch."""
    return not is_model(given)


def first_reader(models: Sequence[Any]) -> Any:
    """Returns the first model of torch that reads the rows of the split; where there is none, the first of any rows."""
    found = [it for it in models if not is_external(it)]
    return bare(next((it for it in found if not has_own_rows(it)), found[0] if found else models[0]))


def check_external(models: Sequence[Any], where: str) -> None:
    """Refuses what can't answer.

    Raises:
        InvalidSettingError: One is no model, alone or with rows of its own, no function, no path of an ONNX file and no
            list of answers.
    """
    for given in filter(is_external, models):
        is_file = isinstance(given, (str, Path)) and str(given).endswith(ONNX) and path_of(given, where).is_file()
        if not (callable(given) or is_file or isinstance(given, (list, tuple, np.ndarray))):
            raise InvalidSettingError(
                f"{where}: dense and pruned must be a model, a pair of a model and the examples as its own tokenizer "
                "encodes them, a function of the examples that returns their answers, the path of an ONNX file, or a "
                f"list with the answer to each example; received {shown(given)}."
            )


def answers_of(given: Any, dataset: Any) -> np.ndarray:
    """Returns the class that something answers to each example of a data set, `(n, 1)`.

    Args:
        given: A function of the data set that returns a class for each example; the path of an ONNX file with inputs
            named as the examples' and logits as its first output; or the classes themselves.
        dataset: Sized and indexable.

    Raises:
        InvalidSettingError: The answers are not one whole number for each example.
        MissingExtraError: The package onnxruntime is not installed.
    """
    if isinstance(given, (str, Path)):
        found: Any = _answers_of_onnx(Path(given), dataset)
    else:
        found = given(dataset) if callable(given) else given
    answers = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(answers, (list, tuple)) or not all(map(is_whole, answers)) or len(answers) != len(dataset):
        raise InvalidSettingError(
            f"certify: answers must be one class, a whole number, for each of the {len(dataset)} examples, received "
            f"{shown(answers)}. Return the index of the largest logit."
        )
    return np.array(answers, dtype=np.float64)[:, None]


def fingerprint_of(given: Any) -> tuple[str, str | None]:
    """Returns the name of something external, and the sha256 of its file or its answers; None for a function."""
    if isinstance(given, (str, Path)):
        return f"the ONNX file {Path(given).name}", hashlib.sha256(Path(given).read_bytes()).hexdigest()
    if callable(given):
        name = getattr(given, "__qualname__", type(given).__qualname__)
        return f"the function {name}"[:200], None
    content = repr(given.tolist() if hasattr(given, "tolist") else list(given))
    name = "recorded nearest neighbours" if isinstance(given, Neighbours) else "recorded answers"
    return name, hashlib.sha256(content.encode()).hexdigest()


def _answers_of_onnx(file: Path, dataset: Any) -> list[int]:
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError(
            f"certify: {file} needs the package onnxruntime. Install it, or pass a function that runs the file."
        ) from error
    session = runtime.InferenceSession(str(file))
    names, collate, answers = [it.name for it in session.get_inputs()], PadRight(None), []
    for first in range(0, len(dataset), BATCH):
        rows = [dataset[index] for index in range(first, min(first + BATCH, len(dataset)))]
        batch = collate([{name: row[name] for name in names if name in row} for row in rows])
        inputs = {name: batch[name].numpy() for name in names if name in batch}
        answers += session.run(None, inputs)[0].argmax(axis=-1).tolist()
    return answers
