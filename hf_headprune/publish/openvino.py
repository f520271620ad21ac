"""A model as files for OpenVINO; what they compute is compared with torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_headprune._beside_weights import folder_at
from hf_headprune.errors import HeadPruneError
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

FILE = Path("openvino", "openvino_model.xml")
IN_FP32 = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO computes in bf16 where the CPU has it, unless told otherwise


def export_openvino(
    model: nn.Module, path: str | Path, *, inputs: Mapping[str, torch.Tensor] | None = None
) -> Exported:
    """Writes a model as `openvino/openvino_model.xml` and `.bin` in a folder, with a `config.json` beside them.

    The `config.json` of a checkpoint is unchanged. There Optimum Intel and sentence-transformers find it. Batch size
    and length are free, the size of images is not; weights are fp32. A certificate is about these files:
    `certify(dense, "folder/openvino/openvino_model.xml", test)`. It holds for fp32: compile the model with
    `{"INFERENCE_PRECISION_HINT": "f32"}`, since OpenVINO computes in bf16 where the CPU has it.

    Args:
        model: Dense or pruned, in fp32.
        path: Folder; it is made where there is none.
        inputs: Keyword arguments of the forward pass to trace with, batch first, at least two rows; random tokens when
            left out.

    Raises:
        MissingExtraError: The extra `openvino` is not installed, or Transformers has no exporter for it.
        InvalidSettingError: The path is that of a file; or the inputs are no tensors, have less than two rows, or names
            that the model has not.
        UnsupportedModelError: The model is spread over devices, or not in fp32.
        HeadPruneError: OpenVINO can't convert the model, or the files compute something else than torch; then they
            are not left behind.
    """
    check_exportable(model, "export_openvino")
    file = Path(path, FILE)
    folder_at(file.parent, where="export_openvino")
    needed = ("transformers.exporters", "openvino", "openvino.frontend")
    exporters, runtime, frontend = (imported(name, where="export_openvino", extra="openvino") for name in needed)
    traced = traced_inputs(model, inputs)
    try:
        with evaluating(model), silenced():
            exported = exporters.OpenVINOExporter().export(
                model, traced, config=exporters.OpenVINOConfig(**dynamic_axes(traced))
            )
    except (RuntimeError, frontend.GeneralFailure) as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise HeadPruneError(
            f"export_openvino: OpenVINO can't convert this {type(model).__name__}: {reason}. It does not take a "
            "decoder with a block that has no heads left: keep one head in each, or write an ONNX file (export_onnx)."
        ) from error
    with checked_before_it_counts(file) as partial:
        runtime.save_model(exported.program, str(partial), compress_to_fp16=False)
        compiled = runtime.Core().compile_model(str(partial), "CPU", IN_FP32)
        names = [it.get_any_name() for it in compiled.inputs]
        found = compared(model, file, lambda given: compiled({name: given[name] for name in names})[0], inputs)
        found.check_equal("export_openvino")
    write_dense_config(model, path)
    return found
