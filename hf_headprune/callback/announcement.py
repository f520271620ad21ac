"""One paragraph before training that says what will be pruned when, to which budget, and what can be certified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import budget_groups, counted_heads
from hf_headprune.callback.metric_choice import metric_of
from hf_headprune.callback.trainer_compat import evaluation_sets, is_stream, model_of
from hf_headprune.pipeline.cost_path import CALIBRATION, DENSITIES
from hf_headprune.pipeline.holdout import Holdout, NotCertifiable
from hf_headprune.pipeline.progress import TYPICAL_SHARE
from hf_headprune.pipeline.recovery import epochs_in_words

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.budgets import Budget
    from hf_headprune.callback.certification import Splits
    from hf_headprune.callback.settings import Settings
    from hf_headprune.search.settings import AStarSearch

_COUNTED = {
    "parameters": "attention and FFN weights",
    "macs": "multiply-accumulates",
    "bytes": "bytes of attention and FFN",
    "latency": "measured ms of attention and FFN",
}


def announcement(
    settings: Settings, splits: Splits, trainer: Trainer, *, seconds_per_plan: float | None, rewinds: bool
) -> str:
    """Says what a run will do.

    Args:
        settings: Of the run, resolved.
        splits: Examples of the search and of the certificate.
        trainer: About to train.
        seconds_per_plan: Time to measure one plan on all searched examples; None where nothing says so.
        rewinds: Whether the schedule of the learning rate starts over when units are removed.
    """
    parts = [*_during_training(settings, model_of(trainer), trainer.state.max_steps, rewinds=rewinds)]
    if settings.search is not None:
        parts.append(_search(settings.search, settings, splits, trainer, seconds_per_plan))
    elif settings.max_drop is not None:
        parts.append(_walk(settings, splits, trainer, seconds_per_plan))
    if settings.uniform:
        parts[-1] += ", with equal numbers in all layers"
    if settings.recovers:
        parts += _recovery(settings)
    lines = [f"HeadPruneCallback: {'; then '.join(parts)}."]
    if isinstance(splits.holdout, (Holdout, NotCertifiable)):
        lines.append(splits.holdout.in_words())
    return "\n".join(lines)


def _during_training(settings: Settings, model: Any, max_steps: int, *, rewinds: bool) -> list[str]:
    parts = []
    if settings.second_order is not None:
        costs = settings.second_order
        step = round(costs.last_round_at * max_steps)
        parts.append(f"removes units by second-order costs at step {step} of {max_steps}, to {_budget(costs, model)}")
        if rewinds:
            parts.append(f"starts the learning rate's schedule over, at {costs.rewinds_to:g} times the rate")
    if settings.gates is not None:
        parts.append(f"learns gates to keep {_heads(settings.gates.chosen_kept_heads, model)}")
    if settings.movement is not None:
        parts.append("learns block scores during training")
    if settings.trains_twice:
        parts.append("trains the refilled model in a second run")
    return parts or [f"trains {max_steps} steps as without it"]


def _recovery(settings: Settings) -> list[str]:
    epochs = epochs_in_words(settings.recover_epochs or 0.0)
    if settings.cuts_to_size:
        budget = f"{settings.size_name}={settings.size[settings.size_name]!r}"  # type: ignore[index]
        return [f"removes units by second-order costs, to {budget}", f"trains the pruned model on for {epochs}"]
    return [
        f"before these tests, trains the smallest plan that training may save on for {epochs} and tests it, and goes "
        "on to the others only if it fails; each of the two has half of the error that is allowed"
    ]


def _heads(budget: Budget, model: Any) -> str:
    anatomy = anatomy_of(model)
    found = budget_groups(budget, anatomy)
    kept, all_heads = sum(each.kept for each in found), sum(len(each.positions) for each in found)
    return f"{kept} of {all_heads} {counted_heads(anatomy)}"


def _budget(costs: Any, model: Any) -> str:
    if costs.kept_heads is not None:
        return _heads(costs.kept_heads, model)
    return f"{100 * costs.density:.4g} % of the {_COUNTED[costs.counts]}"


def _walk(settings: Settings, splits: Splits, trainer: Trainer, seconds_per_plan: float | None) -> str:
    minutes = "" if seconds_per_plan is None else _minutes((len(DENSITIES) + 1) * seconds_per_plan)
    train: Any = trainer.train_dataset
    count = f"up to {CALIBRATION:,}" if is_stream(train) else f"{min(CALIBRATION, len(train)):,}"
    return (
        f"prunes to the smallest of {len(DENSITIES)} plans, in the order of removal costs on {count} training "
        f"examples, whose {_measured(settings, trainer)} drops by less than {settings.max_drop:g} on "
        f"{_examples(splits, trainer)}{minutes}"
    )


def _measured(settings: Settings, trainer: Trainer) -> str:
    return metric_of(trainer, settings.measured.metric).name


def _examples(splits: Splits, trainer: Trainer) -> str:
    """Says how many examples plans are measured on."""
    sets: list[Any] = evaluation_sets(trainer) if splits.searched is None else [splits.searched]
    if not sets:
        return "the examples of the evaluator"
    return "eval_dataset" if any(map(is_stream, sets)) else f"{sum(map(len, sets)):,} examples"


def _minutes(seconds: float) -> str:
    return f", about {max(seconds / 60, 0.1):.1f} minutes"


def _search(search: AStarSearch, settings: Settings, splits: Splits, trainer: Trainer, seconds: float | None) -> str:
    limit = search.max_evaluations
    plans = "until it is proved optimal" if limit is None else f"at most {limit} plans"
    text = (
        f"searches {' and '.join(search.units)} for the smallest model whose {_measured(settings, trainer)} drops by "
        f"at most {search.max_drop:g} on {_examples(splits, trainer)}, {plans}"
    )
    if seconds is None or limit is None:
        return text
    return text + _minutes(limit * seconds * TYPICAL_SHARE)
