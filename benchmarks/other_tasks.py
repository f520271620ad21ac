"""What pruning costs and gives where the task is no classification of texts: images, embeddings, text that is written.

The examples train the dense models, prune them where that happens in training, and measure. `--work` keeps the models.
Training examples choose what leaves; scores are of the untouched test. Speeds are in CPU seconds of one thread, dense
and pruned model in turns, and a cache of keys and values is that of one sequence.

Run: OMP_NUM_THREADS=1 python -m benchmarks.other_tasks [--tasks images] [--seeds 0] [--work FOLDER] [--smoke]
     python -m benchmarks.other_tasks --collect
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import HfArgumentParser

from benchmarks.bart_of_bert import save_bart_of_bert
from benchmarks.finetuned import plans_by_gradient, some_of
from benchmarks.plain_models import parsed, parser_for, work_or_collect
from benchmarks.results_file import RESULTS, over_seeds
from benchmarks.tasks import data_folder, minilm_path
from hf_headprune import Batching, PruningPlan, SecondOrder, anatomy_of, prune_model_
from hf_headprune.callback.plain_recovery import PlainRecovery
from hf_headprune.cost import weights_price
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.settings import SecondOrderTuning

RESULT = RESULTS / "other_tasks.json"
EXAMPLES = Path(__file__).parents[1] / "examples"
COMMON = "--report_to none --use_cpu --save_strategy no --disable_tqdm True --logging_strategy no"
LEARNING_RATE = 2e-4  # of recovery, as in `headprune prune --recover`
LENGTH = 16  # tokens of a source or a prompt whose continuation is timed
WRITTEN = 24  # tokens that are written after it
BATCH = 16
TURNS = 7
TAUGHT = 2048  # sentences on which a pruned embedding model is taught
TEXT_LENGTH = 24  # tokens of each


@dataclass(frozen=True)
class Run:
    """A dense model, and a way to make it smaller."""

    task: str
    seed: int
    way: str


@dataclass(frozen=True)
class Way:
    """How a model becomes smaller.

    Attributes:
        budget: Settings of `SecondOrder`, without training; None where the Trainer prunes.
        choice: What chooses heads of that budget: "second order", "gradient" or "random". The latter two refit nothing.
        whole_groups: See `SecondOrderTuning`.
        epochs: Of training on afterwards, with the dense model as teacher.
        learning_rate: Of that.
        arguments: Of the example, which then trains the dense model on and prunes it.
    """

    budget: dict[str, Any] = field(default_factory=dict)
    choice: str = "second order"
    whole_groups: bool = False
    epochs: float = 0.0
    learning_rate: float = LEARNING_RATE
    arguments: str = ""


@dataclass(frozen=True)
class Study:
    """A task.

    Attributes:
        example: The script that trains and measures.
        folder: Of its data.
        arguments: Of the dense model's training; `DATA` stands for the folder.
        metric: The first one, and others that the example measures.
        scale: What they are multiplied by.
        seeds: Of the dense model.
        ways: By their names.
    """

    example: str
    folder: str
    arguments: str
    metric: tuple[str, ...]
    scale: float
    seeds: tuple[int, ...]
    ways: dict[str, Way]


HALF = {
    "50 % of the weights": Way({"density": 0.5}),
    "50 % of the weights, 1 epoch of recovery": Way({"density": 0.5}, epochs=1.0),
}
HEADS = (54, 36, 18, 9)  # of 72
GATES = "--gates --mode pipelined --max_steps 100 --learning_rate 1e-4 --warmup_steps 0"  # as benchmarks.gates_accuracy
ONE_EPOCH = 5e-4  # learning rate of an epoch on a translation model, which was trained from scratch at 1e-3
QUARTER = 18 / 72
JOINT = f"--num_train_epochs 1 --learning_rate {ONE_EPOCH} --warmup_steps 20"
STUDIES = {
    "images": Study(
        "image_classification",
        "mnist_t10k",
        "--arrays_file DATA/mnist_t10k.npz --layers 4 --num_train_epochs 8 --learning_rate 2e-3 --warmup_steps 100 "
        "--per_device_train_batch_size 64 --per_device_eval_batch_size 64",
        ("accuracy",),
        100.0,
        (0, 1, 2),
        {
            "60 % of the heads": Way({"kept_heads": 0.6}),
            "60 % of the heads, 1 epoch of recovery": Way({"kept_heads": 0.6}, epochs=1.0),
        }
        | HALF,
    ),
    "embeddings": Study(
        "sentence_embeddings",
        "stsb",
        "--train_file DATA/train.tsv --validation_file DATA/dev.tsv --test_file DATA/test.tsv",
        ("spearman_cosine",),
        1.0,
        (0, 1, 2),
        {
            "50 % of the weights": Way({"density": 0.5}),
            "50 % of the weights, taught": Way({"density": 0.5}, epochs=1.0),
        },
    ),
    "grouped_heads": Study(
        "causal_lm",
        "multi30k_de_en",
        "--train_file DATA/train.en.gz --validation_file DATA/val.en.gz --test_file DATA/test_2016_flickr.en.gz "
        "--vocab_size 4000 --hidden_size 192 --layers 4 --max_seq_length 48 --num_train_epochs 1 --learning_rate 2e-3 "
        "--warmup_steps 100 --per_device_train_batch_size 64 --per_device_eval_batch_size 64",
        ("perplexity",),
        1.0,
        (0, 1, 2),
        {
            f"{density:.0%} of the weights{', whole groups' if whole else ''}": Way(
                {"density": density}, whole_groups=whole
            )
            for density in (0.75, 0.5)
            for whole in (False, True)
        },
    ),
    "translation": Study(
        "translation",
        "multi30k_de_en",
        "--train_file DATA/train.{lang}.gz --validation_file DATA/val.{lang}.gz "
        "--test_file DATA/test_2016_flickr.{lang}.gz --vocab_size 4000 --hidden_size 128 --max_source_length 48 "
        "--max_target_length 48 --num_train_epochs 5 --learning_rate 1e-3 --warmup_steps 300 "
        "--label_smoothing_factor 0.1 --per_device_train_batch_size 64 --per_device_eval_batch_size 64 "
        "--train_sampling_strategy group_by_length",
        ("bleu", "chrf"),
        1.0,
        (0, 1, 2),
        {
            f"{choice}, {kept} heads": Way({"kept_heads": kept / 72}, choice)
            for choice in ("second order", "gradient", "random")
            for kept in HEADS
        }
        | {
            f"{name}, {kept} heads": Way(arguments=f"{GATES} --estimator {estimator} --kept_heads {kept / 72}")
            for name, estimator in (("gates, pipelined", "sigmoid"), ("DSP, pipelined", "dsp"))
            for kept in HEADS
        }
        | {
            f"{name}, one epoch, {kept} heads": way
            for kept in HEADS
            for name, way in {
                "second order, then": Way({"kept_heads": kept / 72}, epochs=1.0, learning_rate=ONE_EPOCH),
                "gates, joint": Way(arguments=f"{JOINT} --gates --kept_heads {kept / 72}"),
                "DSP, joint": Way(arguments=f"{JOINT} --gates --estimator dsp --kept_heads {kept / 72}"),
            }.items()
        }
        | HALF
        | {
            "second order, during, one epoch, 18 heads": Way(arguments=f"{JOINT} --kept_heads {QUARTER}"),
            "second order, then, five epochs, 18 heads": Way(
                {"kept_heads": QUARTER}, epochs=5.0, learning_rate=2 * ONE_EPOCH
            ),
        },
    ),
    "summarization": Study(
        "summarization",
        "scitldr",
        "--train_file DATA/train.jsonl --validation_file DATA/dev.jsonl --test_file DATA/test.jsonl --summary_column "
        "summary --max_source_length 128 --max_target_length 32 "
        "--num_train_epochs 10 --learning_rate 3e-4 --warmup_steps 60 --label_smoothing_factor 0.1 "
        "--per_device_train_batch_size 32 --per_device_eval_batch_size 32 --train_sampling_strategy group_by_length",
        ("rouge1", "rouge2", "rougeL"),
        100.0,
        (0, 1, 2),
        HALF,
    ),
}

STARTED = ("embeddings", "summarization")  # from a checkpoint; the others from scratch


def example(name: str) -> Any:
    """Imports an example, which finds the others beside it as a script does."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return import_module(name)


@cache
def arguments_of(task: str, seed: int, work: Path, *, smoke: bool) -> tuple[str, ...]:
    """Returns what the example is called with: on real data, or on toy data that it makes itself."""
    study = STUDIES[task]
    if smoke:
        (work / "data").mkdir(exist_ok=True)
        given = [*example(study.example).smoke_arguments(work / "data"), "--max_steps", "4"]
        for budget in {"--max_drop", "--density"} & {*given}:
            del given[given.index(budget) : given.index(budget) + 2]
    else:
        given = study.arguments.replace("DATA", str(data_folder(study.folder))).split()
        given += ["--model_name_or_path", str(start_of(task, work))] if task in STARTED else []
    return (*given, *COMMON.split(), "--seed", str(seed))


def start_of(task: str, work: Path) -> Path:
    """Returns the folder of the checkpoint that an example begins with."""
    if task == "embeddings":
        return minilm_path()
    folder = work / f"{task}-start"
    save_bart_of_bert(minilm_path(), folder, layers=3, max_length=32)
    return folder


def dense_folder(task: str, seed: int, work: Path, *, smoke: bool) -> Path:
    """Returns the folder of the dense model, which is trained where it is missing; its results say that it is whole."""
    folder = work / f"{task}-{seed}"
    if not (folder / "results.json").exists():
        arguments = arguments_of(task, seed, work, smoke=smoke)
        example(STUDIES[task].example).main([*arguments, "--no_pruning", "--output_dir", str(folder)])
    return folder


def perform(run: Run, *, work: Path, smoke: bool) -> dict[str, Any]:
    """Makes a model smaller; measures it and the dense one."""
    return (_embeddings if run.task == "embeddings" else _of_example)(run, work, smoke=smoke)


def _of_example(run: Run, work: Path, *, smoke: bool) -> dict[str, Any]:
    study, folder = STUDIES[run.task], dense_folder(run.task, run.seed, work, smoke=smoke)
    way = study.ways[run.way]
    before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    arguments = (*arguments_of(run.task, run.seed, work, smoke=smoke), "--model_name_or_path", str(folder))
    trainer, splits, dense = _trainer_of(study.example, arguments, way.arguments or "--no_pruning")
    trainer.model = trainer.model_wrapped = model = trainer.model if way.arguments else copy.deepcopy(dense)
    started = time.process_time()
    if way.arguments:
        trainer.train()
    else:
        size, collate = trainer.args.per_device_train_batch_size, trainer.data_collator
        _prune(model, dense, trainer.train_dataset, way, run.seed, data_collator=collate, batch_size=size)
    seconds = time.process_time() - started
    after = trainer.evaluate(splits["test"], metric_key_prefix="test")
    first, other = ({name: study.scale * it[f"test_{name}"] for name in study.metric} for it in (after, before))
    name = study.metric[0]
    found = {"test": first[name], "dense_test": other[name], "metrics": first, "dense_metrics": other}
    return {**found, **_sizes(dense, model), **_written(dense, model), "cpu_seconds": seconds}


@cache
def _trainer_of(script: str, arguments: tuple[str, ...], how: str) -> tuple[Any, dict[str, Any], Any]:
    """Returns an example's Trainer on the dense model, what it reads, and the dense model a second time."""
    asked = [*arguments, *how.split(), "--output_dir", tempfile.mkdtemp(prefix="headprune-bench-")]
    trainer, splits = example(script).trainer_and_splits(asked)
    return trainer, splits, copy.deepcopy(trainer.model)


def _prune(model: Any, dense: Any, examples: Any, way: Way, seed: int, **batching: Any) -> None:
    """Prunes a model by what training examples say, and trains it on where that is asked for."""
    collate = batching.get("data_collator")
    if way.choice == "second order":
        tuning = SecondOrderTuning(seed=seed, whole_groups=way.whole_groups)
        settings = SecondOrder(**way.budget, tuning=tuning)
        prune_model_(model, second_order_plan(model, examples, settings, data_collator=collate))
    else:
        prune_model_(model, _plan_of_heads(model, some_of(examples, seed), way, seed))
    if way.epochs:
        PlainRecovery(examples, Batching(**batching), way.epochs, way.learning_rate)(model, dense)


def _plan_of_heads(model: Any, examples: Any, way: Way, seed: int) -> PruningPlan:
    """Returns the plan of so many heads that the gradient of the loss, or chance, chooses."""
    full = PruningPlan.of(model)
    heads = [(site, head) for site, count in full.num_heads.items() for head in range(count)]
    kept = round(way.budget["kept_heads"] * len(heads))
    if way.choice == "gradient":
        return plans_by_gradient(model, examples, [len(heads) - kept])[0]
    drawn = {heads[i] for i in np.random.default_rng(seed).permutation(len(heads))[:kept]}
    return full.replace(
        kept_heads={site: [h for h in hs if (site, h) in drawn] for site, hs in full.kept_heads.items()}
    )


def _embeddings(run: Run, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Makes the given embedding model smaller, on sentences without their scores; measures both."""
    way = STUDIES[run.task].ways[run.way]
    splits, measure, dense, score = _given_embedder(arguments_of(run.task, 0, work, smoke=smoke))
    model = copy.deepcopy(dense)
    sentences = sorted({*splits["train"]["sentence1"], *splits["train"]["sentence2"]})
    drawn = np.random.default_rng(run.seed).permutation(len(sentences))[:TAUGHT]
    encoded = model.tokenizer([sentences[i] for i in drawn], truncation=True, max_length=TEXT_LENGTH)
    bodies = [it.transformers_model for it in (dense, model)]
    started = time.process_time()
    _prune(bodies[1], bodies[0], [{"input_ids": ids} for ids in encoded["input_ids"]], way, run.seed)
    seconds = time.process_time() - started
    some = splits["test"]["sentence1"][: 4 * BATCH]
    speed = _ratio(*(partial(it.encode, some, batch_size=BATCH) for it in (dense, model)))
    return {"test": measure(model), "dense_test": score, **_sizes(*bodies), "speed": speed, "cpu_seconds": seconds}


@cache
def _given_embedder(arguments: tuple[str, ...]) -> tuple[Any, Callable[[Any], float], Any, float]:
    """Returns the data, what measures a model on its test, the given model, and what that reaches."""
    module = example("sentence_embeddings")
    parser = HfArgumentParser(module.common.DataArguments)
    data, _ = parser.parse_args_into_dataclasses([*arguments], return_remaining_strings=True)
    splits = {name: module.scored(split) for name, split in data.complete(data.read()).items()}
    evaluator = module.evaluator_of(splits["test"], "test")
    dense = module.SentenceTransformer(arguments[arguments.index("--model_name_or_path") + 1], device="cpu")

    def measure(model: Any) -> float:
        return evaluator(model)["test_spearman_cosine"]

    return splits, measure, dense, measure(dense)


def _ratio(dense: Callable[[], Any], pruned: Callable[[], Any]) -> float:
    """Returns how many times as fast the second call is: the median over turns, in CPU seconds, after a first one."""
    ratios = []
    for turn in range(TURNS + 1):
        ends = [time.process_time()]
        for call in (dense, pruned):
            call()
            ends.append(time.process_time())
        if turn:
            ratios.append((ends[1] - ends[0]) / (ends[2] - ends[1]))
    return median(ratios)


def _sizes(dense: Any, pruned: Any) -> dict[str, Any]:
    """Returns the share of the attention and FFN weights that is kept, and the heads of each kind, dense and kept."""
    anatomies = [anatomy_of(model) for model in (dense, pruned)]
    weights = [sum(site.price(weights_price(site)) for site in it.sites) for it in anatomies]
    kinds = dict.fromkeys(site.kind for site in anatomies[0].attention_sites)
    counts = {
        name: {
            kind: [sum(getattr(site, name) for site in it.attention_sites if site.kind == kind) for it in anatomies]
            for kind in kinds
        }
        for name in ("units", "groups")
    }
    return {"density_reached": weights[1] / weights[0], "heads": counts["units"], "groups": counts["groups"]}


def _written(dense: Any, pruned: Any) -> dict[str, Any]:
    """Returns what writing costs a model that writes text: the bytes of its cache, and its speed over the dense one."""
    if not dense.can_generate():
        return {}
    ids = torch.randint(3, dense.config.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    room = dense.config.max_position_embeddings
    ids = ids[:, : room // 2]
    tokens = min(WRITTEN, room // 2)
    how: dict[str, Any] = {"do_sample": False, "num_beams": 1, "min_new_tokens": tokens, "max_new_tokens": tokens}
    how["attention_mask"] = torch.ones_like(ids)

    def write(model: Any) -> Any:
        return model.eval().generate(ids, **how)

    one = {"input_ids": ids[:1]} | ({"decoder_input_ids": ids[:1]} if dense.config.is_encoder_decoder else {})
    sizes = [_cache_bytes(model.eval()(**one, use_cache=True).past_key_values) for model in (dense, pruned)]
    speed = _ratio(lambda: write(dense), lambda: write(pruned))
    return {"dense_cache_bytes": sizes[0], "cache_bytes": sizes[1], "speed": speed}


def _cache_bytes(found: Any) -> int:
    """Returns the bytes of keys and values, of a decoder's own attention and of that to the source."""
    parts = (
        [found.self_attention_cache, found.cross_attention_cache]
        if hasattr(found, "cross_attention_cache")
        else [found]
    )
    tensors = (tensor for part in parts for layer in part.layers for tensor in (layer.keys, layer.values))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def summarised(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    summary = []
    for task, study in STUDIES.items():
        for way in study.ways:
            mine = [run for run in runs if (run["task"], run["way"]) == (task, way)]
            if mine:
                row: dict[str, Any] = {"task": task, "way": way, "seeds": len(mine), "metric": study.metric[0]}
                drops = [{**run, "change": run["test"] - run["dense_test"]} for run in mine]
                names = ["dense_test", "test", "change", "density_reached"]
                names += [name for name in ("speed", "dense_cache_bytes", "cache_bytes") if name in mine[0]]
                row |= over_seeds(drops, *names)
                for other in study.metric[1:]:
                    row |= {
                        f"{prefix}{other}": over_seeds([run[f"{prefix}metrics"] for run in mine], other)[other]
                        for prefix in ("dense_", "")
                    }
                for units in ("heads", "groups"):
                    row[units] = {
                        kind: [counts[0], float(np.mean([run[units][kind][1] for run in mine]))]
                        for kind, counts in mine[0][units].items()
                    }
                summary.append(row)
    return summary


def line(row: dict[str, Any]) -> str:
    """Says what a row of the summary says."""
    heads = ", ".join(f"{kept:.3g} of {count} {kind} heads" for kind, (count, kept) in row["heads"].items())
    speed = f", {row['speed']['mean']:.2f} times as fast" if "speed" in row else ""
    values = f"{row['metric']} {row['dense_test']['mean']:.4g} -> {row['test']['mean']:.4g}"
    return f"{row['task']}, {row['way']}: {values}, density {row['density_reached']['mean']:.2f}, {heads}{speed}"


def main() -> None:
    """Works through the runs, or collects."""
    options = parsed(parser_for(__doc__ or "", tuple(STUDIES), (0, 1, 2)))
    options.work = options.work / "other_tasks"
    options.work.mkdir(exist_ok=True)
    runs = [
        Run(task, seed, way)
        for task, study in STUDIES.items()
        for way in study.ways
        for seed in study.seeds
        if task in options.tasks or options.collect
    ]
    work_or_collect(
        options,
        runs,
        smoke=runs[0],
        result=RESULT,
        perform=perform,
        summarise=summarised,
        line=line,
        cache="runs",
    )


if __name__ == "__main__":
    main()
