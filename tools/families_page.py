"""Writes `docs/families.md`: which model families can be pruned, and what works for each.

Run: python -m tools.families_page
"""

from __future__ import annotations

from pathlib import Path

from transformers.models.auto import modeling_auto

from hf_headprune.families import FAMILIES, REFUSED, Block, Family
from hf_headprune.shrink.prunable import class_names

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
GENERATION = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
HEAD = """# Model families

This page is written by `python -m tools.families_page` from the declarations in `hf_headprune/families.py`. The
contract tests run on each: masked, pruned, saved and reloaded models compute the same, with blocks that have no units,
in fp32 and bf16, with eager and SDPA attention where the classes have both. Gates, movement, second-order costs, refit,
parameters, bytes and MACs are tested on each, generation where a family generates, and that a certificate stays with
the weights it was made for.

| family (`model_type`) | heads | unit of attention | FFN | movement | input | generates | Transformers |
|---|---|---|---|---|---|---|---|
"""
NOTES = """
- **heads**: the kinds of attention, as `kept_heads={"cross": 12}` names them.
- **unit of attention**: under grouped heads, query heads share keys and values. A plan then keeps any query heads, but
  equally many of each group that remains, since a layer has one number for all its groups. The key and the value of a
  group, and its part of the KV cache, go with its last head. Removal costs choose both: whole groups, or one head of
  each; `SecondOrderTuning(whole_groups=True)` removes whole groups alone. So do gates, movement, a search, and each
  budget `kept_heads`, which counts groups.
- **FFN**: a unit of a gated FFN has two rows and a column.
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

## Not supported

| `model_type` | why |
|---|---|
"""


def page() -> str:
    """Returns the content of the page."""
    rows = [_row(family) for family in FAMILIES.values()]
    left_out = [f"| heads of {f.model_type} | {f.left_out} |" for f in FAMILIES.values() if f.left_out is not None]
    refused = [f"| {model_type} | {reason} |" for model_type, reason in REFUSED.items()]
    return HEAD + "\n".join(rows) + "\n" + NOTES + "\n".join([*refused, *left_out]) + "\n"


def _row(family: Family) -> str:
    heads = ", ".join(dict.fromkeys(_kind(block) for block in family.attentions)) or "none"
    unit = "query head, in groups" if any(block.groups for block in family.attentions) else "head"
    cells = [
        f"`{family.model_type}`",
        heads,
        unit if family.attentions else "",
        " or ".join(dict.fromkeys(map(_form, (block for block in family.blocks if not block.is_attention)))),
        "units" if any(len(block.inputs) == 1 for block in family.attentions) else "blocks, units",
        family.probe,
        "yes" if _generates(family.model_type) else "",
        family.since or "",
    ]
    return f"| {' | '.join(cells)} |"


def _kind(block: Block) -> str:
    return block.kind if block.enabled_by is None else f"{block.kind} (optional)"


def _form(block: Block) -> str:
    return "gated" if len(block.inputs) > 1 or any("2" in layout for layout in block.inputs.values()) else "plain"


def _generates(model_type: str) -> bool:
    mappings = (vars(modeling_auto)[f"MODEL_FOR_{name}_MAPPING_NAMES"] for name in GENERATION)
    found = [mapping[model_type] for mapping in mappings if model_type in mapping]
    return any(f"Prunable{name}" in class_names() for name in found)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
