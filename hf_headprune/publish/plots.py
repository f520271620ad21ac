"""Pictures of a pruning: what is kept, the metric over the size, curves of the training. Needs the extra `plot`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError, MissingExtraError
from hf_headprune.publish.layout import SiteGroup, groups_of
from hf_headprune.publish.training import KEPT, LOSS, METRIC

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hf_headprune.plan import PruningPlan
    from hf_headprune.publish.ladder import Rung
    from hf_headprune.publish.measurements import Frontier
    from hf_headprune.publish.training import Curve

KEPT_NAME, FRONTIER_NAME, TRAINING_NAME = "headprune_kept.png", "headprune_frontier.png", "headprune_training.png"
LEAST_PLANS = 2  # that make a frontier
LEAST_POINTS = 2  # that make a curve
ONE_POINT = 0.01

# From the palette of Okabe and Ito, which stays distinct in the common forms of colour blindness; kept and removed also
# differ in lightness, and plans that passed and failed in shape.
_KEPT = "#0072B2"
_SOON = "#BFDDF0"  # a head that is kept, and would be the next to leave
_REMOVED = "#ECECEC"
_FAILED = "#D55E00"
_CHOSEN = "#E69F00"
_SAFE = "#E3F3EC"
_TEXT = "#24292F"
_MUTED = "#6E6E6E"
_GRID = "#EDEDED"
_CELL = 0.3  # inches
_GAP = 0.85  # between panels, for the numbers at the end of a row
_MARGIN = {"left": 0.6, "right": 0.75, "top": 0.85, "bottom": 0.8}
_BAR = 6  # cells that a bar of FFN units is wide
_SIZE = (7.2, 4.6)
_PANEL = 1.7  # inches that a panel of curves is high
_LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
_DASHES = ("-", "--", ":")
_FEW_POINTS = 40  # a curve with more has no marks
_DPI = 144


def captions(plan: PruningPlan, frontier: Frontier | None, training: Sequence[Curve] = ()) -> dict[str, str]:
    """Returns what each picture of `pictures` shows, in words, by its file name."""
    if find_spec("matplotlib") is None:
        return {}
    found = {}
    if sum(plan.num_heads.values()) or sum(plan.num_ffn.values()):
        found[KEPT_NAME] = "Which attention heads and how many FFN units of each layer are kept"
    if frontier is not None and len(frontier.plans) >= LEAST_PLANS:
        over = "the size of the file, and over its latency" if frontier.has_latency else "the size of the file"
        found[FRONTIER_NAME] = f"The {frontier.metric} on {frontier.split} over {over}"
    if curves := _drawable(training):
        found[TRAINING_NAME] = f"Over the steps of the training: {', '.join(curve.name for curve in curves)}"
    return found


def pictures(plan: PruningPlan, frontier: Frontier | None, training: Sequence[Curve] = ()) -> dict[str, bytes]:
    """Returns PNG files by name: what is kept, the plans that were measured, and curves; none without matplotlib."""
    draw = {
        KEPT_NAME: lambda: _map(plan, _order(frontier)),
        FRONTIER_NAME: lambda: _frontier(frontier),
        TRAINING_NAME: lambda: _training(training),
    }
    drawn = {}
    for name in captions(plan, frontier, training):
        file = BytesIO()
        draw[name]().savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
        drawn[name] = file.getvalue()
    return drawn


def plot_head_map(plan: PruningPlan, path: str | Path, frontier: Frontier | None = None) -> Path:
    """Draws which heads are kept, one panel per kind of attention, a row per layer, and how many FFN units.

    Args:
        plan: What is kept.
        path: File to write, such as `.png`, `.pdf` or `.svg`; its suffix decides the format.
        frontier: Of the run. Where it knows in which order heads leave, those that leave last are the darkest.

    Returns:
        The path written.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidPlanError: The plan's family is not declared.
    """
    return _write(_map(plan, _order(frontier)), path)


def plot_frontier(frontier: Frontier, path: str | Path) -> Path:
    """Draws the metric of each plan that was measured over the size of its file; the certified part is shaded.

    Where the latency of every plan is known, a second panel is over the latency.

    Args:
        frontier: Of the run, `result.report.frontier`.
        path: File to write; its suffix decides the format.

    Returns:
        The path written.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidSettingError: There are no plans.
    """
    if not frontier.plans:
        raise InvalidSettingError("plot_frontier: no plan was measured, received none. Plot a run that measured some.")
    return _write(_frontier(frontier), path)


def plot_ladder(rungs: Sequence[Rung], path: str | Path) -> Path:
    """Draws the metric of each rung of a ladder over the size of its file; filled where it is certified.

    Where the latency of every rung is known, a second panel is over the latency.

    Args:
        rungs: The largest first.
        path: File to write; its suffix decides the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidSettingError: No metric was measured.
    """
    measured = [rung for rung in rungs if rung.report.unseen is not None]
    if not measured:
        raise InvalidSettingError("plot_ladder: no rung has a metric. Pass certify= to plan_ladder.")
    return _write(_ladder(measured), path)


def _order(frontier: Frontier | None) -> Mapping[str, tuple[float, ...]]:
    return {} if frontier is None else frontier.leaves_at


def _matplotlib(module: str) -> Any:
    """Imports a module of matplotlib when something is drawn: it takes longer than all else of this package."""
    try:
        return import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise MissingExtraError(
            "hf_headprune.publish.plots: plots need matplotlib, which is not installed. Install the extra: "
            "pip install 'hf-headprune[plot]'."
        ) from error


def _map(plan: PruningPlan, order: Mapping[str, tuple[float, ...]]) -> Any:
    groups = groups_of(plan)
    widths = [max(plan.num_heads[site] for site in group.sites) if group.is_attention else _BAR for group in groups]
    rows = max(len(group.sites) for group in groups)
    inner = _CELL * sum(widths) + _GAP * (len(groups) - 1)
    width = max(inner + _MARGIN["left"] + _MARGIN["right"], 4.6)
    height = _CELL * rows + _MARGIN["top"] + _MARGIN["bottom"]
    figure = _matplotlib("figure").Figure(figsize=(width, height))
    shade = _shades(plan, order)
    left = _MARGIN["left"]
    for index, (group, cells) in enumerate(zip(groups, widths, strict=True)):
        tall = _CELL * len(group.sites)
        top = height - _MARGIN["top"]
        axis = figure.add_axes((left / width, (top - tall) / height, _CELL * cells / width, tall / height))
        (_draw_heads if group.is_attention else _draw_ffn)(axis, plan, group, shade)
        _dress_map(axis, group, cells, is_first=index == 0)
        left += _CELL * cells + _GAP
    heads, ffn = sum(plan.num_heads.values()), sum(plan.num_ffn.values())
    counts = [f"{plan.num_kept_heads:,} of {heads:,} heads"] * bool(heads)
    counts += [f"{plan.num_kept_ffn:,} of {ffn:,} FFN units"] * bool(ffn)
    at = {"x": _MARGIN["left"] / width, "color": _TEXT}
    figure.text(y=1 - 0.3 / height, s=f"Kept: {' and '.join(counts)}", fontsize=12, weight="bold", **at)
    figure.legend(
        handles=[_matplotlib("patches").Patch(color=color, label=label) for label, color in _legend(plan, order)],
        loc="lower left",
        bbox_to_anchor=(_MARGIN["left"] / width, 0.12 / height),
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=_TEXT,
        handlelength=1,
        handleheight=1,
        borderaxespad=0,
        columnspacing=1.4,
    )
    return figure


def _legend(plan: PruningPlan, order: Mapping[str, tuple[float, ...]]) -> list[tuple[str, str]]:
    known = [("would leave last", _KEPT), ("would leave next", _SOON)] if order and plan.num_kept_heads else []
    return [*(known or [("kept", _KEPT)]), ("removed", _REMOVED)]


def _shades(plan: PruningPlan, order: Mapping[str, tuple[float, ...]]) -> Any:
    """Returns a function of site and head: the colour of a head that is kept, the darker the later it would leave."""
    mixed = _matplotlib("colors").LinearSegmentedColormap.from_list("kept", [_KEPT, _SOON])
    kept = {order[site][head] for site, heads in plan.kept_heads.items() for head in heads if site in order}
    steps = sorted(kept)

    def shade(site: str, head: int) -> Any:
        if site not in order or len(steps) < LEAST_PLANS:
            return _KEPT
        return mixed(steps.index(order[site][head]) / (len(steps) - 1))

    return shade


def _draw_heads(axis: Any, plan: PruningPlan, group: SiteGroup, shade: Any) -> None:
    for row, site in enumerate(group.sites):
        kept = set(plan.kept_heads[site])
        for head in range(plan.num_heads[site]):
            color = shade(site, head) if head in kept else _REMOVED
            axis.add_patch(_matplotlib("patches").Rectangle((head + 0.05, row + 0.05), 0.9, 0.9, color=color, lw=0))
        _count(axis, max(plan.num_heads[it] for it in group.sites), row, f"{len(kept)}")
    heads = max(plan.num_heads[site] for site in group.sites)
    shown = range(0, heads, max(1, -(-heads // 12)))
    axis.set_xticks([head + 0.5 for head in shown], [str(head) for head in shown])


def _draw_ffn(axis: Any, plan: PruningPlan, group: SiteGroup, _: Any) -> None:
    for row, site in enumerate(group.sites):
        share = len(plan.kept_ffn[site]) / max(plan.num_ffn[site], 1)
        axis.barh(row + 0.5, _BAR, height=0.9, color=_REMOVED)
        axis.barh(row + 0.5, _BAR * share, height=0.9, color=_KEPT)
        _count(axis, _BAR, row, f"{len(plan.kept_ffn[site]):,}")
    axis.set_xticks([0, _BAR / 2, _BAR], ["0", "½", "all"])


def _count(axis: Any, end: float, row: int, text: str) -> None:
    axis.text(end + 0.25, row + 0.52, text, ha="left", va="center", color=_TEXT, fontsize=9)


def _dress_map(axis: Any, group: SiteGroup, cells: int, *, is_first: bool) -> None:
    axis.set_title(group.title, fontsize=10, color=_TEXT, loc="left", pad=4)
    axis.set_xlim(0, max(cells, 1))
    axis.set_ylim(len(group.sites), 0)
    axis.set_yticks([row + 0.5 for row in range(len(group.sites))], [str(row) for row in range(len(group.sites))])
    axis.tick_params(length=0, colors=_MUTED, labelsize=8)
    axis.spines[:].set_visible(False)
    if is_first:
        axis.set_ylabel("layer", color=_MUTED, fontsize=9)


def _drawable(training: Sequence[Curve]) -> list[Curve]:
    """Returns the curves with enough points, where something was trained for longer than that."""
    return [curve for curve in training if len(curve.steps) >= LEAST_POINTS]


def _training(training: Sequence[Curve]) -> Any:
    """Draws a panel for each kind of curve, one below the other, over the same steps."""
    curves = _drawable(training)
    kinds = [kind for kind in (LOSS, METRIC, KEPT) if any(curve.kind == kind for curve in curves)]
    size = (_SIZE[0], 0.7 + _PANEL * len(kinds))
    figure = _matplotlib("figure").Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.subplots(len(kinds), sharex=True, squeeze=False)[:, 0]
    for kind, axis in zip(kinds, axes, strict=True):
        shown = [curve for curve in curves if curve.kind == kind]
        for number, curve in enumerate(shown):
            style = {"color": _LINES[number % len(_LINES)], "linestyle": _DASHES[number // len(_LINES) % len(_DASHES)]}
            marker = "o" if len(curve.steps) <= _FEW_POINTS else None
            axis.plot(curve.steps, curve.values, marker=marker, markersize=4, lw=1.5, label=curve.name, **style)
        if kind == KEPT:
            axis.set_ylim(0, 1.05)
            axis.yaxis.set_major_formatter(_matplotlib("ticker").PercentFormatter(1.0))
        axis.margins(x=0.02, y=0.12)
        _dress_frontier(axis)
        axis.legend(frameon=False, fontsize=9, labelcolor=_TEXT, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[0].set_title("Training, until the model was cut", color=_TEXT, fontsize=12, loc="left", weight="bold")
    axes[-1].set_xlabel("optimizer steps", color=_TEXT, fontsize=10)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _ladder(rungs: Sequence[Any]) -> Any:
    """Draws the metric of rungs over the size of the file, and beside it over the latency where all have one."""
    reports = [rung.report for rung in rungs]
    first, latencies = reports[0], [report.latency for report in reports]
    over = {"file, MB (embeddings included)": [first.before.size_mb, *(report.after.size_mb for report in reports)]}
    if None not in latencies:
        over["latency, ms"] = [latencies[0].before.median_ms, *(it.after.median_ms for it in latencies)]
    ys = [first.unseen.before, *(report.unseen.after for report in reports)]
    size = _SIZE[0] * (1 + 0.5 * (len(over) - 1)), _SIZE[1]
    figure = _matplotlib("figure").Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(over), sharey=True, squeeze=False)[0]
    for axis, (label, xs) in zip(axes, over.items(), strict=True):
        axis.plot(xs, ys, color=_MUTED, linewidth=1.2, zorder=1)
        axis.scatter(xs[:1], ys[:1], marker="s", color=_TEXT, s=36, label="whole model", zorder=2)
        for holds, face, words in ((True, _KEPT, "certified"), (False, "white", "not certified")):
            places = [place for place, rung in enumerate(rungs, start=1) if (rung.verdict == "PASS") == holds]
            if places:
                points = [xs[place] for place in places], [ys[place] for place in places]
                axis.scatter(*points, marker="o", facecolor=face, edgecolor=_KEPT, s=44, label=words, zorder=2)
        for rung, x, y in zip(rungs, xs[1:], ys[1:], strict=True):
            axis.annotate(rung.name, (x, y), textcoords="offset points", xytext=(6, 4), color=_MUTED)
        axis.set_xlabel(label, color=_TEXT, fontsize=10)
        axis.margins(0.1, 0.2)
        axis.invert_xaxis()  # pruning goes to the right
        _dress_frontier(axis)
    axes[0].set_ylabel(f"{first.unseen.name} on unseen examples", color=_TEXT, fontsize=10)
    axes[0].legend(frameon=False, fontsize=9, labelcolor=_TEXT, loc="best")
    return figure


def _frontier(frontier: Any) -> Any:
    """Draws the metric over the size of the file, and beside it over the latency where that of every plan is known."""
    over = {"size_mb": "file, MB (embeddings included)"}
    if frontier.has_latency:
        over["latency_ms"] = "attention and FFN blocks, ms"
    figure = _matplotlib("figure").Figure(figsize=(_SIZE[0] * (1 + 0.5 * (len(over) - 1)), _SIZE[1]))
    axes = figure.subplots(1, len(over), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.1 / len(over) ** 0.6, right=0.98, bottom=0.29, top=0.91, wspace=0.08)
    for axis, (name, label) in zip(axes, over.items(), strict=True):
        _draw_plans(axis, frontier, name)
        axis.set_xlabel(label, color=_TEXT, fontsize=10)
        axis.invert_xaxis()  # pruning goes to the right
        axis.margins(0.05, 0.12)
        _dress_frontier(axis)
    first, plans = axes[0], len(frontier.plans)
    first.set_ylabel(f"{frontier.metric} on {frontier.split}", color=_TEXT, fontsize=10)
    first.set_title(f"The {plans:,} models that were measured", color=_TEXT, fontsize=12, loc="left", weight="bold")
    at = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "ncols": 2}
    first.legend(frameon=False, fontsize=9, labelcolor=_TEXT, borderaxespad=0, borderpad=0, columnspacing=1.6, **at)
    return figure


def _draw_plans(axis: Any, frontier: Any, over: str) -> None:
    """Draws the plans over one of their numbers: what is allowed, which passed, and which was pruned."""
    plans, sign, x = frontier.plans, 1 if frontier.higher_is_better else -1, attrgetter(over)
    whole, passed = plans[0], [plan for plan in plans if plan.passed]
    chosen = min(passed, key=lambda plan: plan.size_mb, default=None)
    allowed = f"{100 * frontier.max_drop:g} percentage point{'' if frontier.max_drop == ONE_POINT else 's'}"
    if frontier.confidence is not None and chosen is not None and chosen is not whole:
        label = f"loses less than {allowed}, certified at {100 * frontier.confidence:g} %"
        axis.axvspan(x(chosen), x(whole), color=_SAFE, zorder=0, label=label)
    floor, dashes = whole.metric - sign * frontier.max_drop, (0, (4, 3))
    axis.axhline(floor, color=_MUTED, lw=1, linestyle=dashes, zorder=1, label=f"{allowed} worse than before pruning")
    ordered = sorted(plans, key=x)
    axis.plot([x(it) for it in ordered], [it.metric for it in ordered], color=_KEPT, lw=1, alpha=0.35, zorder=2)
    marked = [(passed, {"marker": "o", "color": _KEPT, "s": 34, "zorder": 3, "label": "passed"})]
    failed = [plan for plan in plans if not plan.passed]
    marked.append((failed, {"marker": "X", "color": _FAILED, "s": 48, "lw": 0, "zorder": 3, "label": "failed"}))
    if chosen is not None:
        ms = f", {chosen.latency_ms:,.2f} ms" if frontier.has_latency else ""
        label = f"pruned: {chosen.size_mb:,.1f} MB{ms}, {chosen.metric:.4f}"
        marked.append(([chosen], {"marker": "*", "s": 230, "color": _CHOSEN, "edgecolors": _TEXT, "lw": 0.8}))
        marked[-1][1].update(zorder=4, label=label)
    for shown, style in marked:
        if shown:
            axis.scatter([x(plan) for plan in shown], [plan.metric for plan in shown], **style)


def _dress_frontier(axis: Any) -> None:
    axis.grid(color=_GRID)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, colors=_MUTED, labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_MUTED)


def _write(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path
