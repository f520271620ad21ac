"""The promise about unseen data: its split is held back before training, and used once, after the search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from hf_headprune.callback import bridge
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certify import CertificationData, certify, certify_path
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.planner import Expectation, promise_in_words
from hf_headprune.guarantee.scoring import Batching
from hf_headprune.guarantee.sequence import milestones
from hf_headprune.guarantee.splits import SplitSettings, three_way_split
from hf_headprune.shrink.surgery import prune_model_

if TYPE_CHECKING:
    import numpy as np
    from transformers import Trainer

    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.path import CertifiedPath
    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.settings import AStarSearch

MILESTONES = 5
METRIC = "accuracy"
# The searched split flatters, so the search aims higher than what is to be certified.
SEARCHED_SHARE = 0.5


@dataclass(frozen=True)
class ChosenPlan:
    """The plan that is cut.

    Attributes:
        plan: The last one of the path that could be certified; what training kept, where none could.
        path: What was tested.
    """

    plan: PruningPlan
    path: CertifiedPath

    @property
    def is_certified(self) -> bool:
        """Whether there is anything to certify: a plan that removes more than training did, and passed."""
        return self.path.certified_index is not None


@dataclass(frozen=True)
class Promise:
    """What shall hold on unseen data, and the examples to show it on.

    Attributes:
        search_split: Examples for the search.
        data: Examples that are looked at once, after the search.
        max_drop: Drop of accuracy that is to be excluded.
        confidence: Of the statement.
    """

    search_split: Any
    data: CertificationData
    max_drop: float
    confidence: float

    def searched(self, search: AStarSearch) -> AStarSearch:
        """Returns the settings that the search is run with."""
        return replace(search, max_drop=SEARCHED_SHARE * search.max_drop)

    def in_words(self) -> str:
        """Says before training what the examples can promise."""
        expected = Expectation(alpha=round(1.0 - self.confidence, 12))
        return promise_in_words(len(self.data.dataset), self.max_drop, expected)

    def choose(
        self, trainer: Trainer, model: Any, learned: PruningPlan, found: PruningPlan, scores: np.ndarray | None
    ) -> ChosenPlan:
        """Tests plans on the way from what training kept to what the search found, the least pruned first.

        Args:
            trainer: Its first process tests; the others wait for the outcome.
            model: A copy of the trained model, not cut.
            learned: What training kept: what the others are compared with.
            found: By the search on the search split.
            scores: Importance of the heads, `(num_heads,)`, or None.
        """
        plans = milestones(plans_between(learned, found, scores), MILESTONES)
        path = None
        if trainer.is_world_process_zero():
            path = certify_path(model, plans, self.data, METRIC, self.max_drop, self.confidence, reference=learned)
        path = broadcast_object_list([path])[0]
        return ChosenPlan(learned if path.certified_index is None else plans[path.certified_index], path)

    def nothing_certified(self) -> str:
        """Says that there is no certificate, and why."""
        return (
            "Certificate: none. No plan smaller than what training kept could be certified to lose less than "
            f"{100 * self.max_drop:g} % on {len(self.data.dataset):,} unseen examples, so exactly what training kept "
            "was cut. A larger eval_dataset or a larger max_drop can certify more."
        )

    def certify(self, model: Any, learned: PruningPlan, pruned: Any, chosen: ChosenPlan) -> Certificate:
        """Writes the certificate of the cut model.

        Args:
            model: A copy of the trained model, not cut; it is cut to what training kept.
            learned: What training kept.
            pruned: A copy of the cut model.
            chosen: From `choose`.
        """
        prune_model_(model, learned)
        return certify(model, pruned, self.data, METRIC, self.max_drop, self.confidence, path=chosen.path)


def plans_between(learned: PruningPlan, found: PruningPlan, scores: np.ndarray | None) -> list[PruningPlan]:
    """Returns plans from the least pruned to `found`: each removes one head more, the least important first.

    What the search restored is there in all of them; what it removed of an FFN goes as a whole, after the heads.

    Args:
        learned: What training kept.
        found: What the search keeps.
        scores: Importance of the heads, `(num_heads,)`, in the order of the sites; None takes them in that order.
    """
    heads = [(site, head) for site, count in learned.num_heads.items() for head in range(count)]
    rank = dict(zip(heads, range(len(heads)) if scores is None else scores.tolist(), strict=True))
    gone = [(site, head) for site, head in heads if head in set(learned.kept_heads[site]) - set(found.kept_heads[site])]
    steps: list[tuple[str, Any]] = sorted(gone, key=lambda unit: rank[unit])
    steps += [(site, None) for site, kept in found.kept_ffn.items() if not set(learned.kept_ffn[site]) <= set(kept)]
    kept_heads = {site: {*kept, *found.kept_heads[site]} for site, kept in learned.kept_heads.items()}
    kept_ffn = {site: {*kept, *found.kept_ffn[site]} for site, kept in learned.kept_ffn.items()}
    plans = []
    for site, head in steps:
        if head is None:
            kept_ffn[site] = set(found.kept_ffn[site])
        else:
            kept_heads[site] = kept_heads[site] - {head}
        plans.append(learned.replace(kept_heads=kept_heads, kept_ffn=kept_ffn))
    return plans or [found]


def promise_of(trainer: Trainer, search: AStarSearch) -> Promise | None:
    """Holds half of `eval_dataset` back from the search, where a certificate was asked for.

    Examples that are in the training set too are left out of both halves.

    Raises:
        InvalidSettingError: The metric is not the accuracy of a single-label classifier, or there are too few examples.
    """
    if search.confidence is None:
        return None
    if not bridge.searches_accuracy(trainer, search.metric):
        raise InvalidSettingError(
            f"AStarSearch(confidence={search.confidence!r}): the callback certifies the accuracy of single-label "
            f"classifiers, received a {type(trainer.model).__name__} and metric {search.metric!r}. Pass "
            "confidence=None, and call certify(..., metric=Metric(...)) on the saved model."
        )
    # Each split is read once; what certifies compares fingerprints.
    can_read = hasattr(trainer.train_dataset, "__getitem__")
    train = ExampleFingerprints.of(trainer.train_dataset) if can_read else None
    split = three_way_split(trainer.eval_dataset, train, SplitSettings(seed=trainer.args.seed, on_leak="drop"))
    batching = Batching(
        data_collator=trainer.get_eval_dataloader().collate_fn, batch_size=trainer.args.per_device_eval_batch_size
    )
    search_prints = ExampleFingerprints.of(split.search)
    data = CertificationData(split.certify, train=train, search=search_prints, batching=batching)
    return Promise(split.search, data, search.max_drop, search.confidence)
