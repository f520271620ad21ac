"""`headprune show`, `bench` and `power`: what a saved model holds, and what examples can certify."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_headprune._beside_weights import read_text
from hf_headprune._certificate_file import CERTIFICATE_NAME
from hf_headprune._checks import is_confidence
from hf_headprune.anatomy import anatomy_of
from hf_headprune.cli.explanation import in_words, sites_of
from hf_headprune.cli.models import load_model, to_accelerator_
from hf_headprune.cli.output import writable
from hf_headprune.cost import cost_of
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.power import (
    PowerAssumptions,
    describe_labels,
    describe_power,
    detectable_drop,
    examples_needed,
    power_of,
)
from hf_headprune.guarantee.records import record_of
from hf_headprune.latency import LatencySettings, measure_latency
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.report import REPORT_NAME, PruningReport

Folder = Annotated[Path, typer.Argument(help="Folder of a saved model.", exists=True, file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object")]


def show(
    folder: Folder,
    length: Annotated[int, typer.Option(help="Tokens for counting MACs.")] = 128,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=writable, help="Write the report of its run as a page.")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Says what a saved model has kept, its size and certificate."""
    model = load_model(folder)
    anatomy, plan = anatomy_of(model), PruningPlan.of(model)
    if html is not None:
        html.write_text(report_of(folder, plan, asked="--html").to_html(folder.resolve().name), encoding="utf-8")
    cost = cost_of(plan, anatomy, seq_len=length)
    certificate = Certificate.load(folder) if (folder / CERTIFICATE_NAME).exists() else None
    is_about_these = certificate is not None and certificate.pruned.weights == record_of(model).weights
    statement = certificate.statement if certificate is not None and is_about_these else None
    if as_json:
        content = {"class": type(model).__name__, "parameters": cost.parameters, "size_bytes": cost.size_bytes}
        content |= {"macs": cost.macs, "length": length, "sites": sites_of(model), "certificate": statement}
        typer.echo(json.dumps(content))
        return
    typer.echo(type(model).__name__)
    for title, kept in (("heads", plan.kept_heads), ("FFN units", plan.kept_ffn)):
        typer.echo(f"{title}: {' '.join(str(len(units)) for units in kept.values())}")
    for sentence in in_words(model):
        typer.echo(sentence)
    typer.echo(f"{cost.parameters:,} parameters, {cost.macs / 1e6:,.0f} million MACs at length {length}")
    other = "No certificate." if certificate is None else "The certificate in this folder is about other weights."
    typer.echo(statement or other)


def bench(
    model: Annotated[Path, typer.Argument(help="Folder of the pruned model.", exists=True, file_okay=False)],
    dense: Annotated[str, typer.Option(metavar="MODEL", help="The dense model: folder or Hub name")],
    batch_size: Annotated[int, typer.Option(help="Sequences per batch.")] = 8,
    length: Annotated[
        int | None, typer.Option(help="Tokens per sequence  [default: 128, or half of what fits]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch on the CPU.")] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Times a pruned model against the dense one, in turns."""
    pruned, whole = (to_accelerator_(load_model(folder)) for folder in (model, dense))
    settings = LatencySettings(batch_size=batch_size, seq_len=length, threads=threads)
    change = measure_latency(whole, pruned, settings)
    tokens = change.seq_len or 1  # images have as many as their configuration says
    macs = [cost_of(PruningPlan.of(each), anatomy_of(each), seq_len=tokens).macs for each in (whole, pruned)]
    bound = macs[0] / macs[1] if macs[1] else None
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(change), "speed_up": change.speed_up, "mac_bound": bound}))
        return
    for name, sample in (("dense", change.before), ("pruned", change.after)):
        spread = f"half of the runs between {sample.lower_quartile_ms:.2f} and {sample.upper_quartile_ms:.2f}"
        typer.echo(f"{name}: {sample.median_ms:.2f} ms per batch, {spread}")
    typer.echo(
        f"{change.verdict}: {change.batch_size} x {change.seq_len} tokens, {change.device}, {change.dtype}, "
        f"{change.threads} threads, {change.runs} runs"
    )
    if bound is not None:
        typer.echo(
            f"The attention and FFN blocks have {bound:.2f}x fewer MACs, a bound on what their removal can give."
        )


def power(
    examples: Annotated[int, typer.Argument(help="Examples that neither training nor search sees.", min=1)],
    max_drop: Annotated[float, typer.Option(help="Drop of the accuracy to exclude; 0.01 is one point.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
    disagreement: Annotated[float, typer.Option(help="Share of answers that pruning turns right or wrong.")] = 0.03,
    true_drop: Annotated[float, typer.Option(help="True drop of the accuracy.")] = 0.0,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Says what a number of examples can certify.

    That is known before anything is pruned.
    """
    if not is_confidence(confidence):
        raise InvalidSettingError(f"--confidence must be above 0.5 and below 1, received {confidence}. Pass 0.95.")
    if not 0 < max_drop < 1:
        raise InvalidSettingError(f"--max-drop must be above 0 and below 1, received {max_drop}. A point is 0.01.")
    assumptions = PowerAssumptions(disagreement=disagreement, true_drop=true_drop, alpha=1 - confidence)
    if as_json:
        content: dict[str, Any] = {"examples": examples, "max_drop": max_drop, "confidence": confidence}
        content |= {"disagreement": disagreement, "true_drop": true_drop}
        content["chance"] = power_of(examples, max_drop, assumptions)
        content["examples_needed"] = examples_needed(max_drop, assumptions)
        content["detectable_drop"] = detectable_drop(examples, assumptions)
        typer.echo(json.dumps(content))
        return
    typer.echo(describe_power(examples, max_drop, assumptions))
    typer.echo(describe_labels(examples, max_drop, assumptions))


def report_of(folder: Path, plan: PruningPlan, *, asked: str) -> PruningReport:
    """Returns the report that lies beside a model.

    Args:
        folder: Of the model.
        plan: Of the model in it.
        asked: What needs the report, for the errors.

    Raises:
        InvalidSettingError: There is none, it can't be read, or it is about a model with other numbers of units.
    """
    file = folder / REPORT_NAME
    if not file.exists():
        raise InvalidSettingError(
            f"{asked}: there is no {REPORT_NAME} in {folder}. It is saved with a model that headprune prune, a "
            "HeadPruneCallback or prune_model_(model, result) has pruned."
        )
    try:
        found = PruningReport.from_json(read_text(file))
    except HeadPruneError as error:
        raise InvalidSettingError(f"{asked}: {file} can't be read: {error}") from error
    kept = {site: len(found.plan.kept(site)) for site in (*found.plan.num_heads, *found.plan.num_ffn)}
    if kept != {**plan.num_heads, **plan.num_ffn}:
        raise InvalidSettingError(f"{asked}: {file} is about another model than the one beside it.")
    return found
