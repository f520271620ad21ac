"""What a certificate says about a model: its fingerprints, its precision, and what it was run with."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from importlib.metadata import version
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._compat import LOADED_FROM
from hf_headprune._fingerprints import sha256_of
from hf_headprune._finite import check_loaded, check_plain_tensors
from hf_headprune._offloaded import Weights, device_of
from hf_headprune.guarantee.certificate import Environment, ModelRecord
from hf_headprune.guarantee.external import bare, fingerprint_of, is_external

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

PACKAGES = ("hf-headprune", "torch", "transformers", "numpy", "scipy")
VOLATILE_CONFIG = (LOADED_FROM, "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map")
# The host writes these by itself: the first at the first loss, the second whenever a Trainer is made.
WRITTEN_BY_HOST = {
    "problem_type": (None, "single_label_classification", "multi_label_classification", "regression"),
    "use_cache": (True, False, None),
}


def record_of(model: Any) -> ModelRecord:
    """Returns what identifies a model: class, sha256 of weights and configuration, number of parameters.

    Of what is no model of torch: its name, and the sha256 of its file or its answers where it has these.

    Raises:
        UnsupportedModelError: Its state is not made of plain tensors alone, or nowhere.
    """
    if is_external(model):
        return ModelRecord(*fingerprint_of(model), None, None)
    model = bare(model)
    check_plain_tensors(
        model,
        where="certify",
        advice="Such weights have no fingerprint: certify the model before it is quantized.",
    )
    check_loaded(model)
    return ModelRecord(
        name=type(model).__name__,
        weights=sha256_of("", Weights(model)),
        config=_sha256_of(_own_config(model, without=WRITTEN_BY_HOST)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def old_configs_of(model: Any) -> set[str]:
    """Returns each sha256 that the configuration may have in format 2, which counted what the host writes."""
    if is_external(model):
        return set()
    content = _own_config(bare(model))
    present = [name for name in WRITTEN_BY_HOST if name in content]
    written = product(*(WRITTEN_BY_HOST[name] for name in present))
    return {_sha256_of(content | dict(zip(present, values, strict=True))) for values in written}


def _own_config(model: nn.Module, without: Iterable[str] = ()) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    content = {} if config is None else json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in content.items() if name not in {*VOLATILE_CONFIG, *without}}


def _sha256_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def turned_by_rounding(model: Any, examples: int) -> int:
    """Returns on how many examples a model may answer otherwise on another machine, or cut instead of masked.

    A thousandth, and one at least; five in bf16 and fp16.
    """
    if is_external(model):
        return max(1, int(0.001 * examples))
    share = 0.005 if next(bare(model).parameters()).dtype in (torch.bfloat16, torch.float16) else 0.001
    return max(1, int(share * examples))


def dtype_of(model: Any) -> str:
    """Returns the name of the dtype of a model's weights; "unknown" of what is no model of torch."""
    if is_external(model):
        return "unknown"
    return str(next(bare(model).parameters()).dtype).removeprefix("torch.")


def environment_of(model: Any) -> Environment:
    """Returns what a model was run with, and when."""
    return Environment(
        versions=(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)),
        device="unknown" if is_external(model) else device_of(bare(model)).type,
        dtype=dtype_of(model),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
