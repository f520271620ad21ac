"""Every task is measured as a slow, obvious evaluation measures it, by whole evaluations and by probes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.masking import masked
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.problem import Question
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import ModelExamples, PadRight
from hf_headprune.tasks.multi_label import MultiLabelScorer
from hf_headprune.tasks.question_answering import SpanScorer
from hf_headprune.tasks.registry import scorer_for
from hf_headprune.tasks.scores import scores_of
from hf_headprune.tasks.token_classification import TokenScorer
from tests.support.classifiers import classifier, random_plan
from tests.support.models import tiny_bert, tiny_marian
from tests.support.searches import over_heads, settings
from tests.support.tasks import NUM_TAGS, ROUNDED, TASKS, task_of

LONGEST = SpanScorer().longest_answer


def batches_of(model, dataset):
    return length_sorted_batches(ModelExamples(dataset, model), PadRight(model.config.pad_token_id), batch_size=7)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_metric_is_that_of_one_example_after_the_other(name):
    model, dataset, task = task_of(name)
    evaluator = ExampleEvaluator(model, batches_of(model, dataset), metric=task.metric)
    values = set()
    for seed in range(5):
        plan = random_plan(model, seed)
        with masked(model, plan), torch.no_grad():
            expected = task.value(model, dataset)
        found = evaluator(plan)
        assert found.metric == pytest.approx(expected, abs=1e-6 if name in ROUNDED else 1e-12)
        assert found.margins.shape == (len(dataset),)
        values.add(found.metric)
    assert len(values) > 1
    assert 0 < min(values) < max(values) <= 1


def test_several_labels_score_as_in_scikit_learn_and_a_model_that_predicts_none_scores_nothing():
    gold, predicted = np.random.default_rng(0).integers(0, 2, (2, 200, 3))
    expected = [jaccard_score(*each, zero_division=1) for each in zip(gold, predicted, strict=True)]
    assert MultiLabelScorer(3).likeness(predicted, gold) == pytest.approx(expected)
    rare = np.eye(28)[np.arange(200) % 28]  # one label of 28 each: predicting none gets 96 % of the entries right
    assert MultiLabelScorer(28).likeness(np.zeros_like(rare), rare).max() == 0


@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_the_margin_of_several_labels_is_their_score_where_logits_are_large(labels):
    scorer, batch = MultiLabelScorer(3), {"labels": torch.tensor([labels])}
    for logits in ([-9.0, 9.0, 9.0], [9.0, 9.0, -9.0], [-9.0, -9.0, -9.0]):
        outputs = SimpleNamespace(logits=torch.tensor([logits]))
        score = scorer.answers(outputs, batch).scores[0]
        assert scorer.margins(outputs, batch).item() == pytest.approx(score, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_probes_have_the_verdicts_of_whole_evaluations(name):
    model, dataset, task = task_of(name)
    batches = batches_of(model, dataset)
    plain = ExampleEvaluator(model, batches, metric=task.metric)
    fast = ExampleEvaluator(model, batches, metric=task.metric)
    rng, kinds = np.random.default_rng(0), []
    base = PruningPlan.of(model)
    reference = plain(base)
    for seed in range(12):
        plan = random_plan(model, seed)
        expected = plain(plan)
        guess = reference.margins + rng.normal(0, 0.1, len(reference.margins)).astype(np.float32)
        floor = float(reference.metric * rng.choice([0.5, 0.9, 0.98, 1.0]))
        found = fast.probe(plan, Question(guess, floor=floor, tentative=bool(seed % 2)))
        kinds.append(found.kind)
        if found.kind == "bound":
            assert expected.metric <= found.metric + 1e-9 < floor + 1e-9
        elif found.kind == "exact":
            assert found.metric == expected.metric
        exact = fast.probe(plan, Question(guess))
        assert (exact.kind, exact.metric) == ("exact", expected.metric)
        reference = expected if seed % 4 == 0 else reference
    assert "bound" in kinds


def test_an_estimate_weighs_an_example_by_its_tags():
    model, _, _ = task_of("tokens")
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(20.0)  # so that margins predict nearly 1
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 90, (3 if i < 8 else 11,), generator=generator).tolist() for i in range(32)]
    with torch.no_grad():
        answered = [model(input_ids=torch.tensor([row])).logits[0].argmax(-1) for row in rows]
    labels = [((tags + (i < 8)) % NUM_TAGS).tolist() for i, tags in enumerate(answered)]  # of short ones all wrong
    dataset = [{"input_ids": ids, "labels": gold} for ids, gold in zip(rows, labels, strict=True)]
    evaluator = ExampleEvaluator(model, batches_of(model, dataset))
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    found = evaluator.probe(base, Question(margins, floor=0.8))
    assert found.kind == "estimate"
    # Of the sentences 0.75 are right; those not looked at count as their margins predict, nearly 1.
    assert found.metric == pytest.approx(24 * 11 / (24 * 11 + 8 * 3), abs=0.01)


def test_tied_spans_are_decided_by_the_batches_given():
    model, dataset, _ = task_of("spans")
    with torch.no_grad():
        model.qa_outputs.weight.zero_()  # every span of a window scores the same
        model.qa_outputs.weight[0] = 1e-5
    evaluator = ExampleEvaluator(model, batches_of(model, dataset))
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    for seed in range(6):
        plan = random_plan(model, seed)
        found = evaluator.probe(plan, Question(margins))
        assert found.metric == evaluator(plan).metric
        rejected = evaluator.probe(plan, Question(margins, floor=1.0, tentative=False))
        assert rejected.kind == "exact"  # no tie counts as an error before it is decided


def test_spans_longer_than_the_longest_answer_are_no_candidates_and_gold_ones_can_not_win():
    scorer, generator = SpanScorer(longest_answer=3), torch.Generator().manual_seed(0)
    starts, ends = (torch.randn(100, 9, generator=generator) for _ in range(2))
    batch = {
        "start_positions": torch.arange(100) % 4 + 1,
        "end_positions": torch.arange(100) % 4 + 1 + torch.arange(100) % 5,
    }
    outputs = SimpleNamespace(start_logits=starts, end_logits=ends)
    found = scorer.answers(outputs, batch)
    for row in range(100):
        gold = (int(batch["start_positions"][row]), int(batch["end_positions"][row]))
        sums = {
            (start, end): float(starts[row, start] + ends[row, end])
            for start in range(9)
            for end in range(start, min(9, start + 3))
            if start > 0 or end == 0
        }
        best = max(sums, key=sums.get)
        others = max(total for span, total in sums.items() if span != gold)
        margin = float(starts[row, gold[0]] + ends[row, gold[1]]) - others
        assert float(found.margins[row]) == pytest.approx(margin, abs=1e-5)
        first, last = (range(span[0], span[1] + 1) for span in (best, gold))
        assert found.scores[row] == pytest.approx(2 * len(set(first) & set(last)) / (len(first) + len(last)))


def test_a_tie_at_a_token_without_a_label_makes_no_answer_doubtful():
    logits = torch.tensor([[[5.0, 1.0], [2.0, 2.0]], [[5.0, 1.0], [2.0, 1.999]]])
    labels = torch.tensor([[0, -100], [0, 1]])
    found = TokenScorer(2).answers(SimpleNamespace(logits=logits), {"labels": labels})
    assert found.gaps[0] > 100 * found.gaps[1] > 0


def test_tokens_that_tie_are_no_certain_errors():
    model, dataset, _ = task_of("tokens")
    with torch.no_grad():
        model.classifier.weight[1] = model.classifier.weight[0]
        model.classifier.bias[1] = model.classifier.bias[0]
    evaluator = ExampleEvaluator(model, batches_of(model, dataset))
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    for seed in range(6):
        plan = random_plan(model, seed)
        assert evaluator.probe(plan, Question(margins)).metric == evaluator(plan).metric


@pytest.mark.parametrize("name", TASKS)
def test_a_search_needs_the_model_and_its_labelled_examples_only(name):
    model, dataset, task = task_of(name)
    search = over_heads(max_evaluations=30, max_drop=0.3)
    metric = task.metric if name in ("spans by match", "regression by mse") else None
    result = search_plan(model, dataset, metric, search, progress=False).search
    assert result.metric >= result.threshold - 1e-9
    assert result.plan.num_removed_heads > 0
    with masked(model, result.plan), torch.no_grad():
        assert result.metric == pytest.approx(task.value(model, dataset), abs=1e-6)


def test_ffn_chunks_of_other_tasks_are_searched_too():
    model, dataset, _ = task_of("tokens")
    search = settings(max_evaluations=15, max_drop=0.2, ffn_chunk=32)
    assert search_plan(model, dataset, search=search, progress=False).search.gain > 0


@pytest.mark.parametrize(
    ("make", "metric", "message"),
    [
        (lambda: tiny_bert("QuestionAnswering"), "accuracy", "must be one of f1, exact_match for a BertForQuestion"),
        (lambda: tiny_bert("TokenClassification"), "f1", "must be one of accuracy for a BertForToken"),
        (tiny_marian, "bleu", "must be one of likelihood, chrf for a MarianMTModel, received 'bleu'"),
        (tiny_marian, "perplexity", "The likelihood of an example is 1 / perplexity: pass 'likelihood'"),
        (lambda: tiny_bert(num_labels=3), "f1", "must be one of accuracy, macro_f1, matthews_correlation for a Bert"),
        (lambda: tiny_bert(num_labels=1), "accuracy", "must be one of closeness, mse, pearson, spearman for a Bert"),
        (lambda: tiny_bert(num_labels=2), ["accuracy"], r"received \['accuracy'\]"),
    ],
)
def test_a_metric_of_another_task_is_refused(make, metric, message):
    scorer_for(make())
    with pytest.raises(InvalidSettingError, match=message):
        scorer_for(make(), metric)


def changed(dataset, **entries):
    return [{**dataset[0], **entries}, *dataset[1:]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("spans", lambda d: changed(d, end_positions=99), r"inside their windows, start <= end, received \[\(\d+, 99"),
        ("spans", lambda d: changed(d, start_positions=3, end_positions=2), r"received \[\(3, 2\)\]"),
        ("spans", lambda d: [{"input_ids": [5, 6], "labels": 1}], "must hold 'start_positions' and 'end_positions'"),
        ("tokens", lambda d: changed(d, labels=[7] * len(d[0]["input_ids"])), r"must be 0\.\.3, or -100.*\[7\]"),
        ("tokens", lambda d: changed(d, labels=[1] * 20), "one per token"),
        ("tokens", lambda d: [{**e, "labels": [-100] * len(e["input_ids"])} for e in d], "no token has a label"),
        ("references", lambda d: changed(d, labels=[-100, -100]), "a reference for each example"),
        ("references", lambda d: changed(d, labels=[5000]), r"tokens 0\.\.\d+, or -100, received \[5000\]"),
        ("references", lambda d: [{"input_ids": [5, 6]}], "must hold 'labels' or 'label'"),
        ("texts", lambda d: changed(d, input_ids=[5]), "a reference for each example"),
        ("regression", lambda d: changed(d, labels=float("nan")), "one finite number per example"),
        ("regression", lambda d: [{**e, "labels": 2.0} for e in d], "labels of a regression must differ, received 2"),
        ("several labels", lambda d: changed(d, labels=[0.0, 0.5, 1.0]), r"must be 0 or 1, received \[0.5\]"),
        ("several labels", lambda d: [{**e, "labels": [0.0, 1.0]} for e in d], r"of shape \(batch, 3\)"),
        ("classes", lambda d: [{**e, "label": [0.0, 1.0, 1.0]} for e in d], "problem_type = 'multi_label"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(name, change, message):
    model, dataset, _ = task_of(name)
    assert len(scores_of(model, dataset)) == len(dataset)
    search = over_heads(max_evaluations=2)
    for use in (
        lambda rows: search_plan(model, rows, search=search, progress=False),
        lambda rows: scores_of(model, rows),
    ):
        with pytest.raises(InvalidSettingError, match=message):
            use(change(dataset))


def test_a_model_that_returns_no_spans_is_refused():
    model, dataset, _ = task_of("spans")
    evaluator = ExampleEvaluator(model, batches_of(model, dataset))
    assert evaluator(PruningPlan.of(model)).metric > 0
    evaluator._model = classifier()
    with pytest.raises(UnsupportedModelError, match="must return start_logits and end_logits"):
        evaluator(PruningPlan.of(evaluator._model))


def test_families_with_several_lists_of_layers_count_all_of_them():
    model, dataset, _ = task_of("references")
    assert len({site.layer for site in anatomy_of(model).sites}) > 1
    evaluator = ExampleEvaluator(model, batches_of(model, dataset))
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    decoder = next(site for site in reversed(base.num_heads))
    plan = base.replace(kept_heads={decoder: ()})
    found = evaluator.probe(plan, Question(margins))
    assert found.metric == evaluator(plan).metric
