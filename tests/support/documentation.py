"""The pages of the documentation, their blocks of code and their links; and stand-ins for what the blocks use."""

from __future__ import annotations

import ast
import copy
import re
import sys
from collections.abc import Iterator
from functools import cache, partial, reduce
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import hf_headprune
from hf_headprune.anatomy import anatomy_of
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.support.command_line import sentences, tokenizer_of_words
from tests.support.families import made
from tests.support.models import VOCAB_SIZE, tiny_bert
from tests.support.tasks import task_of, word_tokenizer
from tests.support.tasks import texts as unlabelled
from tests.support.texts import WORDS, save_text_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LENGTH = 6  # tokens of each example: equal ones need no padding
VARIES = "…"
EXAMPLES_OF_TASKS = {  # names of examples in blocks
    "rows_with_several_labels": "several labels",
    "tagged_texts": "tokens",
    "questions": "spans",
    "rows_with_a_number": "regression",
    "translations": "references",
}


class Study:
    """Stands in for a study of Optuna: two trials, each in the middle of what is suggested."""

    def __init__(self, directions: list[str]) -> None:
        self.directions, self.best_trials = directions, []

    def optimize(self, objective: Any, n_trials: int) -> None:
        for _ in range(min(n_trials, 2)):
            params: dict[str, float] = {}
            values = objective(SimpleNamespace(suggest_float=partial(_middle, params)))
            assert len(values) == len(self.directions)
            self.best_trials.append(SimpleNamespace(params=params, values=values))


def _middle(params: dict[str, float], name: str, low: float, high: float) -> float:
    return params.setdefault(name, (low + high) / 2)


STAND_INS: dict[str, Any] = {"optuna": SimpleNamespace(create_study=Study)}  # in place of packages
PRUNED = "bert-pruned"  # folder of a pruned model, which blocks may read


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in one language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """Targets of the links and images of a page that lead to files of the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def examples(count: int, seed: int) -> list[dict[str, Any]]:
    """Examples of two classes, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, VOCAB_SIZE, (count, LENGTH), generator=generator).tolist()
    return [{"input_ids": row, "attention_mask": [1] * LENGTH, "labels": int(row[0] > VOCAB_SIZE // 2)} for row in rows]


def run_page(page: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs the Python blocks of a page in their order, and yields the names that exist after each.

    Stand-ins are fresh in each block; what a block defines carries over to the next ones.
    """
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        code = compile(block, f"{name_of(page)}, Python block {number}", "exec")
        names = {**names, **_public_names(block), **stand_ins(folder, block)}
        if PRUNED in block and not (folder / PRUNED).exists():
            save_pruned(folder / PRUNED)
        if all(map(find_spec, imported(block) - STAND_INS.keys())):
            with patch.dict(sys.modules, STAND_INS):
                exec(code, names)
        yield names


def stand_ins(folder: Path, block: str) -> dict[str, Any]:
    """What blocks may use without defining it: CONTRIBUTING.md lists these names."""
    model = tiny_bert(num_labels=2)
    train, dev, test = examples(48, 0), examples(60, 1), examples(60, 2)
    args = TrainingArguments(
        str(folder / "out"),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=8,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    teacher = tiny_bert(num_labels=2, seed=1)
    found = {"model": model, "teacher": teacher, "train": train, "dev": dev, "test": test}
    found |= {"dense": teacher, "test_of_dense": test}
    found |= {"args": args, "Trainer": Trainer, "torch": torch, "copy": copy}
    if "tokenizer" in names_used(block):
        found |= {"tokenizer": tokenizer_of_words(), "texts": [row["sentence"] for row in sentences(20, seed=0)]}
    found["AutoModelForSequenceClassification"] = AutoModelForSequenceClassification
    if "trainer" in names_used(block):
        callbacks = [hf_headprune.HeadPruneCallback()]
        found["trainer"] = Trainer(model, args, train_dataset=train, eval_dataset=dev, callbacks=callbacks)
    if "embedder" in names_used(block) and find_spec("sentence_transformers") is not None:
        found |= of_embeddings(folder, names_used(block))
    if "measure_latency_table" in names_used(block):
        found["measure_latency_table"] = steady_table
    if "latency=LatencySettings" in block:
        found["plan_for_budget"] = by_steady_table
    if "AutoModelForCausalLM" in block:
        language_model, _ = made("llama")
        language_model.save_pretrained(folder / "llama")
        rows = [{**row, "labels": row["input_ids"]} for row in train]
        found |= {"name": str(folder / "llama"), "rows": rows}
    return found | of_task(names_used(block))


def steady_table(model: Any, settings: Any) -> dict[str, dict[int, float]]:
    """Stands for a measurement, which noise makes useless of a tiny model; called as the function itself may be."""
    signature(hf_headprune.measure_latency_table).bind(model, settings)
    return {site.name: {0: 0.0, site.units: 4.0 if site.is_attention else 1.0} for site in anatomy_of(model).sites}


def by_steady_table(model: Any, dataset: Any, *, latency: Any, **given: Any) -> Any:
    """Stands for a call that measures, for the same reason."""
    table = steady_table(model, latency) if isinstance(latency, hf_headprune.LatencySettings) else latency
    return hf_headprune.plan_for_budget(model, dataset, latency=table, **given)


def of_embeddings(folder: Path, used: set[str]) -> dict[str, Any]:
    """Stand-ins for a block about sentence-transformers: a model of it, arguments, texts, pairs and an evaluator."""
    st = import_module("sentence_transformers")
    saved = save_text_model(folder / "embedder", "BertModel", vocab_size=VOCAB_SIZE)
    drawn = torch.randint(len(WORDS), (64, 6), generator=torch.Generator().manual_seed(0)).tolist()
    written = [" ".join(WORDS[place] for place in row) for row in drawn]
    rows = {"sentence1": written[:32], "sentence2": written[32:], "score": [place / 32 for place in range(32)]}
    settings = {"max_steps": 4, "per_device_train_batch_size": 8, "disable_tqdm": True, "report_to": "none"}
    found = {
        "embedder": st.SentenceTransformer(str(saved), device="cpu"),
        "args": st.SentenceTransformerTrainingArguments(str(folder / "out"), use_cpu=True, **settings),
        "pairs": Dataset.from_dict(rows),
        "sentences": Dataset.from_dict({"text": written}),
        "evaluator": import_module("sentence_transformers.evaluation").EmbeddingSimilarityEvaluator(*rows.values()),
        "texts": unlabelled(40, seed=1),
        "other_texts": unlabelled(48),
    }
    return {name: value for name, value in found.items() if name in used}


def of_task(used: set[str]) -> dict[str, Any]:
    """Stand-ins for a block about a task: examples of the task, and a dense and a pruned model of it."""
    if "queries" in used:
        texts = [{"text": f"text {number}"} for number in range(30)]

        def embedded(rows: list[dict[str, Any]]) -> torch.Tensor:
            return torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(len(rows)))

        found = {"queries": texts[:20], "collection": texts[20:]}
        return {**found, "embedded_by_dense": embedded, "embedded_by_pruned": lambda rows: embedded(rows) + 0.01}
    task = next((task for name, task in EXAMPLES_OF_TASKS.items() if name in used), None)
    if task is None:
        return {}
    dense, rows, _ = task_of(task)
    rows = [{**row, "context": f"context {place // 2}"} for place, row in enumerate(rows)]
    plan = PruningPlan.of(dense)
    site = next(iter(plan.kept_heads))
    pruned = prune_model_(copy.deepcopy(dense), plan.replace(kept_heads={site: plan.kept_heads[site][1:]}))
    names = {name for name, known in EXAMPLES_OF_TASKS.items() if known == task}
    return {**dict.fromkeys(names, rows), "dense": dense, "pruned": pruned, "tokenizer": word_tokenizer()}


def save_pruned(folder: Path) -> None:
    """Saves a pruned model."""
    model = tiny_bert(num_labels=2)
    plan = PruningPlan.of(model).replace(kept_heads={"encoder.layer.1.attention": (0, 3)})
    prune_model_(model, plan).save_pretrained(folder)


def imported(block: str) -> set[str]:
    """The packages that a block imports."""
    nodes = [node for node in ast.walk(ast.parse(block)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    return {str(name).partition(".")[0] for name in names}


def names_used(block: str) -> set[str]:
    """Names that a block reads before it gives them a value, or never does; attributes are no names."""
    stored: set[str] = set()
    used: set[str] = set()
    for statement in ast.parse(block).body:
        found = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        used |= {node.id for node in found if isinstance(node.ctx, ast.Load)} - stored
        stored |= {node.id for node in found if isinstance(node.ctx, ast.Store)}
    return used


@cache
def messages() -> tuple[str, ...]:
    """Every text of the package, with what is filled in as `…`."""
    found = []
    for file in sorted((ROOT / "hf_headprune").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_part(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[-.\d,]*[a-z]", VARIES, node.value))
    return tuple(found)


@cache
def _callables() -> dict[str, Any]:
    return {name: getattr(hf_headprune, name) for name in dir(hf_headprune)}


def calls(code: str) -> list[tuple[Any, set[str]]]:
    """What a piece of code calls of the public names and the tunings, and the arguments that it names."""
    try:
        tree = ast.parse(code.strip())
    except SyntaxError:
        return []
    known = _callables()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not any(isinstance(part, ast.Call) for part in ast.walk(node.func)):
            first, *rest = ast.unparse(node.func).split(".")
            if first in known:
                called = reduce(getattr, rest, known[first])
                found.append((called, {keyword.arg for keyword in node.keywords if keyword.arg is not None}))
    return found


def _part(value: ast.expr) -> str:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else VARIES


def _public_names(block: str) -> dict[str, Any]:
    public = set(dir(hf_headprune))
    return {name: getattr(hf_headprune, name) for name in names_used(block) & public}
