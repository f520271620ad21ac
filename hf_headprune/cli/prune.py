"""`headprune prune`: a fine-tuned model and labelled examples in, the smallest model that keeps its accuracy out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_headprune._certificate_file import attach_certificate_
from hf_headprune.cli import duration
from hf_headprune.cli.budget import Budget
from hf_headprune.cli.columns import NamedColumns
from hf_headprune.cli.examples import QuestionReader, reader_for
from hf_headprune.cli.files import DataSource
from hf_headprune.cli.metrics import metric_named
from hf_headprune.cli.models import load_model, load_tokenizer, to_accelerator_
from hf_headprune.cli.output import OutputFolder
from hf_headprune.cli.splits import encoded_splits, held_back
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.pipeline import plan_for_budget, search_plan
from hf_headprune.pipeline.budget import MB
from hf_headprune.pipeline.cost_path import DENSITIES
from hf_headprune.pipeline.holdout import DEFAULT_DROP
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.latency_table import measure_latency_table
from hf_headprune.shrink.surgery import probe, prune_model_
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.cli.splits import Splits
    from hf_headprune.pipeline import PruningResult

REPORT_NAME = "headprune_report.json"
OUTCOME_FORMAT = "hf_headprune.prune/1"


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        holds: Whether what was asked for holds, and the model was saved.
        result: Plan, report and certificate.
        content: Of the JSON output.
        closing: The last line of the text output.
    """

    holds: bool
    result: PruningResult
    closing: str
    content: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns one JSON object."""
        certificate = self.result.certificate
        about = {"verdict": certificate.verdict, "statement": certificate.statement} if certificate else None
        report = json.loads(self.result.report.to_json())
        content = {
            "format": OUTCOME_FORMAT,
            "holds": self.holds,
            **self.content,
            "certificate": about,
            "report": report,
        }
        return json.dumps(content)

    def to_text(self) -> str:
        """Returns the report and what became of the model."""
        return f"{self.result.report.to_text()}\n\n{self.closing}"


def prune(  # noqa: PLR0913, PLR0917 - the options of the command
    model: Annotated[str, typer.Argument(metavar="MODEL", hidden=True)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", hidden=True)],
    train: Annotated[str | None, typer.Option(metavar="FILE", help="Training examples, for the removal costs")] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="FILE", help="Unseen examples that plans are tested and certified on")
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="Examples to certify on, if validation has been looked at")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set on the Hub, of which the three above name splits")
    ] = None,
    dataset_config: Annotated[str | None, typer.Option(metavar="NAME", help="Its configuration")] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Text, tokens, or context of a question")
    ] = None,
    text_pair_column: Annotated[str | None, typer.Option(metavar="NAME", help="Second text of a pair")] = None,
    question_column: Annotated[str | None, typer.Option(metavar="NAME", help="Question on the context")] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Class, score, tags, or answers in SQuAD's format")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(metavar="X", help="Smallest model that loses at most this  [default: 0.01, a point]")
    ] = None,
    density: Annotated[
        float | None, typer.Option(metavar="X", help="Or: share of the attention and FFN weights that is kept")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Or: multiply-accumulates before, over those after")
    ] = None,
    measured: Annotated[  # noqa: FBT002
        bool, typer.Option("--measured", help="Of --speedup: count ms of this machine, batch 8 x 128 tokens")
    ] = False,
    size_mb: Annotated[float | None, typer.Option(metavar="X", help="Or: size of model.safetensors, in MB")] = None,
    kept_heads: Annotated[
        str | None, typer.Option(metavar="X", help="Or: attention heads that are kept: 36, or a share such as 0.5")
    ] = None,
    uniform: Annotated[  # noqa: FBT002
        bool, typer.Option("--uniform", help="Equal numbers in all layers, for export --mode plain")
    ] = False,
    confidence: Annotated[
        float | None, typer.Option(metavar="X", help="Level at which a drop must be certified, such as 0.95")
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="Search with A*; half of validation is held back")] = False,  # noqa: FBT002
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Metric of the task, or path of an evaluate module")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="NAME", help="Tokenizer  [default: the model's]")] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of an example  [default: as many as the model reads]")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples per batch", min=1)] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUTPUT")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,  # noqa: FBT002
) -> None:
    """Prunes MODEL, a fine-tuned folder or Hub name, without training; saves it in OUTPUT.

    FILE is .csv, .tsv, .json, .jsonl or .parquet. Exits with 1 if what was asked does not hold.
    """
    sizes = {"density": density, "speedup": speedup, "size_mb": size_mb, "kept_heads": kept_heads}
    outcome = Run(
        model=model,
        output=OutputFolder(output, overwrite),
        source=DataSource(train, validation, test, dataset, dataset_config),
        columns=NamedColumns(text_column, text_pair_column, label_column, question_column),
        budget=Budget.of({"max_drop": max_drop, **sizes}, confidence),
        measured=measured,
        uniform=uniform,
        searches=search,
        metric=metric,
        tokenizer=tokenizer or model,
        max_length=max_length,
        batch_size=batch_size,
    ).outcome()
    typer.echo(outcome.to_json() if as_json else outcome.to_text())
    raise typer.Exit(0 if outcome.holds else 1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of the command, as its options say."""

    model: str
    output: OutputFolder
    source: DataSource
    columns: NamedColumns
    budget: Budget
    measured: bool
    uniform: bool
    searches: bool
    metric: str | None
    tokenizer: str
    max_length: int | None
    batch_size: int

    def outcome(self) -> Outcome:
        """Reads, prunes and saves.

        Raises:
            HeadPruneError: The input can't be used.
            OSError: The folder can't be written.
        """
        self.output.check([self.model, self.tokenizer, *self.source.names()])
        model = to_accelerator_(load_model(self.model))
        self.budget.check(model, uniform=self.uniform)  # before anything is read
        if self.searches and not self.budget.is_drop:
            raise InvalidSettingError("prune: --search is for --max-drop, which measures plans. Leave it out.")
        if self.measured and self.budget.name != "speedup":
            raise InvalidSettingError("prune: --measured says what --speedup counts. Pass --speedup, or leave it out.")
        tokenizer = load_tokenizer(self.tokenizer, model)
        reader = reader_for(model, tokenizer, self.columns, self.max_length)
        metric, note = metric_named(self.metric, model)
        splits = self._splits(reader)
        batching = Batching(processing_class=tokenizer, batch_size=self.batch_size)
        tests = self.budget.is_drop and not self.searches
        work = duration.examples_of_work(splits, searches=self.searches, tests=tests)
        _say([note, *splits.notes, self._announced(model, splits)])
        _say(
            [f"It takes {duration.in_words(duration.seconds_of(model, splits, batching, work))}, if nothing else runs."]
        )
        groups = "context" if isinstance(reader, QuestionReader) else None
        if self.searches:  # has a bar of its own
            result = self._result(model, batching, splits, metric, groups)
        else:
            with duration.shown(model, work):
                result = self._result(model, batching, splits, metric, groups)
        holds = self.budget.is_met(result)
        content: dict[str, Any] = {
            "model": self.model,
            "output": str(self.output.path) if holds else None,
            "budget": {self.budget.name: self.budget.value, "confidence": self.budget.confidence},
            "examples": splits.counts(),
            "columns": splits.columns,
            "notes": splits.notes,
        }
        if not holds:
            return Outcome(holds, result, f"{self._why_not(result)} Nothing was saved.", content)
        size, difference = self._saved(model, tokenizer, result)
        content |= {"size_mb": size, "reload_difference": difference}
        closing = f"Saved in {self.output.path}: {size:.1f} MB; loaded again, it differs by {difference:g}."
        return Outcome(holds, result, closing, content)

    def _splits(self, reader: Any) -> Splits:
        read = self.source.read()
        missing = {"train"} - read.keys()
        if self.searches or (self.budget.is_drop and "test" not in read):
            missing |= {"validation"} - read.keys()
        if missing:
            options = " and ".join(f"--{name}" for name in sorted(missing))
            raise InvalidSettingError(
                f"prune: there are no examples for {' and '.join(sorted(missing))}. Pass {options}, or --dataset."
            )
        splits = encoded_splits(read, reader, from_hub=self.source.dataset is not None)
        splits = held_back(splits, searches=self.searches)
        asked = {"confidence": self.budget.confidence, "metric": None if self.budget.is_drop else self.metric}
        given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
        if given and splits.certify is None:
            raise InvalidSettingError(
                f"prune: {' and '.join(given)}: there are no unseen examples to certify on. Pass --test, or more "
                "examples as --validation."
            )
        return splits

    def _announced(self, model: Any, splits: Splits) -> str:
        words = {"train": "training", "validation": "searched", "certify": "unseen"}
        counts = ", ".join(f"{count:,} {words[name]}" for name, count in splits.counts().items())
        work = "removal costs of heads and FFN units"
        if self.searches:
            work += ", then an A* search"
        elif self.budget.is_drop:
            work += f", then up to {len(DENSITIES)} plans, the largest first, until one loses too much"
        return (
            f"{type(model).__name__} in {self.model}; reads {', '.join(splits.columns)}; {counts} examples.\n"
            f"Computed: {work}."
        )

    def _result(self, model: Any, batching: Batching, splits: Splits, metric: Any, groups: str | None) -> PruningResult:
        options: dict[str, Any] = {"batch_size": self.batch_size, "uniform": self.uniform}
        if splits.certify is not None:
            searched = splits.seen if splits.validation is None else splits.validation
            options["certify"] = CertificationData(
                splits.certify, train=splits.seen, search=searched, groups=groups, batching=batching
            )
        if self.budget.confidence is not None:
            options["confidence"] = self.budget.confidence
        value = self.budget.value
        if not self.budget.is_drop:
            if self.measured:
                options["latency_ms"] = measure_latency_table(model, progress=_is_watched())
            return plan_for_budget(model, splits.train, metric=metric, **{self.budget.name: value}, **options)
        options |= {"calibration": splits.train, "processing_class": batching.processing_class}
        if not self.searches:
            return search_plan(model, splits.certify, metric, max_drop=value, **options)
        search = AStarSearch(max_drop=value)
        return search_plan(model, splits.validation, metric, search, progress=_is_watched(), **options)

    def _why_not(self, result: PruningResult) -> str:
        budget = self.budget
        if result.certificate is not None:
            return f"No certificate at {budget.confidence:g}: the verdict is {result.certificate.verdict}."
        points = f"{100 * budget.value:g} percentage point{'' if budget.value == DEFAULT_DROP else 's'}"
        return f"No smaller model was shown to lose at most {points}."

    def _saved(self, model: Any, tokenizer: Any, result: PruningResult) -> tuple[float, float]:
        """Prunes the model, in place, and saves it; returns the megabytes of its weights and what reloading changes."""
        prune_model_(model, result)
        if result.certificate is not None:
            attach_certificate_(model, result.certificate.to_json())
        with self.output.staged() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / REPORT_NAME).write_text(result.report.to_json(), encoding="utf-8")
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MB
            reloaded = load_model(folder).to(model.device)
            difference = float((probe(model) - probe(reloaded)).abs().max())  # type: ignore[operator]
            if self.budget.name == "size_mb" and size > self.budget.value:
                raise HeadPruneError(f"prune: the saved file has {size:.3f} MB, more than {self.budget.value}.")
        return size, difference


def _is_watched() -> bool:
    return typer.get_text_stream("stderr").isatty()


def _say(lines: Sequence[str]) -> None:
    for line in filter(None, lines):
        typer.echo(line, err=True)
