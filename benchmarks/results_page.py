"""Writes docs/results.md, and the numbers of README, from benchmarks/results/*.json: no figure is typed by hand.

Run: python -m benchmarks.results_page
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from benchmarks import readme_numbers
from benchmarks.goals import goals
from benchmarks.results_file import RESULTS, read_json, seeds_unless_three

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
INTRODUCTION = """# Results

Every figure here is written by `python -m benchmarks.results_page` from the files in
[benchmarks/results](../benchmarks/results); each section names the script that measured it. The machine is a shared
one with two cores, so compare figures within a section only."""


RETIRED = 0.93  # a former goal
LEAST_SHOWN = 25  # heads; what is removed on the way there says little


def main() -> None:
    """Writes the page and the numbers of README."""
    sections = [INTRODUCTION, "\n".join(goals_section())]
    for name, section in (
        ("default_run", default_section),
        ("prune_command", command_section),
        ("vocabulary", vocabulary_section),
        ("recovery", recovery_section),
        ("smallest", smallest_section),
        ("arena", arena_section),
        ("other_tasks", other_tasks_section),
        ("gates_accuracy", accuracy_section),
        ("density_accuracy", density_section),
        ("step_cost", step_cost_section),
        ("memory_cost", memory_section),
        ("offloaded_memory", offloaded_section),
        ("shapes", shapes_section),
        ("head_costs", head_costs_section),
        ("latency_table", latency_table_section),
        ("measured_speed", measured_speed_section),
        ("one_shot_cost", one_shot_cost_section),
        ("runtimes", runtimes_section),
        ("optimum", optimum_section),
        ("search_speed", search_speed_section),
        ("search_ablation", ablation_section),
        ("import_time", import_section),
        ("search_quality", search_quality_section),
        ("certificate_validity", validity_section),
        ("certificate_promises", promises_section),
        ("certificate_real_data", real_data_section),
        ("certificate_few_labels", few_labels_section),
        ("certified_pruning", certified_section),
    ):
        content = read_json(RESULTS / f"{name}.json")
        if content:
            sections.append("\n".join(section(content)) + "\n\n" + conditions(COMMANDS.get(name, name), content))
    sections.append("\n".join(faults_section()))
    PAGE.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    readme_numbers.write()


def goals_section() -> Iterator[str]:
    """Table of what was to be reached, and what is."""
    yield "## What was to be reached\n"
    yield "The goals are those that the project set itself. Means over seeds, ± standard error of a drop, standard"
    yield "deviation of an accuracy.\n"
    yield from header("goal", "reached", "verdict")
    yield from map(table_row, goals())
    shares: dict[str, list[float]] = {}
    for row in read_json(RESULTS / "shapes.json")["results"]:
        shares.setdefault(row["dtype"], []).append(row["share_of_bound"])
    reached = [f"{sum(it >= RETIRED for it in found)} of {len(found)} ({dtype})" for dtype, found in shares.items()]
    yield f"\nOne goal is retired: {RETIRED} of the bound by multiply-accumulates, for [published"
    yield f"shapes](#speed-up-of-pruned-shapes). It was reached in {' and '.join(reached)}. Work outside the"
    yield "matrix products does not shrink with them, so each runtime is compared with a bound of its own instead."


def conditions(name: str, content: dict[str, Any]) -> str:
    """Says what produced a section."""
    versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    threads = f"{content['threads']} torch thread{'s' if content['threads'] > 1 else ''}"
    return f"<sub>`python -m benchmarks.{name}`; {content['date'][:10]}; {versions}; {threads}.</sub>"


def accuracy_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of accuracy: methods down, kept heads across."""
    yield "## Accuracy of MiniLM-L6 (72 heads)"
    yield from missing_runs(content)
    titles = {
        "headline": "3 epochs; the dense model is trained with the same steps. *ste* is the default, and gates close "
        "over 120 steps; *at once* closes them fully from the first learning step, *late* until the choice is decided, "
        "*open for a third* lets the dense model train for one of the 3 epochs first; *teacher*: the dense one of the "
        "same seed. *second order* removes heads at 60 % of the run. *One-shot* methods cut the dense model, refit its "
        "output projections and train nothing: *second order* by its costs; *A\\** searches on dev, within 1 % there, "
        "and of the plans on the way to what it found the one with so many heads is cut.",
        "joint": "Weights and choice together, 1 epoch. All methods share data, steps and batch order; the estimators "
        "share everything but the estimator with its own learning rate and temperature (gradient start, closing "
        "over 119 steps, decided after 65 % of the steps). *ste* is the default.",
        "pipelined": "A dense fine-tuned model is frozen; 100 steps choose the heads. No weight moves; only *second "
        "order, one-shot* refits output projections, without training. *sigmoid* is the default of the gates; *as "
        "joint*: with the learning rate and the temperatures that it has where weights train, too. Of its seeds 0 to "
        "2 *sigmoid* ran on dense models trained anew, which differ from those of the others by up to 0.25 points. Its "
        "setting was found on test pairs of snli's seeds 3 to 7: those five are no independent evidence for it.",
    }
    for group, title in titles.items():
        for task in dict.fromkeys(row["task"] for row in content["summary"] if row["group"] == group):
            rows = [row for row in content["summary"] if (row["group"], row["task"]) == (group, task)]
            if not any(row["method"] != "dense" for row in rows):
                continue
            yield f"\n### {group}, {task}\n\n{title} Test accuracy in percent: mean ± standard deviation over seeds.\n"
            yield from table_of(rows, "kept_heads", lambda budget: f"{budget} heads")
            if group == "headline":
                yield (
                    "\nDrop in points: mean ± standard error; of *A\\** against the very models that it cut, trained "
                    "anew, else against the dense model of the same seed.\n"
                )
                drops = [row for row in rows if (row.get("drop") or {}).get("standard_deviation") is not None]
                yield from table_of(drops, "kept_heads", lambda budget: f"{budget} heads", drop_cell)


def table_of(
    rows: list[dict[str, Any]],
    column: str,
    title: Callable[[float], str],
    cell: Callable[[dict[str, Any]], str] | None = None,
) -> Iterator[str]:
    """One table: methods down, the values of a column across, the largest first."""
    values = sorted({row[column] for row in rows}, reverse=True)
    yield from header("method", *map(title, values))
    cells = {(row["method"], row[column]): (cell or accuracy_cell)(row) for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        yield table_row([method, *(cells.get((method, value), "") for value in values)])


def accuracy_cell(row: dict[str, Any]) -> str:
    """Mean and spread, with the number of seeds where it is not three."""
    spread = row["test"]["standard_deviation"]
    text = f"{row['test']['mean']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    return text + seeds_unless_three(len(row["seeds"]))


def drop_cell(row: dict[str, Any]) -> str:
    """Mean drop and its standard error, with the number of seeds where it is not three."""
    seeds = len(row["seeds"])
    error = row["drop"]["standard_deviation"] / seeds**0.5
    return f"{row['drop']['mean']:+.2f} ± {error:.2f}{seeds_unless_three(seeds)}"


def default_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what a user gets who types the call of each row."""
    yield "## What one line gives"
    yield from missing_runs(content)
    yield "\nMiniLM-L6, three epochs on sst2, snli (10 000 pairs) and qamr. *kept*: share of the attention and FFN"
    yield "weights (of the file). *drop*: points that the untouched test loses against the model before pruning, mean ±"
    yield "standard deviation over seeds. *certified*: runs whose certificate says PASS, and those of them whose drop"
    yield "on test is not below what was certified. *time*: CPU seconds of all over those of plain training. Two of"
    yield "qamr's three runs are of an earlier version, which took 2,048 training examples in place of 1,024. The rows"
    yield "of A* are of a version with two more shortcuts; without them A* takes longer. With a density, training"
    yield "itself prunes, and nothing is certified without a reference.\n"
    yield from header("call", "task", "seeds", "dense", "kept (file)", "drop", "certified (not so on test)", "time")
    for row in content["summary"]:
        yield table_row(
            [
                *cells_of_way(row),
                f"{row['certified']} of {row['seeds']} ({row['certified_wrongly']})",
                f"{row['cpu_ratio']['mean']:.2f}",
            ]
        )


def cells_of_way(row: dict[str, Any]) -> list[str]:
    """Returns what was typed, on what, what it kept, and what that cost."""
    drop = row["drop"]
    spread = "" if drop["spread"] is None else f" ± {drop['spread']:.2f}"
    cells = [f"`{row['way']}`", row["task"], str(row["seeds"]), f"{row['dense_test']['mean']:.2f}"]
    return [*cells, f"{row['density']['mean']:.0%} ({row['file']['mean']:.0%})", f"{drop['mean']:.2f}{spread}"]


def vocabulary_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what the vocabulary of the training texts saves and costs."""
    yield "## The vocabulary of the training texts"
    yield from missing_runs(content)
    yield "\n`prune_vocabulary_` on the models of the runs above, and on the same with half of their attention and FFN"
    yield "weights (`plan_for_budget`); no training. Accuracy on test in percent: of the fine-tuned model, before the"
    yield "vocabulary is pruned and after. *changed*: answers that the vocabulary alone changes. *certified*: runs that"
    yield "are certified on test, at 95 %, to lose less than 1 and 2 points against the fine-tuned model.\n"
    yield from header("task", "weights", "seeds", "dense", "before", "after", "changed", "pieces", "MB", "certified")
    for row in content["summary"]:
        numbers = [f"{row[name]['mean']:.2f}" for name in ("dense", "before", "test")]
        yield table_row(
            [
                row["task"],
                f"{row['density']:.0%}",
                str(row["seeds"]),
                *numbers,
                f"{row['changed']['mean']:.1f} %",
                f"{row['pieces']['mean']:,.0f}",
                f"{row['dense_mb']['mean']:.1f} → {row['mb']['mean']:.1f}",
                " and ".join(str(passed) for passed in row["certified"].values()),
            ]
        )


def recovery_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what training on after the cut wins back."""
    yield "## Recovery after the cut"
    yield from missing_runs(content)
    yield "\nThe models of the runs above, pruned to a share of their attention and FFN weights, refitted, and trained"
    yield "on with the fine-tuned model as teacher, as `headprune prune --recover` does. Accuracy (qamr: F1) on test."
    yield "*time*: CPU seconds of pruning and recovery over those of the training that made the model. *certified*:"
    yield "runs that are certified on test, at 95 %, to lose less than 1 and 2 points. Rows with two epochs, and sst2"
    yield "at 10 % without, are of an earlier version, which looked at 1,024 training examples in place of 4,096.\n"
    yield from header("task", "weights", "epochs", "seeds", "dense", "pruned", "drop", "time", "certified")
    for row in content["summary"]:
        numbers = [f"{row[name]['mean']:.2f}" for name in ("dense_test", "test", "drop", "cpu_ratio")]
        cells = [row["task"], f"{row['density']:.0%}", f"{row['epochs']:g}", str(row["seeds"])]
        yield table_row([*cells, *numbers, " and ".join(str(passed) for passed in row["certified"].values())])


TRAININGS = {
    "none": "Without training",
    "300 steps": "300 steps on the labels after the cut",
    "2 epochs": "Two epochs after the cut, with the dense model as teacher",
}


RIVALS = {  # of the arena, where they have runs
    "ours, 3 rounds": "a third of what leaves at a time, with costs of what the rounds before have left",
    "ours, 4,096 examples": "from four times as many training examples as all others look at, as `plan_for_budget` "
    "does from a quarter of the weights down",
    "Torch-Pruning": "the package of that name, its Taylor scores ranked over all layers, heads and FFN units apart",
    "ours, during": "`HeadPruneCallback(density=...)`, which cuts in the midst of the training",
    "CoFi": "written after its paper; it prunes during the same training, with gates on blocks, heads and FFN units, "
    "and where there is a teacher it learns layer by layer",
    "block movement": "the published recipe `hybrid_filled`, which prunes during the same training and refills after "
    "80 % of the steps",
}


def arena_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of every way of the arena: ways down, densities across."""
    yield "## The arena"
    yield from missing_runs(content)
    yield "\nThe models of the runs above, made smaller in several ways that look at the same 1,024 training examples."
    yield "Training after the cut is the same for all. *layers dropped* is the set of whole layers whose loss on"
    yield "training examples is least, so many as come nearest to the density: of six layers, one is 17 %. *Kwon et"
    yield "al.* and *K-prune* are written after their papers and code; *ZipLM's price* is its cost of a removal, with"
    yield "our refit of output projections. Points lost on test, of each model against its own dense one, since"
    yield "machines do not train the same model from a seed: mean ± standard deviation over seeds; the best is bold."
    yield "Rows of one seed that lie within a point of each other are not told apart by so few test examples; training"
    yield "brings most ways that near."
    present = {row["way"] for row in content["summary"]}
    yield from (f"\n*{way}*: {words}." for way, words in RIVALS.items() if way in present)
    yield "\n![Points lost against the weights that are kept, without training](images/arena.svg)"
    for task in dict.fromkeys(row["task"] for row in content["summary"]):
        for training, title in TRAININGS.items():
            rows = [row for row in content["summary"] if (row["task"], row["training"]) == (task, training)]
            if rows:
                dense = rows[0]["dense_test"]["mean"]
                metric = "F1" if task == "qamr" else "%"
                yield f"\n### {task}, {title[0].lower()}{title[1:]}\n\nA dense model reaches {dense:.2f} {metric}.\n"
                # a column that lacks rivals has no best one
                rivals = Counter(row["density"] for row in rows if not row["way"].startswith("ours"))
                best = {
                    density: min(row["drop"]["mean"] for row in rows if row["density"] == density)
                    for density, ways in rivals.items()
                    if ways == max(rivals.values())
                }
                named = [{**row, "method": row["way"], "best": best.get(row["density"])} for row in rows]
                yield from table_of(named, "density", lambda density: f"{density:.0%}", arena_cell)


def arena_cell(row: dict[str, Any]) -> str:
    """Mean and spread; the best of a column is bold."""
    mean, spread = row["drop"]["mean"], row["drop"]["spread"]
    text = f"{mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    return (f"**{text}**" if mean == row["best"] else text) + seeds_unless_three(row["seeds"])


OTHER_TASKS = {
    "images": "A ViT of 4 layers and 24 heads, trained on `mnist_t10k` from scratch for 8 epochs. *Recovery* is a "
    "ninth, on the labels, which the dense model did not get. Accuracy on test in percent.",
    "embeddings": "all-MiniLM-L6-v2 as it is published, pruned and taught on sentences of stsb without their scores. "
    "Seeds draw the sentences. Spearman correlation on test.",
    "grouped_heads": "A Llama of 4 layers, 8 query heads on 4 pairs of keys and values in each, trained on the English "
    "captions of Multi30k from scratch. Perplexity on test, less is better.",
    "translation": "A Marian of 6 + 6 layers, 24 heads each in the encoder, the decoder and across, trained from "
    "scratch on Multi30k, German to English, for 5 epochs. BLEU and chrF on test, greedy. *Second order*, *gradient* "
    "and *random* choose heads without training; *pipelined* gates and differentiable subset pruning (DSP) learn "
    "scores for 100 steps, weights frozen. With one epoch of training: *then*, of recovery after the cut, taught by "
    "the dense model; *during*, with the cut at 60 %; *joint*, with gates. *Five epochs* are as long as the dense "
    "model trained, which did not get them. FFN units all stay, but where weights are counted. Seed 0's dense model "
    "learned at a rate of 2e-3, at which that of seed 1 came to a BLEU of 3.7; the others learn at 1e-3, and so did "
    "that of seed 0's rows of one epoch at 54, 36 and 9 heads. Two machines trained seed 2's. Each way is compared "
    "with the dense model that it came from.",
    "summarization": "A BART of 3 + 3 layers that begin as MiniLM's first and last three, trained on the 1,992 "
    "abstracts of SciTLDR for 10 epochs. ROUGE-1, -2 and -L on test, greedy.",
}


def other_tasks_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of what pruning costs and gives where the task is no classification of texts."""
    yield "## Images, embeddings, text that is written"
    yield from missing_runs(content)
    yield "\n*change*: mean ± standard deviation over seeds. *weights*: share of the attention and FFN weights that is"
    yield "kept. *cache*: KB of keys and values of one sequence. *speed*: of encoding or writing, over the dense one's,"
    yield "in CPU seconds of one thread. Without *recovery* or *taught* nothing is trained after the cut."
    for task, words in OTHER_TASKS.items():
        rows = [row for row in content["summary"] if row["task"] == task]
        if rows:
            others = [name for name in ("chrf", "rouge2", "rougeL") if name in rows[0]]
            names = [name for name in ("speed", "cache_bytes") if name in rows[0]]
            yield f"\n### {task.replace('_', ' ')}\n\n{words}\n"
            columns = ["way", "seeds", "dense", "pruned", "change", *others, "weights", "heads kept"]
            yield from header(*columns, *({"speed": "speed", "cache_bytes": "cache, KB"}[name] for name in names))
            yield from (table_row(other_task_cells(row, others, names)) for row in rows)


def other_task_cells(row: dict[str, Any], others: list[str], names: list[str]) -> list[str]:
    """Returns one row of the table of a task."""
    form = "{:.4f}" if row["metric"].startswith("spearman") else "{:.2f}"
    change, spread = row["change"]["mean"], row["change"]["spread"]
    cells = [row["way"], str(row["seeds"]), *(form.format(row[name]["mean"]) for name in ("dense_test", "test"))]
    cells.append(form.replace(":", ":+").format(change) + ("" if spread is None else f" ± {form.format(spread)}"))
    cells += [f"{row[f'dense_{name}']['mean']:.1f} → {row[name]['mean']:.1f}" for name in others]
    cells.append(f"{row['density_reached']['mean']:.0%}")
    heads = []
    for kind, (count, kept) in row["heads"].items():
        groups, kept_groups = row["groups"][kind]
        shared = f" ({kept_groups:g} of {groups} groups)" if groups != count else ""
        heads.append(f"{kept:.3g} of {count} {kind}{shared}")
    cells.append(", ".join(heads))
    shown = {
        "speed": lambda: f"{row['speed']['mean']:.2f}",
        "cache_bytes": lambda: f"{row['dense_cache_bytes']['mean'] / 1e3:.1f} → {row['cache_bytes']['mean'] / 1e3:.1f}",
    }
    return [*cells, *(shown[name]() for name in names)]


def command_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what the command makes of models that somebody else fine-tuned."""
    yield "## What `headprune prune` makes of a given model"
    yield from missing_runs(content)
    yield "\nThe models are plain checkpoints of the runs above, without a trace of this package; the command gets the"
    yield "folder and the files of train and dev, and its output is loaded by an Auto class. *kept*, *drop* as above;"
    yield "*passed*: calls whose certificate says PASS; *time*: CPU seconds of the call over those of the"
    yield "training that made the model.\n"
    yield from header("options", "task", "seeds", "dense", "kept (file)", "drop", "passed", "time")
    for row in content["summary"]:
        passed, ratio = f"{row['passed']} of {row['seeds']}", f"{row['cpu_ratio']['mean']:.2f}"
        yield table_row([*cells_of_way(row), passed, ratio])


def import_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what importing the package costs."""
    yield "## What importing the package costs"
    yield f"\nCPU seconds in a fresh process after `import torch, transformers`; medians of {content['processes']}.\n"
    yield from header("step", "CPU seconds", "least .. most")
    for name, seconds in content["cpu_seconds"].items():
        yield table_row([name, f"{seconds['median']:.3f}", f"{seconds['min']:.3f} .. {seconds['max']:.3f}"])


def density_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of the metric at each density: methods down, densities across."""
    yield "## MiniLM-L6 at a density of its linear weights"
    yield from missing_runs(content)
    titles = {
        "published": "2 epochs at batch 16 with a teacher of 1.5 epochs, as in the run of the published code of block "
        "movement pruning, which ended at 74 % with 89.2 (one seed; dev 87.0), in a file of 89.5 MB. *Block movement, "
        "penalty 10* is that recipe in this library: the penalty decides the density, and blocks masked inside heads "
        "stay as zeros, which the density in the table of files counts as kept. *Second order* cuts after 60 % of the "
        "steps at every density.",
        "budget": "300 steps at batch 32, no teacher; every method meets the same density with whole heads and FFN "
        "units that are cut. *second order* cuts after 60 % of the steps; *second order, rewound* after half of "
        "them, and the learning rate's schedule then starts over, at twice the rate. `HeadPruneCallback(density=...)` "
        "does the latter where a third or less is kept. *Random units* has its sizes per layer.",
        "layers": "What one would try first: every other layer of the pretrained model is dropped, and the rest is "
        "fine-tuned, for as many steps as the group above or twice as many, with or without its dense model as "
        "teacher.",
        "questions": "SQuAD-format questions, 2 epochs without dropout in attention, the dense model as teacher; "
        "*hybrid_filled* learns blocks of attention and FFN units, cuts, refills and trains a second time. *Second "
        "order* cuts in the midst of a training from the pretrained model; *then* cuts the dense model and trains it "
        "on, as `headprune prune --recover 2`. So *then* has seen as many steps as *4 epochs*, its dense model's "
        "included. *Rewound* cuts after half of the steps, as `HeadPruneCallback(density=0.26)` does. "
        "Rows that name their epochs, of one seed, are a learning curve; the dense model of 2 epochs "
        "teaches the pruned ones, and *then* starts from it.",
    }
    for group, title in titles.items():
        for task in dict.fromkeys(row["task"] for row in content["summary"] if row["group"] == group):
            rows = [row for row in content["summary"] if (row["group"], row["task"]) == (group, task)]
            metric = "accuracy" if task in ("sst2", "snli") else "F1"
            yield f"\n### {group}, {task}\n\n{title} Test {metric} in percent: mean ± standard deviation over seeds.\n"
            yield from table_of(rows, "density", lambda density: "dense" if density == 1 else f"{density:.0%}")
    sized = [row for row in content["summary"] if "file_mb" in row and "reached_density" in row]
    if sized:
        yield "\nFiles, against the bytes of the weights in them, in MB:\n"
        yield from header("group", "task", "method", "density asked", "reached", "file", "weights")
        for row in sized:
            means = [f"{row[name]['mean']:.2f}" for name in ("file_mb", "weights_mb")]
            reached = f"{row['reached_density']['mean']:.1%}"
            yield table_row([row["group"], row["task"], row["method"], f"{row['density']:.0%}", reached, *means])


def memory_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of peak training memory."""
    yield "## Memory of training with pruning"
    batch, length = content["shape"]
    yield f"\n{content['model']}, batch {batch} x length {length}, fp32: growth of the peak resident memory of a fresh"
    yield f"process over {content['steps']} steps, over that of a plain Trainer; medians of processes in turns.\n"
    yield from header("part", "ratio", "megabytes")
    for row in content["results"]:
        yield table_row([row["part"], f"{row['ratio']:.3f}", ", ".join(f"{m:.0f}" for m in row["megabytes"])])


def offloaded_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of the peak memory of pruning without training."""
    shape, share = content["shape"], 100 * content["density"]
    yield "## Memory of pruning a model that is kept on disk"
    yield f"\nA BERT of {shape['num_hidden_layers']} layers, hidden size {shape['hidden_size']}, fp32:"
    yield f"{content['weights_mb']:.0f} MB of weights, the largest of {content['largest_mb']:.1f} MB. Each way, in a"
    yield f"fresh process, reads it, prunes it to {share:.0f} % of its attention and FFN weights and saves it. What is"
    yield "counted is anonymous memory, the largest of samples; mapped files can be dropped and aren't. The saved files"
    yield f"are {'the same' if content['same_file'] else 'different'}.\n"
    yield from header("weights", "peak, MB")
    yield from (table_row([way, f"{peak:.0f}"]) for way, peak in content["peak_mb"].items())


CAMPAIGNS = {
    "kills": "SIGKILL at moments spread over training, search, cut and save, then resumed",
    "mutations": "mutated inputs of eight formats, each with 5 s and 2,000 characters of message at most",
    "disks": "runs whose disk is full at a random byte; files of a checkpoint cut off at a random byte",
    "endurance": "rounds of cut, save and reload, and runs of the Trainer, in one process",
}


def faults_section() -> Iterator[str]:
    """Table of what was tried to break a run, and what it gave."""
    yield "## What was tried to break it\n"
    yield "Small models and small runs, so that there are many. Each campaign goes on where it was stopped.\n"
    yield from header("tried", "cases", "what came of them", "CPU seconds")
    for name, words in CAMPAIGNS.items():
        content = read_json(RESULTS / f"faults_{name}.json")
        if content:
            outcomes = "; ".join(f"{count:,}: {outcome}" for outcome, count in content["summary"].items())
            count = f"{content['count'] if 'count' in content else len(content['cases']):,}"
            yield table_row([f"{words} (`benchmarks.faults.{name}`)", count, outcomes, f"{content['cpu_seconds']:.0f}"])


def smallest_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of the smallest files, and of their certificates."""
    yield "## The smallest files"
    yield from missing_runs(content)
    yield "\nThe models of the runs above, made by `examples/smallest.py` as small as was asked for: vocabulary, heads"
    yield "and FFN units are pruned, the rest learns from the whole model for five epochs, and is written in fp32 and"
    yield "in int8. Accuracy on test in percent. *certified*: runs that are certified on dev and test together, at"
    yield "95 %, to lose less than 1 and 2 points against the fine-tuned model; in brackets, the int8 file.\n"
    yield from header("task", "seeds", "MB", "in int8", "dense", "pruned", "drop", "certified", "CPU seconds")
    for row in content["summary"]:
        certified = (f"{row['certified'][points]} ({row['int8_certified'][points]})" for points in ("1", "2"))
        cells = [row["task"], str(row["seeds"]), f"{row['mb']['mean']:.1f}", f"{row['int8_mb']['mean']:.1f}"]
        cells += [f"{row[name]['mean']:.2f}" for name in ("dense_test", "test", "drop")]
        yield table_row([*cells, " and ".join(certified), f"{row['cpu_seconds']['mean']:.0f}"])


def missing_runs(content: dict[str, Any]) -> Iterator[str]:
    """Says how many runs are missing, if any are."""
    if content["missing"]:
        done = content["results"] if "results" in content else content["runs"]
        yield f"\n**Unfinished: {content['missing']} of {content['missing'] + len(done)} runs are missing.**"


def step_cost_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of the cost of a training step with gates."""
    yield "## Cost of a training step with gates"
    yield "\nOne step of the Trainer with `HeadPruneCallback` over one step of the plain Trainer, in turns in one run;"
    yield "median and quartiles of the ratio of neighbouring steps. *learn*: gates soft and learning; *decided*: after"
    yield "the choice is fixed; *hybrid*: movement scores of FFN units learn, too; *teacher*: both sides run its"
    yield "forward pass, too, but in the phase *second epoch*, when its logits are stored, over a step without any;"
    yield "*half of the weights*: removal costs have chosen, `density=0.5`. CPU seconds of the stepping thread; wall"
    yield "time beside it.\n"
    yield from header("model", "batch x length", "what", "precision", "phase", "ratio (CPU)", "quartiles", "(wall)")
    for row in content["results"]:
        cpu, wall = row["cpu_seconds"], row["wall_seconds"]
        low, middle, high = cpu["ratio_quartiles"]
        cells = [
            row["model"],
            f"{row['shape'][0]} x {row['shape'][1]}",
            row.get("part", "gates"),
            "bf16" if row["bf16"] else "fp32",
            row["phase"],
        ]
        cells += [f"{middle:.3f}", f"{low:.3f} .. {high:.3f}", f"{wall['ratio_quartiles'][1]:.3f}"]
        yield table_row(cells)


def shapes_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of the speed-up of published shapes."""
    yield "## Speed-up of pruned shapes"
    yield "\nBERT-base with random weights, cut to the shapes of the block-pruned SQuAD models of Lagunas et al. 2021"
    yield "(their numbers #4 ... #10), saved, reloaded with `AutoModel`. FFN widths are *as published* or rounded up to"
    yield "multiples of 32, as this library chooses them. *Bound*: MACs of the dense model over those of the cut"
    yield "one; *other work*: share of the time outside matrix products, dense and cut, which the bound leaves out;"
    yield "*products*: share of the bound that the matrix products alone reach. In every case the file held exactly the"
    yield "plan's bytes and its header.\n"
    names = ("shape", "FFN widths", "precision", "batch x length", "speed-up (CPU)", "(wall)", "bound")
    yield from header(*names, "share of bound", "other work", "products")
    alone: dict[str, list[float]] = {}
    for row in content["results"]:
        cells = [
            row["shape"],
            row["widths"],
            row["dtype"],
            f"{row['batch']} x {row['length']}",
            f"{row['cpu']['speed_up']:.2f}",
        ]
        cells += [f"{row['wall']['speed_up']:.2f}", f"{row['mac_bound']:.2f}", f"{row['share_of_bound']:.3f}"]
        other = row["share_of_other_work"]
        products = row["share_of_bound"] * (1 - other["dense"]) / (1 - other["pruned"])
        alone.setdefault(f"{row['dtype']}, {row['widths']}", []).append(products)
        cells += [f"{other['dense']:.0%} -> {other['pruned']:.0%}", f"{products:.3f}"]
        yield table_row(cells)
    means = (f"{mean(shares):.2f} ({kind})" for kind, shares in alone.items())
    yield f"\nMatrix products alone reach, in the mean, {', '.join(means)} of the bound."


def head_costs_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what heads alone can give."""
    yield "## What heads alone can give"
    length = content["length"]
    yield f"\nCounted on BERT-base (144 heads); the bound is that of the MACs of all blocks at length {length}.\n"
    yield from header("heads kept", "parameters removed", "bound on the speed-up")
    for row in content["results"]:
        yield table_row([str(row["kept_heads"]), f"{row['parameters_removed']:.1%}", f"{row['speed_up_bound']:.2f}"])


def ablation_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what each shortcut of the search earns."""
    yield "## What each shortcut of the search earns"
    yield "\nMiniLM fine-tuned on sst2, heads and FFN units, output projections refitted,"
    yield f"{content['examples']} examples of dev, {content['evaluations']} evaluations: the same search with one"
    yield "shortcut switched off. CPU seconds of the search, and their ratio to the search with all shortcuts;"
    yield "parameters that the plan found removes.\n"
    yield from header("switched off", "CPU seconds", "ratio", "examples computed", "removed", "plan")
    for row in content["rows"]:
        cells = [row["off"], f"{row['cpu_seconds']:.1f}", f"{row['ratio']:.2f}", f"{row['examples']:,}"]
        yield table_row([*cells, f"{row['gain']:,.0f}", row["plan"]])


def optimum_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of exhausted searches beside the true optimum."""
    yield "## Whether an exhausted search finds the optimum"
    yield f"\nSmall models trained on sst2, searched within {content['max_drop']:.1%} on {content['examples']} examples"
    yield "of dev until nothing is left to ask, against every subset of their units by plain evaluation:"
    yield f"**optimal in {content['optimal']} of {content['models']}**. *Removed*: heads, or parameters where FFN"
    yield "chunks are units too, in the smallest and the largest optimum; *evaluations*: of the search, the most.\n"
    yield from header("layers x heads", "FFN chunks", "units", "models", "optimal", "removed", "evaluations", "subsets")
    kinds: dict[tuple[int, int, bool], list[dict[str, Any]]] = {}
    for run in content["runs"]:
        kinds.setdefault((run["layers"], run["heads"], run["with_ffn"]), []).append(run)
    for (layers, heads, with_ffn), runs in kinds.items():
        removed = [run["optimum"] for run in runs]
        cells = [f"{layers} x {heads}", "yes" if with_ffn else "no", str(runs[0]["units"]), str(len(runs))]
        cells += [str(sum(run["is_optimal"] for run in runs)), f"{min(removed):,} .. {max(removed):,}"]
        yield table_row([*cells, f"{max(run['evaluations'] for run in runs):,}", f"{2 ** runs[0]['units']:,}"])


def search_speed_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of what a plan costs to measure, of a whole search, and of how the cost grows."""
    yield "## Speed of the search"
    yield f"\nMiniLM on sst2, {content['examples']} examples of dev, against the loop that closes the units and runs"
    yield "the padded data set. Samples of plans are measured by both; every verdict was the same. CPU seconds.\n"
    yield from header("verdict", "plans", "examples looked at", "loop", "search", "ratio", "with the mean of all plans")
    for row in content["kinds"]:
        cells = [row["kind"], str(row["plans"]), f"{row['share_of_examples']:.0%}", f"{row['naive_cpu_seconds']:.2f}"]
        yield table_row([*cells, f"{row['cpu_seconds']:.3f}", f"{row['ratio']:.1f}", f"{row['ratio_of_all']:.1f}"])
    if "whole" in content:
        yield from whole_search_lines(content["whole"])
    yield f"\nThe process took at most {content['peak_mib']:.0f} MiB.\n"
    yield "How it grows: plans without half of the heads and FFN units, measured on every example; random weights.\n"
    yield from header("layers x width", "examples x mean length", "loop", "search", "ratio")
    for row in content["growth"]:
        cells = [f"{row['layers']} x {row['hidden_size']}", f"{row['examples']} x {row['mean_length']:.0f}"]
        cells += [f"{row['loop_cpu_seconds']:.2f}", f"{row['search_cpu_seconds']:.2f}", f"{row['ratio']:.1f}"]
        yield table_row(cells)


def whole_search_lines(whole: dict[str, Any]) -> Iterator[str]:
    """A whole search, against greedy elimination in the plain loop."""
    yield "\nA whole A* search within 1 % on dev: CPU seconds until its best plan, measured exactly, removes so many"
    yield "heads, output projections *refitted* or *as they are*; beside it what greedy elimination would need in the"
    yield "plain loop before it can have removed as many (plans counted, each as long as in the sample above).\n"
    yield from header("search", "heads removed", "evaluations", "CPU seconds", "greedy, CPU seconds", "ratio")
    for name in ("refitted", "as it is"):
        rows = whole[name]
        for row in [r for r in rows if r["removed"] >= LEAST_SHOWN] or rows[-1:]:
            cells = [name, f"{row['removed']:g}", str(row["evaluations"]), f"{row['cpu_seconds']:.0f}"]
            yield table_row([*cells, f"{row['greedy_cpu_seconds']:,.0f}", f"{row['ratio']:.0f}"])
    if "greedy" in whole:
        greedy = whole["greedy"]
        yield f"\nGreedy elimination itself ends at {greedy['removed']:g} heads, after {greedy['evaluations']:,} plans."


def latency_table_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what tables of latencies predict, beside what cut models take."""
    yield "## What a table of latencies is worth"
    yield "\nMiniLM cut by random plans, in turns with the dense one. *Measured*: its share of the dense model's time;"
    yield "*predicted*: what `measure_latency_table` says, which measures each kind of block by itself.\n"
    yield from header("batch x length", "heads kept", "FFN units kept", "dense, ms", "measured", "predicted")
    for row in content["results"]:
        cells = [f"{row['batch_size']} x {row['seq_len']}", str(row["kept_heads"]), f"{row['kept_ffn']:,}"]
        yield table_row([*cells, f"{row['dense_ms']:.1f}", f"{row['measured']:.3f}", f"{row['predicted']:.3f}"])
    errors = [abs(row["predicted"] - row["measured"]) for row in content["results"]]
    yield f"\nOff by {median(errors):.3f} of the dense time in the median, {max(errors):.3f} at most."


def measured_speed_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of speed-ups that were asked for, and of those that were then measured."""
    yield "## Speed-ups asked for and measured"
    yield from missing_runs(content)
    yield "\nMiniLM, fine-tuned on sst2. *Asked*: the speed-up that a number of whole layers gives, measured;"
    yield "*reached*: that of `plan_for_budget(speedup=, latency=)`, cut and measured anew. *Kept*: share of the"
    yield "attention and FFN weights, of the layers and of the plan that is as fast.\n"
    yield from header("batch x length", "layers of 6", "asked", "reached", "reached / asked", "kept: layers", "plan")
    for row in content["results"]:
        cells = [f"{row['batch_size']} x {row['seq_len']}", str(row["layers"]), f"{row['asked']:.2f}"]
        cells += [f"{row['reached']:.2f}", f"{row['reached'] / row['asked']:.3f}"]
        yield table_row([*cells, f"{row['weights_of_layers']:.0%}", f"{row['weights']:.0%}"])


def one_shot_cost_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of the time of costs and refit, by layers, width and examples."""
    yield "## Time of costs and refit"
    yield f"\nBERT shapes, pruned to half of their attention and FFN weights on texts of {content['length']} tokens,"
    yield "without training. *Costs*: moments, gradients and the order of removal; *refit*: all linear modules in"
    yield "order; *pass*: one forward and backward pass of training over these examples. CPU seconds of one thread.\n"
    yield from header("layers", "width", "examples", "pass", "costs", "refit", "together", "in passes")
    for row in content["results"]:
        cells = [str(row["layers"]), str(row["width"]), f"{row['examples']:,}"]
        together = row["costs"] + row["refit"]
        cells += [f"{row[name]:.1f}" for name in ("pass", "costs", "refit")]
        yield table_row([*cells, f"{together:.1f}", f"{together / row['pass']:.1f}"])


def runtimes_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of latency and size in each runtime, beside the bound of that runtime."""
    yield "## Other runtimes"
    yield "\nMiniLM with the same share of heads and FFN units kept in every layer, 128 tokens, one thread, dense and"
    yield "pruned in turns. *Bound*: what the runtime would gain if its matrix products took as much less time as they"
    yield "have fewer multiply-accumulates, and all other work as long as before. [Quartiles] of single turns.\n"
    yield from header("runtime", "batch", "weights kept", "MB", "ms", "times faster", "bound", "share of it")
    for row in sorted(content["results"], key=lambda it: it["batch"]):
        low, high = row["speed_up_quartiles"]
        cells = [
            row["runtime"],
            str(row["batch"]),
            f"{row['density']:.0%}",
            f"{row['size_mb']:.1f}",
            f"{row['ms']:.1f}",
        ]
        cells += [f"{row['speed_up']:.2f} [{low:.2f}, {high:.2f}]", f"{row['bound']:.2f}"]
        yield table_row([*cells, f"{row['share_of_bound']:.2f}"])


def search_quality_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of what each way to search finds: strategies down, evaluations across."""
    yield "## What each way to search finds"
    yield from missing_runs(content)
    yield f"\nMiniLM (72 heads), fine-tuned, not retrained; heads removed within {content['max_drop']:.0%} on dev at"
    yield "equal numbers of evaluations, and in brackets the drop on test in points. Means over seeds. With FFN units,"
    yield "in chunks of 128: the share of the weights of all attention and FFN matrices removed, in percent.\n"
    for units, task in dict.fromkeys((row["units"], row["task"]) for row in content["summary"]):
        rows = [row for row in content["summary"] if (row["units"], row["task"]) == (units, task)]
        budgets = sorted({row["budget"] for row in rows})
        yield f"### search, {task}, {units}\n"
        yield from header("way", *(f"{budget:,} evaluations" for budget in budgets))
        cells = {
            (row["strategy"], row["budget"]): f"{_removed(row):.1f} ({100 * row['test_drop']:+.2f})" for row in rows
        }
        for name in dict.fromkeys(row["strategy"] for row in rows):
            yield table_row([name, *(cells.get((name, budget), "") for budget in budgets)])
        yield ""


def _removed(row: dict[str, Any]) -> float:
    """Returns the heads removed, or the share of the linear weights in percent."""
    return float(row["removed"]) if row["units"] == "heads" else 100 * (1 - row["density"])


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


COMMANDS = {"certificate_few_labels": "certificate_real_data --labels"}  # where a file has another name
PROMISE_COLUMNS = {  # of each table: its title, and the numbers that are shown
    "labels": ("Labels for the changed answers only", "certified_with_labels_of_the_changed", "labels_used"),
    "clusters": ("Examples in clusters", "certified", "certified_if_taken_for_independent"),
    "promises": ("Four promises together", "certified"),
    "stop": ("Stopping early", "certified", "certified_by_the_exact_test_of_all", "median_examples_used"),
    "monitor": ("Monitor", "false_alarms", "median_delay", "delay_90"),
    "hoeffding_bentkus": ("Hoeffding-Bentkus on paired differences", "wrong_at_0.05", "wrong_at_0.1"),
}


def promises_section(content: dict[str, Any]) -> Iterator[str]:
    """Tables of how often the newer certificates are wrong, and what they need."""
    yield "## Few labels, several promises, early stops, and the monitor"
    yield f"\nSimulated at level {content['alpha']}, {content['runs']:,} runs per row; delays of the monitor in 1,000."
    yield "Where the true drop is the one to be excluded, each certificate is wrong. In 200 runs per row that went"
    yield "example by example, no certificate with labels for the changed answers alone differed from that with labels"
    yield "for all. The last table is the p-value that the released script of the nearest method takes (Pareto Testing,"
    yield "Laufer-Goldshtein et al., ICLR 2023), rerun at the border of its hypothesis: the bound is made for risks in"
    yield "[0, 1], and the script gives it paired differences, which may be negative."
    for name, (title, *numbers) in PROMISE_COLUMNS.items():
        rows = content["results"][name]
        keys = dict.fromkeys(key for row in rows for key in row)
        settings = [key for key in keys if key not in {*numbers, "differs_with_labels_of_all"}]
        yield f"\n**{title}**\n"
        yield from header(*(key.replace("_", " ") for key in [*settings, *numbers]))
        for row in rows:
            yield table_row([_short(row.get(key, "")) for key in [*settings, *numbers]])


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 10 else f"{value:.4f}".rstrip("0").rstrip(".")  # noqa: PLR2004
    return f"{value:,}" if isinstance(value, int) else str(value)


def real_data_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of how often certificates are wrong on real answers."""
    yield "## How often a certificate is wrong on real answers"
    yield from missing_runs(content)
    yield f"\nMiniLM on snli's test pairs, {content['repetitions']:,} random splits per row into"
    yield f"{content['searching']:,} that search, n that certify at level {content['alpha']}, and the rest; heads go in"
    yield "the order of gradient importance. *Wrong*: a certified plan loses the drop or more on all pairs; *on the"
    yield "rest*: it does so on the pairs left over, which are themselves a sample; *searched only* and *fresh"
    yield "estimate*: as above.\n"
    yield from header(
        "seed", "n", "drop", "wrong", "on the rest", "searched only", "fresh estimate", "certified", "heads"
    )
    names = ("wrong", "worse_on_the_rest", "searched_wrong", "estimated_wrong", "certified")
    for row in content["results"]:
        cells = [str(row["seed"]), str(row["n"]), f"{row['epsilon']:.0%}", *(f"{row[name]:.3f}" for name in names)]
        yield table_row([*cells, f"{row['mean_removed']:.1f}"])


def few_labels_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of certificates with few labels, and without any, on real answers."""
    yield "## Few labels on real answers"
    yield from missing_runs(content)
    same = all(row[key]["same_with_few_labels"] for row in content["results"] for key in row if key.startswith("at_"))
    density = content["results"][0]["density"]
    yield f"\nMiniLM pruned one-shot to {density:.0%} of its linear weights, on n test examples. Labelled are the"
    yield "examples that `disagreements` names. *Largest drop*: in points at 95 %, with labels, and without them by the"
    yield "share of changed answers. *Verdicts*: for drops of 1, 2 and 3 points. In verdict, counts, p-value and bound,"
    words = "equal" if same else "DIFFER FROM"
    yield f"the certificates with few labels {words} those with the labels of all examples.\n"
    yield from header("task", "seed", "n", "labels", "worse", "better", "largest drop", "without labels", "verdicts")
    for row in content["results"]:
        cells = [row["task"], str(row["seed"]), f"{row['examples']:,}", f"{row['labels_used']:,}"]
        cells += [str(row["regressions"]), str(row["improvements"])]
        cells += [f"{100 * row[name]:.2f}" for name in ("upper_bound", "upper_bound_without_labels")]
        yield table_row([*cells, ", ".join(row[key]["verdict"] for key in row if key.startswith("at_"))])


def certified_section(content: dict[str, Any]) -> Iterator[str]:
    """Table of what is removed with a certificate."""
    yield "## What goes with a certificate"
    yield from missing_runs(content)
    yield f"\nMiniLM ({content['heads']} heads), certified on test at level {content['alpha']} to lose less than the"
    yield "drop. Without training, output projections refitted, compared with the fine-tuned model itself: *search*"
    yield "finds heads by A* on dev; *second order, one-shot* removes heads and FFN units by their costs. *Gates* and"
    yield "*second order* remove heads in training, compared with a model trained as long without them. *Weights* are"
    yield "those of all attention and FFN matrices; half of the parameters are embeddings, which stay.\n"
    tests = ("test, dense", "test, pruned")
    removed = (f"{what} removed" for what in ("heads", "FFN units", "weights", "parameters"))
    yield from header("way", "task", "seed", "drop", *removed, *tests)
    for row in content["results"]:
        gone = 1 - row["certified_parameters"] / row["parameters"]
        cells = [row["way"], row["task"], str(row["seed"]), f"{row['max_drop']:.0%}", str(row["certified_removed"])]
        cells += [f"{row.get('certified_removed_ffn', 0):,}", f"{row['weights_removed']:.1%}"]
        yield table_row([*cells, f"{gone:.1%}", f"{row['dense_test']:.2f}", f"{row['test']:.2f}"])


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
