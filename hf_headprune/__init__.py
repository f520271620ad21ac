"""Prune fine-tuned Transformers to a size, or to the smallest model that keeps its accuracy, and save it smaller.

Importing this package lets `AutoModel…from_pretrained` load pruned checkpoints, and imports next to nothing: each name
is imported from its module when it is first used. `__init__.pyi` shows all names to type checkers.
"""

from importlib import import_module

from hf_headprune import errors as errors
from hf_headprune.shrink.registration import register_auto_classes

__version__ = "0.1.0"

register_auto_classes()

_MODULES = {
    "AStarSearch": "search.settings",
    "AlphaLedger": "guarantee.sequence",
    "Batching": "tasks.batches",
    "BlockMovement": "learn.movement.settings",
    "Certificate": "guarantee.certificate",
    "CertificationData": "guarantee.scored",
    "Cost": "cost",
    "Distillation": "learn.distillation.settings",
    "DistillationTuning": "learn.distillation.settings",
    "GateTuning": "learn.gates.settings",
    "HeadPruneCallback": "callback",
    "HeadPruneError": "errors",
    "LatencySettings": "latency",
    "Metric": "guarantee.claim",
    "Monitor": "guarantee.monitor",
    "MovementTuning": "learn.movement.settings",
    "PowerAssumptions": "guarantee.power",
    "PruningLadder": "pipeline",
    "PruningPlan": "plan",
    "PruningReport": "publish.report",
    "PruningResult": "pipeline",
    "RefittedPlan": "plan",
    "SearchTuning": "search.settings",
    "SecondOrder": "refit.settings",
    "SecondOrderTuning": "refit.settings",
    "SplitSettings": "guarantee.splits",
    "SubsetGates": "learn.gates.settings",
    "anatomy_of": "anatomy",
    "certify": "guarantee.certify",
    "certify_path": "guarantee.certify",
    "cost_of": "cost",
    "describe_power": "guarantee.power",
    "detectable_drop": "guarantee.power",
    "disagreements": "guarantee.disagreements",
    "examples_needed": "guarantee.power",
    "export_model": "shrink.export",
    "export_onnx": "publish.onnx",
    "export_openvino": "publish.openvino",
    "linear_density": "budgets",
    "masked": "masking",
    "measure_latency": "latency",
    "measure_latency_table": "shrink.latency_table",
    "migrate_checkpoint": "shrink.migration",
    "nearest_neighbours": "guarantee.neighbours",
    "plan_for_budget": "pipeline",
    "plan_ladder": "pipeline",
    "power_of": "guarantee.power",
    "prune_model_": "shrink.surgery",
    "prune_vocabulary_": "shrink.vocabulary",
    "register_prunable": "shrink.prunable",
    "scores_of": "tasks.scores",
    "search_plan": "pipeline",
    "three_way_split": "guarantee.splits",
    "verify_certificate": "guarantee.verify",
}
_PRUNABLE = "shrink.prunable"


def __getattr__(name: str) -> object:
    """Imports a public name from its module; `Prunable…` classes are generated there."""
    if name == "__all__":
        return __dir__()
    module = _PRUNABLE if name.startswith("Prunable") else _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    """Lists the public names."""
    return sorted(["errors", *_MODULES, *import_module(f"{__name__}.{_PRUNABLE}").class_names()])
