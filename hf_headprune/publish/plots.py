"""Plots as PNG, PDF or SVG files: the map of kept heads, and the metric along the search. Needs the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hf_headprune.errors import InvalidSettingError, MissingExtraError
from hf_headprune.publish.layout import SiteGroup, groups_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.plan import PruningPlan
    from hf_headprune.publish.ladder import Rung

try:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError:
    Figure = None  # type: ignore[assignment, misc]

# From the palette of Okabe and Ito, which stays distinct in the common forms of colour blindness; kept and removed also
# differ in lightness, and feasible and infeasible in shape.
_KEPT = "#0072B2"
_REMOVED = "#E4E4E4"
_INFEASIBLE = "#D55E00"
_CHOSEN = "#E69F00"
_TEXT = "#303030"
_MUTED = "#6E6E6E"
_CELL_INCHES = 0.34


class Evaluation(Protocol):
    """One plan that the search evaluated, such as a step of its history."""

    @property
    def gain(self) -> float:
        """What the plan saves, in the unit of the x axis, such as heads removed."""

    @property
    def metric(self) -> float:
        """Its metric on the search split."""

    @property
    def feasible(self) -> bool:
        """Whether the constraint holds."""


def plot_head_map(plan: PruningPlan, path: str | Path, *, title: str | None = None) -> Path:
    """Draws which heads stay: one panel per kind of attention, a row per layer.

    Where FFN units go too, a further panel shows the share of them that stays.

    Args:
        plan: What is kept.
        path: File to write; its suffix decides the format.
        title: Heading; says how many heads stay when left out.

    Returns:
        The path written.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidPlanError: The plan's family is not declared.
    """
    _require_matplotlib()
    groups = [group for group in groups_of(plan) if group.is_attention or plan.num_removed_ffn]
    widths = [max(plan.num_heads[site] for site in group.sites) if group.is_attention else 5 for group in groups]
    rows = max(len(group.sites) for group in groups)
    figure = Figure(
        figsize=(max(5.0, _CELL_INCHES * (sum(widths) + 3.4 * len(groups)) + 0.5), _CELL_INCHES * rows + 1.7),
        layout="constrained",
    )
    axes = figure.subplots(1, len(groups), squeeze=False, width_ratios=[width + 1.5 for width in widths])[0]
    for axis, group, width in zip(axes, groups, widths, strict=True):
        draw = _draw_heads if group.is_attention else _draw_ffn
        draw(axis, plan, group, width)
        _dress_map(axis, group, rows)
    axes[0].set_ylabel("layer", color=_TEXT)
    heads = sum(plan.num_heads.values())
    figure.suptitle(title or f"{plan.num_kept_heads} of {heads} heads kept", color=_TEXT, fontsize=12)
    figure.legend(
        handles=[Patch(color=_KEPT, label="kept"), Patch(color=_REMOVED, label="removed")],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        labelcolor=_TEXT,
    )
    return _write(figure, path)


def plot_frontier(
    history: Sequence[Evaluation],
    path: str | Path,
    *,
    threshold: float,
    chosen: Evaluation | None = None,
    metric_name: str = "accuracy",
    unit_name: str = "heads removed",
) -> Path:
    """Draws every plan that the search evaluated: its metric over what it saves, in the order of the search.

    Plans whose number is a bound or an estimate (`kind` is not "exact") are drawn apart, and faintly.

    Args:
        history: Evaluated plans in the order of their evaluation.
        path: File to write; its suffix decides the format.
        threshold: Smallest metric that the search accepts.
        chosen: The plan that was returned.
        metric_name: Heading of the y axis.
        unit_name: Heading of the x axis.

    Returns:
        The path written.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidSettingError: The history is empty.
    """
    _require_matplotlib()
    if not history:
        raise InvalidSettingError("plot_frontier: the history is empty, received no plan. Plot a search that has run.")
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    exact = [point for point in history if getattr(point, "kind", "exact") == "exact"]
    others = [point for point in history if getattr(point, "kind", "exact") != "exact"]
    feasible = [point for point in exact if point.feasible]
    infeasible = [point for point in exact if not point.feasible]
    _scatter(axis, others, marker=".", color=_MUTED, s=14, alpha=0.45, linewidths=0, label="bound or estimate")
    _scatter(axis, feasible, marker="o", color=_KEPT, s=22, alpha=0.55, linewidths=0, label="holds the constraint")
    _scatter(axis, infeasible, marker="x", color=_INFEASIBLE, s=22, alpha=0.55, linewidths=1.1, label="breaks it")
    path_of_best = _best_so_far(feasible)
    if len(path_of_best) > 1:
        xs, ys = [point.gain for point in path_of_best], [point.metric for point in path_of_best]
        axis.plot(xs, ys, color=_KEPT, linewidth=1.4, label="best so far")
    axis.axhline(threshold, color=_TEXT, linewidth=1, linestyle=(0, (5, 3)), label=f"threshold {threshold:.4f}")
    if chosen is not None:
        label = f"chosen: {chosen.gain:g} {unit_name}, {chosen.metric:.4f}"
        axis.scatter(
            [chosen.gain], [chosen.metric], marker="*", s=190, color=_CHOSEN, edgecolors=_TEXT, zorder=5, label=label
        )
    axis.set_xlabel(unit_name, color=_TEXT)
    axis.set_ylabel(f"{metric_name} on the search split", color=_TEXT)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    whole = "" if len(exact) == len(history) else f", {len(exact):,} of them on every example"
    axis.set_title(f"{len(history):,} plans evaluated{whole}", color=_TEXT, fontsize=12)
    axis.grid(color="#EFEFEF")
    axis.set_axisbelow(True)
    _dress(axis)
    axis.spines[["left", "bottom"]].set_color(_MUTED)
    axis.legend(frameon=False, fontsize=9, labelcolor=_TEXT, loc="best")
    return _write(figure, path)


def plot_ladder(rungs: Sequence[Rung], path: str | Path) -> Path:
    """Draws the metric of each rung of a ladder over the size of its file; filled where it is certified.

    Args:
        rungs: The largest first.
        path: File to write; its suffix decides the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidSettingError: No metric was measured.
    """
    _require_matplotlib()
    measured = [(rung, rung.report.unseen) for rung in rungs if rung.report.unseen is not None]
    if not measured:
        raise InvalidSettingError("plot_ladder: no rung has a metric. Pass certify= to plan_ladder.")
    metric, size = measured[0][1], measured[0][0].report.before.size_bytes / 1e6
    xs = [size, *(rung.report.after.size_bytes / 1e6 for rung, _ in measured)]
    ys = [metric.before, *(change.after for _, change in measured)]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(xs, ys, color=_MUTED, linewidth=1.2, zorder=1)
    axis.scatter(xs[:1], ys[:1], marker="s", color=_TEXT, s=36, label="whole model", zorder=2)
    is_certified = [rung.verdict == "PASS" for rung, _ in measured]
    for holds, face, label in ((True, _KEPT, "certified"), (False, "white", "not certified")):
        places = [place for place, found in enumerate(is_certified, start=1) if found == holds]
        if places:
            points = [xs[place] for place in places], [ys[place] for place in places]
            axis.scatter(*points, marker="o", facecolor=face, edgecolor=_KEPT, s=44, label=label, zorder=2)
    for (rung, _), x, y in zip(measured, xs[1:], ys[1:], strict=True):
        axis.annotate(rung.name, (x, y), textcoords="offset points", xytext=(0, 8), ha="center", color=_MUTED)
    axis.set_xlabel("file, MB", color=_TEXT)
    axis.set_ylabel(f"{metric.name} on unseen examples", color=_TEXT)
    axis.margins(y=0.2)
    axis.grid(color="#EFEFEF")
    axis.set_axisbelow(True)
    _dress(axis)
    axis.spines[["left", "bottom"]].set_color(_MUTED)
    axis.legend(frameon=False, fontsize=9, labelcolor=_TEXT, loc="best")
    return _write(figure, path)


def _require_matplotlib() -> None:
    if Figure is None:
        raise MissingExtraError(
            "hf_headprune.publish.plots: plots need matplotlib, which is not installed. Install the extra: "
            "pip install 'hf-headprune[plot]'."
        )


def _draw_heads(axis: Any, plan: PruningPlan, group: SiteGroup, width: int) -> None:
    for row, site in enumerate(group.sites):
        kept = set(plan.kept_heads[site])
        for head in range(plan.num_heads[site]):
            color = _KEPT if head in kept else _REMOVED
            axis.add_patch(Rectangle((head - 0.44, row - 0.44), 0.88, 0.88, color=color, linewidth=0))
        axis.text(width - 0.3, row, f"{len(kept)}", ha="left", va="center", color=_MUTED, fontsize=9)
    axis.set_xlim(-0.6, width + 0.9)
    axis.set_xticks(range(0, width, max(1, width // 8)))
    axis.set_xlabel("head, and how many stay", color=_MUTED, fontsize=9)


def _draw_ffn(axis: Any, plan: PruningPlan, group: SiteGroup, width: int) -> None:
    for row, site in enumerate(group.sites):
        share = len(plan.kept_ffn[site]) / max(plan.num_ffn[site], 1)
        axis.barh(row, 1, height=0.72, color=_REMOVED)
        axis.barh(row, share, height=0.72, color=_KEPT)
        axis.text(1.04, row, f"{len(plan.kept_ffn[site]):,}", ha="left", va="center", color=_MUTED, fontsize=9)
    axis.set_xlim(0, 1 + 3.4 / width)
    axis.set_xticks([0, 1], ["0", "all"])
    axis.set_xlabel("share that stays", color=_MUTED, fontsize=9)


def _dress_map(axis: Any, group: SiteGroup, rows: int) -> None:
    axis.set_title(group.title, fontsize=10, color=_TEXT)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.set_yticks(range(len(group.sites)))
    _dress(axis)
    axis.spines[["left", "bottom"]].set_visible(False)


def _dress(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0, colors=_MUTED, labelsize=9)


def _best_so_far(feasible: Sequence[Evaluation]) -> list[Evaluation]:
    best: list[Evaluation] = []
    for point in feasible:
        if not best or point.gain > best[-1].gain:
            best.append(point)
    return best


def _scatter(axis: Any, points: Sequence[Evaluation], **style: Any) -> None:
    if points:
        axis.scatter([point.gain for point in points], [point.metric for point in points], **style)


def _write(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)
    return path
