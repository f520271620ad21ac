"""Measured latency of two models under equal conditions, in turns, with quartiles."""

from __future__ import annotations

import inspect
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.benchmark import Timer

from hf_headprune._checks import is_whole
from hf_headprune._offloaded import device_of
from hf_headprune.anatomy import declaration_of
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.masking import evaluating

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

logger = logging.getLogger(__name__)
_SHORTEST_RUN_SECONDS = 0.02
_LEAST_RUNS = 5
MOST_SECONDS = 10.0  # after which no further run is begun, once there are `_LEAST_RUNS`
_SAMPLES = 16_000  # of sound, a second of what wav2vec2 listens to
_DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class LatencySample:
    """Median and quartiles of repeated measurements of one model, in milliseconds per batch."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float

    def __post_init__(self) -> None:
        """Checks that the three values are ordered.

        Raises:
            InvalidSettingError: They are not positive and ascending.
        """
        if not 0 < self.lower_quartile_ms <= self.median_ms <= self.upper_quartile_ms:
            raise InvalidSettingError(
                "LatencySample: needs 0 < lower quartile <= median <= upper quartile, received "
                f"{self.lower_quartile_ms}, {self.median_ms}, {self.upper_quartile_ms} ms. Pass the quartiles of one "
                "list of measurements."
            )


@dataclass(frozen=True)
class LatencyChange:
    """Latency of the model before and after pruning, measured in turns under the same conditions.

    Attributes:
        before: Of the model with everything that it had.
        after: Of the pruned model.
        device: Device of both, such as "cpu".
        dtype: Dtype of the weights of both, such as "float32".
        batch_size: Sequences per batch.
        seq_len: Tokens per sequence; None of images and sound.
        threads: Threads that torch used on the CPU.
        runs: Measurements of each model.
    """

    before: LatencySample
    after: LatencySample
    device: str
    dtype: str
    batch_size: int
    seq_len: int | None
    threads: int
    runs: int

    @property
    def speed_up(self) -> float | None:
        """Median before over median after; None while the quartile intervals overlap, since nothing is shown then."""
        apart = (
            self.after.upper_quartile_ms < self.before.lower_quartile_ms
            or self.before.upper_quartile_ms < self.after.lower_quartile_ms
        )
        return self.before.median_ms / self.after.median_ms if apart else None

    @property
    def verdict(self) -> str:
        """What the measurements show, in words."""
        if self.speed_up is None:
            return "no difference shown"
        return f"{self.speed_up:.2f}x faster" if self.speed_up >= 1 else f"{1 / self.speed_up:.2f}x slower"


@dataclass(frozen=True)
class LatencySettings:
    """Conditions of a measurement.

    Attributes:
        batch_size: Sequences per batch.
        seq_len: Tokens per sequence; None takes 128, or half of the model's positions where it has fewer than 256.
        runs: Measurements of each model; at least 5, so that quartiles mean something. After ten seconds no further one
            than these five is begun.
        threads: Threads that torch uses on the CPU; None leaves their number unchanged.

    Raises:
        InvalidSettingError: A setting is no whole number, or too small.
    """

    batch_size: int = 8
    seq_len: int | None = None
    runs: int = 15
    threads: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, least in (("batch_size", 1), ("seq_len", 1), ("runs", _LEAST_RUNS), ("threads", 1)):
            value = getattr(self, name)
            may_be_left = name in ("seq_len", "threads") and value is None
            if not (may_be_left or is_whole(value, at_least=least)):
                raise InvalidSettingError(
                    f"LatencySettings: {name} must be at least {least}, a whole number, received {value!r}."
                )


def measure_latency(
    before: nn.Module,
    after: nn.Module,
    settings: LatencySettings | None = None,
    *,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> LatencyChange:
    """Measures the forward pass of two models in turns, so that a busy machine slows both alike.

    Both run in evaluation mode without gradients, at their present dtype; their training mode is restored.

    Args:
        before: The model with everything that it had.
        after: The pruned model, on the same device.
        settings: Conditions; defaults when left out.
        inputs: Keyword arguments of the forward pass, batch first; random tokens without padding when left out.

    Raises:
        InvalidSettingError: One is no model, they are on different devices, one is on several, or their dtypes differ;
            or the inputs are no tensors.
    """
    return measured_within(MOST_SECONDS, before, after, settings or LatencySettings(), inputs)


def measured_within(
    max_seconds: float,
    before: nn.Module,
    after: nn.Module,
    settings: LatencySettings,
    inputs: Mapping[str, torch.Tensor] | None,
) -> LatencyChange:
    """Measures as `measure_latency` does; after `max_seconds` it stops, but not before five runs."""
    if not all(isinstance(model, torch.nn.Module) for model in (before, after)):
        raise InvalidSettingError(
            f"measure_latency: it compares two models of torch, received {type(before).__name__} and "
            f"{type(after).__name__}. Pass the dense and the pruned one."
        )
    if inputs is not None and not (inputs and all(isinstance(value, torch.Tensor) for value in inputs.values())):
        raise InvalidSettingError(
            f"measure_latency: inputs must be tensors by the names of their arguments, received {shown(inputs)}. Leave "
            "them out for random tokens."
        )
    places, others = ({(p.device.type, p.dtype) for p in model.parameters()} for model in (before, after))
    devices = {device for device, _ in places | others}
    if places != others or len(devices) != 1:
        raise InvalidSettingError(
            f"measure_latency: both models must be on one device and of the same dtypes, found "
            f"{sorted(map(str, places))} and {sorted(map(str, others))}. Move them with .to() first."
        )
    dtypes = sorted(str(dtype).removeprefix("torch.") for _, dtype in places)
    inputs = dict(inputs) if inputs is not None else random_inputs(before, settings)
    shape = inputs.get("input_ids", next(iter(inputs.values()))).shape  # of multiple choice: examples, choices, length
    threads = settings.threads or torch.get_num_threads()
    samples = _in_turns((before, after), inputs, settings.runs, threads, max_seconds)
    return LatencyChange(
        before=_sample(samples[0]),
        after=_sample(samples[1]),
        device=devices.pop(),
        dtype=" and ".join(dtypes),
        batch_size=shape[0],
        seq_len=shape[-1] if "input_ids" in inputs else None,
        threads=threads,
        runs=len(samples[0]),
    )


def try_latency(model: nn.Module, settings: LatencySettings) -> None:
    """Runs a model on one of the sequences that it would be measured on: what fails does so before training.

    Raises:
        InvalidSettingError: It does not take them.
    """
    inputs = {name: tensor[:1] for name, tensor in random_inputs(model, settings).items()}
    if any(parameter.is_meta or not parameter.numel() for parameter in model.parameters()):
        return  # there is nothing to run yet
    try:
        with evaluating(model):
            model(**inputs)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidSettingError(
            f"LatencySettings: {type(model).__name__} can't be measured on random tokens: {error} Pass "
            "other LatencySettings; or HeadPruneCallback(latency=None), and call measure_latency(inputs=...) yourself."
        ) from error


def random_inputs(model: nn.Module, settings: LatencySettings) -> dict[str, torch.Tensor]:
    """Makes a batch of random tokens, shape `(batch_size, seq_len)`, all attended to, of images, of both, or of sound.

    An encoder-decoder gets as many tokens on the decoder's side, and its texts end; a model of multiple choice gets two
    choices per example, `(batch_size, 2, seq_len)`.

    Raises:
        InvalidSettingError: The model's configuration has no vocabulary, or the sequence is longer than its positions.
    """
    config: Any = model.config
    family = declaration_of(model)
    if family is not None and family.towers:
        return _random_pairs(model, [getattr(config, tower) for tower in family.towers], settings)
    kind = getattr(model, "main_input_name", None)
    if kind == "pixel_values" and getattr(config, "image_size", None):
        return _random_images(model, config, settings.batch_size)
    if kind == "input_values":
        return {kind: _drawn(model, settings.batch_size, _SAMPLES)}
    if kind == "input_features" and getattr(config, "num_mel_bins", None):
        frames = 2 * config.max_source_positions  # of which two make a position, as in Whisper
        sound = {kind: _drawn(model, settings.batch_size, config.num_mel_bins, frames)}
        written = _random_tokens(model, config, settings) if config.is_encoder_decoder else {}
        return sound | {name: tensor for name, tensor in written.items() if name == "decoder_input_ids"}
    return _random_tokens(model, config, settings)


def _random_pairs(model: nn.Module, configs: list[Any], settings: LatencySettings) -> dict[str, torch.Tensor]:
    """Makes what each tower of a model takes."""
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, torch.Tensor] = {}
    for config in reversed(configs):  # tokens first, by which the length is reported
        if "input_ids" in accepted and getattr(config, "vocab_size", None):
            inputs |= _random_tokens(model, config, settings)
        if "pixel_values" in accepted and getattr(config, "image_size", None):
            inputs |= _random_images(model, config, settings.batch_size)
    return inputs


def _random_tokens(model: nn.Module, config: Any, settings: LatencySettings) -> dict[str, torch.Tensor]:
    vocab_size = getattr(config, "vocab_size", None)
    if not vocab_size:
        raise InvalidSettingError(
            f"latency: {type(model).__name__} takes no tokens (its config has no vocab_size). Pass `inputs`."
        )
    positions = positions_of(model, config)
    seq_len = settings.seq_len or min(_DEFAULT_LENGTH, max(1, (positions or 2 * _DEFAULT_LENGTH) // 2))
    if positions is not None and seq_len > positions:
        raise InvalidSettingError(
            f"latency: seq_len must be at most {positions}, the positions of {type(model).__name__}, received "
            f"{seq_len}. Measure a shorter sequence (LatencySettings(seq_len=...), --length)."
        )
    device = device_of(model)
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch_size, seq_len)
    tokens = torch.randint(vocab_size, shape, generator=generator)
    padding = getattr(config, "pad_token_id", None)
    if padding is not None:
        tokens[tokens == padding] = (padding + 1) % vocab_size
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "eos_token_id", None) is not None:
        end = torch.as_tensor(config.eos_token_id).flatten()  # BART's classifier reads the last of each row
        tokens[torch.isin(tokens, end)] = next(t for t in range(vocab_size) if t not in {*end.tolist(), padding})
        tokens[:, -1] = end[0]
    if any(kind.__name__.endswith("ForMultipleChoice") for kind in type(model).__mro__):
        tokens = tokens[:, None].repeat(1, 2, 1)
    tokens = tokens.to(device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens
    return inputs


def _random_images(model: nn.Module, config: Any, batch_size: int) -> dict[str, torch.Tensor]:
    """Makes images of the size that the configuration names, `(batch_size, channels, height, width)`."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": _drawn(model, batch_size, config.num_channels, height, width)}


def _drawn(model: nn.Module, *shape: int) -> torch.Tensor:
    """Draws numbers of a shape, on the device of a model and in its precision."""
    first = next(model.parameters())
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device=device_of(model), dtype=first.dtype)


def positions_of(model: Any, config: Any = None) -> int | None:
    """Returns the longest sequence that a model takes; an offset, as RoBERTa has, makes it shorter than the table.

    Args:
        model: With its modules.
        config: Of the tower that takes tokens; None for that of the model.
    """
    positions = getattr(model.config if config is None else config, "max_position_embeddings", None)
    if positions is None:
        return None
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    offsets = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    return int(positions) - max(offsets, default=0)


def _in_turns(
    models: tuple[nn.Module, nn.Module], inputs: dict[str, torch.Tensor], runs: int, threads: int, max_seconds: float
) -> tuple[list[float], list[float]]:
    timers = [Timer("forward()", globals={"forward": _Forward(model, inputs)}, num_threads=threads) for model in models]
    samples: tuple[list[float], list[float]] = ([], [])
    with evaluating(models[0]), evaluating(models[1]):
        first = [timer.timeit(1).mean for timer in timers]  # also warms up; not counted
        number = max(1, round(_SHORTEST_RUN_SECONDS / min(first)))
        started = time.perf_counter()
        for run in range(runs):
            if run >= _LEAST_RUNS and time.perf_counter() - started > max_seconds:
                break
            for timer, taken in zip(timers, samples, strict=True):
                taken.append(timer.timeit(number).mean * 1000)
    logger.debug("Latency, ms: before %s, after %s", *samples)
    return samples


class _Forward:
    def __init__(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        self.model = model
        self.inputs = inputs

    def __call__(self) -> None:
        with torch.inference_mode():
            self.model(**self.inputs)


def _sample(milliseconds: list[float]) -> LatencySample:
    low, median, high = torch.tensor(milliseconds, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return LatencySample(median_ms=float(median), lower_quartile_ms=float(low), upper_quartile_ms=float(high))
