"""max_drop, density, speedup, size_mb, kept_heads: one of them, alone or with a method, and what contradicts what."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from hf_headprune import PruningPlan, anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.cost import cost_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.search.settings import AStarSearch
from tests.support.models import tiny_bert
from tests.support.settings import gates, movement, second_order
from tests.support.trainers import LEARNS, attended_rows, trainer_of

BLOCKS = movement(attention_block=(8, 8), density=0.5, width_multiple=8)


def whole_cost(model):
    anatomy = anatomy_of(model)
    return cost_of(PruningPlan.full(anatomy), anatomy)


@pytest.mark.parametrize(
    "budget", [{"density": 0.5}, {"speedup": 2.0}, {"kept_heads": 3}, {"kept_heads": 0.5}], ids=str
)
def test_a_size_is_met_without_any_labelled_example_besides(tmp_path, budget):
    callback = HeadPruneCallback(**budget, latency=None)
    trainer = trainer_of(tmp_path, callback, eval_dataset=None)
    trainer.train()
    assert callback.search_result is None
    (name, asked) = next(iter(budget.items()))
    reached = {
        "density": linear_density(callback.plan, anatomy_of(tiny_bert())),
        "speedup": callback.report.before.macs / callback.report.after.macs,
        "kept_heads": callback.plan.num_kept_heads / (8 if asked < 1 else 1),
    }[name]
    assert reached == pytest.approx(asked, rel=0.25 if name in ("density", "speedup") else 0)
    assert (callback.plan.num_removed_ffn == 0) == (name == "kept_heads")
    assert "Certificate: none, since" in callback.report.certificate


def test_a_size_in_mb_is_that_of_the_saved_file(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "dense")
    whole = (tmp_path / "dense" / "model.safetensors").stat().st_size
    limit = 0.8 * whole / 1e6
    trainer = trainer_of(tmp_path / "run", HeadPruneCallback(size_mb=limit, latency=None))
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert 0.5 * limit < (tmp_path / "saved" / "model.safetensors").stat().st_size / 1e6 <= limit


VALUES = {"density": 0.5, "speedup": 2.0, "size_mb": 0.09, "kept_heads": 3}


@pytest.mark.parametrize("first", VALUES)
@pytest.mark.parametrize("second", VALUES)
def test_two_budgets_are_refused_by_both_names(first, second):
    if first >= second:
        return
    with pytest.raises(InvalidSettingError) as refused:
        HeadPruneCallback(**{name: VALUES[name] for name in (first, second)})
    assert f"{first}={VALUES[first]!r}" in str(refused.value)
    assert f"{second}={VALUES[second]!r}" in str(refused.value)
    assert "Leave all but one out" in str(refused.value)


def test_a_drop_beside_a_size_is_what_the_certificate_is_about(tmp_path):
    def run(folder, **asked):
        callback = HeadPruneCallback(density=0.5, latency=None, **asked)
        trainer = trainer_of(tmp_path / folder, callback, max_steps=4)
        trainer.train()
        return callback

    alone = run("alone", reference=tiny_bert())
    beside = run("beside", reference=tiny_bert(), max_drop=0.3)
    assert beside.plan == alone.plan
    assert [it.certificate.claim.max_drop for it in (alone, beside)] == [0.01, 0.3]


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        ({"confidence": None}, "max_drop is what the certificate is about, and there is to be none"),
        ({"search": AStarSearch()}, "the search has a max_drop of its own"),
        ({"max_drop": -0.1}, "must be a number of at least 0"),
    ],
    ids=str,
)
def test_a_drop_beside_a_size_that_means_nothing_is_refused(parts, rule):
    with pytest.raises(InvalidSettingError, match=rule):
        HeadPruneCallback(**{"density": 0.5, "max_drop": 0.02, **parts})


def test_a_drop_beside_a_size_that_nothing_can_be_compared_for_is_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match=r"max_drop=\.\.\.\) asks for a certificate, which can't be made"):
        trainer_of(tmp_path, HeadPruneCallback(density=0.5, max_drop=0.02))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"kept_heads": 0.5}, "to 4 of 8 heads"),
        ({"gates": SubsetGates()}, "learns gates to keep 4 of 8 heads"),
        ({"gates": SubsetGates(kept_heads={"encoder": 3})}, "learns gates to keep 3 of 8 heads"),
    ],
    ids=str,
)
def test_a_run_says_how_many_heads_it_keeps(tmp_path, capsys, parts, said):
    trainer_of(tmp_path, HeadPruneCallback(**parts, latency=None), max_steps=4).train()
    assert said in capsys.readouterr().out


def test_settings_are_given_by_name():
    with pytest.raises(TypeError):
        HeadPruneCallback(SubsetGates(kept_heads=3))


@pytest.mark.parametrize(
    ("budget", "rule"),
    [
        ({"size_mb": 0.001}, "Pass a size above"),
        ({"kept_heads": 9}, "9 heads are to be kept, but the model has 8"),
        ({"gates": SubsetGates(kept_heads=9)}, "9 heads are to be kept, but the model has 8"),
    ],
    ids=str,
)
def test_a_budget_out_of_range_is_refused_when_the_trainer_is_built(tmp_path, budget, rule):
    with pytest.raises(InvalidSettingError, match=rule):
        trainer_of(tmp_path, HeadPruneCallback(**budget))


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        ({"density": 0.4, "movement": BLOCKS}, "movement state a budget, too"),
        ({"density": 0.4, "gates": SubsetGates(kept_heads=3)}, "gates state a budget, too"),
        ({"speedup": 2.0, "gates": SubsetGates()}, "gates state a budget, too"),
        ({"kept_heads": 3, "second_order": SecondOrder(density=0.5)}, "second_order state a budget, too"),
        ({"second_order": SecondOrder(density=0.5), "gates": SubsetGates()}, "both select what to prune"),
        ({"movement": BLOCKS, "gates": SubsetGates()}, "Leave gates out"),
        ({"movement": 0.5}, "BlockMovement"),
        ({"gates": 5}, "takes SubsetGates"),
        ({"search": "astar"}, "takes AStarSearch"),
        ({"distillation": tiny_bert()}, "takes Distillation"),
        ({"latency": 8}, "takes LatencySettings"),
        ({"search": AStarSearch(), "movement": BlockMovement.hybrid_filled()}, "Leave search and max_drop out"),
        ({"max_drop": 0.01, "movement": BlockMovement.hybrid_filled()}, "Leave search and max_drop out"),
        ({"search": AStarSearch(), "max_drop": 0.02}, "a max_drop of its own"),
        ({"max_drop": -0.01}, "max_drop must be a number of at least 0"),
        ({"max_drop": float("nan")}, "max_drop must be a number of at least 0"),
        ({"max_drop": "1 %"}, "max_drop must be a number of at least 0"),
        ({"density": 0.0}, "density must be above 0"),
        ({"density": 1.5}, "density must be above 0"),
        ({"speedup": 1.0}, "speedup must be a number above 1"),
        ({"confidence": 0.5}, "confidence=0.5"),
        ({"confidence": 95}, "confidence=95"),
        ({"confidence": "high"}, "confidence='high'"),
    ],
    ids=str,
)
def test_what_contradicts_or_is_of_another_type_is_refused_at_construction(parts, rule):
    with pytest.raises(InvalidSettingError, match=rule):
        HeadPruneCallback(**parts)


def test_a_method_alone_is_followed_by_no_search():
    methods = {
        "gates": SubsetGates(kept_heads=3),
        "movement": BLOCKS,
        "second_order": SecondOrder(density=0.5),
        "density": 0.5,
    }
    for name, value in methods.items():
        assert not HeadPruneCallback(**{name: value}).settings.follows
        assert HeadPruneCallback(**{name: value}, search=AStarSearch()).settings.follows
    assert HeadPruneCallback().settings.max_drop == 0.01
    assert HeadPruneCallback(distillation=Distillation(tiny_bert())).settings.max_drop == 0.01


def test_equal_settings_behave_equally_after_copy_pickle_and_replace():
    given = SubsetGates()
    for same in (copy.copy(given), pickle.loads(pickle.dumps(given)), replace(given)):
        assert HeadPruneCallback(gates=same).settings == HeadPruneCallback(gates=given).settings
        assert (
            HeadPruneCallback(gates=same, density=0.5).settings == HeadPruneCallback(gates=given, density=0.5).settings
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"gates": gates(kept_heads=6, scoring_examples=16)},
        {"movement": BlockMovement.ffn_units(64, width_multiple=8)},
        {"second_order": second_order(density=0.8, width_multiple=8, scoring_examples=16)},
    ],
    ids=["gates", "movement", "second_order"],
)
def test_a_drop_beside_a_method_prunes_on_from_what_training_chose(tmp_path, method):
    data = {"train_dataset": attended_rows(600, 0), "eval_dataset": attended_rows(300, 1)} | LEARNS
    callback = HeadPruneCallback(**method, max_drop=0.2, latency=None)
    trainer = trainer_of(tmp_path, callback, **data)
    trainer.train()
    learned, plan = callback.result.reference, callback.plan
    for site in (*plan.num_heads, *plan.num_ffn):
        assert set(plan.kept(site)) <= set(learned.kept(site))
    assert plan != learned
    assert anatomy_of(trainer.model).num_heads == plan.num_kept_heads
    assert "Compared with the model that training left, before the search" in callback.report.certificate
