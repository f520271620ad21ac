"""Recovery: the pruned model trains on before it is certified, and what that means for a drop that is allowed.

The rule for a drop. One plan is trained on, and which one is decided by training examples alone. Two independent
procedures then look at the unseen examples, each with half of the error that is allowed: the test of the trained model,
and, if it fails, the tests of smaller and smaller plans without training. So whatever is pruned holds at the level that
was asked for, however the examples fall (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_headprune._distributed import by_first
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.guarantee.certify import furthest_within
from hf_headprune.guarantee.scored import CertificationData, ScoredSplit
from hf_headprune.pipeline.cost_path import Decision, asked_of, by_test
from hf_headprune.pipeline.holdout import Allowed, Chosen, Holdout, as_pruned, pruned_copy
from hf_headprune.plan import RefittedPlan
from hf_headprune.shrink.trained_weights import TrainedWeights

if TYPE_CHECKING:
    from hf_headprune.pipeline.cost_path import Decide
    from hf_headprune.plan import PruningPlan

Recover = Callable[[nn.Module, nn.Module], Any]  # trains a pruned model on, in place; the dense one may teach it
WON_BACK = 0.5  # of the drop on training examples: what an epoch wins back at the least, of what a refit leaves


def halved(confidence: float) -> float:
    """Returns the confidence of two procedures that share the error that is allowed."""
    return round(1.0 - (1.0 - confidence) / 2.0, 12)


def check_recover(recover: Any, *, where: str) -> None:
    """Sees that what trains a pruned model on is a function.

    Raises:
        InvalidSettingError: It is not.
    """
    if recover is not None and not callable(recover):
        raise InvalidSettingError(
            f"{where}: recover must be a function (pruned, dense) that trains the pruned model on, in place, received "
            f"{shown(recover)}. Pass one; epochs are for HeadPruneCallback(recover_epochs=...) and headprune prune "
            "--recover."
        )


def recovered(dense: nn.Module, target: RefittedPlan, recover: Recover) -> RefittedPlan:
    """Returns a plan with the weights that training makes of the pruned model.

    Args:
        dense: Copy of the model before pruning; unchanged.
        target: What is pruned, with its refit.
        recover: Trains the pruned model on, in place.
    """
    student = pruned_copy(dense, target)
    TrainedWeights(dense, student, target.plan)  # what fails here must not cost the training
    recover(student, dense)
    return RefittedPlan(target.plan, TrainedWeights(dense, student, target.plan))


def recovery_in_words(refit: Any, epochs: float | None) -> str:
    """Says how a pruned model trained on, by the update that belongs to its plan.

    Args:
        refit: Of the plan.
        epochs: For which it trained, if it did and they are known.
    """
    if not isinstance(refit, TrainedWeights):
        return "none"
    return "trained on" if epochs is None else f"trained on for {epochs_in_words(epochs)}"


def epochs_in_words(epochs: float) -> str:
    """Returns a number of epochs in words, such as "1 epoch"."""
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def by_test_of_recovered(
    holdout: Holdout,
    model: nn.Module,
    before: PruningPlan,
    recover: Recover | None,
    train: Any,
    split: ScoredSplit | None = None,
) -> Decide:
    """Returns the decision by tests of the plan that was trained on, and after it of those that were not.

    Args:
        holdout: Examples that nothing has seen; its confidence is that of each of the two procedures.
        model: Copy of the model before pruning.
        before: Units that are open in it.
        recover: Trains a pruned model on, in place; None tests without it.
        train: Training examples, which decide what is trained on.
        split: The unseen examples, where they were read already.
    """

    def decide(plans: list[RefittedPlan]) -> Decision:
        if reason := holdout.allows_anything(model, before, split):
            return Decision(Chosen(before, reason=reason), [], asked_of(holdout, Allowed(None, ())))
        if recover is None:
            return by_test(holdout, model, before, split)(plans)
        trained = recovered(model, plans[_depth(holdout, model, before, plans, train)], recover)
        allowed = holdout.last_allowed(model, [trained], before, split)
        if allowed.index is None:
            return by_test(holdout, model, before, split, others=1)(plans)
        chosen = Chosen(trained.plan, allowed.path, 1 + len(plans), has_certificate=True)
        measured = list(zip((before, trained.plan), allowed.metrics, (True, True), strict=False))
        return Decision(chosen, measured, asked_of(holdout, allowed), trained=trained)

    return decide


def _depth(holdout: Holdout, model: nn.Module, before: PruningPlan, plans: list[RefittedPlan], train: Any) -> int:
    """Returns the index of the smallest plan that loses on training examples what training can win back."""
    drop = min(holdout.max_drop / (1.0 - WON_BACK), 0.5)

    def deepest() -> int:
        split = ScoredSplit(CertificationData(train, batching=holdout.data.batching), holdout.metric, model, seen=())
        last, _ = furthest_within(model, plans, split, max_drop=drop, reference=before, opened=as_pruned)
        return 0 if last is None else last

    return by_first(deepest)


def require_recoverable(holdout: Any, *, is_asked: bool, where: str) -> None:
    """Refuses to train a pruned model on to an allowed drop that no examples can show.

    Args:
        holdout: Unseen examples; anything else where there are none.
        is_asked: Whether a model is to be trained on at all.
        where: Name of the public function.

    Raises:
        InvalidSettingError: There are none.
    """
    if not is_asked or isinstance(holdout, Holdout):
        return
    reason = getattr(holdout, "reason", "no unseen labelled examples are compared")
    raise InvalidSettingError(
        f"{where}: with a drop that is allowed, the model that was trained on has to be tested on unseen examples, and "
        f"{reason}. Pass such examples, or a size: density=..., which needs none."
    )
