"""Certificates of the format before: the same content under other names."""

from __future__ import annotations

from typing import Any

from hf_headprune.guarantee.claim import BY_FUNCTION

FORMAT_2 = "hf_headprune.certificate/2"
RENAMED = {
    "spent": "alpha_spent",
    "chosen_among": "num_candidates",
    "broken": "regressions",
    "fixed": "improvements",
    "further_broken": "regressions_to_spare",
}
DROPPED = ("hand_bound",)
ADDED: dict[str, dict[str, Any]] = {
    "evidence": {"changed": None, "unlabelled": 0},
    "examples": {"labelled": None, "changed": None},
}
OF_ONE = {"dataset": "", "column": "", "value": "", "num_promises": 1, "stops_early": False}
RIGHT_CLASS = "whether the predicted class is right"  # all that the library scored by itself then


def upgraded(content: dict[str, Any], reference: str) -> dict[str, Any]:
    """Returns the content of a certificate of format 2 as one of format 3.

    Args:
        content: Without format, checksum and words.
        reference: The model that the pruned one is compared with, in words, which format 2 did not say.
    """
    new = {name: _renamed(part) for name, part in content.items()}
    for holder in (new, new.get("path")):
        if isinstance(holder, dict) and isinstance(claim := holder.get("claim"), dict):
            is_built_in = (claim.get("metric"), claim.get("kind")) == ("accuracy", "binary")
            holder["claim"] = {**OF_ONE, **claim, "scored": RIGHT_CLASS if is_built_in else BY_FUNCTION}
    for holder, names in ADDED.items():
        if isinstance(part := new.get(holder), dict):
            new[holder] = {**names, **part}
    if isinstance(path := new.get("path"), dict) and isinstance(steps := path.get("steps"), list):
        before = new["evidence"]["dense_metric"]
        new["path"] = {**path, "dense_metric": before, "steps": [_with_metric(step, new["evidence"]) for step in steps]}
    return {"reference": reference, "promises": [], "unused": 0, **new}


def _with_metric(step: dict[str, Any], evidence: dict[str, Any]) -> dict[str, Any]:
    """Returns a step with its metric: of 0/1 scores it follows from the counts, of others it is known of one model."""
    counts = step["improvements"], step["regressions"]
    if counts == (evidence["improvements"], evidence["regressions"]):
        return {**step, "metric": evidence["pruned_metric"]}
    is_exact = evidence["regressions_to_spare"] is not None
    change = (counts[0] - counts[1]) / evidence["examples"]
    return {**step, "metric": evidence["dense_metric"] + change if is_exact else None}


def _renamed(part: Any) -> Any:
    """Renames fields in a part and in those that it holds."""
    if isinstance(part, list):
        return [_renamed(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {RENAMED.get(name, name): _renamed(value) for name, value in part.items() if name not in DROPPED}
