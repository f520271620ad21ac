"""Several densities from one run: a folder for each model, and one table of all."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hf_headprune.cli.output import LADDER_NAME
from hf_headprune.cli.saving import save_pruned
from hf_headprune.masking import plain_copy

if TYPE_CHECKING:
    from hf_headprune.cli.output import OutputFolder
    from hf_headprune.pipeline import PruningLadder

OUTCOME_FORMAT = "hf_headprune.prune_ladder/1"


@dataclass(frozen=True)
class LadderOutcome:
    """What became of a model at several densities.

    Attributes:
        holds: Whether a model was saved.
        ladder: Plans, reports and certificates.
        closing: The last line of the text output.
        content: Of the JSON output.
    """

    holds: bool
    ladder: PruningLadder
    closing: str
    content: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns one JSON object."""
        ladder = json.loads(self.ladder.to_json())
        return json.dumps({"format": OUTCOME_FORMAT, "holds": self.holds, **self.content, "ladder": ladder})

    def to_text(self) -> str:
        """Returns the table and what became of the models."""
        return f"{self.ladder.to_text()}\n\n{self.closing}"


def saved_ladder(
    ladder: PruningLadder,
    model: Any,
    tokenizer: Any,
    output: OutputFolder,
    *,
    certified_only: bool,
    content: dict[str, Any],
) -> LadderOutcome:
    """Saves each model in a folder that is named after its density, with the table, and a picture where that can be.

    Args:
        ladder: From `plan_ladder`.
        model: Left unchanged.
        tokenizer: Saved with each.
        output: Folder of all.
        certified_only: Whether rungs without a certificate are left out.
        content: Of the JSON output.

    Raises:
        OSError: The folder can't be written.
    """
    rungs = [
        (f"{density:g}", result)
        for density, result in zip(ladder.densities, ladder.rungs, strict=True)
        if result.certificate is not None or not certified_only
    ]
    content = {**content, "output": str(output.path) if rungs else None, "saved": [name for name, _ in rungs]}
    if not rungs:
        return LadderOutcome(False, ladder, "No rung could be certified. Nothing was saved.", content)
    with output.staged() as folder:
        for name, result in rungs:
            (folder / name).mkdir()
            save_pruned(folder / name, plain_copy(model), tokenizer, result)
        (folder / LADDER_NAME).write_text(ladder.to_json(), encoding="utf-8")
        if find_spec("matplotlib") is not None and ladder.rungs[0].report.unseen is not None:
            ladder.plot((folder / LADDER_NAME).with_suffix(".png"))
    closing = f"Saved in {output.path}: {', '.join(name for name, _ in rungs)}."
    return LadderOutcome(True, ladder, closing, content)
