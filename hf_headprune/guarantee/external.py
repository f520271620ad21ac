"""What is compared, whatever it is: a model, one with rows of its own, a function, a runtime's file, or answers."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hf_headprune._checks import is_whole
from hf_headprune._strict_json import path_of
from hf_headprune.errors import InvalidSettingError, MissingExtraError, shown
from hf_headprune.guarantee.neighbours import Neighbours
from hf_headprune.masking import check_whole
from hf_headprune.tasks.examples import PadRight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SUFFIXES = ONNX, OPENVINO = ".onnx", ".xml"
WEIGHTS = ".bin"  # of OpenVINO lie beside the graph
IN_FP32 = {"INFERENCE_PRECISION_HINT": "f32"}  # else the answers depend on whether the CPU has bf16
BATCH = 32
TOKEN_TYPES = "token_type_ids"  # which text of a pair a token belongs to
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
    """Refuses what can't answer, and models that answer otherwise than their weights will.

    Raises:
        InvalidSettingError: One is no model, alone or with rows of its own, no function, no path of an ONNX or OpenVINO
            file and no list of answers.
        UnsupportedModelError: A model carries gates or a mask.
    """
    for given in filter(is_model, models):
        check_whole(bare(given), where)
    for given in filter(is_external, models):
        is_path = isinstance(given, (str, Path)) and str(given).endswith(SUFFIXES)
        is_file = is_path and all(file.is_file() for file in _files(path_of(given, where)))
        if not (callable(given) or is_file or isinstance(given, (list, tuple, np.ndarray))):
            raise InvalidSettingError(
                f"{where}: dense and pruned must be a model, a pair of a model and the examples as its own tokenizer "
                "encodes them, a function of the examples that returns their answers, the path of an ONNX file (.onnx) "
                "or of an OpenVINO one (.xml, its .bin beside it), or a list with the answer to each example; received "
                f"{shown(given)}."
            )


def answers_of(given: Any, dataset: Any) -> np.ndarray:
    """Returns the class that something answers to each example of a data set, `(n, 1)`.

    Args:
        given: A function of the data set that returns a class for each example; the path of an ONNX or OpenVINO file
            with inputs named as the examples' and logits as its first output; or the classes themselves.
        dataset: Sized and indexable.

    Raises:
        InvalidSettingError: The answers are not one whole number for each example.
        MissingExtraError: The package onnxruntime, or openvino, is not installed.
    """
    if isinstance(given, (str, Path)):
        found: Any = _answers_of_file(Path(given), dataset)
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
        together = b"".join(file.read_bytes() for file in _files(Path(given)))
        return _name_of(Path(given)), hashlib.sha256(together).hexdigest()
    if callable(given):
        name = getattr(given, "__qualname__", type(given).__qualname__)
        return f"the function {name}"[:200], None
    content = repr(given.tolist() if hasattr(given, "tolist") else list(given))
    name = "recorded nearest neighbours" if isinstance(given, Neighbours) else "recorded answers"
    return name, hashlib.sha256(content.encode()).hexdigest()


def file_named(name: str, folder: Path) -> Path | None:
    """Returns the file of a runtime that a certificate calls by a name, in a folder; None where it is not there."""
    return next((file for file in folder.iterdir() if file.suffix in SUFFIXES and _name_of(file) == name), None)


def _name_of(file: Path) -> str:
    return f"the {'OpenVINO' if file.suffix == OPENVINO else 'ONNX'} file {file.name}"


def _files(path: Path) -> tuple[Path, ...]:
    """Returns a file, and what lies beside it that its answers depend on."""
    return (path, path.with_suffix(WEIGHTS)) if path.suffix == OPENVINO else (path,)


def _answers_of_file(file: Path, dataset: Any) -> list[int]:
    names, run = _openvino(file) if file.suffix == OPENVINO else _onnx(file)
    collate, answers = PadRight(None), np.zeros(len(dataset), dtype=np.int64)
    for taken in _batches_of_one_length(dataset):
        numbers, rows = map(list, zip(*taken, strict=True))
        batch = collate([{name: row[name] for name in (*names, TOKEN_TYPES) if name in row} for row in rows])
        if TOKEN_TYPES not in names and TOKEN_TYPES in batch and bool(batch[TOKEN_TYPES].any()):
            raise InvalidSettingError(
                f"certify: {file} takes no {TOKEN_TYPES}, by which the model tells the texts of a pair apart, and the "
                "examples hold some. Export it again, with inputs= that have them."
            )
        if TOKEN_TYPES in names and TOKEN_TYPES not in batch:  # as the model does in torch
            batch[TOKEN_TYPES] = torch.zeros_like(batch["input_ids"])
        answers[numbers] = run({name: batch[name].numpy() for name in names if name in batch}).argmax(axis=-1)
    return answers.tolist()


def _batches_of_one_length(dataset: Any) -> Iterator[list[tuple[int, Any]]]:
    """Yields batches of examples, each with its number, that need no padding; each example is read once.

    A decoder finds the last token of a text by the token that pads, and no file says which token that is.
    """
    waiting: dict[int, list[tuple[int, Any]]] = {}
    for index in range(len(dataset)):
        row = dataset[index]
        length = len(row.get("input_ids", ()))
        waiting.setdefault(length, []).append((index, row))
        if len(waiting[length]) == BATCH:
            yield waiting.pop(length)
    yield from waiting.values()


def _onnx(file: Path) -> tuple[list[str], Callable[[dict[str, Any]], Any]]:
    """Returns the names of the inputs, and a function of them that returns the first output."""
    session = _opened("onnxruntime", file, lambda runtime: runtime.InferenceSession(str(file)))
    return [it.name for it in session.get_inputs()], lambda inputs: session.run(None, inputs)[0]


def _openvino(file: Path) -> tuple[list[str], Callable[[dict[str, Any]], Any]]:
    compiled = _opened("openvino", file, lambda runtime: runtime.Core().compile_model(str(file), "CPU", IN_FP32))
    return [it.get_any_name() for it in compiled.inputs], lambda inputs: compiled(inputs)[0]


def _opened(name: str, file: Path, opened_by: Callable[[Any], Any]) -> Any:
    """Opens a file with its runtime, a package of this name."""
    try:
        runtime = import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"certify: {file} needs the package {name}. Install it, or pass a function that runs the file."
        ) from error
    try:
        return opened_by(runtime)
    except Exception as error:  # each runtime has kinds of its own
        raise InvalidSettingError(
            f"certify: {name} can't open {file}: {str(error).strip().partition(chr(10))[0][:300]}. Export it again."
        ) from error
