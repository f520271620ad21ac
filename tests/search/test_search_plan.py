"""Searches over plans of live models, against brute force."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, SearchStateError, UnsupportedModelError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.baselines import greedy, in_order
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.search.plans import search_over_plans, search_plan
from hf_headprune.search.problem import Measurement
from hf_headprune.search.settings import AStarSearch
from tests.search.test_evaluator import NUM_LABELS, batches_of, classifier, examples
from tests.support.models import tiny_bert, tiny_marian

PROOF = AStarSearch(max_evaluations=None, max_drop=0.1)


def own_examples(model):
    """Examples labelled with what the model itself answers, so that every head matters."""
    dataset = examples()
    with torch.no_grad():
        for example in dataset:
            example["label"] = int(model(input_ids=torch.tensor([example["input_ids"]])).logits.argmax())
    return dataset


def brute_force(model, evaluator, start, max_drop):
    full = PruningPlan.of(model)
    sites = list(full.kept_heads)
    subsets = [[c for n in range(5) for c in itertools.combinations(range(4), n)] for _ in sites]
    threshold = evaluator(start).metric - max_drop - 1e-9
    plans = [start.replace(kept_heads=dict(zip(sites, kept, strict=True))) for kept in itertools.product(*subsets)]
    return max(plan.num_removed_heads for plan in plans if evaluator(plan).metric >= threshold)


@pytest.mark.parametrize("seed", [0, 4, 5, 6])
def test_plan_of_a_live_model_is_the_true_optimum(seed):
    model = classifier(seed)
    dataset = own_examples(model)
    result = search_plan(model, dataset, search=PROOF, progress=False)
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    assert result.optimality == "proved"
    assert result.plan.num_removed_heads == brute_force(model, evaluator, result.start, PROOF.max_drop)
    assert evaluator(result.plan).metric == result.metric >= result.threshold - 1e-9
    assert evaluator(result.start).metric == result.reference_metric
    assert result.drop == result.reference_metric - result.metric
    assert result.gain == result.upper_bound == result.plan.num_removed_heads


def test_plan_of_a_model_with_twelve_heads_is_the_true_optimum():
    model = tiny_bert(num_hidden_layers=3, num_labels=NUM_LABELS)
    dataset = own_examples(model)[:8]
    result = search_plan(model, dataset, search=PROOF, progress=False)
    assert sum(result.plan.num_heads.values()) == 12
    assert result.optimality == "proved"
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    assert result.plan.num_removed_heads == brute_force(model, evaluator, result.start, PROOF.max_drop)


def test_plan_that_training_learned_is_the_reference():
    model, dataset = classifier(), examples()
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    full = PruningPlan.of(model)
    first, second = full.kept_heads
    start = full.replace(kept_heads={first: [1, 2], second: []}, kept_ffn={next(iter(full.kept_ffn)): range(10)})
    result = search_over_plans(anatomy_of(model), evaluator, PROOF, start=start)
    assert set(result.history[0].removed) == {(first, 0), (first, 3), *((second, head) for head in range(4))}
    assert result.reference_metric == evaluator(start).metric
    assert result.plan.kept_ffn == start.kept_ffn
    assert result.plan.num_removed_heads == brute_force(model, evaluator, start, PROOF.max_drop)


def test_head_that_training_closed_is_restored_where_that_pays():
    anatomy = anatomy_of(classifier())
    full = PruningPlan.full(anatomy)
    first, second = full.kept_heads
    start = full.replace(kept_heads={second: [1, 2, 3]})

    def measure(plan):
        return Measurement(1.0 if plan == start or 0 in plan.kept_heads[second] else 0.0)

    result = search_over_plans(anatomy, measure, PROOF, start=start)
    assert dict(result.plan.kept_heads) == {first: (), second: (0,)}


@pytest.mark.parametrize(("objective", "unit"), [("heads", 1), ("parameters", 4 * 32 * 8 + 3 * 8), ("macs", None)])
def test_gain_is_counted_in_what_the_objective_names(objective, unit):
    model = classifier()
    chosen = AStarSearch(objective=objective, max_evaluations=1)
    start = PruningPlan.of(model).replace(kept_heads={"encoder.layer.0.attention": [0]})
    result = search_over_plans(anatomy_of(model), lambda plan: Measurement(1.0), chosen, start=start)
    per_head = unit or 4 * 128 * 32 * 8 + 2 * 128 * 128 * 8
    assert result.gain == 3 * per_head
    assert (result.objective, result.evaluations, result.optimality) == (objective, 1, "budget")


def test_heads_of_unequal_cost_are_weighed():
    model = tiny_marian()
    anatomy = anatomy_of(model)
    result = search_over_plans(
        anatomy,
        MetricEvaluator(lambda: 1.0, model),
        AStarSearch(objective="macs"),
        head_scores=np.arange(anatomy.num_heads),
    )
    assert result.plan.num_kept_heads == 0
    assert result.optimality == "proved"
    assert result.plan.num_kept_ffn == PruningPlan.of(model).num_kept_ffn


def test_head_scores_decide_what_is_tried_first():
    model = classifier()
    anatomy = anatomy_of(model)
    scores = np.array([9, 9, 9, 0, 1, 9, 9, 9.0])
    result = search_over_plans(
        anatomy, lambda plan: Measurement(1.0), AStarSearch(max_evaluations=2), head_scores=scores
    )
    first, second = PruningPlan.of(model).kept_heads
    assert {(first, 3), (second, 0)} <= set(result.history[1].removed)


def test_result_is_written_as_json():
    model = classifier()
    result = search_plan(
        model, own_examples(model), search=AStarSearch(max_evaluations=20, max_drop=0.1), progress=False
    )
    content = json.loads(result.to_json())
    assert PruningPlan.from_json(json.dumps(content["plan"])) == result.plan
    assert PruningPlan.from_json(json.dumps(content["start"])) == PruningPlan.of(model)
    assert len(content["history"]) == content["evaluations"] == 20
    removed = {tuple(head) for head in [s for s in content["history"] if s["is_incumbent"]][-1]["removed"]}
    assert removed == {
        (site, head) for site, kept in result.plan.kept_heads.items() for head in range(4) if head not in kept
    }


def test_a_metric_that_is_no_number_is_null_in_json():
    answers = iter([1.0, *[float("nan")] * 9])
    result = search_plan(classifier(), None, lambda _: next(answers), AStarSearch(max_evaluations=3), progress=False)
    assert [step["metric"] for step in json.loads(result.to_json())["history"]] == [1.0, None, None]


def test_killed_search_continues_and_a_changed_model_is_refused(tmp_path):
    model, path = classifier(), tmp_path / "search.jsonl"
    dataset = own_examples(model)
    chosen = AStarSearch(max_evaluations=30, max_drop=0.1)
    whole = search_plan(model, dataset, search=chosen, progress=False)
    first = search_plan(
        model, dataset, search=dataclasses.replace(chosen, max_evaluations=11), journal=str(path), progress=False
    )
    assert first.evaluations == 11
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))
    again = search_plan(model, dataset, search=chosen, journal=path, progress=False)
    assert again.history == whole.history
    with torch.no_grad():
        model.classifier.bias.add_(0.1)
    with pytest.raises(SearchStateError, match="belongs to another search"):
        search_plan(model, dataset, search=chosen, journal=path, progress=False)


def test_columns_that_the_model_does_not_take_are_left_out():
    plain = examples()
    rich = [
        {**example, "sentence": "text", "idx": number, "attention_mask": [1] * len(example["input_ids"])}
        for number, example in enumerate(plain)
    ]
    chosen = AStarSearch(max_evaluations=5)
    model = classifier()
    assert (
        search_plan(model, rich, search=chosen, progress=False).history
        == search_plan(model, plain, search=chosen, progress=False).history
    )


def test_collator_and_batch_size_of_the_user_are_used():
    sizes = []

    def collate(rows):
        sizes.append(len(rows))
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": torch.tensor([r["labels"] for r in rows]),
        }

    model, chosen = classifier(), AStarSearch(max_evaluations=3)
    result = search_plan(model, examples(), search=chosen, data_collator=collate, batch_size=10, progress=False)
    assert sizes == [10, 10, 4]
    assert result.history == search_plan(model, examples(), search=chosen, progress=False).history


def test_metric_of_the_settings_wins():
    model = classifier()
    chosen = AStarSearch(max_evaluations=1, metric="macro_f1")
    result = search_plan(model, examples(), "accuracy", chosen, progress=False)
    f1 = ExampleEvaluator(model, batches_of(examples()), metric="macro_f1")(result.start).metric
    assert result.metric == f1


def test_progress_is_shown_on_request(capsys):
    chosen = AStarSearch(max_evaluations=4)
    search_plan(classifier(), examples(), search=chosen)
    shown = capsys.readouterr().err
    assert "Search: 100%" in shown
    assert "heads removed, metric" in shown
    search_plan(classifier(), examples(), search=chosen, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "dataset is empty"),
        ({"train": 1}, "must be sized and indexable.*received dict"),
        (iter([1]), "must be sized and indexable"),
        ([3], "must hold 'labels' or 'label', received int"),
        ([{"input_ids": [1]}], "must hold 'labels' or 'label'"),
        ([{"text": "a", "label": 0}], "Tokenize the data set first"),
        ([{"input_ids": [5], "label": NUM_LABELS}], r"labels must be 0\.\.2, received \[3\]"),
        ([{"input_ids": [5], "label": 0}, {"input_ids": [5]}], "example 1 has no label"),
    ],
)
def test_unusable_data_is_refused(dataset, message):
    with pytest.raises(InvalidSettingError, match=message):
        search_plan(classifier(), dataset, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "bleu"}, "metric must be one of accuracy, .*received 'bleu'"),
        ({"search": AStarSearch(metric="eval_loss")}, "received 'eval_loss'"),
        ({"search": AStarSearch(max_drop=1)}, "max_drop is absolute"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_unusable_settings_are_refused(arguments, message):
    with pytest.raises(InvalidSettingError, match=message):
        search_plan(classifier(), examples(), progress=False, **arguments)


@pytest.mark.parametrize("model", [lambda: tiny_bert(num_labels=1), lambda: torch.nn.Linear(2, 2)])
def test_unusable_model_is_refused(model):
    with pytest.raises(UnsupportedModelError):
        search_plan(model(), examples(), progress=False)


def test_start_and_scores_of_another_model_are_refused():
    anatomy = anatomy_of(classifier())
    with pytest.raises(InvalidPlanError, match="does not fit"):
        search_over_plans(
            anatomy, lambda plan: Measurement(1.0), PROOF, start=PruningPlan.of(tiny_bert(num_hidden_layers=1))
        )
    with pytest.raises(InvalidSettingError, match=r"scores must be 8 finite numbers, received shape \(2, 4\)"):
        search_over_plans(anatomy, lambda plan: Measurement(1.0), PROOF, head_scores=np.zeros((2, 4)))


# --- any metric, any strategy ---


def test_any_function_of_the_model_can_be_the_metric():
    model = classifier()
    dataset = own_examples(model)
    batches = batches_of(dataset)

    def accuracy(masked_model):
        assert masked_model is model
        right = [
            masked_model(**{k: v for k, v in b.items() if k != "labels"}).logits.argmax(-1) == b["labels"]
            for b in batches
        ]
        return float(torch.cat(right).float().mean())

    settings = AStarSearch(max_drop=0.1, max_evaluations=12)
    result = search_plan(model, None, accuracy, settings, progress=False)
    assert result.metric == pytest.approx(ExampleEvaluator(model, batches)(result.plan).metric)
    assert result.metric >= result.threshold
    assert result.evaluations == 12


def test_a_function_as_metric_refuses_data_and_must_return_a_number():
    model = classifier()
    with pytest.raises(InvalidSettingError, match=r"has examples of its own, received dataset besides"):
        search_plan(model, examples(), lambda _: 1.0, progress=False)
    with pytest.raises(InvalidSettingError, match="must return one number"):
        search_plan(model, None, lambda _: {"f1": 1.0}, progress=False)


def test_baselines_search_in_place_of_the_default():
    model = classifier()
    dataset = own_examples(model)
    scores = np.arange(8.0)[::-1]
    result = search_plan(
        model, dataset, search=AStarSearch(max_drop=0.9), head_scores=scores, strategy=in_order, progress=False
    )
    gone = [8 - len(step.removed) for step in result.history]
    assert result.evaluations == len(gone) <= 9
    removed = {8 - 1 - number for number in range(result.plan.num_removed_heads)}
    heads = [(site, head) for site, count in result.start.num_heads.items() for head in range(count)]
    assert {heads[number] for number in removed} == {(s, h) for s, h in heads if h not in result.plan.kept_heads[s]}
    greedily = search_plan(model, dataset, search=AStarSearch(max_drop=0.1), strategy=greedy, progress=False)
    assert greedily.metric >= greedily.threshold
