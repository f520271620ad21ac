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
from hf_headprune.refit.moments import of_real
from hf_headprune.refit.side_by_side import SideBySide
from hf_headprune.refit.symmetric import Symmetric, solved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.side_by_side import Stop

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the mean square of an input
FOLDS = 5  # of the batches; one of them is held out while the ridge is chosen
ROUNDING = 1e-6  # of the squares of what a module returns: sums in float32 do not show what helps less
Sums = tuple[
    torch.Tensor, torch.Tensor
]  # over tokens, float64: `(in + 1, in + 1)` of inputs and one, `(in + 1, out)` with what they miss


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
        return _of_last(given, self.columns)


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
    order, found, moments = [path for path in orders[0] if path in once], [], _Moments()
    with SideBySide(pruned, runs) as here, SideBySide(dense, runs) as there:
        _stop_at(here, [places[path] for path in order], "before")
        _stop_at(there, [places[path] for path in order], "after")
        for path in order:
            place, stops = places[path], here.advance(path)
            aims = [_aim(place, *pair) for pair in zip(there.advance(path), stops, strict=True)]
            counts = _counts(place, stops, weights)
            if counts is not None and (fit := _fit_(place, pruned.get_submodule(path), stops, aims, counts, moments)):
                found.append(fit)
    return found


def _places(model: nn.Module, plan: PruningPlan, weights: Mapping[str, Any]) -> list[Place]:
    """Returns what may be fitted: of the sites that were recorded, and of linear modules that belong to none."""
    base, paths = base_model(model), {module: path for path, module in model.named_modules()}
    found, last = [], ""
    inside: set[Any] = {getattr(model, "get_output_embeddings", lambda: None)()}
    for site in anatomy_of(model).sites:
        if not site.units:  # without heads, an attention has no modules but what adds its bias
            continue
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


def _aim(place: Place, dense: Stop, pruned: Stop) -> torch.Tensor:
    """Returns what a module should return, `(batch, ..., rows)`: of a block, what makes the streams after it equal."""
    outputs: Any = dense.outputs
    if dense.stream is not None and pruned.stream is not None:
        return dense.stream + outputs - pruned.stream
    return _of_last(outputs, place.rows)


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


class _Moments:
    """Second moments of what modules are given, in turn; modules in a row that are given the same share theirs.

    Of two sums, the first is over the batches to learn from, and the second over those that are held out.
    """

    def __init__(self) -> None:
        self._key: Any = None
        self._given: list[torch.Tensor] = []  # kept, so that no other tensor gets the identity of one of them
        self._sums: list[Symmetric | None] = [None, None]
        self._dense: list[torch.Tensor | None] | None = None  # the sums, once they are asked for

    def begin(self, place: Place, stops: Sequence[Stop], *, constant: bool) -> bool:
        """Turns to a module; tells whether its moments are still to be added."""
        given = [stop.given for stop in stops]
        key = place.site, place.columns, constant, [id(it) for it in given]
        is_new = key != self._key
        if is_new:
            self._key, self._given, self._sums, self._dense = key, given, [None, None], None
        return is_new

    def add(self, batch: _Tokens) -> None:
        """Adds those of a batch."""
        product, before = Symmetric.product(batch.weighted, batch.inputs), self._sums[batch.is_held_out]
        if before is None:
            self._sums[batch.is_held_out] = product
        else:
            before.add_(product)

    def sums(self) -> list[torch.Tensor | None]:
        """Returns both, `(in + 1, in + 1)`, float64; None for a sum of no batches."""
        if self._dense is None:
            self._dense = [None if it is None else it.dense().double() for it in self._sums]
            self._sums = [None, None]
        return self._dense


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Those of a batch that count.

    Attributes:
        is_held_out: Whether the batch is.
        real: Which they are, `(batch, ...)`.
        inputs: What the module is given, and one where it has a bias, else zero; `(tokens, in + 1)`, float32.
        weighted: The same, times how much each counts.
    """

    is_held_out: bool
    real: torch.Tensor
    inputs: torch.Tensor
    weighted: torch.Tensor


def _tokens(
    place: Place, stops: Sequence[Stop], counts: Sequence[torch.Tensor], *, constant: bool
) -> Iterator[_Tokens]:
    for number, (stop, count) in enumerate(zip(stops, counts, strict=True)):
        real = count > 0
        inputs = of_real(place.inputs(stop.given), real)
        inputs = torch.cat([inputs, torch.full_like(inputs[:, :1], float(constant))], dim=1)
        yield _Tokens(number % FOLDS == 0, real, inputs, inputs * count[real][:, None].float())


def _fit_(
    place: Place,
    module: Any,
    stops: Sequence[Stop],
    aims: Sequence[torch.Tensor],
    counts: Sequence[torch.Tensor],
    moments: _Moments,
) -> Fit | None:
    """Fits one module in place; None where no change helps."""
    weight, bias = place.weight(module), place.bias(module)
    has_bias, products = bias is not None, [torch.zeros((), dtype=torch.float64)] * 2
    is_new = moments.begin(place, stops, constant=has_bias)
    for batch, aim in zip(_tokens(place, stops, counts, constant=has_bias), aims, strict=True):
        product = batch.weighted.T @ of_real(aim, batch.real)
        products[batch.is_held_out] = products[batch.is_held_out] + product.cpu().double()
        if is_new:
            moments.add(batch)
    present = torch.cat([weight, weight.new_zeros(len(weight), 1) if bias is None else bias[:, None]], dim=1).T
    change = _change(present.cpu().double(), list(zip(moments.sums(), products, strict=True)))
    if change is None:
        return None
    fitted = weight + change[:-1].T.to(weight), None if bias is None else bias + change[-1].to(bias)
    fit = Fit(place, *fitted, tensor_of(module, "weight").shape)
    if not (is_finite(fit.weight) and is_finite(fit.bias)):  # too large for the precision of the model
        return None
    for name, tensor in fit.tensors(module).items():
        getattr(module, name).data = tensor
    for stop in stops:
        stop.is_outdated = True
    return fit


def _change(present: torch.Tensor, sums: Sequence[tuple[torch.Tensor | None, torch.Tensor]]) -> torch.Tensor | None:
    """Returns the change of weights and bias, with the ridge that helps held-out tokens most; None where none does.

    Args:
        present: Weights and bias, `(in + 1, rows)`, float64.
        sums: Moments of the inputs, and products with what is aimed at; of tokens to learn from, and held out.
    """
    if any(moments is None for moments, _ in sums):  # too few batches to hold one out
        return None
    seen, held_out = ((moments, products - moments @ present) for moments, products in sums if moments is not None)
    best, ridge = -ROUNDING * float((present * (held_out[0] @ present)).sum()), None
    before = torch.inf
    for tried in RIDGES:
        change = _ridge(seen, tried)
        error = float((change * (held_out[0] @ change - 2.0 * held_out[1])).sum())
        if error < best:
            best, ridge = error, tried
        if error > before:  # a stronger pull only takes more of what helps
            break
        before = error
    return None if ridge is None else _ridge((seen[0] + held_out[0], seen[1] + held_out[1]), ridge)


def _ridge(sums: Sums, ridge: float) -> torch.Tensor:
    """Returns the coefficients that least squares gives, pulled to zero by a ridge; the constant is free."""
    squares = sums[0].diagonal()
    added = torch.full_like(squares, ridge * float(squares[:-1].mean()))
    added[-1] = torch.finfo(squares.dtype).eps * float(squares.sum())
    return solved(sums[0] + added.diag(), sums[1])


def as_matrix(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight of a linear module's shape as `(out_features, in_features)`, a view."""
    return weight.T if transposed(module) else weight


def _of_last(values: torch.Tensor, numbers: Sequence[int] | None) -> torch.Tensor:
    """Returns these numbers of the last dimension, or all; a list as an index takes three times as long."""
    return values if numbers is None else values.index_select(-1, torch.tensor(numbers, device=values.device))


def _slice(numbers: Sequence[int] | None) -> Any:
    return slice(None) if numbers is None else numbers
