"""Writes `docs/families.md`: which model families can be pruned, and what works for each.

It is made of the declarations, and of what `tools.family_tests` and `tools.host_suite` have kept of their last runs.

Run: python -m tools.families_page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.models.auto import modeling_auto

from hf_headprune.families import FAMILIES, REFUSED, Block, Family
from hf_headprune.shrink.prunable import class_names
from tools import family_tests, host_suite

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
GENERATION = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
# Capabilities, and the tests of them that have a case for each family.
TESTED = {
    "same outputs": (
        "test_masked_equals_pruned_equals_reloaded",
        "test_masked_equals_pruned_equals_reloaded_for_any_plan",
        "test_other_forms_of_a_family_keep_the_same_contract",
        "test_a_classifier_with_the_image_tower_alone_keeps_the_same_contract",
    ),
    "gates": ("test_gates_reach_every_head",),
    "movement": (
        "test_movement_scores_every_unit_and_its_masks_become_a_cut",
        "test_movement_masks_blocks_where_each_matrix_has_its_own",
    ),
    "refit": ("test_second_order_prices_every_block_and_its_refit_survives_the_cut",),
    "folding": ("test_units_of_zeros_are_found_and_their_constants_stay",),
    "MACs": ("test_macs_are_those_that_torch_counts",),
    "recovery": ("test_a_pruned_model_that_trained_on_is_made_again_of_the_dense_one",),
    "pruned again": ("test_a_pruned_model_is_copied_pruned_again_and_trained",),
    "generation": (
        "test_a_pruned_model_generates_what_the_masked_one_generates",
        "test_every_family_generates_the_same_tokens_elsewhere",
    ),
    "remote code": (
        "test_every_family_loads_elsewhere_and_computes_the_same",
        "test_every_family_loads_from_a_hub_where_there_are_torch_and_transformers_alone",
        "test_the_code_needs_torch_and_transformers_alone",
    ),
    "plain": (
        "test_equal_numbers_are_saved_as_a_dense_class_where_it_can_say_them",
        "test_a_dense_configuration_takes_the_numbers_of_heads_that_its_family_declares",
        "test_layers_that_hand_on_what_they_are_given_are_left_out_of_a_plain_checkpoint",
    ),
}
HEAD = """# Model families

This page is written by `python -m tools.families_page`. What a family has is declared in `hf_headprune/families.py`;
[what is tested](#what-is-tested) is read from the last runs of the tests.

| family (`model_type`) | heads | unit of attention | FFN | plain | movement | input | generates | Transformers |
|---|---|---|---|---|---|---|---|---|
"""
NOTES = """
- **heads**: the kinds of attention, as `kept_heads={"cross": 12}` names them.
- **unit of attention**: under grouped heads, query heads share keys and values. A plan then keeps any query heads, but
  equally many of each group that remains, since a layer has one number for all its groups. The key and the value of a
  group, and its part of the KV cache, go with its last head. Removal costs and A* choose both: whole groups, or one
  head of each; `SecondOrderTuning(whole_groups=True)` removes whole groups alone. So do gates, movement, a search for
  the least latency or with `uniform=True`, and each budget `kept_heads`, which counts groups.
- **FFN**: a unit of a gated FFN has two rows and a column.
- **plain**: what a [plain checkpoint](publish.md#plain-transformers-alone) may have fewer of, the same number in each
  layer. "divisors": numbers of heads that divide the hidden size.
- **movement**: "blocks" are rectangles of each matrix. Where several matrices are stored as one, attention is scored in
  "units" only: `BlockMovement(attention_block="unit", tuning=MovementTuning(score_gradient="unit"))`, or not at all:
  `attention_block=None`.
- **Transformers**: the oldest version, where it is not the oldest that the package supports.

CLIP and SigLIP have a text and an image tower. `prune_model_` takes the whole model, or one of its towers
(`model.vision_model`); the whole then says so when it is saved. Each tower has a configuration of its own, with the
`per_layer_config` of its layers. The pooling head of SigLIP's image tower is not pruned. Swin has another number of
heads and FFN units in each stage: its layers are numbered through all stages, each with `num_layer_heads` and
`num_ffn_units`. MACs of an image model are counted for an image of the configuration's size.

ALBERT shares its layers: a head is saved once, and costs as many multiply-accumulates as its layer is used. In
`per_layer_config`, its layers are numbered as they are stored. T5 and MPNet make one bias of relative positions for
all layers. A pruned layer's checkpoint says which heads it has kept (`headprune_kept_heads`). MACs of DeBERTa leave out
its products with positions.

## What is tested

{tests}

## Not supported

| `model_type` | why |
|---|---|
"""
TESTS = """Each number is how many cases of the package's own tests passed, on Transformers {ours}. **Same outputs**:
masked, pruned, saved and reloaded models compute the same, with blocks that have no units, in fp32 and bf16, with eager
and SDPA attention where the classes have both. **Remote code**: so they do where there are torch and Transformers
alone.

The last three columns are about Transformers' own tests of models ({hosts}), which `make test-host` runs on the pruned
classes, with layers of different sizes: how many pass, how many fail for a reason that is listed below the table, and
how many fail on the dense classes, too, in the same small setting.
"""


def page() -> str:
    """Returns the content of the page."""
    rows = [_row(family) for family in FAMILIES.values()]
    left_out = [f"| heads of {f.model_type} | {f.left_out} |" for f in FAMILIES.values() if f.left_out is not None]
    refused = [f"| {model_type} | {reason} |" for model_type, reason in REFUSED.items()]
    notes = NOTES.replace("{tests}", _tests())
    return HEAD + "\n".join(rows) + "\n" + notes + "\n".join([*refused, *left_out]) + "\n"


def _row(family: Family) -> str:
    heads = ", ".join(dict.fromkeys(_kind(block) for block in family.attentions)) or "none"
    unit = "query head, in groups" if any(block.groups for block in family.attentions) else "head"
    cells = [
        f"`{family.model_type}`",
        heads,
        unit if family.attentions else "",
        " or ".join(dict.fromkeys(map(_form, (block for block in family.blocks if not block.is_attention)))),
        _plain(family),
        "units" if any(len(block.inputs) == 1 for block in family.attentions) else "blocks, units",
        family.probe,
        "yes" if _generates(family.model_type) else "",
        family.since or "",
    ]
    return f"| {' | '.join(cells)} |"


def _kind(block: Block) -> str:
    return block.kind if block.enabled_by is None else f"{block.kind} (optional)"


def _plain(family: Family) -> str:
    said = {("heads" if block.is_attention else "FFN", block.said) for block in family.blocks if block.said}
    return ", ".join(f"{kind} (divisors)" if how == "divisors" else kind for kind, how in sorted(said, reverse=True))


def _form(block: Block) -> str:
    return "gated" if len(block.inputs) > 1 or any("2" in layout for layout in block.inputs.values()) else "plain"


def _generates(model_type: str) -> bool:
    mappings = (vars(modeling_auto)[f"MODEL_FOR_{name}_MAPPING_NAMES"] for name in GENERATION)
    found = [mapping[model_type] for mapping in mappings if model_type in mapping]
    return any(f"Prunable{name}" in class_names() for name in found)


def _tests() -> str:
    ours, hosts = (json.loads(file.RESULTS.read_text(encoding="utf-8")) for file in (family_tests, host_suite))
    heads = ["family", *TESTED, "theirs: passed", "listed", "dense, too"]
    rows = [
        [f"`{name}`", *(_passed(ours["families"][name], tests) for tests in TESTED.values()), *_of_host(found)]
        for name in FAMILIES
        if (found := hosts["families"].get(name))
    ]
    table = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    text = TESTS.format(ours=ours["transformers"], hosts=hosts["transformers"])
    return "\n".join([text, *table, "", *_differences(hosts["families"])])


def _passed(found: dict[str, dict[str, int]], tests: tuple[str, ...]) -> str:
    """Returns how many cases of some tests passed, and of how many where one failed; nothing where none was run."""
    passed, failed = (
        sum(found[test].get(outcome, 0) for test in tests if test in found) for outcome in ("passed", "failed")
    )
    return f"{passed} of {passed + failed}" if failed else str(passed or "")


def _of_host(found: dict[str, Any]) -> list[str]:
    """Returns how many of the host's tests passed, fail as they must, and fail on the dense classes, too."""
    failed = len(found["unexpected"])
    passed = f"{found['passed']}" if not failed else f"{found['passed']}, {failed} failed"
    return [passed, *(str(len(found[key]) or "") for key in ("expected", "fails on the dense class too"))]


def _differences(families: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a line for each reason why tests of the host are expected to fail, with the tests and the families."""
    found: dict[str, tuple[set[str], list[str]]] = {}
    for name, outcome in families.items():
        for test, reason in outcome["expected"].items():
            tests, names = found.setdefault(reason, (set(), []))
            tests.add(test)
            names.append(name)
    return [
        f"- {', '.join(f'`{test}`' for test in sorted(tests))}: {reason}"
        + (f" ({', '.join(dict.fromkeys(names))})." if len({*names}) < len(families) / 4 else ".")
        for reason, (tests, names) in sorted(found.items())
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
