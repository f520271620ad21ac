"""Writes docs/results.md from benchmarks/results/*.json, so that no figure in it is typed by hand.

Run: python -m benchmarks.results_page
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results_file import RESULTS, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
INTRODUCTION = """# Results

Every figure here is written by `python -m benchmarks.results_page` from the files in
[benchmarks/results](../benchmarks/results); each section names the script that measured it. The machine is a shared
one with two cores, so compare figures within a section only."""


def main() -> None:
    """Writes the page."""
    sections = [INTRODUCTION]
    for name, section in (
        ("gates_accuracy", accuracy_section),
        ("step_cost", step_cost_section),
        ("shapes", shapes_section),
        ("head_costs", head_costs_section),
        ("certificate_validity", validity_section),
    ):
        content = read_json(RESULTS / f"{name}.json")
        if content:
            sections.append("\n".join(section(content)) + "\n\n" + conditions(name, content))
    PAGE.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def conditions(name: str, content: dict[str, Any]) -> str:
    """Says what produced a section."""
    versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    threads = f"{content['threads']} torch thread{'s' if content['threads'] > 1 else ''}"
    return f"<sub>`python -m benchmarks.{name}`; {content['date'][:10]}; {versions}; {threads}.</sub>"


def accuracy_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of accuracy: methods down, kept heads across."""
    yield "## Accuracy of MiniLM-L6 (72 heads)"
    if content["missing"]:
        yield f"\n**Unfinished: {content['missing']} of {content['missing'] + len(content['runs'])} runs are missing.**"
    titles = {
        "headline": "3 epochs; the dense model is trained with the same steps. *ste* is the default; *at once* closes "
        "the gates fully from the first learning step; "
        "*A\\** searches on dev after plain training and trains nothing.",
        "joint": "Weights and choice together, 1 epoch. All methods share data, steps and batch order; the estimators "
        "share everything but the estimator with its own learning rate and temperature (gradient start, gradual "
        "closing, decided after 65 % of the steps). *ste* is the default.",
        "pipelined": "A dense fine-tuned model is frozen; 100 steps choose the heads. No weight moves. *sigmoid* is "
        "the default.",
    }
    for group, title in titles.items():
        for task in dict.fromkeys(row["task"] for row in content["summary"] if row["group"] == group):
            rows = [row for row in content["summary"] if (row["group"], row["task"]) == (group, task)]
            if not any(row["method"] != "dense" for row in rows):
                continue
            yield f"\n### {group}, {task}\n\n{title} Test accuracy in percent: mean ± standard deviation over seeds.\n"
            yield from accuracy_table(rows)


def accuracy_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One table."""
    budgets = sorted({row["kept_heads"] for row in rows}, reverse=True)
    yield from header("method", *(f"{budget} heads" for budget in budgets))
    cells = {(row["method"], row["kept_heads"]): accuracy_cell(row) for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        yield table_row([method, *(cells.get((method, budget), "") for budget in budgets)])


def accuracy_cell(row: dict[str, Any]) -> str:
    """Mean and spread, with the number of seeds where it is not three."""
    spread = row["test"]["standard_deviation"]
    text = f"{row['test']['mean']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    return text if len(row["seeds"]) == 3 else f"{text} ({len(row['seeds'])} seed{'s' * (len(row['seeds']) > 1)})"  # noqa: PLR2004


def step_cost_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of the cost of a training step with gates."""
    yield "## Cost of a training step with gates"
    yield "\nOne step of the Trainer with `HeadPruneCallback` over one step of the plain Trainer, in turns in one run;"
    yield "ratio of the medians, and quartiles of the ratio of neighbouring steps. *learn*: gates soft and learning;"
    yield "*decided*: after the choice is fixed; *hybrid*: movement scores of FFN units learn, too. CPU seconds of the"
    yield "stepping thread; wall time beside it.\n"
    yield from header("model", "batch x length", "what", "precision", "phase", "ratio (CPU)", "quartiles", "(wall)")
    for row in content["results"]:
        cpu, wall = row["cpu_seconds"], row["wall_seconds"]
        low, _, high = cpu["ratio_quartiles"]
        cells = [
            row["model"],
            f"{row['shape'][0]} x {row['shape'][1]}",
            row.get("part", "gates"),
            "bf16" if row["bf16"] else "fp32",
            row["phase"],
        ]
        cells += [f"{cpu['ratio_of_medians']:.3f}", f"{low:.3f} .. {high:.3f}", f"{wall['ratio_of_medians']:.3f}"]
        yield table_row(cells)


def shapes_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of the speed-up of published shapes."""
    yield "## Speed-up of pruned shapes"
    yield "\nBERT-base with random weights, cut to the shapes of the block-pruned SQuAD models of Lagunas et al. 2021"
    yield "(their numbers #4 ... #10), saved, reloaded with `AutoModel`. *Bound*: MACs of the dense model over those of"
    yield "the cut one; *other work*: share of the time outside matrix products, dense and cut. In every case the file"
    yield "held exactly the plan's bytes and its header.\n"
    names = ("shape", "precision", "batch x length", "speed-up (CPU)", "(wall)", "bound", "share of bound")
    yield from header(*names, "other work")
    for row in content["results"]:
        cells = [row["shape"], row["dtype"], f"{row['batch']} x {row['length']}", f"{row['cpu']['speed_up']:.2f}"]
        cells += [f"{row['wall']['speed_up']:.2f}", f"{row['mac_bound']:.2f}", f"{row['share_of_bound']:.3f}"]
        shares = row.get("share_of_other_work", {})  # measured since a later version of the script
        cells += [" -> ".join(f"{share:.0%}" for share in shares.values()) or "not measured"]
        yield table_row(cells)


def head_costs_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what heads alone can give."""
    yield "## What heads alone can give"
    length = content["length"]
    yield f"\nCounted on BERT-base (144 heads); the bound is that of the MACs of all blocks at length {length}.\n"
    yield from header("heads kept", "parameters removed", "bound on the speed-up")
    for row in content["results"]:
        yield table_row([str(row["kept_heads"]), f"{row['parameters_removed']:.1%}", f"{row['speed_up_bound']:.2f}"])


def validity_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of how often certificates are wrong in simulation."""
    yield "## How often a certificate is wrong"
    yield "\nSimulated full runs whose true drops are known: a search on n examples, certification on n fresh ones, at"
    yield f"level {content['alpha']}. *path*: candidates differ in what they break ({_runs(content, 'path')} runs);"
    yield "*edge*: every candidate loses exactly the drop to be excluded, the worst case"
    yield f"({_runs(content, 'edge')} runs). *Searched only* and *fresh estimate*: how often the promise is wrong when"
    yield "it rests on the search split, or on a fresh estimate without a test. *Certified*: runs in which something"
    yield "was certified; *depth*: steps certified, and those that could rightly be.\n"
    rates = ("wrong", "searched only", "fresh estimate", "certified")
    yield from header("runs", "n", "disagreement", "drop", *rates, "depth")
    names = ("wrong_certificates", "wrong_on_search_split_only", "wrong_by_fresh_estimate", "something_certified")
    for row in content["results"]:
        cells = [row["kind"], str(row["n"]), f"{row['disagreement']:.0%}", f"{row['epsilon']:.1%}"]
        cells += [f"{row[name]:.3f}" for name in names]
        yield table_row([*cells, f"{row['certified_depth']:.1f} of {row['sound_depth']:.1f}"])


def _runs(content: dict[str, Any], kind: str) -> str:
    return ", ".join(sorted({f"{row['runs']:,}" for row in content["results"] if row["kind"] == kind}))


def table_row(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"


def header(*names: str) -> Iterator[str]:
    """Head of a table."""
    yield table_row(names)
    yield "|---" * len(names) + "|"


if __name__ == "__main__":
    main()
