"""plan_for_budget: a fixed size, reached without training; and what each budget means for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from hf_headprune._checks import is_above, is_number
from hf_headprune._seen_splits import share_seen_
from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import budget_rules
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.masking import plain_copy
from hf_headprune.pipeline.cost_path import examples_for
from hf_headprune.pipeline.holdout import Asked, Holdout
from hf_headprune.pipeline.recovery import Recover, check_recover, recovered, recovery_in_words
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.pipeline.run import BY_COSTS, Found, asked_in_words, earlier_in_words, result_of
from hf_headprune.pipeline.speed import Speed
from hf_headprune.publish.measurements import Recipe, name_on_hub
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.reach import check_budget
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.shrink.surgery import check_can_prune
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from torch import nn

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.budgets import Budget
    from hf_headprune.cost import LatencyTable
    from hf_headprune.latency import LatencySettings

MB = 1_000_000
# What each budget must be on any model.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_drop": (lambda it: is_number(it) and it >= 0, "a number of at least 0; 0.01 is one percentage point"),
    "density": (lambda it: is_above(it, 0) and it <= 1, "above 0 and at most 1, the share of the weights that is kept"),
    "speedup": (lambda it: is_above(it, 1), "a number above 1, multiply-accumulates before over those after"),
    "size_mb": (lambda it: is_above(it, 0), "a number above 0, MB of the saved file"),
    "kept_heads": (
        lambda it: all(budget_rules(it).values()),
        "a whole number of heads, a fraction from 0.0 to 1.0, or a dict of such by kind, as {'encoder': 0.5}",
    ),
}


def plan_for_budget(  # noqa: PLR0913 - one budget of four, and how examples are read
    model: nn.Module,
    dataset: Any,
    *,
    density: float | None = None,
    speedup: float | None = None,
    size_mb: float | None = None,
    kept_heads: Budget | None = None,
    uniform: bool = False,
    latency: LatencySettings | LatencyTable | None = None,
    certify: Any = None,
    reference: Any = None,
    metric: Any = None,
    max_drop: float | None = None,
    confidence: float | Literal["auto"] = "auto",
    recover: Recover | None = None,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> PruningResult:
    """Finds what of a fine-tuned model to keep within a budget, without training.

    Heads and FFN units whose removal costs least by a second-order estimate are removed, and all linear modules are
    refitted to the others. The model is left as it was: prune it with `prune_model_(model, result)`.

    Args:
        model: Of a supported family, fine-tuned; its forward pass returns a loss.
        dataset: Training examples, sized and indexable. A thousand are looked at, and up to 4,096 where less than half
            of the weights is kept and nothing is trained afterwards. Without a column of labels, what the model answers
            itself stands for them, unless it writes a text.
        density: Share of the weights of all attention and FFN matrices that is kept.
        speedup: Multiply-accumulates of all attention and FFN blocks before, over those after; with `latency`, time.
        size_mb: Size of the saved `model.safetensors`, embeddings included, in MB (10^6 bytes).
        kept_heads: Number or share of the attention heads that are kept, or of groups of heads where heads share keys
            and values; FFN units are all kept.
        uniform: Whether all layers keep equally many heads and FFN units, which costs some accuracy. Unmodified
            Transformers loads such a model once `export_model(model, path, mode="plain")` has written it. Where the
            family's configuration can't say fewer heads, all are kept.
        latency: For `speedup`: at what batch and length it is measured, here and now, of the whole model: blocks are
            measured first, then pruned copies until one is as fast as was asked for. Or the ms of each block, measured
            elsewhere by `measure_latency_table`; the speed-up is then that of the blocks.
        certify: Labelled examples that neither training nor this call has seen, or `CertificationData`, for a
            certificate about the drop; None certifies nothing.
        reference: Model that the certificate compares with, such as the one before its vocabulary was cut: alone, or as
            a pair with the examples of `certify` as its own tokenizer encodes them. None for `model`.
        metric: Of the certificate, as in `search_plan`; None for the first metric of the model's task.
        max_drop: Drop that the certificate is about, absolute; 0.01, one percentage point, when left out.
        confidence: Of the certificate; "auto" is 0.95.
        recover: Function `(pruned, dense)` that trains the pruned model on, in place, before it is certified; the dense
            one may be its teacher. The result then holds the trained weights.
        processing_class: Tokenizer that the certificate takes, as in `search_plan`.
        data_collator: Makes the batches; when left out, examples are padded on the right.
        batch_size: Examples per batch.
        seed: Of the choice of examples.

    Raises:
        DataLeakError: Examples of `certify` are in `dataset`.
        InvalidSettingError: Not exactly one budget is given, the model can't meet it, a data set is empty, labelled in
            part or not tokenized, or a setting is about a certificate and there is no `certify`.
        UnsupportedModelError: The model's family is not supported, or it returns no loss.
    """
    anatomy = anatomy_of(model)
    check_can_prune(model)
    given = {"density": density, "speedup": speedup, "size_mb": size_mb, "kept_heads": kept_heads}
    one_budget(given, where="plan_for_budget")  # before anything is measured
    check_recover(recover, where="plan_for_budget")
    batching = Batching(processing_class, data_collator, batch_size)
    to_show = Asked("plan_for_budget", reference, metric, max_drop, confidence)
    holdout = Holdout.asked_for(certify, model, to_show, batching, train=dataset, is_condition=False)
    twin = plain_copy(model)  # another thread may run the model meanwhile
    speed = Speed(twin, latency, speedup)
    asked = second_order_of(given, anatomy, model, where="plan_for_budget", uniform=uniform, latency_ms=speed.table)
    looked_at = examples_for(asked.density, trains_on=recover is not None)
    settings = replace(asked, tuning=replace(asked.tuning, seed=seed, scoring_examples=looked_at))
    measure = speed.of if speed.is_measured else None
    found = second_order_plan(
        twin,
        dataset,
        settings,
        data_collator=data_collator,
        batch_size=batch_size,
        speed_up_of=measure,
        where="plan_for_budget",
    )
    share_seen_(model, twin)
    if recover is not None:
        found = recovered(twin, found, recover)
    recipe = Recipe(
        BY_COSTS,
        asked_in_words({**given, "counts": None if latency is None else "latency"}, uniform=uniform),
        recovery_in_words(found.refit, getattr(recover, "epochs", None)),
        name_on_hub(certify, dataset),
        earlier_in_words(model),
    )
    return result_of(model, Found(found), holdout, recipe, latency=speed.changes.get(found.plan))


def one_budget(given: dict[str, Any], *, where: str) -> str | None:
    """Returns the name of the one budget that is given, or None.

    Raises:
        InvalidSettingError: Several are given, or it is out of range for any model.
    """
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        received = " and ".join(f"{name}={shown(given[name])}" for name in names)
        raise InvalidSettingError(f"{where} takes one budget, received {received}. Leave all but one out.")
    for name in names:
        holds, rule = _RULES[name]
        if not holds(given[name]):
            raise InvalidSettingError(f"{where}: {name} must be {rule}, received {shown(given[name])}.")
    return names[0] if names else None


def second_order_of(
    given: dict[str, Any],
    anatomy: Anatomy,
    model: nn.Module,
    *,
    where: str,
    uniform: bool = False,
    latency_ms: LatencyTable | None = None,
) -> SecondOrder:
    """Returns what a budget means for a model.

    Args:
        given: The budgets "density", "speedup", "size_mb" and "kept_heads"; exactly one is not None.
        anatomy: Of the model.
        model: Its state dict tells what the saved file holds.
        where: Name of the public function, for errors.
        uniform: Whether all layers keep equally many units.
        latency_ms: Measured ms, which a speed-up then is of.

    Raises:
        InvalidSettingError: Not exactly one is given, or it is out of range.
    """
    found = _second_order_of(given, anatomy, model, where, latency_ms)
    if uniform:
        found = replace(found, tuning=replace(found.tuning, uniform=True))
        check_budget(found, anatomy)
    return found


def _second_order_of(
    given: dict[str, Any], anatomy: Anatomy, model: nn.Module, where: str, latency_ms: LatencyTable | None
) -> SecondOrder:
    name = one_budget(given, where=where)
    if name is None:
        raise InvalidSettingError(f"{where} needs one budget, received none. Pass one of {', '.join(given)}.")
    value = given[name]
    if name == "kept_heads":
        return SecondOrder(kept_heads=value)
    if name == "speedup":
        return SecondOrder.to_speedup(value, latency_ms=latency_ms)
    if name == "size_mb":
        return SecondOrder(density=_density_of_size(value, anatomy, model, where=where), counts="bytes")
    return SecondOrder(density=value)


def _density_of_size(size_mb: Any, anatomy: Anatomy, model: nn.Module, *, where: str) -> float:
    """Returns the share of the bytes of all heads and FFN units that fits into a file of some size."""
    prunable = sum(site.price(site.bytes) for site in anatomy.sites)
    fixed = anatomy.num_bytes - prunable + header_bytes(model)
    smallest, largest = fixed / MB, (fixed + prunable) / MB
    if not (is_above(size_mb, smallest) and size_mb <= largest):
        raise InvalidSettingError(
            f"{where}(size_mb={size_mb!r}): heads and FFN units are {prunable / MB:.1f} of the {largest:.1f} MB of the "
            f"file; the rest is not pruned. Pass a size above {smallest:.3g} and up to {largest:.3g}."
        )
    return (size_mb * MB - fixed) / prunable


def header_bytes(model: nn.Module) -> int:
    """Returns at least the bytes of the header of the model's `model.safetensors`; pruning makes it no larger."""
    offset, entries = 0, {}
    for name, tensor in model.state_dict().items():
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    return 8 + len(json.dumps({"__metadata__": {"format": "pt"}, **entries})) + 8
