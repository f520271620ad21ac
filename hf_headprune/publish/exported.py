"""A model as a file for another runtime: what onnxruntime and OpenVINO have in common."""

from __future__ import annotations

import inspect
import io
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_headprune._beside_weights import write_text
from hf_headprune._compat import is_dispatched
from hf_headprune._finite import check_loaded, check_plain_tensors
from hf_headprune.anatomy import family_of
from hf_headprune.errors import HeadPruneError, InvalidSettingError, MissingExtraError, UnsupportedModelError, shown
from hf_headprune.families import PRUNABLE_PREFIX
from hf_headprune.latency import LatencySettings, random_inputs
from hf_headprune.masking import evaluating
from hf_headprune.tasks.batches import running
from hf_headprune.tasks.examples import LABEL_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGEST_DIFFERENCE = 1e-3  # of the largest output, in fp32
TRACED, COMPARED = LatencySettings(batch_size=2, seq_len=12), LatencySettings(batch_size=3, seq_len=7)
LEAST_ROWS = 2  # and tokens
DECODER = "decoder_"  # begins the names of the inputs of an encoder-decoder's second half
IMAGES = "pixel_values"
TOKEN_TYPES = "token_type_ids"  # which text of a pair a token belongs to
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # of a checkpoint
OF_LAYERS = ("per_layer_config", "auto_map")


@dataclass(frozen=True)
class Exported:
    """A file for another runtime, and how far it is from the model in torch.

    Attributes:
        path: The file.
        difference: Largest difference of the first output on random inputs, over the largest output of torch.
        changed: Share of the random inputs to which the file gives another largest output.
    """

    path: Path
    difference: float
    changed: float

    def check_equal(self, where: str) -> None:
        """Refuses a file that computes something else than torch.

        Raises:
            HeadPruneError: It does.
        """
        if not self.difference <= LARGEST_DIFFERENCE:
            raise HeadPruneError(
                f"{where}: {self.path} differs from the model by {self.difference:.2g} of its largest output, allowed "
                f"is {LARGEST_DIFFERENCE:g}. It is removed. Export the model in fp32, with inputs= like those of your "
                "data."
            )


def check_exportable(model: Any, where: str) -> None:
    """Refuses a model of no supported family, or one that is quantized, spread over devices, not in fp32, or empty.

    Raises:
        UnsupportedModelError: It is.
    """
    family_of(model)
    check_plain_tensors(model, where=where, advice="Export the model before it is quantized.")
    check_loaded(model)
    others = sorted({str(it.dtype) for it in model.parameters() if it.is_floating_point()} - {"torch.float32"})
    if others:
        raise UnsupportedModelError(
            f"{where}: the {type(model).__name__} has weights in {', '.join(others)}, which runtimes on a CPU can't "
            "compute with. Export it in fp32: model.float()."
        )
    if is_dispatched(model):
        raise UnsupportedModelError(
            f"{where}: the {type(model).__name__} is spread over devices (device_map, or offloading), and a trace "
            "needs its weights in one place. Save it, load the folder without device_map, and export that."
        )


def imported(name: str, *, where: str, extra: str) -> Any:
    """Imports what an export needs.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{where}: {name} can't be imported ({error}). Install the extra: pip install 'hf-headprune[{extra}]', "
            "with Transformers 5.24 or newer."
        ) from error


def traced_inputs(model: Any, inputs: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Returns what the forward pass is traced with: the inputs of the user, or random tokens.

    Raises:
        InvalidSettingError: Those of the user are no tensors, have less than two rows, or names that the model has not.
    """
    if inputs is None:
        return _random(model, TRACED)
    if not isinstance(inputs, Mapping) or not all(isinstance(value, torch.Tensor) for value in inputs.values()):
        raise InvalidSettingError(
            f"export: inputs must be a mapping from names to tensors, received {shown(inputs)}. Pass what the "
            "tokenizer returns with return_tensors='pt', or leave inputs out."
        )
    taken = set(inspect.signature(model.forward).parameters) - {*LABEL_NAMES, "start_positions", "end_positions"}
    unknown = sorted(set(inputs) - taken)
    rows = {len(value) if value.ndim else 0 for value in inputs.values()}
    fixed = [name for name, it in inputs.items() if name != IMAGES and 1 in it.shape[1:]]
    if unknown or len(rows) != 1 or min(rows) < LEAST_ROWS or fixed:
        raise InvalidSettingError(
            f"export: inputs must be what a {type(model).__name__} takes but for labels, with at least {LEAST_ROWS} "
            f"rows each, equally many, of at least {LEAST_ROWS} tokens, received "
            f"{ {name: tuple(value.shape) for name, value in inputs.items()} }"
            + (f", of which it takes no {unknown}" if unknown else "")
            + ". Leave others out; of a single row or token a trace takes the number for fixed."
        )
    with evaluating(model), torch.no_grad(), running(model, dict(inputs), "export"):
        model(**inputs)
    return dict(inputs)


def dynamic_axes(traced: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns which axes the file leaves open, as an exporter's configuration takes it: of images the batch alone.

    Swin's windows make conditions of height and width that a trace does not come to an end with.
    """
    if IMAGES not in traced:
        return {"dynamic": True}
    auto = torch.export.Dim.AUTO
    return {
        "dynamic_shapes": {
            name: dict.fromkeys([0] if name == IMAGES else range(tensor.ndim), auto) for name, tensor in traced.items()
        }
    }


def _random(model: Any, settings: LatencySettings) -> dict[str, torch.Tensor]:
    """Returns random inputs; a decoder gets fewer tokens than its encoder, or a trace takes both lengths for one."""
    given = random_inputs(model, settings)
    given |= _token_types(model, given)
    if not getattr(model, "can_generate", bool)():  # BART's classifier reads the same tokens twice
        return given
    return {name: value[:, :-2] if name.startswith(DECODER) else value for name, value in given.items()}


def _token_types(model: Any, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns which text of a pair each token belongs to, at random, where a model tells them apart."""
    kinds = getattr(model.config, "type_vocab_size", 0)
    if kinds <= 1 or TOKEN_TYPES not in inspect.signature(model.forward).parameters:
        return {}
    tokens = given["input_ids"]
    drawn = torch.randint(kinds, tokens.shape, generator=torch.Generator().manual_seed(1))
    return {TOKEN_TYPES: drawn.to(tokens.device)}


@contextmanager
def checked_before_it_counts(file: Path) -> Iterator[Path]:
    """Yields where a file is to be written and checked; it gets its name once the `with` block ends without an error.

    What else lies there, such as an earlier file, is left alone until then.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        yield Path(folder, file.name)
        for written in sorted(Path(folder).iterdir()):
            written.replace(file.with_name(written.name))


@contextmanager
def silenced() -> Iterator[None]:
    """Keeps what exporters print, log and warn about from the user: what a file computes is compared with torch."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def compared(
    model: Any, file: Path, run: Callable[[dict[str, np.ndarray]], np.ndarray], inputs: Any = None
) -> Exported:
    """Compares what a file computes with the model in torch.

    Args:
        model: In torch.
        file: That was written from it.
        run: Returns the first output of the file for inputs by name.
        inputs: As for `traced_inputs`; random ones are of another batch size and length than those traced.
    """
    given = dict(_random(model, COMPARED) if inputs is None else inputs)
    with evaluating(model):
        expected = model(**given)[0].float().cpu().numpy()
    received = run({name: tensor.cpu().numpy() for name, tensor in given.items()})
    difference = float(np.abs(received - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    return Exported(file, difference, float((received.argmax(-1) != expected.argmax(-1)).mean()))


def write_dense_config(model: Any, folder: str | Path) -> None:
    """Writes the configuration as of the dense model: servers know its type, and the file has the sizes.

    In the folder of a checkpoint the configuration is that of its weights, and stays.
    """
    if any(True for pattern in WEIGHTS for _ in Path(folder).glob(pattern)):
        return
    content = {name: value for name, value in model.config.to_dict().items() if name not in OF_LAYERS}
    host = next(it for it in model.modules() if isinstance(it, PreTrainedModel))  # inside of what wraps it
    name = type(host).__name__.removeprefix(PRUNABLE_PREFIX.removesuffix("_").capitalize())
    content |= {"model_type": family_of(model).model_type, "architectures": [name]}
    write_text(Path(folder, "config.json"), json.dumps(content, indent=2, sort_keys=True))
