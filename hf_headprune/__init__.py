"""Prune Transformers while they are fine-tuned, search for the smallest that keeps its accuracy, save it smaller.

Importing this package registers the `Prunable*` classes, so that `AutoModel…from_pretrained` loads pruned checkpoints.
"""

from hf_headprune import errors
from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.cost import Cost, cost_of
from hf_headprune.errors import HeadPruneError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify, certify_path
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.planner import Expectation, examples_needed, power_of, promise_in_words, smallest_drop
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.sequence import AlphaLedger, milestones
from hf_headprune.guarantee.splits import SplitSettings, three_way_split
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.latency import LatencySettings, measure_latency
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.masking import masked
from hf_headprune.pipeline import PruningResult, plan_for_budget, search_plan
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.plans_between import plans_between
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.latency_table import measure_latency_table
from hf_headprune.shrink.prunable import PRUNABLE_CLASSES, register_auto_classes
from hf_headprune.shrink.surgery import prune_model_

register_auto_classes()
globals().update(PRUNABLE_CLASSES)

__version__ = "0.1.0"
__all__ = [
    "AStarSearch",
    "BlockMovement",
    "AlphaLedger",
    "Certificate",
    "CertificationData",
    "Cost",
    "Expectation",
    "Distillation",
    "HeadPruneCallback",
    "HeadPruneError",
    "LatencySettings",
    "Metric",
    "RefittedPlan",
    "PruningResult",
    "plan_for_budget",
    "PruningPlan",
    "SecondOrder",
    "SplitSettings",
    "SubsetGates",
    "anatomy_of",
    "certify",
    "certify_path",
    "cost_of",
    "errors",
    "examples_needed",
    "linear_density",
    "masked",
    "measure_latency",
    "measure_latency_table",
    "milestones",
    "plans_between",
    "power_of",
    "promise_in_words",
    "prune_model_",
    "search_plan",
    "smallest_drop",
    "three_way_split",
    "verify_certificate",
    *PRUNABLE_CLASSES,
]
