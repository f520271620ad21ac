"""A model as an ONNX file for servers, in fp32 or int8; what the file computes is compared with torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_headprune._beside_weights import folder_at
from hf_headprune.masking import evaluating
from hf_headprune.publish.exported import (
    Exported,
    check_exportable,
    checked_before_it_counts,
    compared,
    dynamic_axes,
    imported,
    silenced,
    traced_inputs,
    write_dense_config,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

FILE = Path("onnx", "model.onnx")


def export_onnx(
    model: nn.Module, path: str | Path, *, int8: bool = False, inputs: Mapping[str, torch.Tensor] | None = None
) -> Exported:
    """Writes a model as `onnx/model.onnx` in a folder, with a `config.json` of its family beside it.

    The `config.json` of a checkpoint is unchanged. There onnxruntime, Optimum and Text Embeddings Inference find it.
    Batch size and length are free; the size of images is not. A certificate is about one file of weights: certify this
    one, `certify(dense, "folder/onnx/model.onnx", test)`. In int8 the file answers a few percent of the examples
    otherwise, so that of the fp32 weights says nothing about it.

    Args:
        model: Dense or pruned, in fp32.
        path: Folder; it is made where there is none.
        int8: Whether to store the matrices in int8, quantized without examples.
        inputs: Keyword arguments of the forward pass to trace with, batch first, at least two rows; random tokens when
            left out.

    Raises:
        MissingExtraError: The extra `onnx` is not installed, or Transformers has no exporters.
        InvalidSettingError: The path is that of a file; or the inputs are no tensors, have less than two rows, or names
            that the model has not.
        UnsupportedModelError: The model is spread over devices, or not in fp32.
        HeadPruneError: The fp32 file computes something else than torch; it is not left behind.
    """
    check_exportable(model, "export_onnx")
    file = Path(path, FILE)
    folder_at(file.parent, where="export_onnx")
    needed = ("transformers.exporters", "onnxruntime", "onnx_ir", "onnx_ir.passes.common")
    exporters, runtime, ir, passes = (imported(it, where="export_onnx", extra="onnx") for it in needed)
    traced = traced_inputs(model, inputs)
    options = dynamic_axes(traced)
    if int8:
        options["quantizer"] = exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig())
    with evaluating(model), silenced():
        exported = exporters.OnnxExporter().export(model, traced, config=exporters.OnnxConfig(**options))
    passes.ClearMetadataAndDocStringPass()(exported.program)  # stack traces, with paths of this machine
    with checked_before_it_counts(file) as partial:
        ir.save(exported.program, str(partial))  # one file, so that its sha256 is about the weights, too
        session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        names = [it.name for it in session.get_inputs()]
        found = compared(model, file, lambda given: session.run(None, {name: given[name] for name in names})[0], inputs)
        if not int8:
            found.check_equal("export_onnx")
    write_dense_config(model, path)
    return found
