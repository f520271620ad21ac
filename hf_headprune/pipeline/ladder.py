"""plan_ladder: several sizes of one model from one run, each with its metric, size, latency and certificate."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_headprune._checks import is_above
from hf_headprune._seen_splits import remember_seen_, share_seen_
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.guarantee.certify import certify_path
from hf_headprune.guarantee.wording import points as in_points
from hf_headprune.latency import LatencySettings, measure_latency, try_latency
from hf_headprune.masking import plain_copy
from hf_headprune.pipeline.cost_path import examples_for
from hf_headprune.pipeline.holdout import Asked, Chosen, Holdout, as_pruned, pruned_copy
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.pipeline.run import BY_COSTS, WHOLE, against, certified, earlier_in_words, unseen_change
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.publish.ladder import Rung, ladder_table
from hf_headprune.publish.measurements import MetricChange, Recipe, name_on_hub
from hf_headprune.publish.plots import plot_ladder
from hf_headprune.publish.report import PruningReport
from hf_headprune.refit.choice import plans_at
from hf_headprune.refit.one_shot import ExampleLosses
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.refit.reach import check_budget
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.shrink.surgery import check_can_prune
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from hf_headprune.guarantee.path import CertifiedPath
    from hf_headprune.guarantee.scored import ScoredSplit

RUNGS = (0.75, 0.5, 0.35, 0.25, 0.15)
LADDER_FORMAT = "hf_headprune.ladder/1"
TOGETHER = (
    "Certified at {:g} % confidence, all of these together: the rungs were tested in this order on the same examples, "
    "up to the first that could not be certified."
)


@dataclass(frozen=True)
class PruningLadder:
    """Plans of one model at falling sizes, each of them part of the one before.

    Attributes:
        densities: Shares of the attention and FFN weights that were asked for, falling.
        rungs: What to prune for each, and what is known about it. Certified are those before the first that could not
            be: these certificates hold together, at the confidence that was asked for.
        note: What the certificates say together, in words; empty where nothing is certified.
    """

    densities: tuple[float, ...]
    rungs: tuple[PruningResult, ...]
    note: str = ""

    def to_text(self) -> str:
        """Returns a table: a row for the whole model and for each rung, at most 100 columns."""
        return "\n".join(filter(None, [ladder_table(self._rows()), self.note]))

    def to_json(self) -> str:
        """Returns densities, reports and the confidence as JSON text."""
        rungs = [
            {
                "density": density,
                "certified": result.certificate is not None and result.certificate.verdict == "PASS",
                "report": json.loads(result.report.to_json()),
            }
            for density, result in zip(self.densities, self.rungs, strict=True)
        ]
        return json.dumps({"format": LADDER_FORMAT, "note": self.note, "rungs": rungs}, indent=2)

    def plot(self, path: str | Path) -> Path:
        """Draws metric over size, filled where it is certified; returns the path.

        Args:
            path: File to write; its suffix decides the format.

        Raises:
            MissingExtraError: matplotlib is not installed.
            InvalidSettingError: Nothing was measured, since there were no examples.
        """
        return plot_ladder(self._rows(), path)

    def _rows(self) -> list[Rung]:
        return [
            Rung(f"{100 * density:g} %", result.report, result.certificate.verdict if result.certificate else None)
            for density, result in zip(self.densities, self.rungs, strict=True)
        ]


def plan_ladder(  # noqa: PLR0913 - the arguments of `plan_for_budget`
    model: nn.Module,
    dataset: Any,
    densities: Sequence[float] = RUNGS,
    *,
    certify: Any = None,
    reference: Any = None,
    metric: Any = None,
    max_drop: float | None = None,
    confidence: float | Literal["auto"] = "auto",
    latency: LatencySettings | None = None,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> PruningLadder:
    """Finds what of a fine-tuned model to keep at several sizes, without training.

    The costs are computed once, and each plan is part of the one before; each is refitted on its own, which takes about
    two forward passes over the examples. The model is left as it was: prune a copy of it
    with `prune_model_(copy, ladder.rungs[1])`. The plans were put in order before any example of `certify` was looked
    at, and are tested the largest first, up to the first that can't be certified: whichever rung you take of those
    before, its certificate holds.

    Args:
        model: Of a supported family, fine-tuned; its forward pass returns a loss.
        dataset: Training examples, sized and indexable, of which as many are looked at as `plan_for_budget` does for
            the smallest rung. Without a column of labels, what the model answers itself stands for them, unless it
            writes a text.
        densities: Shares of the weights of all attention and FFN matrices that are kept.
        certify: Labelled examples that neither training nor this call has seen, or `CertificationData`; None measures
            and certifies nothing.
        reference: As in `plan_for_budget`.
        metric: As in `plan_for_budget`.
        max_drop: Drop that each certificate is about, absolute; 0.01, one percentage point, when left out.
        confidence: Of all certificates together; "auto" is 0.95.
        latency: Conditions under which the latency of each rung is measured; the defaults when left out.
        processing_class: Tokenizer that the certificate takes, as in `search_plan`.
        data_collator: Makes the batches; when left out, examples are padded on the right.
        batch_size: Examples per batch.
        seed: Of the choice of examples.

    Raises:
        DataLeakError: Examples of `certify` are in `dataset`.
        InvalidSettingError: A density is out of range, two give the same plan, the model has nothing left to remove, a
            data set is empty, labelled in part or not tokenized, or a setting is about a certificate and there is no
            `certify`.
        UnsupportedModelError: The model's family is not supported, or it returns no loss.
    """
    anatomy = anatomy_of(model)
    check_can_prune(model)
    asked = falling(densities, where="plan_ladder: densities")
    settings = SecondOrder(density=asked[-1])
    check_budget(settings, anatomy)
    batching = Batching(processing_class, data_collator, batch_size)
    to_show = Asked("plan_ladder", reference, metric, max_drop, confidence)
    holdout = Holdout.asked_for(certify, model, to_show, batching, train=dataset, is_condition=True)
    twin = plain_copy(model)  # another thread may run the model meanwhile
    latency = latency or LatencySettings()
    try_latency(twin, latency)
    losses = ExampleLosses(
        twin, dataset, examples_for(asked[-1], trains_on=False), seed, data_collator, batch_size, where="plan_ladder"
    )
    full = PruningPlan.full(anatomy)
    plans, refit = plans_at(twin, asked, settings, full, losses)
    if len(plans) != len(asked):
        raise InvalidSettingError(
            f"plan_ladder: each density must give a plan of its own, received {list(asked)}, which give {len(plans)}. "
            "Pass fewer, further apart and below 1."
        )
    remember_seen_(twin, calibration=losses.drawn)
    share_seen_(model, twin)
    runs = losses.runs()
    found = [RefittedPlan(plan, RefitInOrder(refit, plan, full, runs)) for plan in plans]
    source = name_on_hub(certify, dataset)
    earlier = earlier_in_words(model)
    recipes = [Recipe(BY_COSTS, f"density={share:g}", "none", source, earlier) for share in asked]
    rungs = _measured(twin, found, holdout, latency, recipes)
    is_certified = any(rung.certificate is not None for rung in rungs)
    note = TOGETHER.format(100 * holdout.confidence) if holdout is not None and is_certified else ""
    return PruningLadder(asked, rungs, note)


def falling(densities: Any, *, where: str) -> tuple[float, ...]:
    """Returns the densities of a ladder, the largest first.

    Args:
        densities: Different numbers above 0 and below 1.
        where: What received them, for the message.

    Raises:
        InvalidSettingError: They are no such numbers.
    """
    values = () if isinstance(densities, str) or not isinstance(densities, Iterable) else tuple(densities)
    if not values or len(set(values)) < len(values) or not all(is_above(it, 0) and it < 1 for it in values):
        raise InvalidSettingError(
            f"{where} must be different numbers above 0 and below 1, the shares of the weights that are kept, received "
            f"{shown(densities)}."
        )
    return tuple(sorted(values, reverse=True))


def _measured(
    model: Any, plans: list[RefittedPlan], holdout: Holdout | None, latency: LatencySettings, recipes: list[Recipe]
) -> tuple[PruningResult, ...]:
    """Returns each plan with what was measured of it."""
    full = PruningPlan.full(anatomy_of(model))
    split = path = None
    if holdout is not None:
        split = holdout.read(model, full)
        claim = holdout.metric, holdout.max_drop, holdout.confidence
        path = certify_path(model, plans, split, *claim, reference=holdout.reference, opened=as_pruned)
    rungs = []
    for index, found in enumerate(plans):
        pruned = pruned_copy(model, found)
        change = measure_latency(model, pruned, latency)
        report = PruningReport.of(found.plan, anatomy_of(model), latency=change, recipe=recipes[index])
        certificate, words = None, ""
        if holdout is not None and split is not None and path is not None:
            if path.certified_index is not None and index <= path.certified_index:
                chosen = Chosen(found.plan, _up_to(path, index), len(plans), has_certificate=True)
                certificate, words = certified(holdout, chosen, model, pruned, reference_name=WHOLE)
                report = replace(report, unseen=unseen_change(certificate, WHOLE))
            else:
                words = _why_not(path, index, holdout)
                report = replace(report, unseen=_seen(split, path, pruned))
            report = against(report, holdout.reference)
        report = replace(report, certificate=words)
        rungs.append(
            PruningResult(found.plan, found.refit, reference=full, report=report, certificate=certificate, path=path)
        )
    return tuple(rungs)


def _up_to(path: CertifiedPath, index: int) -> CertifiedPath:
    """Returns the tests up to one that passed, as a path of their own: those after it decide nothing about it."""
    short = replace(path, steps=path.steps[: index + 1], untested=())
    short.remember(path._outcomes)
    return short


def _why_not(path: CertifiedPath, index: int, holdout: Holdout) -> str:
    points = in_points(holdout.max_drop)
    if index < len(path.steps):
        return f"Certificate: none. It could not be certified to lose less than {points}."
    return f"Certificate: none. A larger rung could not be certified to lose less than {points}, so it was not tested."


def _seen(split: ScoredSplit, path: CertifiedPath, pruned: Any) -> MetricChange | None:
    """Returns the metric of what is not certified, as it was seen."""
    if path.dense_metric is None:  # of a few labels: only drops are known
        return None
    after = split.value_of(split.outcome_of(pruned))
    return MetricChange(split.metric.name, "unseen examples", len(split.prints), path.dense_metric, after, WHOLE)
