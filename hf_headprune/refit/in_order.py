"""Refits a pruned model module by module, on what the pruned modules before really hand on.

Each linear module is fitted by least squares to what the dense model has at the same place: the output projection of a
block so that the residual stream after it is that of the dense model, which also makes up for what earlier blocks have
lost; the others so that they return what they return there, of the units that remain. Coefficients are pulled to where
they are; how strongly is chosen on examples that were held out, and a module that nothing helps there is not changed.
Labels count only through the gradients that weigh tokens, and nothing is trained.

Sources: K-prune (Park et al. 2024, arXiv 2308.03449) fits output projections to the dense residual stream, layer by
layer; GPTAQ (Li et al. 2025, arXiv 2504.02692) matches dense outputs on the inputs of the compressed model. The choice
of the ridge, weighted tokens, and queries, keys, values, first FFN matrices and heads of models are ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune._finite import is_finite
from hf_headprune._offloaded import tensor_of
from hf_headprune.anatomy import anatomy_of, base_model, transposed
from hf_headprune.refit.side_by_side import SideBySide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.side_by_side import Stop

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the mean square of an input
FOLDS = 5  # of the batches; one of them is held out while the ridge is chosen
Sums = tuple[
    torch.Tensor, torch.Tensor
]  # over tokens: `(in + 1, in + 1)` of inputs and one, `(in + 1, out)` with errors


@dataclass(frozen=True)
class Runs:
    """Forward passes on the examples of recorded losses.

    Attributes:
        dense: The model that was recorded, or a copy of it.
        each: For each loss, what runs a model on its examples; None to leave them out.
        recorded: The model that was recorded, where earlier rounds have pruned it; what is aimed at is then all that
            `dense` computes.
    """

    dense: nn.Module
    each: Sequence[Callable[[nn.Module], Any] | None]
    recorded: nn.Module | None = None


@dataclass(frozen=True)
class Place:
    """What is fitted of a linear module.

    Attributes:
        path: Of the module, in the model.
        site: Whose tokens count as its weights say.
        rows: Numbers; None for all.
        columns: Numbers; None for all.
        is_output: Whether the module is the output projection of a block, and so adds to the residual stream.
        is_head: Whether the module belongs to no block.
    """

    path: str
    site: str
    rows: Sequence[int] | None = None
    columns: Sequence[int] | None = None
    is_output: bool = False
    is_head: bool = False

    def weight(self, module: Any) -> torch.Tensor:
        """Returns the weight of these rows and columns, `(rows, columns)`; a copy unless it is all."""
        weight = as_matrix(module, tensor_of(module, "weight"))
        weight = weight if self.rows is None else weight[self.rows]
        return weight if self.columns is None else weight[:, self.columns]

    def bias(self, module: Any) -> torch.Tensor | None:
        """Returns the bias of these rows, or None."""
        bias = None if module.bias is None else tensor_of(module, "bias")
        return bias if bias is None or self.rows is None else bias[self.rows]

    def inputs(self, given: torch.Tensor) -> torch.Tensor:
        """Returns these columns of what the module is given."""
        return given if self.columns is None else given[..., self.columns]

    def outputs(self, module: Any, given: torch.Tensor) -> torch.Tensor:
        """Returns these rows of what the module makes of its inputs."""
        bias = self.bias(module)
        return nn.functional.linear(self.inputs(given).to(module.weight.dtype), self.weight(module), bias)


@dataclass(frozen=True, eq=False)
class Fit:
    """What was fitted of a linear module.

    Attributes:
        place: Which part of it.
        weight: Shape `(rows, columns)`.
        bias: Shape `(rows,)`, or None.
        shape: Of the weight of the whole module, as it stores it.
    """

    place: Place
    weight: torch.Tensor
    bias: torch.Tensor | None
    shape: torch.Size

    def tensors(self, module: Any) -> dict[str, torch.Tensor]:
        """Returns weight and bias of a module, as it stores them, with this part as it was fitted."""
        found = {"weight": tensor_of(module, "weight").clone()}
        matrix, rows = as_matrix(module, found["weight"]), _slice(self.place.rows)
        if self.place.columns is None:
            matrix[rows] = self.weight.to(matrix)
        else:
            matrix[:, self.place.columns] = self.weight.to(matrix)
        if self.bias is not None:
            found["bias"] = tensor_of(module, "bias").clone()
            found["bias"][rows] = self.bias.to(found["bias"])
        return found


def fits_in_order(
    pruned: nn.Module,
    dense: nn.Module,
    plan: PruningPlan,
    runs: Sequence[Callable[[nn.Module], Any]],
    weights: Mapping[str, Sequence[torch.Tensor]],
) -> list[Fit]:
    """Fits the linear modules of a model, in place, and returns what was changed, in order.

    Modules that a forward pass runs several times stay as they are, and output projections whose outputs are not added
    to a stream as they are. All batches are run side by side, so their activations at one module are in memory.

    Args:
        pruned: With what the plan removes closed, as under `masked`; in evaluation mode.
        dense: The model before pruning, in evaluation mode; another object.
        plan: What is open in the first.
        runs: Each makes one forward pass of the model that it is given.
        weights: How much tokens count, by site: of each run a tensor `(batch, ...)`, zero for padding. Sites that are
            missing stay as they are.
    """
    places = {place.path: place for place in _places(pruned, plan, weights)}
    orders = []
    for model in (pruned, dense):
        with SideBySide(model, runs[-1:]) as passes:
            _stop_at(passes, places.values(), "before")
            orders.append(passes.order())
    once = set.intersection(*({path for path, times in Counter(order).items() if times == 1} for order in orders))
    order, found = [path for path in orders[0] if path in once], []
    with SideBySide(pruned, runs) as here, SideBySide(dense, runs) as there:
        _stop_at(here, [places[path] for path in order], "before")
        _stop_at(there, [places[path] for path in order], "after")
        for path in order:
            place, module = places[path], dense.get_submodule(path)
            stops, wanted = here.advance(path), [_outputs(place, module, stop) for stop in there.advance(path)]
            counts = _counts(place, stops, weights)
            if counts is not None and (fit := _fit_(place, pruned.get_submodule(path), stops, wanted, counts)):
                found.append(fit)
    return found


def _places(model: nn.Module, plan: PruningPlan, weights: Mapping[str, Any]) -> list[Place]:
    """Returns what may be fitted: of the sites that were recorded, and of linear modules that belong to none."""
    base, paths = base_model(model), {module: path for path, module in model.named_modules()}
    found, last = [], ""
    inside: set[Any] = {getattr(model, "get_output_embeddings", lambda: None)()}
    for site in anatomy_of(model).sites:
        parts = [(base.get_submodule(part.path), part) for part in site.parts]
        output, kept = base.get_submodule(site.output), plan.kept(site.name)
        inside |= {output, *(module for module, _ in parts)}
        if site.name in weights:
            last = site.name
            found += [Place(paths[module], site.name, site.rows(part, kept)) for module, part in parts if kept]
            found += [Place(paths[output], site.name, None, site.columns(kept), is_output=True)] if kept else []
    outside = [module for module in paths if isinstance(module, nn.Linear) and module not in inside]
    return found + [Place(paths[module], last, is_head=True) for module in outside]


def _stop_at(passes: SideBySide, places: Iterable[Place], others: str) -> None:
    """Stops where outputs are added to the stream; at modules that are no output projections "before" or "after"."""
    outputs = [place.path for place in places if place.is_output]
    passes.stop_at(sums=outputs, **{others: [place.path for place in places if not place.is_output]})


def _outputs(place: Place, module: nn.Module, stop: Stop) -> torch.Tensor:
    """Returns what a model has at a place, `(batch, ..., rows)`: outputs, with those of a block in the stream."""
    if stop.outputs is None:
        return place.outputs(module, stop.given)
    if stop.stream is not None:
        return stop.stream + stop.outputs
    return stop.outputs if place.rows is None else stop.outputs[..., place.rows]


def _counts(
    place: Place, stops: Sequence[Stop], weights: Mapping[str, Sequence[torch.Tensor]]
) -> list[torch.Tensor] | None:
    """Returns how much each row of the inputs counts; None where that is not known."""
    shapes, known = [stop.given.shape[:-1] for stop in stops], weights.get(place.site, ())
    if [count.shape for count in known] == shapes:
        return [count.to(stop.given.device) for count, stop in zip(known, stops, strict=True)]
    if place.is_head and all(len(shape) == 1 for shape in shapes):  # one vector for each example
        return [torch.ones(shape, device=stop.given.device) for shape, stop in zip(shapes, stops, strict=True)]
    return None


def _fit_(
    place: Place, module: Any, stops: Sequence[Stop], wanted: Sequence[torch.Tensor], counts: Sequence[torch.Tensor]
) -> Fit | None:
    """Fits one module in place; None where no change helps."""
    folds: list[list[Sums]] = [[], []]
    for number, (stop, target, count) in enumerate(zip(stops, wanted, counts, strict=True)):
        present = _outputs(place, module, stop)
        real = count > 0
        inputs, missing = place.inputs(stop.given)[real].float(), (target - present)[real].float()
        constant = torch.full_like(inputs[:, :1], float(module.bias is not None))
        inputs = torch.cat([inputs, constant], dim=1)
        weighted = (inputs * count[real][:, None].float()).T
        folds[number % FOLDS == 0].append((weighted @ inputs, weighted @ missing))
    change = _change(*(_total(fold) for fold in folds)) if all(folds) else None
    if change is None:
        return None
    weight, bias = place.weight(module), place.bias(module)
    fitted = weight + change[:-1].T.to(weight), None if bias is None else bias + change[-1].to(bias)
    fit = Fit(place, *fitted, tensor_of(module, "weight").shape)
    if not (is_finite(fit.weight) and is_finite(fit.bias)):  # too large for the precision of the model
        return None
    for name, tensor in fit.tensors(module).items():
        getattr(module, name).data = tensor
    for stop in stops:
        stop.is_outdated = True
    return fit


def _total(sums: Sequence[Sums]) -> Sums:
    moments, products = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
    return moments.cpu().double(), products.cpu().double()


def _change(seen: Sums, held_out: Sums) -> torch.Tensor | None:
    """Returns the change of weights and bias, `(columns + 1, rows)`, with the ridge that helps held-out tokens most."""
    best, ridge = 0.0, None
    for tried in RIDGES:
        change = _ridge(seen, tried)
        error = float((change * (held_out[0] @ change - 2.0 * held_out[1])).sum())
        if error < best:
            best, ridge = error, tried
    return None if ridge is None else _ridge((seen[0] + held_out[0], seen[1] + held_out[1]), ridge)


def _ridge(sums: Sums, ridge: float) -> torch.Tensor:
    """Returns the coefficients that least squares gives, pulled to zero by a ridge; the constant is free."""
    squares = sums[0].diagonal()
    added = torch.full_like(squares, ridge * float(squares[:-1].mean()))
    added[-1] = torch.finfo(squares.dtype).eps * float(squares.sum())
    return torch.linalg.solve(sums[0] + added.diag(), sums[1])


def as_matrix(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """Returns the weight of a linear module as `(out_features, in_features)`, a view."""
    return weight.T if transposed(module) else weight


def _slice(numbers: Sequence[int] | None) -> Any:
    return slice(None) if numbers is None else numbers
