"""Second moments of what output projections are given, and of the gradient that comes back: all that a refit needs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._distributed import number_of_processes
from hf_headprune._gradients import gradients_of
from hf_headprune._offloaded import device_of, folder_of, mapped, reloading
from hf_headprune.anatomy import base_model, family_of, named_arguments
from hf_headprune.masking import lasting_tensors
from hf_headprune.refit.symmetric import Symmetric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn

    from hf_headprune.anatomy import Site

EVEN_SHARE = 0.3  # of an example's weight is spread evenly over its tokens, the rest by their squared gradient


@dataclass(frozen=True, eq=False)
class SiteMoments:
    """What was recorded of one site.

    Attributes:
        site: Where.
        inputs: Mean, over tokens, of the products of the output projection's inputs and a constant one,
            of shape `(width + 1, width + 1)`, float32, `width = units * unit_width`.
        tokens: Their number.
        sensitivity: Sum, over tokens, of the products of the loss's gradient for the projection's outputs,
            `(hidden_size, hidden_size)`, float32; None where no loss was recorded.
        weights: How much tokens counted, of each pass `(batch, length)`, zero for padding; empty where no loss was
            recorded.
    """

    site: Site
    inputs: Symmetric
    tokens: float
    sensitivity: torch.Tensor | None = None
    weights: tuple[torch.Tensor, ...] = ()


def record_moments(
    model: nn.Module, sites: Iterable[Site], run: Callable[[], Any], *, over_processes: bool = False
) -> dict[str, SiteMoments]:
    """Records what output projections are given while a function runs the model; every token counts alike.

    Padding is left out. Sites that the function does not run are left out of the result.

    Args:
        model: Live model.
        sites: Of that model.
        run: Makes forward passes, in evaluation mode.
        over_processes: Whether all processes of a distributed run record, each its own share, and all get the whole.
    """
    recording = _Recording(model, sites, by_gradient=False)
    with recording, torch.no_grad():
        run()
    return recording.moments(over_processes=over_processes)


def record_moments_by_gradient(
    model: nn.Module, sites: Iterable[Site], losses: Iterable[torch.Tensor], *, over_processes: bool = False
) -> dict[str, SiteMoments]:
    """Records what output projections are given, and how sensitive the loss is to an error in what they return.

    Within each example, tokens count mostly by the squared norm of their gradient: an error matters where the loss sees
    it, such as in the first token of the last layer of a classifier. A share, `EVEN_SHARE`, counts all alike, since few
    tokens may carry nearly all of the gradient. An example counts as much as it has tokens, in whatever batch it comes;
    where the loss runs the model several times, every pass counts, with its own padding. No parameter receives a
    gradient.

    Args:
        model: Live model.
        sites: Of that model.
        losses: Losses, summed over the examples of a batch, each made by a forward pass of the model when it is asked
            for, in evaluation mode and with gradients enabled.
        over_processes: See `record_moments`.
    """
    recording = _Recording(model, sites, by_gradient=True)
    with recording, reloading(model), torch.enable_grad():
        for loss in losses:
            gradients_of(loss, recording.probes, model)
    return recording.moments(over_processes=over_processes)


def without_gradient(model: nn.Module, sites: Iterable[Site], loss_of: Callable[[], torch.Tensor]) -> list[Site]:
    """Returns the sites whose outputs a loss has no gradient for: moments can't be recorded of them by it.

    Args:
        model: Live model.
        sites: Of that model.
        loss_of: Makes a forward pass of the model, in evaluation mode, and returns its loss.
    """
    base, present = base_model(model), [site for site in sites if site.units]
    probes = [torch.zeros(1, device=device_of(model), requires_grad=True) for _ in present]
    handles = [
        base.get_submodule(site.output).register_forward_hook(partial(_probed, probe))
        for site, probe in zip(present, probes, strict=True)
    ]
    try:
        with reloading(model), torch.enable_grad():
            found = gradients_of(loss_of(), probes, model)
    finally:
        for handle in handles:
            handle.remove()
    return [site for site, gradient in zip(present, found, strict=True) if gradient is None]


def _probed(probe: torch.Tensor, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
    """Forward hook: makes the output differentiable."""
    return output + probe.to(output) if torch.is_grad_enabled() else None


class _Recording:
    """Hooks on output projections and on what runs the layers, for the length of a `with` block.

    Attributes:
        probes: Zeros that are added to what each projection returns, so that there is something to differentiate for.
    """

    def __init__(self, model: nn.Module, sites: Iterable[Site], *, by_gradient: bool) -> None:
        device, folder = device_of(model), folder_of(model)
        self._base = base_model(model)
        self._signature = inspect.signature(self._base.forward)
        self._readers = _readers_of(model)
        self._recorders = {site.name: _Recorder(site, self._reader_of(site), folder) for site in sites if site.units}
        self._by_gradient = by_gradient
        self.probes = [torch.zeros(1, device=device, requires_grad=True) for _ in self._recorders]
        self._handles: list[Any] = []

    def __enter__(self) -> _Recording:
        self._handles = [
            self._base.register_forward_pre_hook(self._note_shared, with_kwargs=True),
            self._base.register_forward_hook(self._forget_shared, always_call=True),
        ]
        self._handles += [reader.attach() for reader in self._readers.values()]
        for probe, recorder in zip(self.probes, self._recorders.values(), strict=True):
            output = self._base.get_submodule(recorder.site.output)
            recorder.probe = probe if self._by_gradient else None
            self._handles.append(output.register_forward_hook(recorder.read))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def moments(self, *, over_processes: bool) -> dict[str, SiteMoments]:
        found = {name: recorder.moments(over_processes=over_processes) for name, recorder in self._recorders.items()}
        return {name: moments for name, moments in found.items() if moments is not None}

    def _note_shared(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Tells a decoder whose tokens are made of the encoder's that its padding is that of the encoder."""
        given = named_arguments(self._signature, args, kwargs)
        names = ("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask")
        is_shared = all(given.get(name) is None for name in names)
        for reader in self._readers.values():
            reader.shared = given.get("attention_mask") if is_shared else None

    def _forget_shared(self, *_: Any) -> None:
        for reader in self._readers.values():
            reader.shared = None

    def _reader_of(self, site: Site) -> _Reader:
        return next(reader for path, reader in self._readers.items() if site.name.startswith(path))


class _Reader:
    """Tells padding from real tokens by what a module is given that runs a stack of layers.

    Attributes:
        real: Of the last pass, `(batch, length)`, or None where all tokens are real.
        shared: What is real where the module is not told.
    """

    def __init__(self, module: nn.Module) -> None:
        self.real: torch.Tensor | None = None
        self.shared: torch.Tensor | None = None
        self._module = module
        self._signature = inspect.signature(module.forward)
        self._is_decoder = "encoder_hidden_states" in self._signature.parameters

    def attach(self) -> Any:
        """Reads each pass that begins; returns what removes the hook."""
        return self._module.register_forward_pre_hook(self._read, with_kwargs=True)

    def _read(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = named_arguments(self._signature, args, kwargs)
        mask, tokens = given.get("attention_mask"), given.get("input_ids")
        padding = getattr(module.config, "pad_token_id", None)
        self.real = self.shared if mask is None else mask
        if self.real is None and self._is_decoder and tokens is not None and padding is not None:
            self.real = tokens.ne(padding)
            self.real[:, 0] = True  # the token that starts a text may be that of padding


def _readers_of(model: nn.Module) -> dict[str, _Reader]:
    """Returns what is given the tokens of each part of a model, by the path below which its sites are.

    Generation runs encoder and decoder by themselves, so of two stacks each has its own.
    """
    base, stacks = base_model(model), family_of(model).stacks
    if len(stacks) == 1:
        return {"": _Reader(base)}
    modules = dict(base.named_modules())
    runners = [stack.tower or stack.runner for stack in stacks]
    return {path: _Reader(modules[path]) for path in runners if path in modules}


class _Recorder:
    """Sums the moments of one site over tokens. Its hook reads each pass with the padding mask of that very pass."""

    def __init__(self, site: Site, reader: _Reader, folder: Path | None) -> None:
        self.site = site
        self.probe: torch.Tensor | None = None
        self._reader, self._folder = reader, folder
        self._inputs, self._outputs = _Sum(folder), _Sum(folder)
        self._weights: list[torch.Tensor] = []

    def read(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Forward hook: counts the tokens of `(batch, length, width)` now, or when the gradient of the output arrives.

        Returns:
            The output, `(batch, length, hidden)`, made differentiable; None leaves it alone.
        """
        given = args[0].detach().to(output.device)  # that of the projection alone, where a model is spread over devices
        if self.probe is None:
            with lasting_tensors():
                tokens = of_real(given, _real_tokens(self._reader.real, given))
                self._add(tokens, torch.ones_like(tokens[:, :1]))
            return None
        probed = _probed(self.probe, module, args, output)
        if probed is not None:
            probed.register_hook(partial(self._add_by_gradient, given, _real_tokens(self._reader.real, given)))
        return probed

    def _add_by_gradient(self, given: torch.Tensor, real: torch.Tensor, gradient: torch.Tensor) -> None:
        gradient = gradient.detach()
        weights = EVEN_SHARE + (1.0 - EVEN_SHARE) * _shares(gradient, real)
        self._weights.append((weights * real).cpu())
        tokens = of_real(gradient, real)
        self._add(of_real(given, real), of_real(weights[..., None], real))
        self._outputs.add(tokens, tokens)

    def _add(self, tokens: torch.Tensor, weights: torch.Tensor) -> None:
        tokens = torch.cat([tokens, torch.ones_like(tokens[:, :1])], dim=1)  # (tokens, width + 1)
        self._inputs.add(tokens * weights, tokens)

    def moments(self, *, over_processes: bool) -> SiteMoments | None:
        """Returns what was recorded, here or over all processes, each of which has seen its own share of the tokens."""
        inputs, outputs = (part.total(over_processes=over_processes) for part in (self._inputs, self._outputs))
        if inputs is None:
            return None
        tokens = float(inputs.blocks[-1][-1, -1])
        mean = inputs.each_(lambda block: block.div_(tokens))
        sensitivity = None if outputs is None else outputs.dense()
        if sensitivity is not None and self._folder is not None:
            sensitivity = mapped(sensitivity, self._folder)
        return SiteMoments(self.site, mean, tokens, sensitivity, tuple(self._weights))


def _real_tokens(mask: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    """Marks the real tokens among values of shape `(batch, length, ...)`: all of them where no mask fits."""
    if isinstance(mask, torch.Tensor) and mask.shape == values.shape[:-1]:
        return mask.to(values.device).bool()
    return torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)


def of_real(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Returns the values of real tokens, `(tokens, width)`, float32; whole rows are copied faster than by a mask."""
    return values.flatten(0, -2).index_select(0, real.flatten().nonzero()[:, 0]).float()


def _shares(gradient: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Returns each token's share of its example's squared gradient, `(batch, length)`; 1 on average over real ones."""
    squares = gradient.float().square().sum(-1) * real
    mean = squares.sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp_min(1)
    return squares / mean.clamp_min(torch.finfo(squares.dtype).tiny)


class _Sum:
    """A sum of symmetric products over batches, float32: on the CPU, or in files where the model is kept on disk."""

    def __init__(self, folder: Path | None) -> None:
        self._value: Symmetric | None = None
        self._folder = folder

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Adds `left.T @ right`, both `(tokens, ...)`."""
        with torch.autocast(left.device.type, enabled=False):
            product = Symmetric.product(left, right)
        if self._value is None:
            folder = self._folder
            self._value = product if folder is None else product.each_(lambda block: mapped(block, folder))
        else:
            self._value.add_(product)

    def total(self, *, over_processes: bool) -> Symmetric | None:
        """Returns the sum, here or over all processes; None where nothing was added."""
        return self._value.each_(_over_processes) if over_processes and self._value is not None else self._value


def _over_processes(value: torch.Tensor) -> torch.Tensor:
    if number_of_processes() == 1:
        return value
    value = value.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu").contiguous()
    torch.distributed.all_reduce(value)
    return value.cpu()
