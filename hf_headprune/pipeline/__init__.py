"""From a trained model to a pruned one: order by costs, search, hold the result against unseen examples, report."""

from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.pipeline.ladder import PruningLadder, plan_ladder
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.pipeline.search import search_plan

__all__ = ["PruningLadder", "PruningResult", "plan_for_budget", "plan_ladder", "search_plan"]
