"""Started twice by test_distributed.py: both processes search, or one of them fails; each prints what it ended with."""

import json
import os
import sys
from pathlib import Path

import torch

from hf_headprune._distributed import by_first
from hf_headprune.anatomy import anatomy_of
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.evaluation.rank_zero import lead_or_follow
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.settings import AStarSearch
from tests.support.classifiers import batches_of, classifier, decided, examples

SETTINGS = AStarSearch(max_evaluations=30, max_drop=0.1)


def evaluator_of(model, *, batch_size=7):
    """An evaluator that shares its batches wherever there are several processes."""
    batches = batches_of(decided(model, examples(60)), batch_size=batch_size)
    evaluator = ExampleEvaluator(model, batches, share_processes=True)
    evaluator.use_refit(PruningPlan.of(model))
    return evaluator


def searched(model, journal):
    """What the search of the first process found, and how many examples this process computed for it."""
    evaluator = evaluator_of(model)
    counted = []
    handle = model.register_forward_pre_hook(
        lambda module, args, inputs: counted.append(len(inputs["input_ids"])), with_kwargs=True
    )
    fingerprint = evaluator.fingerprint()
    found = lead_or_follow(
        evaluator,
        lambda leading: search_over_plans(
            anatomy_of(model), leading, SETTINGS, journal=journal, fingerprint=fingerprint
        ),
    )
    handle.remove()
    return [[step.removed, step.metric, step.kind] for step in found.history], sum(counted)


def failed(model, failing):
    """What a process hears when some fail in the midst of an evaluation that the first one asked for."""
    evaluator = evaluator_of(model)
    if str(torch.distributed.get_rank()) in failing:

        def fail(*args):
            raise OSError("the disk is gone")

        model.register_forward_pre_hook(fail)
    try:
        lead_or_follow(evaluator, lambda leading: leading(PruningPlan.of(model)))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank, folder = torch.distributed.get_rank(), Path(sys.argv[1])
    journal = folder / str(rank) / "journal.jsonl"
    outcome: dict = {"rank": rank}
    outcome["history"], outcome["examples"] = searched(classifier(), journal)
    outcome["has_journal"] = journal.exists()
    for batch_size in (60, 7):  # one batch, which every process records, and nine to be shared
        blocks = evaluator_of(classifier(), batch_size=batch_size).refit.blocks.values()
        outcome[f"tokens, {batch_size}"] = sorted(block.tokens for block in blocks)
    for failing in ("0", "1", "01"):
        outcome[f"error, {failing}"] = failed(classifier(), failing)
    outcome["by first"] = by_first(lambda: f"said by {rank}")
    try:
        by_first(lambda: 1 / rank)
    except (ZeroDivisionError, RuntimeError) as error:
        outcome["error by first"] = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"OUTCOME {json.dumps(outcome)}\n")
    sys.stdout.flush()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # the interpreter's end may find the backend's threads running, and the process aborts


if __name__ == "__main__":
    main()
