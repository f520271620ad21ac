"""What of the host's tests is expected to fail on pruned models, and why: the one place."""

from __future__ import annotations

EXPECTED = {
    "test_attention_outputs": "the shapes of attentions are compared with one number of heads for all layers",
    "test_can_load_ignoring_mismatched_shapes": "shapes that don't fit raise our own error, which is no RuntimeError",
    "test_model_weights_reload_no_missing_tied_weights": "weights that are missing are refused, not made up",
}


def reason_for(family: str, test: str) -> str | None:
    """Returns why a test is expected to fail, or None where it must pass."""
    return EXPECTED.get(test)
