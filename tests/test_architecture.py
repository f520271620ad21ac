"""The house: who may import whom, what stays free of torch, and where module paths may be written."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_headprune.families import FAMILIES

PACKAGE = Path(__file__).parent.parent / "hf_headprune"
NAME = PACKAGE.name
FILES = sorted(PACKAGE.rglob("*.py"))
PATHS = [path.relative_to(PACKAGE).as_posix() for path in FILES]

# The foundation, from the ground up: what each file may import of the others. Private helpers begin with "_".
FOUNDATION = {
    "errors": set(),
    "_checks": {"errors"},
    "_distributed": set(),
    "_fingerprints": set(),
    "_gradients": set(),
    "_seen_splits": set(),
    "_strict_json": {"errors"},
    "_unit_ranges": {"errors"},
    "_beside_weights": {"errors"},
    "_certificate_file": {"errors", "_beside_weights", "_fingerprints", "_offloaded", "_strict_json"},
    "_model_card": {"_beside_weights", "_certificate_file", "_compat", "_offloaded"},
    "_compat": {"errors"},
    "_offloaded": {"_compat", "_distributed"},
    "_finite": {"errors", "_checks", "_distributed", "_offloaded"},
    "families": set(),
    "_layouts": set(),
    "anatomy": {"errors", "_compat", "_layouts", "families"},
    "uniform": {"errors", "anatomy"},
    "plan": {"errors", "_strict_json", "_unit_ranges", "anatomy"},
    "cost": {"errors", "_checks", "anatomy", "plan"},
    "budgets": {"errors", "_checks", "anatomy", "plan", "cost"},
    "_ownership": {"errors", "anatomy"},
    "masking": {"errors", "_compat", "_offloaded", "_ownership", "anatomy", "plan"},
    "latency": {"errors", "_checks", "_offloaded", "anatomy", "masking"},
}
# What a wing may import besides the foundation; rooms may import both wings, and never a room.
WINGS = {"tasks": set(), "refit": {"tasks"}}
ROOMS = {"learn", "search", "guarantee", "shrink", "publish"}
TIES = {"pipeline", "callback", "cli", "compat"}
FRONT_DOOR = "__init__"
TORCH_FREE = [
    "errors.py",
    "_checks.py",
    "families.py",
    "anatomy.py",
    "uniform.py",
    "plan.py",
    "cost.py",
    "budgets.py",
    "guarantee/betting.py",
    "guarantee/monitor.py",
    "guarantee/paired.py",
    "guarantee/power.py",
    "guarantee/resampling.py",
    "guarantee/sequence.py",
    "publish/layout.py",
    "publish/measurements.py",
    "publish/plots.py",
    # The search knows functions of sets and never a model; one file joins it to the evaluators.
    *(p for p in PATHS if re.fullmatch(r"search/\w+\.py", p) and p != "search/plans.py"),
]


def tree_of(path: str) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"), filename=path)


def part_of(path: str) -> str:
    """The room, or the module of the hall, that a file belongs to: "search/astar.py" -> "search"."""
    return path.split("/")[0].removesuffix(".py")


def imports(tree: ast.AST, *, run_time_only: bool = False) -> Iterator[str]:
    """Full names of the imported modules, without those under `if TYPE_CHECKING` when asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from sorted(names) if node.module == NAME else [node.module or ""]
        elif run_time_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for child in node.orelse for name in imports(child, run_time_only=True))
        else:
            yield from imports(node, run_time_only=run_time_only)


def forbidden_imports(path: str, tree: ast.Module) -> list[str]:
    """Imports of this package that the plan of the house does not allow to this file."""
    own = part_of(path)
    if own == FRONT_DOOR or own in TIES:
        allowed = {*FOUNDATION, *WINGS} | ROOMS | TIES
    elif own in FOUNDATION:
        allowed = FOUNDATION[own]
    elif own in WINGS:
        allowed = {*FOUNDATION, own} | WINGS[own]
    else:
        assert own in ROOMS, f"{path} belongs to no part of the house"
        allowed = {*FOUNDATION, *WINGS, own}
    inside = [name.split(".") for name in imports(tree) if name.split(".")[0] == NAME]
    return [".".join(parts) for parts in inside if len(parts) == 1 or parts[1] not in allowed]


@pytest.mark.parametrize("path", PATHS)
def test_every_file_imports_only_what_its_place_allows(path):
    assert forbidden_imports(path, tree_of(path)) == []


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("learn/gates/pruner.py", "from hf_headprune.search.astar import search", ["hf_headprune.search.astar"]),
        ("learn/gates/pruner.py", "from hf_headprune import masked", ["hf_headprune.masked"]),
        ("learn/gates/pruner.py", "import hf_headprune", ["hf_headprune"]),
        ("learn/gates/pruner.py", "from hf_headprune.learn.ramp import cubic\nimport hf_headprune.plan", []),
        ("plan.py", "from hf_headprune.cost import cost_of", ["hf_headprune.cost"]),
        ("plan.py", "if TYPE_CHECKING:\n    from hf_headprune.learn import gates", ["hf_headprune.learn"]),
        ("callback/hooks.py", "from hf_headprune.search.astar import search\nimport torch", []),
        ("callback/hooks.py", "from hf_headprune import HeadPruneCallback", ["hf_headprune.HeadPruneCallback"]),
    ],
)
def test_the_import_rule_finds_what_it_forbids_and_allows_the_rest(path, source, found):
    assert forbidden_imports(path, ast.parse(source)) == found


def run_time_closure(path: str) -> set[str]:
    """Everything that importing this file of the package imports, files of the package included, front door aside."""
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        for name in imports(tree_of(waiting.pop()), run_time_only=True):
            if name not in seen:
                seen.add(name)
                target = "/".join(name.split(".")[1:])
                waiting += [other for other in (f"{target}.py", f"{target}/__init__.py") if other in PATHS]
    return seen


@pytest.mark.parametrize("path", TORCH_FREE)
def test_plans_costs_and_the_search_itself_need_no_torch(path):
    found = {name.split(".")[0] for name in run_time_closure(path)}
    assert not found & {"torch", "transformers", "accelerate"}


def test_the_torch_rule_follows_imports_through_files():
    assert "torch" in run_time_closure("masking.py")
    assert not any(name.startswith("torch") for name in imports(tree_of("plan.py"), run_time_only=True))
    assert "torch" in set(imports(tree_of("plan.py")))


@pytest.mark.parametrize("path", PATHS)
def test_no_import_hides_in_a_function(path):
    functions = (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    hidden = [n.lineno for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert hidden == []


@pytest.mark.parametrize("path", PATHS)
def test_nothing_prints(path):
    calls = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


@pytest.mark.parametrize(
    ("library", "allowed"), [("matplotlib", r"publish/plots\.py"), ("typer", r"cli/.*"), ("Trainer", r"callback/.*")]
)
def test_some_things_are_known_to_one_place_only(library, allowed):
    def knows(path: str) -> bool:
        tree = tree_of(path)
        names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom | ast.Import) for alias in n.names}
        return library in names or any(name.split(".")[0] == library for name in imports(tree))

    assert [path for path in PATHS if knows(path) and not re.fullmatch(allowed, path)] == []


def test_the_front_door_holds_no_logic():
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.Expr
    others = [node for node in tree_of("__init__.py").body if not isinstance(node, allowed)]
    assert [getattr(node, "name", ast.unparse(node)) for node in others] == ["__getattr__", "__dir__"]


COMPAT = ["_compat.py", "callback/trainer_compat.py"]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


@functools.cache
def own_private_names() -> set[str]:
    """Names with an underscore that the package gives to its own functions, classes, fields and attributes."""
    found: set[str] = set()
    for path in PATHS:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                found |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return {name for name in found if is_private(name)}


def foreign_private_names(tree: ast.AST, own: set[str]) -> set[str]:
    """Names with an underscore that are read from, imported from, or written out for, what another library has."""
    found: set[str] = set()
    ends_of_words = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith(("ends", "starts", "remove")):
            ends_of_words |= set(map(id, node.args))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()"):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in ends_of_words:
            found |= {node.value} if node.value.isidentifier() else set()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != NAME:
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return set(filter(is_private, found - own))


@pytest.mark.parametrize("path", [path for path in PATHS if path not in COMPAT])
def test_private_names_of_other_libraries_are_in_two_files(path):
    found = foreign_private_names(tree_of(path), own_private_names())
    assert found == set(), "put it into _compat.py or callback/trainer_compat.py, with what happens without it"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("model._keys_to_ignore_on_save", {"_keys_to_ignore_on_save"}),
        ("for name in ('_hf_hook', 'x'):\n    getattr(model, name, None)", {"_hf_hook"}),
        ("from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY", {"_CAN_RECORD_REGISTRY"}),
        ("import torch._dynamo", {"_dynamo"}),
        ("self._x = super()._apply(f)\nself.task._own\nmodule.__class__\nfrom hf_headprune._checks import a", set()),
        ("name.endswith('_mask')\nf'{side}_layers'", set()),
    ],
)
def test_the_rule_on_private_names_finds_them_and_leaves_our_own_alone(source, found):
    assert foreign_private_names(ast.parse(source), {"_own"}) == found


def module_paths() -> set[str]:
    """Names of modules that only a declaration may contain; plain words such as "attention" are left out."""
    names = set()
    for family in FAMILIES.values():
        for stack in family.stacks:
            names.add(stack.layers)
            for block in stack.blocks:
                names |= {block.site, block.core, block.output, *block.inputs, *block.tables}
    names |= {part for name in names for part in name.split(".")}
    return {name for name in names if any(map(str.isalpha, name)) and not name.isalpha()}


def strings_outside_docstrings(tree: ast.Module) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    docstrings = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
    # A bare string after an attribute documents it.
    docstrings |= {id(n.value) for body in bodies for n in body if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def written_paths(tree: ast.Module) -> list[str]:
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(module_paths()))) + r")(?!\w)")
    return [text for text in strings_outside_docstrings(tree) if pattern.search(text)]


def test_the_paths_looked_for_are_those_of_every_family():
    assert {"attention.self", "q_proj", "encoder.layer", "transformer.layer", "fc1", "encoder_attn"} <= module_paths()
    assert all(dataclasses.is_dataclass(family) for family in FAMILIES.values())


@pytest.mark.parametrize("path", [path for path in PATHS if path != "families.py"])
def test_only_declarations_hold_module_paths(path):
    assert written_paths(tree_of(path)) == []


def test_the_path_rule_finds_paths_in_code_and_leaves_docstrings_alone():
    source = (
        '"""attention.self"""\n\ndef f(layer):\n    """Of q_proj."""\n    return layer.get(f"{layer}.q_proj.weight")\n'
    )
    assert written_paths(ast.parse(source)) == [".q_proj.weight"]


def aliases(tree: ast.Module) -> list[str]:
    """Module-level names that are nothing but another name for something."""
    values = [(node.targets[0], node.value) for node in tree.body if isinstance(node, ast.Assign)]
    return [ast.unparse(name) for name, value in values if isinstance(value, (ast.Name, ast.Attribute))]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_has_a_second_name(path):
    assert aliases(tree_of(path)) == []


def test_the_rule_of_names_finds_aliases_and_leaves_values_alone():
    assert aliases(ast.parse("old = new\nCLASSES = rows.classes\nPath = str | None\nLARGEST = 3\n")) == [
        "old",
        "CLASSES",
    ]
