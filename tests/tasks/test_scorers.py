"""Every task is measured as a slow, obvious evaluation measures it, by whole evaluations and by probes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.masking import masked
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.early_stop import EvaluatorSettings
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.problem import Question
from hf_headprune.search.units import Part
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import PadRight
from hf_headprune.tasks.question_answering import SpanScoring
from hf_headprune.tasks.registry import scoring_for
from hf_headprune.tasks.token_classification import TokenScoring
from tests.support.classifiers import classifier, decisive, random_plan, wrong_twin
from tests.support.models import tiny_bert, tiny_distilbert, tiny_marian
from tests.support.searches import over_heads, settings

NUM_TAGS = 4
LONGEST = SpanScoring().longest_answer


def decisive_heads(model):
    with torch.no_grad():
        for name, parameter in decisive(model).named_parameters():
            if "qa_outputs" in name or "lm_head" in name:
                parameter.mul_(20.0)
    return model


def sequences(count, generator):
    lengths = torch.randint(4, 12, (count,), generator=generator).tolist()
    return [torch.randint(3, 90, (length,), generator=generator).tolist() for length in lengths]


def spans(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for place, ids in enumerate(sequences(count, generator)):
        start = int(torch.randint(1, len(ids), (1,), generator=generator))
        end = int(torch.randint(start, len(ids), (1,), generator=generator))
        is_answered = place % 4 > 0
        positions = {"start_positions": start * is_answered, "end_positions": end * is_answered}
        examples.append({"input_ids": ids, **positions})
    return examples


def tags(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for place, ids in enumerate(sequences(count, generator)):
        labels = torch.randint(0, NUM_TAGS, (len(ids),), generator=generator)
        labels[torch.rand(len(ids), generator=generator) < 0.4] = -100
        examples.append({"input_ids": ids, "labels": [-100] * len(ids) if place == 3 else labels.tolist()})
    return examples


def pairs(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sources, targets = sequences(count, generator), sequences(count, generator)
    return [{"input_ids": s, "labels": t[: 3 + place % 5]} for place, (s, t) in enumerate(zip(sources, targets))]  # noqa: B905


def best_span(starts, ends):
    """The best span, by a loop over all of them."""
    best, found = -np.inf, (0, 0)
    for start in range(len(starts)):
        for end in range(start, min(len(starts), start + LONGEST)):
            if (start > 0 or end == 0) and starts[start] + ends[end] > best:
                best, found = starts[start] + ends[end], (start, end)
    return found


def span_score(model, example, metric):
    outputs = model(input_ids=torch.tensor([example["input_ids"]]))
    predicted = best_span(outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy())
    gold = (example["start_positions"], example["end_positions"])
    predicted, gold = (set(range(first, last + 1)) for first, last in (predicted, gold))
    if metric == "exact_match":
        return float(predicted == gold)
    return 2 * len(predicted & gold) / (len(predicted) + len(gold))


def slow_spans(model, dataset, metric):
    return float(np.mean([span_score(model, example, metric) for example in dataset]))


def slow_tags(model, dataset, metric):
    right = total = 0
    for example in dataset:
        predicted = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].argmax(dim=-1).tolist()
        for guess, label in zip(predicted, example["labels"], strict=True):
            right += guess == label
            total += label != -100
    return right / total


def slow_likelihood(model, dataset, metric):
    values = []
    for example in dataset:
        outputs = model(input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]]))
        values.append(float(torch.exp(-outputs.loss)))
    return float(np.mean(values))


def own_answers(model, dataset, metric):
    """Most examples get what the model answers, so that plans differ in what they lose."""
    with torch.no_grad():
        for example in dataset[::2]:
            outputs = model(input_ids=torch.tensor([example["input_ids"]]))
            if "start_positions" in example:
                found = best_span(outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy())
                example["start_positions"], example["end_positions"] = found
            else:
                example["labels"] = outputs.logits[0].argmax(dim=-1).tolist()
    return dataset


TASKS = {
    "f1": (lambda: tiny_bert("QuestionAnswering"), spans, slow_spans, own_answers),
    "exact_match": (lambda: tiny_distilbert("QuestionAnswering"), spans, slow_spans, own_answers),
    "accuracy": (lambda: tiny_bert("TokenClassification", num_labels=NUM_TAGS), tags, slow_tags, own_answers),
    "likelihood": (tiny_marian, pairs, slow_likelihood, lambda model, dataset, metric: dataset),
}


def task(name):
    make, make_examples, slow, relabel = TASKS[name]
    model = decisive_heads(make())
    return model, relabel(model, make_examples(), name), slow


def batches_of(model, dataset):
    return length_sorted_batches(dataset, PadRight(model.config.pad_token_id), batch_size=7)


@pytest.mark.parametrize("name", TASKS)
def test_the_metric_is_that_of_one_example_after_the_other(name):
    model, dataset, slow = task(name)
    evaluator = ExampleEvaluator(model, batches_of(model, dataset), metric=name)
    values = set()
    for seed in range(5):
        plan = random_plan(model, seed)
        with masked(model, plan), torch.no_grad():
            expected = slow(model, dataset, name)
        found = evaluator(plan)
        assert found.metric == pytest.approx(expected, abs=1e-6 if name == "likelihood" else 1e-12)
        assert found.margins.shape == (len(dataset),)
        values.add(found.metric)
    assert len(values) > 1
    assert 0 < min(values) < max(values) <= 1


def test_where_a_twin_in_bf16_turns_tags_it_was_sure_of_nothing_is_taken_from_it(monkeypatch):
    monkeypatch.setattr("hf_headprune.search.evaluation.screening.rough_band", lambda *_: 4.0)
    monkeypatch.setattr("hf_headprune.search.evaluation.early_stop.half_precision_twin", wrong_twin)
    model, dataset, _ = task("accuracy")
    plain = ExampleEvaluator(model, batches_of(model, dataset))
    rounded = ExampleEvaluator(
        model, batches_of(model, dataset), settings=EvaluatorSettings(batch_size=4, bf16_screening=True)
    )
    plan, margins = random_plan(model, 0), plain(PruningPlan.of(model)).margins
    found = rounded.probe(plan, Question(PruningPlan.of(model), margins, margins))
    np.testing.assert_allclose(found.margins, plain(plan).margins, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("cache_mib", [0, 64])
def test_probes_have_the_verdicts_of_whole_evaluations(name, cache_mib):
    model, dataset, _ = task(name)
    batches = batches_of(model, dataset)
    plain = ExampleEvaluator(model, batches, metric=name)
    fast = ExampleEvaluator(
        model, batches, metric=name, settings=EvaluatorSettings(batch_size=4, activation_cache_mib=cache_mib)
    )
    rng, kinds = np.random.default_rng(0), []
    base = PruningPlan.of(model)
    reference = plain(base)
    for seed in range(12):
        plan = random_plan(model, seed)
        expected = plain(plan)
        guess = reference.margins + rng.normal(0, 0.1, len(reference.margins)).astype(np.float32)
        floor = float(reference.metric * rng.choice([0.5, 0.9, 0.98, 1.0]))
        found = fast.probe(plan, Question(base, reference.margins, guess, floor=floor, tentative=bool(seed % 2)))
        kinds.append(found.kind)
        if found.kind == "bound":
            assert expected.metric <= found.metric + 1e-9 < floor + 1e-9
        elif found.kind == "exact":
            assert found.metric == expected.metric
        exact = fast.probe(plan, Question(base, reference.margins, guess))
        assert (exact.kind, exact.metric) == ("exact", expected.metric)
        base, reference = (plan, expected) if seed % 4 == 0 else (base, reference)
    assert "bound" in kinds
    memory = fast._stopper.memory
    assert memory.peak_bytes <= cache_mib * 2**20
    assert (memory.peak_bytes > 0) == (cache_mib > 0 and name != "likelihood")


def test_an_estimate_weighs_an_example_by_its_tags():
    model, _, _ = task("accuracy")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 90, (3 if i < 8 else 11,), generator=generator).tolist() for i in range(32)]
    with torch.no_grad():
        answered = [model(input_ids=torch.tensor([row])).logits[0].argmax(-1) for row in rows]
    labels = [((tags + (i < 8)) % NUM_TAGS).tolist() for i, tags in enumerate(answered)]  # of short ones all wrong
    dataset = [{"input_ids": ids, "labels": gold} for ids, gold in zip(rows, labels, strict=True)]
    evaluator = ExampleEvaluator(
        model, batches_of(model, dataset), settings=EvaluatorSettings(batch_size=4, bf16_screening=False)
    )
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    found = evaluator.probe(base, Question(base, margins, margins, floor=0.8))
    assert found.kind == "estimate"
    # Of the sentences 0.75 are right; those not looked at count as their margins predict, nearly 1.
    assert found.metric == pytest.approx(24 * 11 / (24 * 11 + 8 * 3), abs=2e-3)


def test_tied_spans_are_decided_by_the_batches_given():
    model, dataset, _ = task("f1")
    with torch.no_grad():
        model.qa_outputs.weight.zero_()  # every span of a window scores the same
        model.qa_outputs.weight[0] = 1e-5
    evaluator = ExampleEvaluator(model, batches_of(model, dataset), settings=EvaluatorSettings(batch_size=4))
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    for seed in range(6):
        plan = random_plan(model, seed)
        found = evaluator.probe(plan, Question(base, margins, margins))
        assert found.metric == evaluator(plan).metric
        rejected = evaluator.probe(plan, Question(base, margins, margins, floor=1.0, tentative=False))
        assert rejected.kind == "exact"  # no tie counts as an error before it is decided


def test_spans_longer_than_the_longest_answer_are_no_candidates_and_gold_ones_can_not_win():
    scoring, generator = SpanScoring(longest_answer=3), torch.Generator().manual_seed(0)
    starts, ends = (torch.randn(100, 9, generator=generator) for _ in range(2))
    batch = {
        "start_positions": torch.arange(100) % 4 + 1,
        "end_positions": torch.arange(100) % 4 + 1 + torch.arange(100) % 5,
    }
    outputs = SimpleNamespace(start_logits=starts, end_logits=ends)
    found = scoring.answers(outputs, batch)
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
    found = TokenScoring(2).answers(SimpleNamespace(logits=logits), {"labels": labels})
    assert found.gaps[0] > 100 * found.gaps[1] > 0


@pytest.mark.parametrize("name", ["f1", "accuracy"])
def test_logits_that_are_no_numbers_are_no_answer(name):
    model, dataset, _ = task(name)
    evaluator = ExampleEvaluator(model, batches_of(model, dataset), metric=name)
    assert evaluator(PruningPlan.of(model)).metric > 0
    with torch.no_grad():
        (model.qa_outputs if name == "f1" else model.classifier).bias[1] = torch.nan
    with pytest.raises(UnsupportedModelError, match=r"received \d+ logits that are NaN"):
        evaluator(PruningPlan.of(model))


def test_tokens_that_tie_are_no_certain_errors():
    model, dataset, _ = task("accuracy")
    with torch.no_grad():
        model.classifier.weight[1] = model.classifier.weight[0]
        model.classifier.bias[1] = model.classifier.bias[0]
    evaluator = ExampleEvaluator(model, batches_of(model, dataset), settings=EvaluatorSettings(batch_size=4))
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    for seed in range(6):
        plan = random_plan(model, seed)
        assert evaluator.probe(plan, Question(base, margins, margins)).metric == evaluator(plan).metric


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("of", ["margin", "loss"])
def test_estimated_effects_are_slopes_of_margins_and_losses(name, of):
    model, dataset, _ = task(name)
    model = model.double()
    batches = batches_of(model, dataset)
    evaluator = ExampleEvaluator(model, batches, metric=name)
    full = PruningPlan.of(model)
    site = next(iter(full.num_heads))
    units = [(Part(site, head, (head,)),) for head in range(full.num_heads[site])]
    effects = evaluator.unit_effects(full, units, of=of)
    assert effects.shape == (len(units), len(dataset))
    assert np.isfinite(effects).all()
    assert np.abs(effects).max() > 0
    removed = evaluator.unit_effects(full.replace(kept_heads={site: range(1, full.num_heads[site])}), units, of=of)
    assert np.isfinite(removed).all()


@pytest.mark.parametrize("name", TASKS)
def test_a_search_needs_the_model_and_its_labelled_examples_only(name):
    model, dataset, slow = task(name)
    search = over_heads(max_evaluations=30, max_drop=0.3)
    metric = None if name in ("f1", "accuracy", "likelihood") else name
    result = search_plan(model, dataset, metric, search, progress=False).search
    assert result.metric >= result.threshold - 1e-9
    assert result.plan.num_removed_heads > 0
    with masked(model, result.plan), torch.no_grad():
        assert result.metric == pytest.approx(slow(model, dataset, name), abs=1e-6)


def test_ffn_chunks_of_other_tasks_are_searched_too():
    model, dataset, _ = task("accuracy")
    search = settings(max_evaluations=15, max_drop=0.2, ffn_chunk=32)
    assert search_plan(model, dataset, search=search, progress=False).search.gain > 0


@pytest.mark.parametrize(
    ("make", "metric", "message"),
    [
        (lambda: tiny_bert("QuestionAnswering"), "accuracy", "must be one of f1, exact_match for a BertForQuestion"),
        (lambda: tiny_bert("TokenClassification"), "f1", "must be one of accuracy for a BertForToken"),
        (tiny_marian, "bleu", "must be one of likelihood for a MarianMTModel, received 'bleu'"),
    ],
)
def test_a_metric_of_another_task_is_refused(make, metric, message):
    scoring_for(make())
    with pytest.raises(InvalidSettingError, match=message):
        scoring_for(make(), metric)


def changed(dataset, **entries):
    return [{**dataset[0], **entries}, *dataset[1:]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("f1", lambda d: changed(d, end_positions=99), r"inside their windows, start <= end, received \[\(\d+, 99"),
        ("f1", lambda d: changed(d, start_positions=3, end_positions=2), r"received \[\(3, 2\)\]"),
        ("f1", lambda d: [{"input_ids": [5, 6], "labels": 1}], "must hold 'start_positions' and 'end_positions'"),
        ("accuracy", lambda d: changed(d, labels=[7] * len(d[0]["input_ids"])), r"must be 0\.\.3, or -100.*\[7\]"),
        ("accuracy", lambda d: changed(d, labels=[1] * 20), "one per token"),
        ("accuracy", lambda d: [{**e, "labels": [-100] * len(e["input_ids"])} for e in d], "no token has a label"),
        ("likelihood", lambda d: changed(d, labels=[-100, -100]), "a reference for each example"),
        ("likelihood", lambda d: changed(d, labels=[5000]), r"tokens 0\.\.\d+, or -100, received \[5000\]"),
        ("likelihood", lambda d: [{"input_ids": [5, 6]}], "must hold 'labels' or 'label'"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(name, change, message):
    model, dataset, _ = task(name)
    ExampleEvaluator(model, batches_of(model, dataset), metric=name)
    with pytest.raises(InvalidSettingError, match=message):
        search_plan(model, change(dataset), progress=False)


def test_a_model_that_returns_no_spans_is_refused():
    model, dataset, _ = task("f1")
    evaluator = ExampleEvaluator(model, batches_of(model, dataset))
    assert evaluator(PruningPlan.of(model)).metric > 0
    evaluator._model = classifier()
    with pytest.raises(UnsupportedModelError, match="must return start_logits and end_logits"):
        evaluator(PruningPlan.of(evaluator._model))


def test_families_with_several_lists_of_layers_count_all_of_them():
    model, dataset, _ = task("likelihood")
    assert len({site.layer for site in anatomy_of(model).sites}) > 1
    evaluator = ExampleEvaluator(model, batches_of(model, dataset))
    base = PruningPlan.of(model)
    margins = evaluator(base).margins
    decoder = next(site for site in reversed(base.num_heads))
    plan = base.replace(kept_heads={decoder: ()})
    found = evaluator.probe(plan, Question(base, margins, margins))
    assert found.metric == evaluator(plan).metric
