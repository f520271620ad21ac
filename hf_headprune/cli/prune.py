"""`headprune prune`: a fine-tuned model and labelled examples in, the smallest model that keeps its accuracy out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_headprune._checks import is_above
from hf_headprune.anatomy import anatomy_of
from hf_headprune.cli import duration
from hf_headprune.cli.budget import Budget
from hf_headprune.cli.columns import NamedColumns
from hf_headprune.cli.examples import groups_of_rows, reader_for
from hf_headprune.cli.files import DataSource
from hf_headprune.cli.ladder import saved_ladder
from hf_headprune.cli.metrics import metric_named
from hf_headprune.cli.models import load_model, load_tokenizer, to_accelerator_
from hf_headprune.cli.output import OutputFolder
from hf_headprune.cli.saving import save_found, save_pruned
from hf_headprune.cli.splits import encoded_splits, held_back
from hf_headprune.cli.vocabulary import SmallerVocabulary
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.wording import points as in_points
from hf_headprune.latency import LatencySettings
from hf_headprune.pipeline import plan_for_budget, plan_ladder, search_plan
from hf_headprune.pipeline.cost_path import DENSITIES
from hf_headprune.pipeline.recovery import epochs_in_words
from hf_headprune.publish.card import is_hub_name
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.cli.ladder import LadderOutcome
    from hf_headprune.cli.splits import Splits
    from hf_headprune.pipeline import PruningResult

OUTCOME_FORMAT = "hf_headprune.prune/1"
LEARNING_RATE = 2e-4  # of --recover


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
    train: Annotated[
        str | None, typer.Option(metavar="FILE", help="For the removal costs: .csv, .tsv, .json, .jsonl or .parquet")
    ] = None,
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
        str | None, typer.Option(metavar="X", help="Or: share of the attention and FFN weights kept; 0.5,0.25 for each")
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
    vocabulary: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Keep only the tokens of these texts; train: of --train"),
    ] = None,
    recover: Annotated[
        float | None, typer.Option(metavar="EPOCHS", help="Train the pruned model on, taught by MODEL; then certify it")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="X", help="Of --recover  [default: 2e-4]")] = None,
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
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Save plan, frontier, report: no weights")] = False,  # noqa: FBT002
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUTPUT")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,  # noqa: FBT002
) -> None:
    """Prunes MODEL, a folder or Hub name, into OUTPUT. Exits with 1 if what was asked does not hold."""
    sizes = {"density": density, "speedup": speedup, "size_mb": size_mb, "kept_heads": kept_heads}
    outcome = Run(
        model=model,
        output=OutputFolder(output, overwrite),
        source=DataSource(train, validation, test, dataset, dataset_config),
        columns=NamedColumns(text_column, text_pair_column, label_column, question_column),
        budget=Budget.of({"max_drop": max_drop, **sizes}, confidence),
        measured=measured,
        vocabulary=vocabulary,
        uniform=uniform,
        searches=search,
        recovery=Recovery.of(recover, learning_rate),
        metric=metric,
        tokenizer=tokenizer or model,
        max_length=max_length,
        batch_size=batch_size,
        plan_only=plan_only,
    ).outcome()
    typer.echo(outcome.to_json() if as_json else outcome.to_text())
    raise typer.Exit(0 if outcome.holds else 1)


@dataclass(frozen=True)
class Recovery:
    """What `--recover` asks for: epochs above 0, and a learning rate above 0."""

    epochs: float
    learning_rate: float

    @classmethod
    def of(cls, epochs: float | None, rate: float | None) -> Recovery | None:
        """Returns it, or None where the pruned model does not train on.

        Raises:
            InvalidSettingError: A number is out of range, or there is a learning rate alone.
        """
        if epochs is None:
            if rate is not None:
                raise InvalidSettingError("prune: --learning-rate is for --recover. Pass --recover, or leave it out.")
            return None
        learning_rate = LEARNING_RATE if rate is None else rate
        if not (is_above(epochs, 0) and 0 < learning_rate < 1):
            raise InvalidSettingError(
                f"--recover takes a number of epochs above 0 and --learning-rate one between 0 and 1, received "
                f"{epochs} and {learning_rate}. Pass --recover 1."
            )
        return cls(epochs, learning_rate)


@dataclass(frozen=True)
class Inputs:
    """What is pruned, and on which examples.

    Attributes:
        model: The model, with the vocabulary that was asked for.
        batching: How examples become batches, with the model's tokenizer.
        splits: Of the examples.
        metric: That was named.
        note: Where the metric is from, in words.
        reference: The model with its whole vocabulary, and the examples as it reads them; None where it is the same.
    """

    model: Any
    batching: Batching
    splits: Splits
    metric: Any
    note: str
    reference: Any


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of the command, as its options say."""

    model: str
    output: OutputFolder
    source: DataSource
    columns: NamedColumns
    budget: Budget
    measured: bool
    vocabulary: str | None
    uniform: bool
    searches: bool
    recovery: Recovery | None
    metric: str | None
    tokenizer: str
    max_length: int | None
    batch_size: int
    plan_only: bool

    def outcome(self) -> Outcome | LadderOutcome:
        """Reads, prunes and saves.

        Raises:
            HeadPruneError: The input can't be used.
            OSError: The folder can't be written.
        """
        corpus = [] if self.vocabulary is None else [self.vocabulary]
        self.output.check([self.model, self.tokenizer, *self.source.names(), *corpus])
        model = to_accelerator_(load_model(self.model))
        if not self.plan_only:
            self.output.check_space(self.budget.sizes * sum(weight.nbytes for weight in model.parameters()))
        anatomy_of(model)  # refuses other families before anything is read
        self._check(model)
        inputs = self._inputs(model)
        model, splits, batching = inputs.model, inputs.splits, inputs.batching
        tests = self.budget.is_drop and not self.searches
        epochs = 0.0 if self.recovery is None else self.recovery.epochs
        looked_at = self.budget.looked_at(model, trains_on=epochs > 0)
        work = duration.examples_of_work(
            splits, searches=self.searches, tests=tests, sizes=self.budget.sizes, epochs=epochs, looked_at=looked_at
        )
        _say([inputs.note, *splits.notes, self._announced(model, splits)])
        _say(
            [f"It takes {duration.in_words(duration.seconds_of(model, splits, batching, work))}, if nothing else runs."]
        )
        content: dict[str, Any] = {
            "model": self.model,
            "budget": {self.budget.name: self.budget.value, "confidence": self.budget.confidence},
            "examples": splits.counts(),
            "columns": splits.columns,
            "notes": splits.notes,
        }
        options = self._options(inputs)
        if self.budget.is_ladder:
            with duration.shown([model], sum(work), "Pruning"):
                ladder = plan_ladder(model, splits.train, self.budget.value, **options)
            ladder = replace(ladder, rungs=tuple(map(self._named, ladder.rungs)))
            only = self.budget.confidence is not None
            tokenizer = batching.processing_class
            return saved_ladder(ladder, model, tokenizer, self.output, certified_only=only, content=content)
        # A search has a bar of its own.
        with nullcontext() if self.searches else duration.shown([model], sum(work), "Pruning"):
            result = self._result(inputs, options)
        return self._finished(inputs, result, content)

    def _finished(self, inputs: Inputs, result: PruningResult, content: dict[str, Any]) -> Outcome:
        """Saves the model, if what was asked for holds."""
        result = self._named(result)
        holds = self.budget.is_met(result)
        content["output"] = str(self.output.path) if holds else None
        if not holds:
            return Outcome(holds, result, f"{self._why_not(result)} Nothing was saved.", content)
        if self.plan_only:
            with self.output.staged() as folder:
                save_found(folder, result)
            return Outcome(holds, result, f"Saved in {self.output.path}: plan, frontier, report; no weights.", content)
        size, difference = self._saved(inputs.model, inputs.batching.processing_class, result)
        content |= {"size_mb": size, "reload_difference": difference}
        closing = f"Saved in {self.output.path}: {size:.1f} MB; loaded again, it differs by {difference:g}."
        return Outcome(holds, result, closing, content)

    def _inputs(self, model: Any) -> Inputs:
        """Reads the examples, as the tokenizer splits them that the pruned model will have."""
        tokenizer = load_tokenizer(self.tokenizer, model)
        reader = reader_for(model, tokenizer, self.columns, self.max_length)
        metric, note = metric_named(self.metric, model)
        read, smaller = self._read(), None
        if self.vocabulary is not None:
            smaller = SmallerVocabulary.of(self.vocabulary, model, reader, read["train"])
            model, tokenizer = smaller.model, smaller.tokenizer
            self.budget.check(model, uniform=self.uniform)
            reader = reader_for(model, tokenizer, self.columns, self.max_length)
        splits = self._splits(read, reader)
        if smaller is not None:
            splits = replace(splits, notes=(smaller.note, *splits.notes))
        reference = None if smaller is None else smaller.reference(splits.certify)
        return Inputs(model, Batching(tokenizer, batch_size=self.batch_size), splits, metric, note, reference)

    def _check(self, model: Any) -> None:
        """Refuses options that don't go together, and a size that the model can't have."""
        if self.vocabulary is None:
            self.budget.check(model, uniform=self.uniform)
        elif self.searches:
            raise InvalidSettingError(
                "prune: --search measures plans against the model that it prunes, and --vocabulary makes another one "
                "of it first. Leave one of the two out."
            )
        if self.searches and not self.budget.is_drop:
            raise InvalidSettingError("prune: --search is for --max-drop, which measures plans. Leave it out.")
        if self.searches and self.recovery is not None:
            raise InvalidSettingError("prune: --search measures plans that do not train on. Leave it or --recover out.")
        if self.budget.is_ladder and self.recovery is not None:
            raise InvalidSettingError("prune: --recover trains one pruned model on. Pass one size, or leave it out.")
        if self.plan_only and (self.budget.is_ladder or self.recovery is not None or self.vocabulary is not None):
            raise InvalidSettingError(
                "prune: --plan-only saves one plan of the model that it is given. Leave --recover, --vocabulary and "
                "further densities out."
            )
        if self.measured and self.budget.name != "speedup":
            raise InvalidSettingError("prune: --measured says what --speedup counts. Pass --speedup, or leave it out.")

    def _read(self) -> dict[str, Any]:
        read = self.source.read()
        missing = {"train"} - read.keys()
        if self.searches or (self.budget.is_drop and "test" not in read):
            missing |= {"validation"} - read.keys()
        if missing:
            options = " and ".join(f"--{name}" for name in sorted(missing))
            raise InvalidSettingError(
                f"prune: there are no examples for {' and '.join(sorted(missing))}. Pass {options}, or --dataset."
            )
        return read

    def _splits(self, read: dict[str, Any], reader: Any) -> Splits:
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
        if self.recovery is not None:
            when = "before the tests" if self.budget.is_drop else "then"
            work += f"; {when}, {epochs_in_words(self.recovery.epochs)} of training of a pruned model"
        return (
            f"{type(model).__name__} in {self.model}; reads {', '.join(splits.columns)}; {counts} examples.\n"
            f"Computed: {work}."
        )

    def _options(self, inputs: Inputs) -> dict[str, Any]:
        """Returns how plans are chosen, on which examples the result is certified, and with which confidence."""
        splits, options = inputs.splits, {"batch_size": self.batch_size, "reference": inputs.reference}
        if self.uniform:
            options["uniform"] = True
        if splits.certify is not None or self.budget.is_drop:
            options["metric"] = inputs.metric
        if splits.certify is not None:
            searched = splits.seen if splits.validation is None else splits.validation
            options["certify"] = CertificationData(
                splits.certify,
                train=splits.seen,
                search=searched,
                groups=groups_of_rows(splits.certify),
                batching=inputs.batching,
            )
        if self.budget.confidence is not None:
            options["confidence"] = self.budget.confidence
        if self.budget.claimed_drop is not None:
            options["max_drop"] = self.budget.claimed_drop
        return options

    def _result(self, inputs: Inputs, options: dict[str, Any]) -> PruningResult:
        model, splits, batching = inputs.model, inputs.splits, inputs.batching
        if self.recovery is not None:  # the Trainer is imported where it is needed alone
            made = import_module("hf_headprune.callback.plain_recovery").PlainRecovery
            settings = self.recovery.epochs, self.recovery.learning_rate, _is_watched()
            options = {**options, "recover": made(splits.train, batching, *settings)}
        value = self.budget.value
        if not self.budget.is_drop:
            if self.measured:
                options = {**options, "latency": LatencySettings()}
            return plan_for_budget(model, splits.train, **{self.budget.name: value}, **options)
        options = options | {"calibration": splits.train, "processing_class": batching.processing_class}
        if not self.searches:
            return search_plan(model, splits.certify, max_drop=value, **options)
        search = AStarSearch(max_drop=value)
        return search_plan(model, splits.validation, search=search, progress=_is_watched(), **options)

    def _named(self, result: PruningResult) -> PruningResult:
        """Returns a result whose report names the data set of the Hub that was read."""
        name = self.source.dataset
        if name is None or not is_hub_name(name):
            return result
        recipe = replace(result.report.recipe, dataset=name)
        return replace(result, report=replace(result.report, recipe=recipe))

    def _why_not(self, result: PruningResult) -> str:
        budget = self.budget
        if result.certificate is not None:
            return f"No certificate at {budget.confidence:g}: the verdict is {result.certificate.verdict}."
        return f"No smaller model was shown to lose at most {in_points(budget.value)}."

    def _saved(self, model: Any, tokenizer: Any, result: PruningResult) -> tuple[float, float]:
        """Prunes the model, in place, and saves it; returns the megabytes of its weights and what reloading changes."""
        with self.output.staged() as folder:
            size, difference = save_pruned(folder, model, tokenizer, result)
            if self.budget.name == "size_mb" and size > self.budget.value:
                raise HeadPruneError(f"prune: the saved file has {size:.3f} MB, more than {self.budget.value}.")
        return size, difference


def _is_watched() -> bool:
    return typer.get_text_stream("stderr").isatty()


def _say(lines: Sequence[str]) -> None:
    for line in filter(None, lines):
        typer.echo(line, err=True)
