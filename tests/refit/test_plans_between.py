"""Plans on the way from one plan to another, and what may be certified of them."""

import copy
import re

import numpy as np
import pytest

from hf_headprune import (
    CertificationData,
    PruningPlan,
    SecondOrder,
    certify,
    certify_path,
    prune_model_,
    verify_certificate,
)
from hf_headprune.errors import InvalidPlanError, InvalidSettingError
from hf_headprune.guarantee.sequence import evenly_spaced
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.plans_between import plans_between
from hf_headprune.refit.removal_costs import removals_between
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from tests.guarantee.test_certificate import examples as answered_examples
from tests.support.classifiers import batches_of, classifier, examples
from tests.support.models import tiny_bert, tiny_marian


def test_the_path_leads_from_what_training_kept_to_what_was_found_one_head_at_a_time():
    full = PruningPlan.of(tiny_bert())
    first, second = full.num_heads
    learned = full.replace(kept_heads={first: (0, 1, 2), second: (0, 1)})
    found = full.replace(kept_heads={first: (1,), second: (1, 3)})
    scores = np.array([5.0, 6.0, 1.0, 0.0, 3.0, 7.0, 0.0, 0.0])
    plans = plans_between(learned, found, scores=scores)
    assert [dict(plan.kept_heads) for plan in plans] == [
        {first: (0, 1), second: (0, 1, 3)},
        {first: (0, 1), second: (1, 3)},
        {first: (1,), second: (1, 3)},
    ]
    assert plans[-1] == found


def test_the_path_takes_first_what_costs_least_where_projections_are_refitted():
    model = classifier()
    full = PruningPlan.of(model)
    evaluator = ExampleEvaluator(model, batches_of(examples(24)))
    refit = evaluator.use_refit(full, ffn=True)
    heads, ffns = [*full.num_heads], [*full.num_ffn]
    found = full.replace(kept_heads={heads[0]: (1,)}, kept_ffn={ffns[1]: range(8)})
    plans = plans_between(full, found, refit)
    removals = removals_between(refit, full, found)
    assert plans[-1] == found
    assert len(plans) == len(removals) > 3
    before = full
    for plan, removal in zip(plans, removals, strict=True):
        assert set(before.kept(removal.site)) - set(plan.kept(removal.site)) == set(removal.units)
        before = plan


@pytest.fixture
def cut_by_costs():
    model = classifier()
    return model, second_order_plan(
        model, examples(40), SecondOrder(density=0.3, tuning=SecondOrderTuning(width_multiple=8))
    )


@pytest.mark.parametrize("density", [0.8, 0.6, 0.3])
def test_what_costs_cut_to_a_higher_density_lies_on_the_way_to_a_lower_one(cut_by_costs, density):
    model, found = cut_by_costs
    plans = plans_between(PruningPlan.of(model), found.plan, found.refit, width_multiple=8)
    assert (
        second_order_plan(
            model, examples(40), SecondOrder(density=density, tuning=SecondOrderTuning(width_multiple=8))
        ).plan
        in plans
    )


def test_what_costs_cut_without_training_is_certified_on_the_way(cut_by_costs):
    model, found = cut_by_costs
    plans = evenly_spaced(plans_between(PruningPlan.of(model), found.plan, found.refit, width_multiple=8), 6)
    data = CertificationData(answered_examples(300, seed=1, model=model))
    refitted = [RefittedPlan(plan, found.refit) for plan in plans]
    path = certify_path(model, refitted, data, max_drop=0.4)
    assert path.certified_index is not None
    pruned = prune_model_(copy.deepcopy(model), refitted[path.certified_index])
    certificate = certify(model, pruned, data, max_drop=0.4, path=path)
    assert certificate.verdict == "PASS"
    assert plans[path.certified_index].num_removed_ffn > 0
    assert verify_certificate(certificate, pruned, data, dense=model).holds


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"end": PruningPlan.of(tiny_bert(num_hidden_layers=1))}, InvalidPlanError, "both plans must be of one model"),
        ({"width_multiple": 0}, InvalidSettingError, "width_multiple must be a whole number >= 1, received 0"),
        ({"end": None}, InvalidSettingError, "end must be a PruningPlan, received NoneType"),
        (
            {"refit": "all"},
            InvalidSettingError,
            "refit must be a Refit or None, received str",
        ),
        ({"scores": np.zeros(3)}, InvalidSettingError, "one finite number for each of the 8 heads, received 3"),
        ({"scores": [np.nan] * 8}, InvalidSettingError, "one finite number for each of the 8 heads"),
    ],
)
def test_plans_that_do_not_belong_together_are_refused(wrong, error, words):
    full = PruningPlan.of(tiny_bert())
    with pytest.raises(error, match=re.escape(words)):
        plans_between(full, **{"end": full.replace(kept_heads={next(iter(full.num_heads)): (0,)}), **wrong})


def test_a_reconstruction_of_another_model_is_refused(cut_by_costs):
    full = PruningPlan.of(tiny_marian())
    with pytest.raises(InvalidPlanError, match="the refit must be of the plans' model"):
        plans_between(full, full, cut_by_costs[1].refit)
