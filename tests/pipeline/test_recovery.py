"""The pruned model trains on before it is certified: what is tested when, and what the result then holds."""

import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import masked, plain_copy
from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.pipeline.search import search_plan
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import tiny_bert
from tests.support.trainers import attended_rows, logits_of

TRAIN = attended_rows(600, 0)
_SEEN = {tuple(row["input_ids"]) for row in TRAIN}
UNSEEN = [row for row in attended_rows(240, 1) if tuple(row["input_ids"]) not in _SEEN]


def train(model, rows, *, steps, rate):
    """Trains on batches of 16, by labels."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=rate)
    for step in range(steps):
        first = 16 * step % (len(rows) - 16)
        batch = {name: torch.tensor([row[name] for row in rows[first : first + 16]]) for name in rows[0]}
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained():
    return train(tiny_bert(num_labels=2), TRAIN, steps=50, rate=5e-3)


def from_labels(pruned, dense):
    train(pruned, TRAIN, steps=30, rate=2e-3)


def test_a_result_holds_the_weights_that_were_trained_on(trained):
    seen = []

    def recover(pruned, dense):
        assert torch.equal(logits_of(dense), logits_of(trained))
        train(pruned, TRAIN[:64], steps=3, rate=1e-3)
        seen.append(logits_of(pruned))

    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    result = plan_for_budget(trained, TRAIN[:64], density=0.3, recover=recover)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    with masked(trained, result):
        assert torch.allclose(logits_of(trained), seen[0], atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    assert torch.equal(logits_of(prune_model_(plain_copy(trained), result)), seen[0])


def test_a_size_is_certified_after_the_recovery(trained):
    data = {"dataset": TRAIN, "density": 0.05, "certify": UNSEEN}
    bare = plan_for_budget(trained, **data)
    better = plan_for_budget(trained, **data, recover=from_labels)
    assert bare.plan == better.plan
    assert better.certificate.evidence.pruned_metric > bare.certificate.evidence.pruned_metric
    assert better.certificate.claim.alpha == pytest.approx(0.05)


@pytest.fixture(scope="module", autouse=True)
def output_projections_alone():
    """The task is so easy that a refit in order solves it with nothing left: no plan would fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RefitInOrder, "fit", lambda refit: refit)
        yield


@pytest.fixture
def few(monkeypatch):
    """Two plans, of which the last can only hold after training."""
    monkeypatch.setattr("hf_headprune.pipeline.cost_path.DENSITIES", (0.6, 0.2))


@pytest.mark.usefixtures("few")
def test_a_deeper_cut_holds_after_recovery_and_each_of_two_tests_has_half_of_the_error(trained, monkeypatch):
    monkeypatch.setattr(
        "hf_headprune.pipeline.recovery._depth", lambda *given: 1
    )  # lower than any drop so large allows
    data = {"calibration": TRAIN, "max_drop": 0.05, "confidence": 0.9}
    bare = search_plan(trained, UNSEEN, **data)
    result = search_plan(trained, UNSEEN, **data, recover=from_labels)
    densities = [linear_density(found.plan, anatomy_of(trained)) for found in (result, bare)]
    assert densities[0] < densities[1]
    assert (len(result.path.steps), len(result.history)) == (1, 2)
    assert result.certificate.verdict == "PASS"
    assert result.certificate.claim.alpha == pytest.approx(0.05)
    metrics = [measured.metric for measured in result.history]
    assert metrics == [result.certificate.evidence.dense_metric, result.certificate.evidence.pruned_metric]


@pytest.mark.usefixtures("few")
def test_plans_without_training_are_tested_where_the_trained_one_fails(trained):
    def ruin(pruned, dense):
        with torch.no_grad():
            pruned.classifier.weight.neg_()

    data = {"calibration": TRAIN, "max_drop": 0.05}
    fallen = search_plan(trained, UNSEEN, **data, confidence=0.9, recover=ruin)
    bare = search_plan(trained, UNSEEN, **data, confidence=0.95)
    assert fallen.plan == bare.plan != bare.reference
    assert fallen.certificate.evidence == bare.certificate.evidence


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"search": AStarSearch(max_drop=0.05)}, "there are none; pass calibration="),
        ({}, "pass calibration="),
    ],
)
def test_recovery_needs_an_order_that_has_not_seen_the_tested_examples(trained, settings, words):
    rows = {"calibration": TRAIN[:60]} if settings else {}
    with pytest.raises(InvalidSettingError, match=words):
        search_plan(trained, UNSEEN[:40], **settings, **rows, recover=print)


def test_epochs_are_no_function_that_trains(trained):
    for call in (lambda: plan_for_budget(trained, attended_rows(8, 1), density=0.5, recover=1),
                 lambda: search_plan(trained, attended_rows(8, 1), recover=1)):  # fmt: skip
        with pytest.raises(InvalidSettingError, match=r"recover must be a function \(pruned, dense\).*received 1"):
            call()


@pytest.mark.parametrize("drop", [-1, float("nan"), "0.01", True])
def test_a_drop_that_is_none_is_refused_by_the_name_of_the_call(trained, drop):
    with pytest.raises(InvalidSettingError, match="search_plan: max_drop must be a number of at least 0"):
        search_plan(trained, attended_rows(8, 1), max_drop=drop)


def test_labels_of_the_calibration_are_not_needed(trained):
    """What the model answers itself stands for them, as in `plan_for_budget`."""
    unlabelled = [{name: value for name, value in row.items() if name != "labels"} for row in TRAIN[:64]]
    result = search_plan(trained, UNSEEN, calibration=unlabelled, max_drop=0.3, progress=False)
    assert result.plan.num_removed_heads > 0
    assert result.certificate.verdict == "PASS"
