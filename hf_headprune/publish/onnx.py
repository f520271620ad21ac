"""A model as an ONNX file for servers, in fp32 or int8; what the file computes is compared with torch."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune._beside_weights import write_text
from hf_headprune.anatomy import family_of
from hf_headprune.errors import HeadPruneError, MissingExtraError
from hf_headprune.families import PRUNABLE_PREFIX
from hf_headprune.latency import LatencySettings, random_inputs
from hf_headprune.masking import evaluating

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

logger = logging.getLogger(__name__)

FILE = Path("onnx", "model.onnx")
LARGEST_DIFFERENCE = 1e-3  # of the largest output, in fp32
TRACED, COMPARED = LatencySettings(batch_size=2, seq_len=12), LatencySettings(batch_size=3, seq_len=7)
OF_LAYERS = ("per_layer_config", "auto_map")


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file and how far it is from the model in torch.

    Attributes:
        path: The file.
        difference: Largest difference of the first output on random inputs, over the largest output of torch.
        changed: Share of the random inputs to which the file gives another largest output.
    """

    path: Path
    difference: float
    changed: float


def export_onnx(
    model: nn.Module, path: str | Path, *, int8: bool = False, inputs: Mapping[str, torch.Tensor] | None = None
) -> OnnxExport:
    """Writes a model as `onnx/model.onnx` in a folder, with a `config.json` of its family beside it.

    There onnxruntime, Optimum and Text Embeddings Inference find it. Batch size and length are free. A certificate is
    about one file of weights: certify this one, `certify(dense, "folder/onnx/model.onnx", test)`. In int8 the file
    answers a few percent of the examples otherwise, so that of the fp32 weights says nothing about it.

    Args:
        model: Dense or pruned, in fp32.
        path: Folder; it is made where there is none.
        int8: Whether to store the matrices in int8, quantized without examples.
        inputs: Keyword arguments of the forward pass to trace with, batch first, at least two rows; random tokens when
            left out.

    Raises:
        MissingExtraError: The extra `onnx` is not installed, or Transformers has no exporters.
        HeadPruneError: The fp32 file computes something else than torch; it is not left behind.
    """
    names = ("transformers.exporters", "onnxruntime", "onnx_ir", "onnx_ir.passes.common")
    exporters, runtime, ir, passes = map(_imported, names)
    file = Path(path, FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"dynamic": True}
    if int8:
        options["quantizer"] = exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig())
    traced = dict(random_inputs(model, TRACED) if inputs is None else inputs)
    with evaluating(model):
        exported = exporters.OnnxExporter().export(model, traced, config=exporters.OnnxConfig(**options))
    passes.ClearMetadataAndDocStringPass()(exported.program)  # stack traces, with paths of this machine
    ir.save(exported.program, str(file))  # one file, so that its sha256 is about the weights, too
    found = _compared(model, file, runtime, traced if inputs is not None else random_inputs(model, COMPARED))
    if not int8 and not found.difference <= LARGEST_DIFFERENCE:
        file.unlink()
        raise HeadPruneError(
            f"export_onnx: {file} differs from the model by {found.difference:.2g} of its largest output, allowed is "
            f"{LARGEST_DIFFERENCE:g}. It is removed. Export the model in fp32, with inputs= like those of your data."
        )
    write_text(Path(path, "config.json"), json.dumps(_config_of(model), indent=2, sort_keys=True))
    return found


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"export_onnx: {name} can't be imported ({error}). Install the extra: pip install 'hf-headprune[onnx]', "
            "with Transformers 5.24 or newer."
        ) from error


def _compared(model: Any, file: Path, runtime: Any, inputs: Mapping[str, torch.Tensor]) -> OnnxExport:
    with evaluating(model):
        expected = model(**inputs)[0].float().cpu().numpy()
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [it.name for it in session.get_inputs()]
    received = session.run(None, {name: inputs[name].cpu().numpy() for name in names})[0]
    difference = float(np.abs(received - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    return OnnxExport(file, difference, float((received.argmax(-1) != expected.argmax(-1)).mean()))


def _config_of(model: Any) -> dict[str, Any]:
    """Returns the configuration as of the dense model: servers know its type, and the file has the sizes."""
    content = {name: value for name, value in model.config.to_dict().items() if name not in OF_LAYERS}
    name = type(model).__name__.removeprefix(PRUNABLE_PREFIX.removesuffix("_").capitalize())
    return {**content, "model_type": family_of(model).model_type, "architectures": [name]}
