"""What of the host's tests is expected to fail on pruned models, and why: the one place."""

from __future__ import annotations

EXPECTED = {
    "test_attention_outputs": "the shapes of attentions are compared with one number of heads for all layers",
    "test_can_load_ignoring_mismatched_shapes": "shapes that don't fit raise our own error, which is no RuntimeError",
    "test_load_with_mismatched_shapes": "shapes that don't fit raise our own error, which is no RuntimeError",
    "test_model_weights_reload_no_missing_tied_weights": "weights that are missing are refused, not made up",
    "test_generation_tester_mixin_inheritance": "the source distribution lacks the host's tests of generation",
}
# Tests of one family.
ROPE = "all layers of one type have lost their heads, and the host divides by their number before it takes head_dim"
EMPTY = "the attentions of a block without heads are empty: without a gradient, a maximum, or a number above zero"
OF_FAMILY = {
    ("deberta-v2", "test_model_outputs_equivalence"): EMPTY,
    ("modernbert", "test_model_rope_scaling_frequencies"): ROPE,
    ("modernbert", "test_model_rope_scaling_from_config_1_dynamic"): ROPE,
    ("modernbert", "test_model_rope_scaling_from_config_2_yarn"): ROPE,
    ("mpnet", "test_model_outputs_equivalence"): EMPTY,
    ("qwen2", "test_sliding_window_mask"): EMPTY,
    ("qwen3", "test_sliding_window_mask"): EMPTY,
    ("swin", "test_retain_grad_hidden_states_attentions"): EMPTY,
}


def reason_for(family: str, test: str) -> str | None:
    """Returns why a test is expected to fail, or None where it must pass."""
    return OF_FAMILY.get((family, test), EXPECTED.get(test))
