"""A certification split, compared with what training and search have seen, and the scores of models on it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_headprune._checks import is_confidence, is_whole
from hf_headprune._seen_splits import seen_by
from hf_headprune._strict_json import LARGEST
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.guarantee.betting import examples_without_change
from hf_headprune.guarantee.certificate import DisjointnessRecord
from hf_headprune.guarantee.claim import RIGHT_ANSWER, Claim, Metric, accuracy_of_answers, agreement
from hf_headprune.guarantee.evidence import checked_scores
from hf_headprune.guarantee.examples import (
    TEXT,
    ExampleFingerprints,
    check_columns,
    check_dataset,
    check_disjoint,
    groups_of,
    rows_of,
    window_column,
)
from hf_headprune.guarantee.external import answers_of, bare, first_reader, has_own_rows, is_external, is_model
from hf_headprune.guarantee.labels import PartlyLabelled, labels_by_index, own_labels
from hf_headprune.guarantee.neighbours import Neighbours
from hf_headprune.guarantee.outcomes import Outcome, PairedScores
from hf_headprune.guarantee.paired import level_of
from hf_headprune.guarantee.wording import AGREEMENT, WITHOUT_LABELS
from hf_headprune.masking import evaluating, masked
from hf_headprune.tasks.answers import same_answers
from hf_headprune.tasks.batches import Batching
from hf_headprune.tasks.classification import ClassScorer
from hf_headprune.tasks.examples import LABEL_NAMES, plain
from hf_headprune.tasks.registry import scorer_for
from hf_headprune.tasks.scorer import Scorer
from hf_headprune.tasks.scores import ScoredExamples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from hf_headprune.guarantee.sequence import AlphaLedger
    from hf_headprune.plan import PlanOrResult

logger = logging.getLogger(__name__)

MOST_COPIES = 0.05  # of the examples, before a word is said about them
REHEARSED = 4  # examples
FIRST_BATCH = 64  # examples, where the verdict may be certain before all are looked at


@dataclass(frozen=True)
class CertificationData:
    """A certification split and how to read it.

    Attributes:
        dataset: Sized and indexable; examples are mappings.
        train: What the model was trained on, or its `ExampleFingerprints`; None where it can't be looked at, which the
            certificate then says.
        search: What the search has seen, likewise.
        groups: Column whose equal values mark examples that depend on each other, such as questions on one paragraph.
            None: those of "example_id" or "overflow_to_sample_mapping" where several windows are of one example.
        columns: Text columns to compare splits by; see `ExampleFingerprints.of`.
        batching: How examples become batches.
        steered_training: Whether evaluations on these examples chose the checkpoint, the end or the learning rates of
            training; the certificate then says so.
        labels: Labels of some examples by index, for examples without any of their own: those of the examples on which
            the models disagree decide, see `disagreements`. None: each example has its label.

    Raises:
        InvalidSettingError: A column is no name, or the batching no `Batching`.
    """

    dataset: Any
    train: Any = None
    search: Any = None
    groups: str | None = None
    columns: tuple[str, ...] | None = None
    batching: Batching = Batching()
    steered_training: bool = False
    labels: Any = None

    def __post_init__(self) -> None:
        """Checks the names and the batching."""
        check_columns(self.columns)
        if isinstance(self.columns, list):
            object.__setattr__(self, "columns", tuple(self.columns))
        rules = {
            "groups": (self.groups is None or isinstance(self.groups, str), "the name of a column, or None"),
            "batching": (isinstance(self.batching, Batching), "a Batching"),
            "steered_training": (isinstance(self.steered_training, bool), "True or False"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InvalidSettingError(
                    f"CertificationData: {name} must be {rule}, received {shown(getattr(self, name))}."
                )


def _warn_of_copies(prints: ExampleFingerprints, data: CertificationData) -> None:
    copies = len(prints) - len({*prints.kinds[prints.kind]})  # whatever their labels
    if data.groups is None and copies > MOST_COPIES * len(prints):
        _say_copies(prints.sha256(), len(prints), copies)


@cache  # once for a split, known by its fingerprint: it is read several times in a run
def _say_copies(split: str, examples: int, copies: int) -> None:
    logger.warning(
        "Of %s examples to certify on, %s are copies of others. Each counts as drawn independently. If they are there "
        "by mistake, remove them: they make the evidence look stronger than it is.",
        f"{examples:,}",
        f"{copies:,}",
    )


def data_of(dataset: Any, labels: Any = None) -> CertificationData:
    """Returns a split as `CertificationData`, with labels that were given apart."""
    data = dataset if isinstance(dataset, CertificationData) else CertificationData(dataset)
    return with_windows(data if labels is None else replace(data, labels=labels))


def with_windows(data: CertificationData) -> CertificationData:
    """Returns a split whose windows of one example depend on each other, where a column of a known name tells them."""
    if data.groups is not None:
        return data
    check_dataset(data.dataset)
    return replace(data, groups=window_column(data.dataset))


def independent(data: CertificationData) -> int:
    """Returns the number of examples that count as independent: of groups, where examples have some."""
    if data.groups is None:
        return len(data.dataset)
    return len(set(groups_of(data.dataset, data.groups, where="CertificationData(groups=...)")))


def least_needed(metric: Metric, data: CertificationData, max_drop: float, confidence: float) -> tuple[int, int]:
    """Returns how many examples there are, and how many could show a drop to be excluded if no answer changed.

    Groups count by the size of the largest: so much their test rests on at the least.

    Args:
        metric: By which models are compared.
        data: The examples.
        max_drop: Drop that is to be excluded, in (0, 1).
        confidence: With which.
    """
    alpha = 1.0 - confidence
    if data.groups is not None:
        groups = Counter(groups_of(data.dataset, data.groups, where="CertificationData(groups=...)"))
        return len(data.dataset) // max(groups.values()), examples_without_change(max_drop, alpha)
    if metric.kind == "bounded":
        return len(data.dataset), examples_without_change(max_drop, alpha)
    level = level_of(alpha) if metric.kind == "binary" else alpha
    return len(data.dataset), math.ceil(math.log(level) / math.log1p(-max_drop))


class ScoredSplit:
    """A certification split whose examples are known by their fingerprints, and the scores of models on it.

    Attributes:
        data: The split.
        metric: What models are scored by.
        prints: Fingerprints of its examples.
        disjointness: Splits that it was compared with.
        labelled: Whether an example has a label, `(n,)`, in the order of the fingerprints; None where all have one.
    """

    def __init__(self, data: CertificationData, metric: Any, model: Any, *, seen: Sequence[Any] | None = None) -> None:
        """Reads the examples and compares them with the splits that training and search have seen.

        Args:
            data: The split, and what it is to be compared with.
            metric: What models are scored by, see `Metric.of`.
            model: One of the models that are scored, which reads the rows of the split.
            seen: Models that remember on what `search_plan` has searched them: that is compared too. None: the model.

        Raises:
            DataLeakError: An example is in one of those splits.
            InvalidSettingError: The data set is malformed, lacks the column of the groups, or the metric is not one of
                the model's task.
            UnsupportedModelError: The model has no task whose examples can be scored.
        """
        self.data = data
        labels = _labels_of(data, metric)
        rows = data.dataset if labels is None else PartlyLabelled(data.dataset, labels)
        self.prints = ExampleFingerprints.of(rows, columns=data.columns)
        _warn_of_copies(self.prints, data)
        self.labelled = None if labels is None else np.isin(self.prints.order, list(labels))
        self._groups = None  # of each example, in the order of the data set
        if data.groups is not None:
            self._groups = groups_of(data.dataset, data.groups, where="CertificationData(groups=...)")
        self.disjointness = self._compared((model,) if seen is None else seen)
        self._examples: ScoredExamples | None = None
        self._known, self._filler = labels, None  # labels that are held apart, and that of all other examples
        self._scorer: Any = None
        self._last: tuple[nn.Module, PlanOrResult | None, Outcome] | None = None
        given = metric.score if isinstance(metric, Metric) else metric
        self._gold: list[Any] | None = None
        if _is_by_answers(metric, (model, *(seen or ()))):
            metric = self._read_gold(rows, metric, (model, *(seen or ())), is_partial=labels is not None)
        elif not isinstance(metric, Metric) or isinstance(given, Scorer):
            is_agreement = isinstance(given, str) and given == AGREEMENT
            asked = None if is_agreement else given
            scorer = scorer_for(model, asked, where="certify")
            self._filler = None if labels is None else _any_label(scorer, asked=given)
            self._scorer = scorer
            self._examples = self._read(model, data)
            metric = agreement() if is_agreement else Metric.of(self._examples.scorer, model)
        elif labels is not None:
            raise _needs_all_labels(metric.name)
        # The exact tests take examples for independent; betting on groups takes 0/1 scores too.
        is_grouped = data.groups is not None and metric.kind in ("binary", AGREEMENT)
        self.metric: Metric = replace(metric, kind="bounded") if is_grouped else metric

    @classmethod
    def of_plan(cls, data: CertificationData, metric: Any, model: nn.Module, plan: PlanOrResult | None) -> ScoredSplit:
        """Reads the examples; scores that compare models compare them with what a plan keeps of a model."""
        with nullcontext() if plan is None else masked(model, plan):
            return cls(data, metric, model)

    def _compared(self, models: Sequence[Any]) -> tuple[DisjointnessRecord, ...]:
        data = self.data
        records = []
        for name, split in (("train", data.train), ("search", data.search)):
            if split is not None:
                prints = ExampleFingerprints.of(split, columns=data.columns)
                check_disjoint(self.prints, prints, name=name)
                records.append(
                    DisjointnessRecord(name, prints.sha256(), len(prints), self.prints.compared_with(prints))
                )
        for name, dataset in seen_by(*map(bare, models)):
            prints = ExampleFingerprints.of(dataset, columns=data.columns)
            if compared := self.prints.compared_with(prints):
                check_disjoint(self.prints, prints, name=name)
                if name == "search" and all(record.name != name for record in records):
                    records.append(DisjointnessRecord(name, prints.sha256(), len(prints), compared))
        return tuple(records)

    def outcome_of(self, given: Any) -> Outcome:
        """Runs a model; returns its scores and answers in the order of the fingerprints.

        Args:
            given: What answers; a model may come with the same examples as its own tokenizer encodes them, as a pair.

        Raises:
            InvalidSettingError: The rows of a pair are not the same examples.
        """
        found = None
        if self._gold is not None:
            return self._outcome_by_answers(given)
        model, data = bare(given), self._data_of(given)
        if self._examples is None:
            scores: Any = self._scores_by_function(model, data.dataset)
        else:
            examples = self._examples_of(given)
            scorer, answers = examples.scorer, examples.answers_of(model)
            scores = answers.scores if scorer.is_mean else answers.rows
            if self.metric.scored in WITHOUT_LABELS:
                scores = np.zeros(len(scores))  # nothing of it is right or wrong
            found = scorer.answered(answers.rows)
        order = self.prints.order
        scores = checked_scores(scores, len(self.prints), self.metric.kind)[order]
        return Outcome(scores, None if found is None else found[order])

    def _outcome_by_answers(self, given: Any) -> Outcome:
        """Returns which classes something answers, and which of them are the label."""
        order, gold = self.prints.order, np.asarray(self._gold)
        if is_external(given):
            found: Any = answers_of(given, self.data.dataset)
        else:
            _check_one_class(bare(given))
            examples = self._examples_of(given)
            found = examples.scorer.answered(examples.answers_of(bare(given)).rows)
        return Outcome((found[:, 0] == gold).astype(np.float64)[order], found[order])

    def _data_of(self, given: Any) -> CertificationData:
        """Returns the examples as something reads them: those of the split, or its own of a pair."""
        if not has_own_rows(given):
            return self.data
        data = data_of(given[1])
        _check_same_examples(self.prints, data, self.data)
        return data

    def _examples_of(self, given: Any) -> ScoredExamples:
        """Returns the examples in batches, as a model reads them."""
        if not has_own_rows(given):
            return cast("ScoredExamples", self._examples)
        examples = self._read(bare(given), self._data_of(given))
        if examples.scorer.compares_models:
            raise self._needs_neighbours()
        return examples

    def _needs_neighbours(self) -> InvalidSettingError:
        return InvalidSettingError(
            f"certify: {self.metric.name} compares embeddings with those of the model before pruning, of the same "
            "rows; received another model, or rows of its own. Pass what nearest_neighbours returned for both models, "
            "and 'agreement'."
        )

    def _read(self, model: Any, data: CertificationData) -> ScoredExamples:
        """Reads examples for a model, with the labels of the split where it holds them apart."""
        labels = self._known
        rows = data.dataset if labels is None else PartlyLabelled(data.dataset, labels, filler=self._filler)
        return ScoredExamples(model, rows, self._scorer, data.batching, where="certify")

    def _read_gold(self, rows: Any, metric: Any, models: Sequence[Any], *, is_partial: bool) -> Metric:
        """Reads the labels, with which answers from elsewhere are compared; returns by which metric."""
        are_neighbours = [isinstance(it, Neighbours) for it in models]
        is_agreement = isinstance(metric, str) and metric == AGREEMENT
        if any(are_neighbours) and not (is_agreement and all(are_neighbours)):
            raise InvalidSettingError(
                "certify: nearest neighbours are compared with those of another model, by 'agreement', received the "
                f"metric {shown(metric)} and {', '.join(type(it).__name__ for it in models)}. Pass what "
                "nearest_neighbours returned for both, and 'agreement'."
            )
        for live in models:
            if not is_external(live):
                _check_one_class(bare(live))
        self._gold = _gold(rows, metric, is_partial=is_partial)
        self._known, self._filler = {n: label for n, label in enumerate(self._gold) if label is not None}, 0
        model = next((it for it in models if not is_external(it) and not has_own_rows(it)), None)
        if model is not None:
            self._examples = self._read(model, self.data)
        return agreement(of_neighbours=any(are_neighbours)) if is_agreement else accuracy_of_answers()

    def compared(self, dense: Outcome, pruned: Outcome) -> PairedScores:
        """Returns how two models compare on the split."""
        likeness = same_answers if self._scorer is None else self._scorer.likeness
        pair = PairedScores.of(dense, pruned, self.groups(), self.labelled, likeness)
        if self.metric.scored not in WITHOUT_LABELS or pair.changed is None:
            return pair
        return replace(pair, dense=np.ones(len(pair.dense)), pruned=1.0 - pair.changed)

    def rehearse(self, model: Any) -> None:
        """Lets fail now what would fail in `scores_of`, at little cost: a few examples are scored.

        Raises:
            InvalidSettingError: The scores of the metric's function are not what they must be.
            UnsupportedModelError: The model can't be scored.
        """
        if self._examples is not None:
            self._examples_of(model).rehearse(bare(model))
            return
        few = rows_of(self._data_of(model).dataset, range(min(REHEARSED, len(self.prints))))
        checked_scores(self._scores_by_function(bare(model), few), len(few), self.metric.kind)

    def outcome_of_plan(self, model: nn.Module, plan: PlanOrResult | None) -> Outcome:
        """Runs what a plan, or a result with its refit, keeps of a model; None for the whole model.

        Asked for the same plan of the same model again, it is not run again: the model must not have changed.
        """
        if self._last is None or self._last[0] is not model or self._last[1] is not plan:
            with nullcontext() if plan is None else masked(model, plan):
                self._last = model, plan, self.outcome_of(model)
        return self._last[2]

    def outcome_of_reference(self, model: nn.Module, reference: Any) -> Outcome:
        """Runs what plans of a model are compared with: a plan, a result, None for all, or another model.

        Raises:
            InvalidSettingError: It is another model, and the metric compares embeddings with those of this one.
        """
        if not is_model(reference):
            return self.outcome_of_plan(model, reference)
        if getattr(self.metric.score, "compares_models", False):
            raise self._needs_neighbours()
        return self.outcome_of(reference)

    def value_of_plan(self, model: nn.Module, plan: PlanOrResult | None) -> float:
        """Returns the metric of what `outcome_of_plan` runs."""
        return self.value_of(self.outcome_of_plan(model, plan))

    def value_of(self, outcome: Outcome) -> float:
        """Returns the metric of a model that gave these answers."""
        return float((self.metric.aggregate or np.mean)(self.compared(outcome, outcome).dense))

    def _scores_by_function(self, model: Any, dataset: Any) -> Any:
        score: Any = self.metric.score
        with evaluating(model):
            return score(model, dataset)

    def until(self, is_certain: Callable[[PairedScores], bool], dense: Any, pruned: Any) -> PairedScores:
        """Runs two models on more and more examples, in the order of the fingerprints, until that is enough.

        Args:
            is_certain: Tells whether no more are needed.
            dense: The dense model.
            pruned: The pruned model.
        """
        order = self.prints.order
        parts: list[PairedScores] = []
        first, size = 0, FIRST_BATCH
        while first < len(order):
            places = order[first : first + size].tolist()
            data = replace(self.data, dataset=rows_of(self.data.dataset, places), train=None, search=None)
            models = tuple(_with_some_rows(it, places) for it in (dense, pruned))
            batch = ScoredSplit(data, self.metric, first_reader(models), seen=())
            parts.append(batch.compared(*map(batch.outcome_of, models)))
            first, size = first + size, max(FIRST_BATCH, first // 4)
            if is_certain(PairedScores.joined(parts)):
                break
        return PairedScores.joined(parts)

    def groups(self) -> np.ndarray | None:
        """Returns the numbers of the groups in the order of the fingerprints."""
        if self._groups is None:
            return None
        return numbered([self._groups[index] for index in self.prints.order])

    def claim(
        self, max_drop: float, confidence: float, *, ledger: AlphaLedger | None, seed: int, num_candidates: int = 1
    ) -> Claim:
        """Returns the claim; spends its share of alpha where the split may be used more than once."""
        if not is_confidence(confidence):
            raise InvalidSettingError(
                f"certify: confidence must be a number above 0.5 and below 1, received {shown(confidence)}. Pass 0.95."
            )
        alpha = round(1.0 - float(confidence), 12)
        is_shared = is_whole(num_candidates, at_least=1) and num_candidates <= LARGEST  # else the claim refuses it
        claim = Claim(
            self.metric.name,
            self.metric.kind,
            max_drop,
            alpha,
            alpha / num_candidates if is_shared else alpha,
            seed=seed,
            num_candidates=num_candidates,
            scored=self.metric.scored,
        )
        if ledger is None:
            return claim
        entry = ledger.spend(self.prints.sha256(), alpha, f"{self.metric.name} drops by less than {max_drop}")
        return replace(claim, alpha_spent=entry.spent / claim.num_candidates, use=entry.use)


def _with_some_rows(given: Any, places: Sequence[int]) -> Any:
    """Returns a pair of a model and its own rows with some of these; all else as it is."""
    if not has_own_rows(given):
        return given
    data = data_of(given[1])
    return given[0], replace(data, dataset=rows_of(data.dataset, places))


def _check_same_examples(prints: ExampleFingerprints, own: CertificationData, data: CertificationData) -> None:
    """Refuses rows of a model's own that are not the examples of the split, as far as texts and labels tell.

    Raises:
        InvalidSettingError: They are not.
    """
    check_dataset(own.dataset)
    rows = own.dataset if data.labels is None else PartlyLabelled(own.dataset, {})
    found = ExampleFingerprints.of(rows, columns=data.columns)
    compared = [(found.kinds.get(TEXT), prints.kinds.get(TEXT))] if found.columns == prints.columns else []
    is_of_tokens = isinstance(plain(_label_of(own.dataset[0])), list)  # other tokens have other labels
    if data.labels is None and not is_of_tokens:
        compared.append((found.labels, prints.labels))
    differ = [n for n in range(min(len(found), len(prints))) if any(a and b and a[n] != b[n] for a, b in compared)]
    if differ or len(found) != len(prints):
        raise InvalidSettingError(
            f"certify: a model with rows of its own must come with the same examples in the same order, received "
            f"{len(found)} for {len(prints)}, of which {len(differ)} have another text or label (indices "
            f"{differ[:5]}). Encode the certification split with the tokenizer of each model."
        )


def _label_of(example: Any) -> Any:
    return next((example[name] for name in LABEL_NAMES if name in example), None)


def _labels_of(data: CertificationData, metric: Any) -> dict[int, Any] | None:
    """Returns the labels that are known, by index; None where each example holds its own."""
    check_dataset(data.dataset)
    if isinstance(metric, str) and metric == AGREEMENT:
        return {}
    return None if data.labels is None else labels_by_index(data.labels, data.dataset)


def _is_by_answers(metric: Any, models: Sequence[Any]) -> bool:
    """Tells whether answers are read, rather than scores."""
    return any(map(is_external, models)) or (isinstance(metric, Metric) and metric.scored == RIGHT_ANSWER)


def _check_one_class(model: nn.Module) -> None:
    """Refuses a model whose answers are not compared with those from elsewhere, before it is run or labels are read."""
    if not isinstance(scorer_for(model, None, where="certify"), ClassScorer):
        raise InvalidSettingError(
            "certify: what is no model of torch is compared with classifiers that give each example one class, "
            f"received {type(model).__name__}. Certify the model of torch that it was made from."
        )


def _gold(rows: Any, metric: Any, *, is_partial: bool) -> list[Any]:
    """Returns the label of each example, None where it has none."""
    if not (metric is None or (isinstance(metric, str) and metric in ("accuracy", AGREEMENT))) and not (
        isinstance(metric, Metric) and metric.scored in (RIGHT_ANSWER, *WITHOUT_LABELS)
    ):
        raise InvalidSettingError(
            "certify: what is no model of torch is compared by 'accuracy' or 'agreement', received the metric "
            f"{shown(metric)}. Pass one of these."
        )
    labels = own_labels(rows)
    missing = [index for index in range(len(rows)) if index not in labels]
    if missing and not is_partial:
        raise InvalidSettingError(
            f"certify: every example needs a label, received none for {len(missing)} (indices {missing[:5]}). Pass "
            "labels= for those on which both disagree, or the metric 'agreement'."
        )
    return [labels.get(index) for index in range(len(rows))]


def _any_label(scorer: Scorer, *, asked: Any) -> Any:
    if scorer.any_label is None and isinstance(asked, str) and asked == AGREEMENT:
        raise InvalidSettingError(
            f"certify: 'agreement' compares classes and lists of labels, received a model scored by the "
            f"{scorer.in_words}. Name a metric of its task, with labels."
        )
    if scorer.any_label is None:
        raise _needs_all_labels(scorer.in_words)
    return scorer.any_label


def _needs_all_labels(metric: str) -> InvalidSettingError:
    return InvalidSettingError(
        "certify: labels of some examples are enough for the accuracy of classes and the Jaccard index of several "
        f"labels, where equal answers score alike; received labels= for the {metric}. Give each example its label, and "
        "leave labels= out."
    )


def numbered(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Numbers equal values alike, `(n,)`, in the order in which they first come."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
