"""What weights are in their file: codes of a quantized model are no weights, whatever they are cast to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_headprune._beside_weights import file_beside
from hf_headprune._strict_json import parse, read_text
from hf_headprune.errors import InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

WEIGHTS = frozenset({"F64", "F32", "F16", "BF16"})  # as safetensors calls the dtypes that Transformers casts


def codes_among(model: nn.Module, source: Any, options: dict[str, Any]) -> Iterator[str]:
    """Yields, in words, the floating-point weights of a loaded model that are something else in their file.

    Args:
        model: Loaded model.
        source: What it was loaded from.
        options: Of `from_pretrained`: where in the source.
    """
    config: Any = model.config
    if getattr(config, "quantization_config", None) is not None:
        return  # its loader knows what the codes mean
    prefix = f"{model.base_model_prefix}."
    floating = {name.removeprefix(prefix) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for file in _files(source, options):
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 - it is no dict
                    dtype = str(content.get_slice(name).get_dtype())
                    if dtype not in WEIGHTS and name.removeprefix(prefix) in floating:
                        yield (
                            f"{name} has dtype {dtype} in the file, which weights never have: the model was quantized, "
                            "or the file is damaged"
                        )
        except (OSError, SafetensorError):
            continue  # Transformers has read it by itself


def _files(source: Any, options: dict[str, Any]) -> Iterator[Path]:
    """Yields the files of the weights that Transformers reads by default."""
    whole = file_beside(SAFE_WEIGHTS_NAME, source, options)
    if whole is not None:
        yield whole
        return
    index = file_beside(SAFE_WEIGHTS_INDEX_NAME, source, options)
    if index is None:
        return
    content = parse(read_text(index, error=InvalidConfigError), str(index), error=InvalidConfigError)
    names = content.get("weight_map", {}).values()
    found = (file_beside(str(name), source, options) for name in sorted(set(names)))
    yield from (file for file in found if file is not None)
