"""PruningReport: what was removed, what it cost and what it saved; plain data, JSON, and a short table."""

from __future__ import annotations

import base64
import dataclasses
import json
import textwrap
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from hf_headprune._strict_json import parse
from hf_headprune.budgets import linear_density
from hf_headprune.cost import Cost, cost_of
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.latency import LatencyChange, LatencySample
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.layout import groups_of
from hf_headprune.publish.measurements import CONFIDENCE, Effort, Frontier, MetricChange, Recipe
from hf_headprune.publish.plots import FRONTIER_NAME, TRAINING_NAME, captions, pictures
from hf_headprune.publish.training import Curve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hf_headprune.anatomy import Anatomy

REPORT_NAME = "headprune_report.json"
PAGE = Path(__file__).with_name("report.html")
REPORT_FORMAT = "hf_headprune.report/2"
_COUNTED = ("before", "after", "seq_len", "linear_density")
_MEASURED = ("unseen", "metric", "latency", "effort", "certificate", "frontier", "training", "recipe")
_WIDTH = 100
_NAME_WIDTH = 38
_LAYERS_PER_ROW = 12
_Pair = tuple[float, float]


@dataclass(frozen=True)
class PruningReport:
    """What a pruned model lost and what it gained.

    Attributes:
        plan: What stayed.
        before: Cost of the model with everything that it had.
        after: Cost under the plan.
        seq_len: Tokens per sequence that the MACs are counted for.
        unseen: The metric on held-out examples before and after, or None.
        metric: The metric on the searched examples before and after, which is optimistic; None where nothing was
            searched.
        latency: Measured latency before and after, or None.
        effort: What training and search took.
        certificate: What is certified about unseen data, in words; empty where nothing is.
        linear_density: Share of the weights of all attention and FFN matrices that is kept.
        frontier: Plans that were measured on the way, or None where a budget decided.
        training: Loss, metrics and what is kept over the steps of the training before the model was cut; empty where
            nothing was trained.
        recipe: How it was decided what to prune.
    """

    plan: PruningPlan
    before: Cost
    after: Cost
    seq_len: int
    unseen: MetricChange | None = None
    metric: MetricChange | None = None
    latency: LatencyChange | None = None
    effort: Effort = field(default_factory=Effort)
    certificate: str = ""
    linear_density: float | None = None
    frontier: Frontier | None = None
    training: tuple[Curve, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)

    @classmethod
    def of(  # noqa: PLR0913 - one argument for each thing that was measured
        cls,
        plan: PruningPlan,
        anatomy: Anatomy,
        *,
        seq_len: int = 128,
        unseen: MetricChange | None = None,
        metric: MetricChange | None = None,
        latency: LatencyChange | None = None,
        effort: Effort | None = None,
        frontier: Frontier | None = None,
        training: tuple[Curve, ...] = (),
        recipe: Recipe | None = None,
    ) -> PruningReport:
        """Counts the costs of a plan and puts the measurements beside them.

        Args:
            plan: What is kept.
            anatomy: Of the model before pruning.
            seq_len: Tokens per sequence for counting MACs.
            unseen: The metric on held-out examples, before and after pruning.
            metric: The metric on the searched examples, before and after pruning.
            latency: Measured latency before and after pruning.
            effort: What training and search took.
            frontier: Plans that were measured on the way.
            training: Curves of the training.
            recipe: How it was decided what to prune.

        Raises:
            InvalidPlanError: The plan was made for another anatomy.
            InvalidSettingError: `seq_len` is below one.
        """
        before = cost_of(PruningPlan.full(anatomy), anatomy, seq_len=seq_len)
        after = cost_of(plan, anatomy, seq_len=seq_len)
        density = linear_density(plan, anatomy)
        known: dict[str, Any] = {"unseen": unseen, "metric": metric, "latency": latency, "frontier": frontier}
        known |= {"effort": effort or Effort(), "linear_density": density, "training": training}
        known["recipe"] = recipe or Recipe()
        return cls(plan, before, after, seq_len, **known)

    def files(self) -> dict[str, bytes]:
        """Returns what lies beside a model card, by name: this report, and its pictures if matplotlib is installed."""
        return {REPORT_NAME: self.to_json().encode(), **pictures(self.plan, self.frontier, self.training)}

    def to_json(self) -> str:
        """Returns the report as JSON text that `from_json` reads back to an equal report."""
        content: dict[str, Any] = {"format": REPORT_FORMAT, "plan": json.loads(self.plan.to_json())}
        content |= {name: _plain(getattr(self, name)) for name in (*_COUNTED, *_MEASURED)}
        lines = [f"  {json.dumps(name)}: {json.dumps(value, default=float)}" for name, value in content.items()]
        return "{\n" + ",\n".join(lines) + "\n}"  # a line each: the plan lists every unit

    @classmethod
    def from_json(cls, text: str) -> PruningReport:
        """Reads what `to_json` wrote.

        Raises:
            InvalidSettingError: The text is no JSON, has another format, or a field is missing, unknown or malformed.
        """
        content = parse(text, "PruningReport.from_json", error=InvalidSettingError)
        received = content.get("format") if isinstance(content, dict) else type(content).__name__
        if received != REPORT_FORMAT:
            raise InvalidSettingError(
                f"PruningReport.from_json: format must be {REPORT_FORMAT!r}, received {received!r}. Pass the text that "
                "to_json returned, written by a version that knows this format."
            )
        try:
            return cls(**{name: _field(name, value) for name, value in content.items() if name != "format"})
        except (HeadPruneError, TypeError, KeyError) as error:
            raise InvalidSettingError(
                f"PruningReport.from_json: a field is missing, unknown or malformed ({error}). Pass the text that "
                "to_json returned."
            ) from error

    def to_text(self) -> str:
        """Returns a table for people: at most 100 columns, one column per layer, a dozen layers a row."""
        totals = [_row("", "before", "after", "change"), *(_row(*row) for row in self.rows())]
        blocks = [[self.headline(), *_wrapped(self.how())], totals, [*self.layers()], [*_wrapped(self.notes())]]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def to_html(self, title: str) -> str:
        """Returns a page for people, in one file: all that `to_text` says, the measured plans, and the pictures.

        Args:
            title: Its heading, such as the name of the model.
        """
        drawn = pictures(self.plan, self.frontier, self.training)
        environment = Environment(undefined=StrictUndefined, autoescape=True)
        return environment.from_string(PAGE.read_text(encoding="utf-8")).render(
            report=self,
            title=title,
            certified=bool(self.certificate) and self.unseen is not None,
            pictures={name: base64.b64encode(picture).decode() for name, picture in drawn.items()},
            captions=captions(self.plan, self.frontier, self.training),
            frontier_name=FRONTIER_NAME,
            training_name=TRAINING_NAME,
            report_name=REPORT_NAME,
            version=metadata.version("hf-headprune"),
        )

    def headline(self) -> str:
        """Returns in one line what was removed."""
        plan = self.plan
        heads, ffn = sum(plan.num_heads.values()), sum(plan.num_ffn.values())
        removed = f"{plan.num_removed_heads:,} of {heads:,} heads and {plan.num_removed_ffn:,} of {ffn:,} FFN units"
        return f"{plan.model_type}: {removed} removed"

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yields what was counted and measured, as text: its name, before, after, and the change."""
        for name, counts in (
            ("heads", (sum(self.plan.num_heads.values()), self.plan.num_kept_heads)),
            ("FFN units", (sum(self.plan.num_ffn.values()), self.plan.num_kept_ffn)),
            (f"million MACs at length {self.seq_len}", (self.before.macs / 1e6, self.after.macs / 1e6)),
        ):
            yield name, f"{counts[0]:,.0f}", f"{counts[1]:,.0f}", _percent(*counts)
        if self.linear_density is not None:
            yield "attention and FFN weights", "100 %", f"{100 * self.linear_density:.1f} %", ""
        whole, kept = self.before, self.after
        parameters = (whole.parameters, kept.parameters), (whole.embedding_parameters, kept.embedding_parameters)
        yield from _apart("parameters", *parameters, digits=0)
        sizes = (whole.size_mb, kept.size_mb), (whole.embedding_bytes / 1e6, kept.embedding_bytes / 1e6)
        yield from _apart("file, MB", *sizes, digits=1 if kept.size_mb >= 1 else 3)
        if self.latency:
            samples = self.latency.before, self.latency.after
            before, after = (f"{sample.median_ms:.2f}" for sample in samples)
            yield "latency, ms (median)", before, after, self.latency.verdict
            before, after = (f"{s.lower_quartile_ms:.2f} .. {s.upper_quartile_ms:.2f}" for s in samples)
            yield "latency, ms (quartiles)", before, after, ""
        for metric in (self.unseen, self.metric):
            if metric:
                name = f"{metric.name} ({metric.split})"
                name = name if len(name) < _NAME_WIDTH else metric.name
                yield name, f"{metric.before:.4f}", f"{metric.after:.4f}", f"{metric.after - metric.before:+.4f}"

    def notes(self) -> list[str]:
        """Returns what is certified, where the numbers come from and under which conditions, as paragraphs."""
        notes = self.certificate, self._interval_note(), self._metric_note(), self._latency_note(), self._effort_note()
        return [note for note in notes if note]

    def how(self) -> list[str]:
        """Returns what chose the plan, what was asked for, how the model trained on, and where examples are from.

        Of a model that was pruned before, that comes first.
        """
        recipe = self.recipe
        said = {"Before": recipe.earlier, "Method": recipe.method, "Budget": recipe.budget}
        said |= {"Recovery": recipe.recovery, "Data": recipe.dataset}
        return [f"{name}: {words}." for name, words in said.items() if words]

    def layers(self) -> Iterator[str]:
        """Yields how many heads and FFN units each layer keeps, as lines of a table."""
        for group in groups_of(self.plan):
            sizes = self.plan.num_heads if group.is_attention else self.plan.num_ffn
            totals = {sizes[site] for site in group.sites}
            uniform = f" of {totals.pop():,}" if len(totals) == 1 else ""
            cells = [str(len(self.plan.kept(site))) + ("" if uniform else f"/{sizes[site]}") for site in group.sites]
            for start in range(0, len(cells), _LAYERS_PER_ROW):
                row = cells[start : start + _LAYERS_PER_ROW]
                span = f", layers {start}-{start + len(row) - 1}" if len(cells) > _LAYERS_PER_ROW else ", by layer"
                label = f"kept {group.title}{uniform}{span}" if start == 0 else f"  {span.strip(', ')}"
                yield f"{label:<{_NAME_WIDTH}}" + "".join(f"{cell:>5}" for cell in row)

    def _interval_note(self) -> str:
        interval = None if self.unseen is None else self.unseen.interval
        if self.unseen is None or interval is None:
            return ""
        return (
            f"On unseen data the {self.unseen.name} of the pruned model lies between {interval[0]:.4f} and "
            f"{interval[1]:.4f} (exact {CONFIDENCE:.0%} interval, {self.unseen.num_examples:,} examples)."
        )

    def _metric_note(self) -> str:
        if not self.metric:
            return "" if self.unseen else "Metric: not measured."
        count = "" if self.metric.num_examples is None else f"{self.metric.num_examples:,} "
        return (
            f"Metric: {self.metric.name} on {count}examples ({self.metric.split}); before: "
            f"{self.metric.reference}. Measured on the examples used to choose what to prune, so it is optimistic; "
            "see the certificate for unseen data."
        )

    def _latency_note(self) -> str:
        if not self.latency:
            return "Latency: not measured."
        m = self.latency
        plural = "s" if m.threads > 1 else ""
        threads = f", {m.threads} thread{plural}" if m.device == "cpu" else ""
        length = "" if m.seq_len is None else f" x length {m.seq_len}"
        return (
            f"Latency: {m.device}, {m.dtype}, batch {m.batch_size}{length}{threads}; {m.runs} runs of each model in "
            "turns."
        )

    def _effort_note(self) -> str:
        effort = self.effort
        parts = []
        if effort.training_seconds is not None:
            parts.append(f"training {effort.training_seconds:,.0f} s")
        if effort.evaluations is not None:
            parts.append(f"search {effort.evaluations:,} plans evaluated")
        if effort.search_seconds is not None:
            parts.append(f"search {effort.search_seconds:,.0f} s")
        if effort.optimality:
            parts.append(effort.optimality)
        return f"Effort: {'; '.join(parts)}." if parts else ""


def _wrapped(paragraphs: Iterable[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        yield from textwrap.wrap(paragraph, _WIDTH, subsequent_indent="  ")


def _apart(name: str, total: _Pair, embeddings: _Pair, *, digits: int) -> Iterator[tuple[str, str, str, str]]:
    """Yields rows of a total, of what embeddings have of it, and of all else; the total alone without embeddings.

    Args:
        name: Of the total.
        total: Before and after.
        embeddings: The same, of the embedding tables.
        digits: After the decimal point.
    """
    unit, parts = name.removeprefix("file, "), {name: total}
    if embeddings[0]:
        parts[f"{unit} of embeddings"] = embeddings
        parts[f"{unit} of all else"] = total[0] - embeddings[0], total[1] - embeddings[1]
    for part, (before, after) in parts.items():
        yield part, f"{before:,.{digits}f}", f"{after:,.{digits}f}", _percent(before, after)


def _row(name: str, before: str, after: str, change: str = "") -> str:
    return f"{name:<{_NAME_WIDTH}}{before:>20}{after:>20}{change:>20}".rstrip()


def _percent(before: float, after: float) -> str:
    return f"{(after - before) / before:+.1%}" if after != before else "unchanged"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (int, float, str)) else dataclasses.asdict(value)


def _field(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "plan":
        return PruningPlan.from_json(json.dumps(value))
    if name == "training":
        return tuple(Curve.from_plain(curve) for curve in value)
    if name == "frontier":
        return Frontier.from_plain(value)
    if name == "latency":
        value = {**value, "before": LatencySample(**value["before"]), "after": LatencySample(**value["after"])}
    kinds: dict[str, Any] = {
        "before": Cost,
        "after": Cost,
        "unseen": MetricChange,
        "metric": MetricChange,
        "latency": LatencyChange,
        "effort": Effort,
        "recipe": Recipe,
    }
    return kinds[name](**value) if name in kinds else value
