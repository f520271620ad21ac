"""`headprune card`: the model card of a saved model, written anew from the report beside it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hf_headprune._model_card import CARD_NAME, attach_card_, has_section, write_card_
from hf_headprune.cli.inspect import AsJson, Folder, report_of
from hf_headprune.cli.models import load_model
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.card import is_hub_name, model_card, write_eval_results
from hf_headprune.shrink.remote_code import auto_class_of


def card(
    folder: Folder,
    base_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name on the Hub of the model that was pruned.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name on the Hub of the data of the unseen examples.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="If --dataset is a benchmark: its task; writes .eval_results, too."),
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Writes README.md from the report of a saved model.

    What else the card says stays.
    """
    if task is not None and dataset is None:
        raise InvalidSettingError("card: --task names a part of a benchmark on the Hub. Pass its --dataset, too.")
    for option, name in (("--base-model", base_model), ("--dataset", dataset)):
        if name is not None and not is_hub_name(name):
            raise InvalidSettingError(f"card: {option} is a name on the Hub, such as owner/name, received {name!r}.")
    model = load_model(folder)
    report = report_of(folder, PruningPlan.of(model), asked="card")
    names = {"class_name": type(model).__name__, "auto_class": auto_class_of(model)}
    text = model_card(report, **names, base_model=base_model, dataset=dataset, folder=folder)
    results = []
    if dataset is not None and task is not None:
        results.append(str(write_eval_results(report, folder, dataset=dataset, task=task)))
    attach_card_(model, text, report.files)
    write_card_(model, folder)
    if not has_section(folder):
        raise InvalidSettingError(
            f"{folder / CARD_NAME}: nothing was changed in it, as said above. Mend it, or remove it."
        )
    written = [str(folder / CARD_NAME), *results]
    content = {"card": written[0], "files": sorted(report.files()), "eval_results": results}
    typer.echo(json.dumps(content) if as_json else f"Written: {', '.join(written)}")
