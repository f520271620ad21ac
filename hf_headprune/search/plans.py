"""Searches over pruning plans: units become heads, sets become plans."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding

from hf_headprune.anatomy import anatomy_of
from hf_headprune.collation import ModelExamples, PadRight
from hf_headprune.cost import macs_per_unit
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.astar import search as search_sets
from hf_headprune.search.evaluator import ClassificationEvaluator, length_sorted_batches
from hf_headprune.search.metrics import CLASSIFICATION_METRICS
from hf_headprune.search.problem import Measurement, Progress, SearchProblem, SearchResult
from hf_headprune.search.settings import AStarSearch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from torch import nn

    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.search.problem import OnProgress, Optimality
    from hf_headprune.search.settings import Objective

RESULT_FORMAT = "hf_headprune.search_result/1"
MACS_LENGTH = 128  # tokens at which the MACs of heads of different kinds are compared

Head = tuple[str, int]


@runtime_checkable
class PredictsEffects(Protocol):
    """An evaluator that can also estimate what each head's removal does to each example's margin."""

    def head_effects(self, plan: PruningPlan) -> np.ndarray:
        """Returns the estimated changes, `(num_heads, num_examples)`, around a plan."""


@dataclass(frozen=True)
class PlanStep:
    """One evaluated plan.

    Attributes:
        index: Number of the evaluation, from zero; zero is the start.
        removed: Heads removed, as (site, head).
        metric: What was measured.
        feasible: Whether the constraint holds.
        gain: Heads, parameters or MACs removed, as the objective says.
        is_incumbent: Whether the plan became the best one known.
    """

    index: int
    removed: tuple[Head, ...]
    metric: float
    feasible: bool
    gain: float
    is_incumbent: bool


@dataclass(frozen=True)
class PlanSearchResult:
    """Outcome of a search over plans.

    Attributes:
        plan: The best plan found; the start where nothing better was.
        start: The reference.
        metric: Of the plan, higher is better, measured with exactly this plan.
        reference_metric: Of the start.
        threshold: Least metric that is feasible.
        objective: What was to be removed most of.
        gain: Heads, parameters or MACs that the plan removes.
        upper_bound: Largest gain of any feasible plan, under heredity; without an assumption where proved.
        optimality: See `hf_headprune.search.problem.SearchResult`.
        heredity_violations: How often the evaluated plans contradict heredity.
        evaluations: Plans evaluated.
        history: Every evaluated plan in its order.
    """

    plan: PruningPlan
    start: PruningPlan
    metric: float
    reference_metric: float
    threshold: float
    objective: Objective
    gain: float
    upper_bound: float
    optimality: Optimality
    heredity_violations: int
    evaluations: int
    history: tuple[PlanStep, ...]

    @property
    def drop(self) -> float:
        """What the plan loses of the metric against the start; negative where it gains."""
        return self.reference_metric - self.metric

    def to_json(self) -> str:
        """Returns the whole result as JSON text; plans are in the form of `PruningPlan.to_json`."""
        content: dict[str, Any] = {"format": RESULT_FORMAT}
        content |= {name: getattr(self, name) for name in self.__dataclass_fields__}
        content["plan"] = json.loads(self.plan.to_json())
        content["start"] = json.loads(self.start.to_json())
        content["history"] = [asdict(step) for step in self.history]
        return json.dumps(content, indent=2)


def search_over_plans(  # noqa: PLR0913 - the seam between training and search; each argument is one of their data
    anatomy: Anatomy,
    measure: Callable[[PruningPlan], Measurement],
    search: AStarSearch,
    *,
    start: PruningPlan | None = None,
    head_scores: np.ndarray | None = None,
    journal: Path | None = None,
    fingerprint: str = "",
    on_progress: OnProgress | None = None,
) -> PlanSearchResult:
    """Finds the plan that removes most heads whose metric loses at most `search.max_drop` against the start.

    Args:
        anatomy: Of the model that the plans are for.
        measure: Measures a plan, such as a `ClassificationEvaluator`. Where it has a method `head_effects`, the order
            of the search starts from those estimates, which spares one evaluation per head.
        search: Settings.
        start: The reference, such as the plan that training learned; None keeps every head. Heads that it removes
            may be restored; its FFN units stay as they are.
        head_scores: Importance per head, `(anatomy.num_heads,)` in the order of `anatomy.attention_sites`.
        journal: File that holds the state of the search.
        fingerprint: Identifies weights and data in the journal.
        on_progress: Called after each evaluation.

    Raises:
        InvalidPlanError: The start was made for another anatomy.
        InvalidSettingError: The model has no heads, or the scores have another shape.
        SearchStateError: The journal belongs to another search or is damaged.
    """
    start = PruningPlan.full(anatomy) if start is None else start
    start.check_fits(anatomy)
    heads = [(site.name, head) for site in anatomy.attention_sites for head in range(site.units)]
    if not heads:
        raise InvalidSettingError("search_over_plans: the model has no heads left. Search on a model that has some.")
    problem = SearchProblem(
        gains=tuple(_gain(site, search.objective) for site in anatomy.attention_sites for _ in range(site.units)),
        measure=lambda removed: measure(_plan(start, heads, removed)),
        start=frozenset(unit for unit, (site, head) in enumerate(heads) if head not in start.kept_heads[site]),
        scores=head_scores,
        effects=measure.head_effects(start) if isinstance(measure, PredictsEffects) else None,
        fingerprint=f"{fingerprint} {start.to_json()}",
    )
    found = search_sets(problem, search, journal=journal, on_progress=on_progress)
    return _result(found, start, heads, search.objective)


def search_plan(  # noqa: PLR0913 - the public verb: what users of the Trainer know by these names
    model: nn.Module,
    dataset: Any,
    metric: str = "accuracy",
    search: AStarSearch = AStarSearch(),
    *,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    journal: Path | None = None,
    progress: bool = True,
) -> PlanSearchResult:
    """Finds which heads of a fine-tuned sequence classification model can go, without training.

    The model is left as it was; cut it with `prune_model_(model, result.plan)`.

    Args:
        model: Single-label classifier of a supported family.
        dataset: Sized and indexable; tokenized examples with "labels" or "label". Other columns are ignored.
        metric: "accuracy", "macro_f1" or "matthews_correlation"; `search.metric` wins where it is set.
        search: Settings.
        processing_class: Tokenizer that pads the batches; without one they are padded on the right.
        data_collator: Makes the batches instead.
        batch_size: Examples per batch.
        journal: File that holds the state: a search that was killed continues from it.
        progress: Whether to show a progress bar (on the first process).

    Raises:
        InvalidSettingError: The data set is empty, unlabelled or not tokenized, or the metric or a setting is unknown.
        UnsupportedModelError: The model is no single-label classifier of a supported family.
        SearchStateError: The journal belongs to another search or is damaged.
    """
    name = search.metric or metric
    _check_metric(name, search.max_drop)
    anatomy = anatomy_of(model)
    collate = data_collator or _collate(model, processing_class)
    batches = length_sorted_batches(ModelExamples(dataset, model), collate, batch_size=batch_size)
    evaluator = ClassificationEvaluator(model, batches, metric=name)
    fingerprint = "" if journal is None else evaluator.fingerprint()
    with SearchBar(disable=not progress) as bar:
        return search_over_plans(
            anatomy, evaluator, search, journal=journal, fingerprint=fingerprint, on_progress=bar.show
        )


class SearchBar:
    """Progress bar of a search; silent on every process but the first."""

    def __init__(self, *, disable: bool = False) -> None:
        """Opens no bar yet: its length is known with the first evaluation."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._disable = disable or (distributed and torch.distributed.get_rank() != 0)
        self._bar: Any = None

    def __enter__(self) -> SearchBar:
        """Returns the bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the bar, after an error too."""
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """Shows the state of the search after an evaluation."""
        if self._bar is None:
            self._bar = tqdm(total=progress.max_evaluations, desc="Search", unit="plan", disable=self._disable)
        best = progress.best
        self._bar.set_postfix_str(f"{len(best.removed)} heads removed, metric {best.metric:.4f}", refresh=False)
        self._bar.update(progress.evaluations - self._bar.n)


def _check_metric(name: str, max_drop: float) -> None:
    if name not in CLASSIFICATION_METRICS:
        raise InvalidSettingError(
            f"search_plan: metric must be one of {', '.join(CLASSIFICATION_METRICS)}, received {name!r}. For any "
            "other, call search_over_plans with a MetricEvaluator."
        )
    if max_drop >= 1:
        raise InvalidSettingError(
            f"search_plan: max_drop is absolute and {name} at most 1, received {max_drop}, which allows anything. "
            "Pass 0.01 for one point."
        )


def _collate(model: Any, processing_class: Any) -> Callable[[list[Any]], Any]:
    if processing_class is not None:
        return DataCollatorWithPadding(processing_class)
    return PadRight(getattr(model.config, "pad_token_id", None))


def _gain(site: Site, objective: Objective) -> float:
    if objective == "parameters":
        return float(site.parameters_per_unit)
    return float(macs_per_unit(site, MACS_LENGTH, MACS_LENGTH)) if objective == "macs" else 1.0


def _plan(start: PruningPlan, heads: list[Head], removed: frozenset[int]) -> PruningPlan:
    kept: dict[str, list[int]] = {site: [] for site in start.num_heads}
    for unit, (site, head) in enumerate(heads):
        if unit not in removed:
            kept[site].append(head)
    return start.replace(kept_heads=kept)


def _result(found: SearchResult, start: PruningPlan, heads: list[Head], objective: Objective) -> PlanSearchResult:
    history = tuple(
        PlanStep(**{**asdict(step), "removed": tuple(heads[unit] for unit in step.removed)}) for step in found.history
    )
    return PlanSearchResult(
        plan=_plan(start, heads, found.removed),
        start=start,
        metric=found.measurement.metric,
        reference_metric=found.reference.metric,
        threshold=found.threshold,
        objective=objective,
        gain=found.gain,
        upper_bound=found.upper_bound,
        optimality=found.optimality,
        heredity_violations=found.heredity_violations,
        evaluations=found.evaluations,
        history=history,
    )
