"""Curves of a training: read from the Trainer's log, kept in the report, drawn."""

import math

import pytest

from hf_headprune.plan import PruningPlan
from hf_headprune.publish.plots import TRAINING_NAME, captions, pictures
from hf_headprune.publish.training import MOST_POINTS, Curve, curves_of
from tests.support.models import tiny_bert

FIRST, SECOND = "encoder.layer.0.attention", "encoder.layer.1.attention"
LOG = [
    {"headprune/hard_heads/" + FIRST: 4.0, "headprune/hard_heads/" + SECOND: 4.0, "step": 10},
    {"loss": 0.7, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": 0.5, "step": 10},
    {"headprune/hard_heads/" + FIRST: 3.0, "headprune/hard_heads/" + SECOND: 1.0, "step": 20},
    {"loss": 0.5, "epoch": 1.0, "step": 20},
    {"eval_loss": 0.6, "eval_accuracy": 0.8, "eval_runtime": 3.0, "eval_samples_per_second": 9.0, "step": 20},
    {"eval_loss": 0.5, "eval_accuracy": 0.9, "eval_runtime": 3.0, "eval_name": "dev", "step": 40},
    {"loss": math.nan, "step": 40},
    {"train_runtime": 9.0, "train_loss": 0.6, "step": 40},
]


@pytest.fixture(autouse=True)
def no_pictures():
    """They are drawn here."""


@pytest.fixture(scope="module")
def plan():
    return PruningPlan.of(tiny_bert())


def test_curves_are_losses_metrics_and_what_is_kept(plan):
    assert curves_of(LOG, plan) == (
        Curve("training loss", "loss", (10, 20), (0.7, 0.5)),
        Curve("loss on evaluation", "loss", (20, 40), (0.6, 0.5)),
        Curve("accuracy", "metric", (20, 40), (0.8, 0.9)),
        Curve("heads kept", "kept", (10, 20), (1.0, 0.5)),
    )


@pytest.mark.parametrize(
    ("entry", "name", "value"),
    [
        ({"headprune/density": 0.4, "headprune/final_density": 0.3}, "blocks kept", 0.4),
        ({"headprune/kept_units/encoder.layer.0.intermediate": 16.0}, "FFN units kept", 0.25),
        ({"headprune/kept_units/elsewhere": 16.0, "eval_dev_loss": 1.0}, "dev_loss on evaluation", 1.0),
    ],
)
def test_what_each_method_logs_is_a_share(entry, name, value, plan):
    assert plan.num_ffn["encoder.layer.0.intermediate"] == 64
    (curve,) = curves_of([{**entry, "step": 1}], plan)
    assert (curve.name, curve.values) == (name, (value,))


def test_a_long_training_keeps_its_last_step(plan):
    (curve,) = curves_of([{"loss": 1.0, "step": step} for step in range(1, 2001)], plan)
    assert MOST_POINTS / 2 < len(curve.steps) <= MOST_POINTS
    assert curve.steps[-1] == 2000


def test_the_picture_has_a_panel_for_each_kind_and_none_of_a_single_point(plan):
    curves = curves_of(LOG, plan)
    drawn = pictures(plan, None, curves)
    assert TRAINING_NAME in drawn
    assert drawn == pictures(plan, None, curves)
    assert captions(plan, None, curves)[TRAINING_NAME].endswith(
        "training loss, loss on evaluation, accuracy, heads kept"
    )
    assert TRAINING_NAME not in captions(plan, None, [Curve("training loss", "loss", (1,), (0.5,))])
