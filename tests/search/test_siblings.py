"""Siblings in one pass: the verdicts of the plain evaluation, one forward pass for many plans, no trace left."""

import dataclasses

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.errors import InvalidSettingError, SearchStateError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.astar import search
from hf_headprune.search.baselines import beam, greedy
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, length_sorted_batches
from hf_headprune.search.evaluation.probing import SIBLINGS, Probing
from hf_headprune.search.evaluation.stacking import projecting
from hf_headprune.search.evaluation.trials import Trials
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.examples import PadRight
from tests.search.test_astar import margin_problem
from tests.search.test_evaluator import batches_of, classifier, examples, random_plan
from tests.search.test_probing import CLASSIFIERS, asked, decided, layers_run, near
from tests.search.test_search_probes import with_probe
from tests.support.models import tiny_bert, tiny_marian
from tests.tasks.test_scorers import NUM_TAGS, decisive_heads, spans, tags

TASKS = {
    **{name: (make, None, None) for name, make in CLASSIFIERS.items()},
    "tags": (lambda: decisive_heads(tiny_bert("TokenClassification", num_labels=NUM_TAGS)), tags, None),
    "spans": (lambda: decisive_heads(tiny_bert("QuestionAnswering")), spans, "f1"),
}


def model_and_batches(name):
    make, data, metric = TASKS[name]
    model = make()
    if data is None:
        return model, batches_of(decided(model, examples(40))), metric
    return model, length_sorted_batches(data(40), PadRight(0), batch_size=7), metric


@pytest.mark.parametrize("refits", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_verdicts_of_siblings_equal_those_of_the_plain_evaluation(name, refits):
    model, batches, metric = model_and_batches(name)
    plain = ExampleEvaluator(model, batches, metric=metric)
    stacked = ExampleEvaluator(model, batches, metric=metric, probing=Probing(batch_size=4, siblings=4))
    full, rng = PruningPlan.of(model), np.random.default_rng(0)
    if refits:
        plain.use_refit(full, ffn=True)
        stacked.use_refit(full, ffn=True)
    assert stacked.count_siblings() == 4
    kinds = []
    for turn in range(12):
        base = full if turn % 3 else random_plan(model, turn)
        margins = plain(base).margins
        plans = [near(base, rng) for _ in range(4)]
        floors = [None, *rng.choice([0.1, 0.4, 0.7, 0.9, 1.0], 3)]
        questions = [asked(base, margins, rng, floor=floor, tentative=turn % 2 == 0) for floor in floors]
        for plan, question, found in zip(
            plans, questions, stacked.probe_siblings([*zip(plans, questions, strict=True)]), strict=True
        ):
            expected = plain(plan)
            kinds.append(found.kind)
            if found.kind == "bound":
                assert expected.metric <= found.metric < question.floor
            elif found.kind == "estimate":
                assert found.metric >= question.floor
            else:
                assert found.metric == pytest.approx(expected.metric, abs=1e-12)
            seen = ~np.isnan(found.margins)
            assert seen.all() or found.kind != "exact"
            np.testing.assert_allclose(found.margins[seen], expected.margins[seen], rtol=1e-4, atol=3e-4)
    assert {"bound", "exact"} <= set(kinds)


def test_a_sibling_may_lose_a_whole_site_and_units_that_all_lose_are_taken_out():
    model = classifier()
    batches = batches_of(decided(model, examples(40)))
    plain = ExampleEvaluator(model, batches)
    stacked = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=3))
    base = PruningPlan.of(model)
    margins, rng = plain(base).margins, np.random.default_rng(0)
    first, second = list(base.kept_heads)[:2]
    ffn = next(iter(base.kept_ffn))
    kept = [{first: [], second: [0, 2]}, {first: [1], second: [0, 1]}, {first: [1, 2], second: [2]}]
    plans = [base.replace(kept_heads=heads, kept_ffn={ffn: range(5 + i, 20)}) for i, heads in enumerate(kept)]
    site = next(site for site in anatomy_of(model).sites if site.name == second)
    widths = set()
    module = base_model(model).get_submodule(site.output)
    handle = module.register_forward_hook(lambda module, args, output: widths.add(args[0].shape[-1]))
    found = stacked.probe_siblings([(plan, asked(base, margins, rng)) for plan in plans])
    handle.remove()
    for plan, measured in zip(plans, found, strict=True):
        assert measured.metric == plain(plan).metric
        np.testing.assert_allclose(measured.margins, plain(plan).margins, atol=2e-4)
    assert 3 * site.unit_width in widths  # heads 0, 1 and 2 of four


def test_layers_are_run_once_for_all_siblings():
    model = classifier(num_hidden_layers=3)
    batches = batches_of(decided(model, examples(40)))
    base, rng = PruningPlan.of(model), np.random.default_rng(1)
    sites = list(base.kept_heads)
    plans = [base.replace(kept_heads={sites[1]: [0]}), base.replace(kept_heads={sites[2]: [1, 2]})]
    margins = ExampleEvaluator(model, batches)(base).margins

    def passes_and_examples(siblings):
        evaluator = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=siblings))
        questions = [(plan, asked(base, margins, rng)) for plan in plans]
        evaluator.probe(base, asked(base, margins, rng))  # tries the model, and remembers the states of the base
        passes = []
        handle = model.bert.encoder.layer[-1].register_forward_hook(lambda *_: passes.append(1))
        run = layers_run(model, lambda: evaluator.probe_siblings(questions))
        handle.remove()
        assert evaluator._prober.examples_seen == 3 * 40
        return len(passes), run

    calls = {siblings: passes_and_examples(siblings) for siblings in (1, 2)}
    assert calls[1][0] == 2 * calls[2][0]
    assert calls[1][1][0] == calls[2][1][0] == 0  # the first layer is the base's for both
    assert calls[2][1][2] == 2 * 40


@pytest.mark.usefixtures("wide_band")
def test_siblings_with_a_rounded_twin_and_one_that_it_misleads():
    model = classifier()
    batches = batches_of(decided(model, examples(60)))
    plain = ExampleEvaluator(model, batches)
    stacked = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=5, half_precision=True))
    base, rng = PruningPlan.of(model), np.random.default_rng(11)
    margins = plain(base).margins
    for _ in range(10):
        plans = [near(base, rng) for _ in range(5)]
        questions = [asked(base, margins, rng, floor=floor, tentative=False) for floor in (None, None, 0.6, 0.8, 0.95)]
        for plan, question, found in zip(
            plans, questions, stacked.probe_siblings([*zip(plans, questions, strict=True)]), strict=True
        ):
            metric = plain(plan).metric
            assert found.metric == metric if found.kind == "exact" else metric < question.floor


def test_the_model_is_left_as_it_was_by_a_pass_that_fails(monkeypatch):
    model = classifier()
    batches = batches_of(decided(model, examples(40)))
    evaluator = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=2))
    base, rng = PruningPlan.of(model), np.random.default_rng(2)
    evaluator.use_refit(base)
    margins = evaluator(base).margins
    plans = [base.replace(kept_heads={site: [0]}) for site in base.kept_heads]
    asked_of = [(plan, asked(base, margins, rng)) for plan in plans[:2]]
    evaluator.probe_siblings(asked_of)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def fail(*args):
        raise OSError("killed")

    monkeypatch.setattr(type(evaluator.scoring), "answers", fail)
    with pytest.raises(OSError, match="killed"):
        evaluator.probe_siblings(asked_of)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_module_with_a_forward_of_its_own_gets_it_back():
    module = torch.nn.Linear(3, 2)
    module.forward = own = lambda hidden: hidden[..., :2]
    with projecting({module: [(torch.ones(2, 3), None), (torch.zeros(2, 3), torch.ones(2))][:1] * 2}):
        assert module(torch.ones(4, 3)).tolist() == [[3, 3]] * 4
    assert vars(module)["forward"] is own


def test_where_a_model_minds_other_examples_siblings_follow_one_another(monkeypatch):
    model = classifier()
    batches = batches_of(decided(model, examples(40)))
    monkeypatch.setattr(Trials, "_are_equal_up_to_rounding", lambda *_: False)
    evaluator = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=2))
    base, rng = PruningPlan.of(model), np.random.default_rng(3)
    margins = evaluator(base).margins
    plans = [base.replace(kept_heads={site: [0]}) for site in base.kept_heads][:2]
    questions = [asked(base, margins, rng) for _ in plans]
    together = evaluator.probe_siblings([*zip(plans, questions, strict=True)])
    alone = [evaluator.probe(plan, question) for plan, question in zip(plans, questions, strict=True)]
    assert evaluator.count_siblings() == 1
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.margins, other.margins)


def test_children_of_different_sets_and_references_follow_one_another():
    model = classifier()
    batches = batches_of(decided(model, examples(40)))
    evaluator = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=2))
    rng = np.random.default_rng(4)
    bases = [PruningPlan.of(model), random_plan(model, 1)]
    asked_of = [(near(base, rng), asked(base, evaluator(base).margins, rng)) for base in bases]
    for (plan, _), found in zip(asked_of, evaluator.probe_siblings(asked_of), strict=True):
        assert found.metric == evaluator(plan).metric
    full, (first, second) = bases[0], list(bases[0].kept_heads)[:2]
    margins = evaluator(full).margins  # sets that answer alike are different sets all the same
    alike = [(base.replace(kept_heads={second: [0]}), base) for base in (full, full.replace(kept_heads={first: [0]}))]
    asked_of = [(plan, asked(base, margins, rng)) for plan, base in alike]
    for (plan, _), found in zip(asked_of, evaluator.probe_siblings(asked_of), strict=True):
        np.testing.assert_allclose(found.margins, evaluator(plan).margins, rtol=1e-4, atol=3e-4)
    marian = tiny_marian()
    rows = [{"input_ids": e["input_ids"], "labels": e["input_ids"][:4]} for e in examples(12)]
    references = length_sorted_batches(rows, PadRight(marian.config.pad_token_id), batch_size=4)
    likelihoods = ExampleEvaluator(marian, references, probing=Probing(siblings=2))
    base = PruningPlan.of(marian)
    margins = likelihoods(base).margins
    plans = [base.replace(kept_heads={site: [0]}) for site in base.kept_heads][:2]
    found = likelihoods.probe_siblings([(plan, asked(base, margins, rng)) for plan in plans])
    assert [one.metric for one in found] == [likelihoods(plan).metric for plan in plans]


@pytest.mark.parametrize("siblings", [1, 3])
def test_memory_decides_no_bit_of_siblings_either(siblings):
    model = classifier(hidden_size=192, num_hidden_layers=3)
    batches = batches_of(decided(model, examples(24)))
    base, rng = PruningPlan.of(model), np.random.default_rng(5)
    plans = [base.replace(kept_heads={list(base.kept_heads)[-1]: kept}) for kept in ([0], [1, 2], [3])]
    margins = ExampleEvaluator(model, batches)(base).margins
    questions = [(plan, asked(base, margins, rng)) for plan in plans]
    roomy, without = (
        ExampleEvaluator(model, batches, probing=Probing(batch_size=3, siblings=siblings, cache_mib=mib))
        for mib in (64, 0)
    )
    together = roomy.probe_siblings(questions)
    without.probe_siblings(questions[:1])  # tries the model
    rows = []
    handle = model.bert.encoder.layer[0].register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    for one, other in zip(together, without.probe_siblings(questions), strict=True):
        np.testing.assert_array_equal(one.margins, other.margins)
    handle.remove()
    assert max(rows) == 3  # what they share is run once for all


def test_no_pass_holds_more_siblings_than_the_limit():
    model = classifier()
    batches = batches_of(decided(model, examples(40)))
    evaluator = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=2))
    base, rng = PruningPlan.of(model), np.random.default_rng(6)
    margins = evaluator(base).margins
    plans = [base.replace(kept_heads={site: kept}) for site in list(base.kept_heads)[:2] for kept in ([0], [1], [2, 3])]
    evaluator.probe_siblings([(plan, asked(base, margins, rng)) for plan in plans[:2]])
    rows = []
    handle = model.bert.encoder.layer[-1].register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    found = evaluator.probe_siblings([(plan, asked(base, margins, rng)) for plan in plans])
    handle.remove()
    assert max(rows) == 8
    assert [one.metric for one in found] == [evaluator(plan).metric for plan in plans]
    assert evaluator.probe_siblings([]) == []


@pytest.mark.parametrize("siblings", [0, 2.5, True])
def test_a_limit_that_is_no_number_of_plans_is_refused(siblings):
    with pytest.raises(InvalidSettingError, match="siblings"):
        Probing(siblings=siblings)
    with pytest.raises(InvalidSettingError, match="siblings"):
        AStarSearch(siblings=siblings)


def test_only_accelerators_stack_unless_asked():
    model = classifier()
    batches = batches_of(examples(8))
    assert ExampleEvaluator(model, batches).count_siblings() == 1
    assert Probing().siblings_of(model.to("meta")) == SIBLINGS > 1


# --- the search ---


def together(problem, siblings=4):
    """The same problem, asked about several sets at once; what they are asked is kept."""
    problem = with_probe(problem)
    groups = []

    def probe_siblings(asked_of):
        groups.append([removed for removed, _ in asked_of])
        return [problem.probe(removed, question) for removed, question in asked_of]

    return dataclasses.replace(problem, probe_siblings=probe_siblings, siblings=siblings), groups


@pytest.mark.parametrize("strategy", [greedy, beam])
def test_the_course_of_an_elimination_does_not_depend_on_siblings(strategy):
    settings = AStarSearch(max_evaluations=None, max_drop=0.05)
    problem = margin_problem(3, 9)
    asked_together, groups = together(problem)
    one, other = (strategy(p, settings) for p in (with_probe(problem), asked_together))
    assert (one.removed, one.measurement.metric) == (other.removed, other.measurement.metric)
    assert [step.removed for step in one.history] == [step.removed for step in other.history]
    assert max(map(len, groups)) == 4


@pytest.mark.parametrize("limit", [2, 5, 9, 17, 40])
def test_a_search_keeps_its_budget_where_it_asks_ahead(limit):
    problem, groups = together(margin_problem(5, 12))
    found = search(problem, AStarSearch(max_evaluations=limit, max_drop=0.05))
    assert found.evaluations == len(found.history) == limit
    assert {frozenset(s.removed) for s in found.history} >= {removed for group in groups for removed in group}
    assert all(1 < len(group) <= 4 for group in groups)


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("cache_mib", [0.15, 64])
def test_a_search_killed_between_siblings_ends_with_the_same_bits(tmp_path, cache_mib):
    model = classifier()
    batches = batches_of(decided(model, examples(40)))
    settings = AStarSearch(max_evaluations=24, max_drop=0.1, seed=1)

    def run(journal):
        evaluator = ExampleEvaluator(model, batches, probing=Probing(batch_size=4, siblings=4, cache_mib=cache_mib))
        return search_over_plans(
            anatomy_of(model), evaluator, settings, journal=journal, fingerprint=evaluator.fingerprint()
        )

    whole = run(tmp_path / "whole.jsonl")
    written = lines_of(tmp_path / "whole.jsonl")
    assert len(written) > 24
    for kept in range(1, len(written), 3):
        journal = tmp_path / f"killed-{kept}.jsonl"
        journal.write_bytes(b"".join(written[:kept]) + written[kept][:9])
        assert run(journal).history == whole.history
        assert lines_of(journal) == written


def test_a_journal_goes_on_with_as_many_siblings_only(tmp_path):
    settings = AStarSearch(max_evaluations=12, max_drop=0.05)
    problem = margin_problem(5, 12)
    search(together(problem)[0], settings, journal=tmp_path / "search.jsonl")
    with pytest.raises(SearchStateError, match="belongs to another search"):
        search(with_probe(problem), settings, journal=tmp_path / "search.jsonl")


def test_what_was_asked_ahead_is_not_asked_again():
    problem, groups = together(margin_problem(5, 12))
    alone = []

    def probe(removed, question):
        alone.append((removed, question.floor))
        return problem.probe(removed, question)

    found = search(dataclasses.replace(problem, probe=probe), AStarSearch(max_evaluations=40, max_drop=0.05))
    grouped = {removed for group in groups for removed in group}
    assert len(grouped) == sum(map(len, groups)) > 20
    assert all(floor is None for removed, floor in alone if removed in grouped)  # confirmations alone
    assert found.evaluations == 40
