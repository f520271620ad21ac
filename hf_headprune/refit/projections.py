"""Refits output projections to the heads and FFN units that stay, so that what a block adds changes least.

A unit that leaves is partly predictable from those that stay. With x what an output projection is given and W its
weight, the share of W x that the units that left contributed is regressed on the others, by least squares over real
tokens, and the result goes into the weight and the bias that stay: same shapes, no training, no labels.

Source: the update of the remaining weights in Optimal Brain Surgeon (Hassibi and Stork 1992), for whole structures as
in ZipLM (Kurtic et al. 2023, arXiv 2302.04089, section 3), here with a constant and for a set of heads.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hf_headprune._checks import shown
from hf_headprune._finite import is_finite
from hf_headprune._offloaded import (
    as_kept,
    contents_of,
    is_offloaded,
    off_device,
    put_,
    put_contents_,
    tensor_of,
)
from hf_headprune.anatomy import base_model, transposed
from hf_headprune.errors import InvalidPlanError
from hf_headprune.masking import evaluating, masked, plain_copy
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.in_order import as_matrix, fits_in_order
from hf_headprune.refit.symmetric import solved

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from hf_headprune.anatomy import Site
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.in_order import Fit, Runs
    from hf_headprune.refit.moments import SiteMoments
    from hf_headprune.refit.symmetric import Symmetric

logger = logging.getLogger(__name__)
RIDGE = 1e-3  # of the mean square of an entry; more where tokens are few for the number of coefficients
# Bytes that each of both models holds in a refit in order, or as many as it has itself; else it takes fewer batches.
# What malloc keeps for the threads of the passes comes on top.
MOST_ACTIVATIONS = 2 * 2**30
REMEMBERED = 4  # times the bytes of all projections, in refitted ones; neighbouring plans share most of them


@dataclass(frozen=True, eq=False)
class Block:
    """One block of attention or FFN: its output projection, and the moments of what that is given.

    Attributes:
        site: Where it is.
        own_weight: Shape `(hidden_size, width)`, `width = units * unit_width`, in the precision of the model.
        bias: Shape `(hidden_size,)`, float64, or None.
        moments: Of the inputs and a constant one, averaged over tokens, of shape `(width + 1, width + 1)`, float32.
        tokens: Their number.
        start: Units whose contribution is to be kept.
        sensitivity: Of the loss to its outputs, `(hidden_size, hidden_size)`, see `SiteMoments`; or None.
    """

    site: Site
    own_weight: torch.Tensor
    bias: torch.Tensor | None
    moments: Symmetric
    tokens: float
    start: tuple[int, ...]
    sensitivity: torch.Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, recorded: SiteMoments, start: Sequence[int]) -> Block:
        """Copies the projection of a live model, and pairs it with its moments."""
        output: Any = base_model(model).get_submodule(recorded.site.output)
        weight = off_device(
            output, as_matrix(output, tensor_of(output, "weight")).clone(memory_format=torch.contiguous_format)
        )
        bias = None if output.bias is None else tensor_of(output, "bias").cpu().double()
        moments = recorded.inputs, recorded.tokens
        return cls(recorded.site, weight, bias, *moments, tuple(start), recorded.sensitivity)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in float64."""
        return self.own_weight.double()

    def columns(self, units: Sequence[int], *, constant: bool) -> torch.Tensor:
        """Returns the columns of units, and that of the constant where the projection has a bias to take it."""
        has_constant = constant and self.bias is not None
        return torch.tensor(self.site.columns(units) + [self.own_weight.shape[1]] * has_constant, dtype=torch.long)

    def regularised(self, columns: torch.Tensor) -> torch.Tensor:
        """Returns the moments of some columns, with a ridge that pulls coefficients to zero, but not the constant.

        Args:
            columns: Their numbers, the constant's last.
        """
        return self._with_ridge(self.moments.dense()[columns][:, columns], columns)

    def _with_ridge(self, moments: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        entries = self.moments.diagonal()[self.columns(self.start, constant=False)].double()
        scarcity = len(entries) / self.tokens  # entries per token
        ridge = (RIDGE + scarcity**2) * entries.sum() / max(len(entries), 1) + torch.finfo(torch.float64).tiny
        found = moments.double()
        found.diagonal().add_(ridge * (columns < len(self.moments) - 1))
        return found

    def refitted(self, kept: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns weight and bias for the units that stay; columns of the others are left as they are."""
        lost = self.columns(sorted(set(self.start) - set(kept)), constant=False)
        stay = self.columns(kept, constant=True)
        if not len(lost) or not len(stay):
            return self.weight, self.bias
        weight, bias = self.weight.clone(), self.bias
        moments = self.moments.dense()[stay]
        target = moments[:, lost].double() @ weight[:, lost].T  # (stay, hidden_size)
        change = solved(self._with_ridge(moments[:, stay], stay), target).T  # (hidden_size, stay)
        if bias is not None:
            bias, change, stay = bias + change[:, -1], change[:, :-1], stay[:-1]
        weight[:, stay] += change
        return weight, bias


class Refit:
    """Output projections of one model, refitted to any plan.

    Only the units of a start are compensated for: what training has closed already no longer contributes.
    """

    def __init__(self, model: nn.Module, start: PruningPlan, recorded: Mapping[str, SiteMoments]) -> None:
        """Copies the output projections of a live model.

        Args:
            model: Its weights must not change from now on.
            start: Units whose contribution is to be kept.
            recorded: With exactly the units of the start open. Other sites are left as they are.
        """
        self.blocks = {name: Block.of(model, moments, start.kept(name)) for name, moments in recorded.items()}
        self._weights = {name: moments.weights for name, moments in recorded.items()}
        self._refitted: dict[Any, tuple[torch.Tensor, torch.Tensor | None]] = {}

    @torch.no_grad()
    def apply_(self, model: nn.Module, plan: PruningPlan) -> None:
        """Gives every output projection recorded, in place, what a plan needs; `restoring` takes it back.

        Raises:
            InvalidPlanError: A projection has no weight of its own, as one with an adapter that is not merged.
        """
        base = base_model(model)
        outputs = {name: base.get_submodule(block.site.output) for name, block in self.blocks.items()}
        strange = [
            name for name, output in outputs.items() if "weight" not in dict(output.named_parameters(recurse=False))
        ]
        if strange:
            raise InvalidPlanError(
                f"This refit can't be applied: the output projection of {strange[0]} has no weight of its own, as one "
                "with an adapter of PEFT or a parametrization. Merge the adapter in a copy (merge_and_unload) and mask "
                "that, or cut the model with its adapter: prune_model_."
            )
        for name in self.blocks:
            output: Any = outputs[name]
            weight, bias = self._projection(name, plan.kept(name), output)
            put_(output, "weight", weight.clone())  # the model may train on, and a result may prune another
            if bias is not None:
                put_(output, "bias", bias.clone())

    def _projection(self, site: str, kept: tuple[int, ...], output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns weight and bias of a site that is in `blocks`, refitted to the units that stay, not to be changed.

        Args:
            site: Its name.
            kept: Units that stay.
            output: The projection, which gives precision, device and layout.

        Raises:
            InvalidPlanError: A weight would be NaN or infinite.
        """
        key = site, kept, output.weight.dtype, output.weight.device
        found = self._refitted.pop(key, None)
        if found is None:
            weight, bias = self.blocks[site].refitted(kept)
            weight = (weight.T.contiguous() if transposed(output) else weight).to(output.weight.dtype)
            bias = None if bias is None else bias.to(output.weight.dtype)
            if not (is_finite(weight) and (bias is None or is_finite(bias))):
                raise InvalidPlanError(
                    f"The refit of {site} to {len(kept)} units is not finite in {output.weight.dtype}: what is left "
                    "would need weights that are too large for it. Load the model in float32, or prune by the "
                    "plan alone: prune_model_(model, result.plan)."
                )
            found = as_kept(output, weight), None if bias is None else as_kept(output, bias)
            most = REMEMBERED * sum(block.own_weight.nbytes for block in self.blocks.values())
            spare = most - sum(weight.nbytes for weight, _ in [found, *self._refitted.values()])
            while spare < 0 and self._refitted:
                spare += self._refitted.pop(next(iter(self._refitted)))[0].nbytes
        self._refitted[key] = found
        return found

    def check_fits(self, model: nn.Module) -> None:
        """Checks that a model has the output projections that were copied.

        Raises:
            InvalidPlanError: One is missing or has other weights.
        """
        modules = dict(base_model(model).named_modules())
        for name, block in self.blocks.items():
            output: Any = modules.get(block.site.output)
            weight = None if getattr(output, "weight", None) is None else as_matrix(output, tensor_of(output, "weight"))
            if weight is None or weight.shape != block.own_weight.shape or not _are_alike(weight, block.own_weight):
                raise InvalidPlanError(
                    f"This refit does not fit the model: {name} has another output projection than the model "
                    "that was searched. Pass the refit of a search of this very model, with the weights that "
                    "it had then."
                )

    @contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Puts what was refitted back at the end of a `with` block, after an error too.

        Blocks of several refits may end in any order: what one leaves is what the last of the others has set.
        """
        layer, modules = object(), self._modules(model)
        try:
            for module in modules:
                _LAYERS.setdefault(module, []).append((layer, contents_of(module)))
            yield
        finally:
            for module in modules:
                _leave(module, layer)

    def _modules(self, model: nn.Module) -> list[nn.Module]:
        """Returns the modules of a model that a refit may change."""
        base = base_model(model)
        return [base.get_submodule(block.site.output) for block in self.blocks.values()]


class RefitInOrder(Refit):
    """The refit of one plan, module by module in the order of the forward pass; other plans get that of `Refit`.

    It is made when it is first applied. Until then the examples are kept.
    """

    def __init__(self, refit: Refit, plan: PruningPlan, start: PruningPlan, runs: Runs) -> None:
        """Takes what it will need; see `fits_in_order`.

        Args:
            refit: What was recorded, and what other plans get.
            plan: The plan.
            start: Units that were open in the model that was recorded.
            runs: On the examples that were recorded; the model is left unchanged.
        """
        self.blocks, self._weights, self._refitted = refit.blocks, refit._weights, refit._refitted
        self._plan, self._start = plan, start
        self._runs: Runs | None = runs
        self._fits: list[Fit] = []

    def fit(self) -> RefitInOrder:
        """Makes it now, where that was not done yet, lets go of the examples, and returns itself."""
        runs, self._runs = self._runs, None
        if runs is not None and is_offloaded(runs.dense):
            logger.warning(
                "Of a model that is offloaded or spread over devices, output projections alone are refitted."
            )
            return self
        if runs is None or any(len(it) != len(runs.each) for it in self._weights.values()):
            return self  # the last, where a loss runs the model several times
        used = {number: run for number, run in enumerate(runs.each) if run is not None}
        step = math.ceil(self._activations(used) / max(MOST_ACTIVATIONS, _size_of(runs.dense)))
        used = dict(list(used.items())[:: max(step, 1)])
        weights = {site: [found[number] for number in used] for site, found in self._weights.items()}
        dense, pruned = runs.dense, plain_copy(runs.dense if runs.recorded is None else runs.recorded)
        aimed = masked(dense, self._start) if runs.recorded is None else nullcontext()
        with evaluating(dense), aimed, masked(pruned, RefittedPlan(self._plan, self)):
            try:
                self._fits = fits_in_order(pruned, dense, self._plan, list(used.values()), weights)
            except Exception as error:  # noqa: BLE001 - a loss of the user's may insist on a model of its own
                logger.warning(
                    "Only output projections are refitted, since the refit of all modules in order has failed: %s: %s",
                    type(error).__name__,
                    shown(str(error)),
                )
        return self

    def check_fits(self, model: nn.Module) -> None:
        """Checks that a model has the modules that were fitted.

        Raises:
            InvalidPlanError: One is missing or of another shape.
        """
        super().check_fits(model)
        modules = dict(model.named_modules())
        for fit in self._fits:
            weight = getattr(modules.get(fit.place.path), "weight", None)
            if weight is None or weight.shape != fit.shape:
                raise InvalidPlanError(
                    f"This refit does not fit the model: {fit.place.path} has not the shape that it had when it "
                    "was refitted. Pass the refit of this very model, with the weights that it had then."
                )

    def _activations(self, numbers: Iterable[int]) -> int:
        """Returns the bytes that each model holds while runs wait at the widest module: its inputs, and the stream."""
        found = [0]
        for name, weights in self._weights.items():
            entries = self.blocks[name].own_weight.shape[1] + 4 * self.blocks[name].own_weight.shape[0]
            found.append(entries * sum(weights[number].numel() * torch.float32.itemsize for number in numbers))
        return max(found)

    @torch.no_grad()
    def apply_(self, model: nn.Module, plan: PruningPlan) -> None:
        """Gives every module, in place, what a plan needs; `restoring` takes it back."""
        if plan == self._plan:
            self.fit()
        super().apply_(model, plan)
        for fit in self._fits if plan == self._plan else ():
            module = model.get_submodule(fit.place.path)
            for name, tensor in fit.tensors(module).items():
                put_(module, name, as_kept(module, tensor))

    def _modules(self, model: nn.Module) -> list[nn.Module]:
        self.fit()
        fitted = [model.get_submodule(fit.place.path) for fit in self._fits]
        return list(dict.fromkeys([*super()._modules(model), *fitted]))


# Of each module that is refitted now: who did so, and what was there before.
_LAYERS: WeakKeyDictionary[nn.Module, list[tuple[object, dict[str, Any]]]] = WeakKeyDictionary()


def _size_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _leave(output: nn.Module, layer: object) -> None:
    """Takes back what one refit has set: the one after it, if any, inherits what was there before."""
    layers = _LAYERS.get(output, [])
    place = next((place for place, (owner, _) in enumerate(layers) if owner is layer), None)
    if place is None:
        return
    before = layers.pop(place)[1]
    if place < len(layers):
        layers[place] = (layers[place][0], before)
        return
    put_contents_(output, before)


def _are_alike(weight: torch.Tensor, copied: torch.Tensor) -> bool:
    """Tells whether weights are the same up to rounding: devices differ by some, and a cast since by more."""
    given, known, allowed = weight.cpu().double(), copied.cpu().double(), 4 * torch.finfo(weight.dtype).eps
    return bool(torch.linalg.norm(given - known) <= allowed * torch.linalg.norm(known))
