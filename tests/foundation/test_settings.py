"""Settings are values: a copy, a pickle or a replacement of them is as good as they are."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, replace

import pytest
from torch import nn

from hf_headprune import AStarSearch, LatencySettings, SplitSettings
from hf_headprune._checks import check, with_tuning
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import InvalidSettingError
from hf_headprune.learn.distillation.settings import Distillation, DistillationTuning
from hf_headprune.learn.gates.settings import GateTuning, SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement, MovementTuning
from hf_headprune.learn.registry import PRUNERS
from hf_headprune.learn.training_loop import TrainingLoop
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning
from tests.support.models import tiny_bert
from tests.support.settings import gates, movement, second_order
from tools.count_settings import settings, tunings

MOST_SETTINGS, MOST_TUNINGS = 60, 47  # before the classes were cut: 102, and no tunings

EXAMPLES = [
    GateTuning(),
    SubsetGates(),
    gates(kept_heads={"encoder": 0.5}, ramp_steps=3, freeze_at=0.5),
    SubsetGates.paper_mnli(3),
    MovementTuning(),
    BlockMovement(),
    movement(attention_block=(8, 8), blocks={"*.0.*": "unit"}, density=0.25, width_multiple=8),
    BlockMovement.hybrid_filled(density=0.5, width_multiple=8, attention_block=(8, 8)),
    BlockMovement.to_speedup(2.0, width_multiple=8),
    SecondOrderTuning(),
    SecondOrder(density=0.5),
    second_order(kept_heads={"encoder": 3}, rounds=2, scoring_examples=8),
    SecondOrder.to_speedup(2.0),
    DistillationTuning(layer_map={0: 1}),
    Distillation(nn.Linear(1, 1), alpha_hidden=1.0),
    AStarSearch(max_drop=0.02),
    LatencySettings(batch_size=2),
    SplitSettings(seed=3),
]
COPIES = {
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "replace": replace,
    "made anew": lambda value: type(value)(**{field.name: getattr(value, field.name) for field in fields(value)}),
}


def without_teacher(settings):
    """A teacher is a model, and a copy of a model is another one."""
    return {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "teacher"}


def effects(settings):
    """What a run makes of settings: of those of a pruner its budget and its schedule, of others their values."""
    if type(settings) not in PRUNERS:
        return without_teacher(settings)
    model = tiny_bert()
    pruner = PRUNERS[type(settings)].of(model, anatomy_of(model), settings, TrainingLoop())
    pruner.prepare(100)
    return int(pruner.budget), getattr(pruner, "schedule", None), pruner.settings


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda value: type(value).__name__)
def test_equal_settings_behave_equally_however_they_were_made(settings, way):
    same = COPIES[way](settings)
    assert without_teacher(same) == without_teacher(settings)
    assert effects(same) == effects(settings)
    if not isinstance(settings, Distillation):
        assert same == settings
        assert hash(same) == hash(settings)


@pytest.mark.parametrize(
    ("part", "settings"),
    [("gates", SubsetGates()), ("movement", BlockMovement()), ("second_order", SecondOrder(density=0.5))],
)
@pytest.mark.parametrize("way", COPIES)
def test_the_callback_takes_a_copy_for_what_it_is(part, settings, way):
    ours, theirs = (HeadPruneCallback(**{part: value}).settings for value in (settings, COPIES[way](settings)))
    assert ours == theirs


def test_budgets_that_mean_the_same_are_the_same_to_a_checkpoint():
    same = [gates(kept_heads=value) for value in (4, 0.5, {"encoder": 4})]
    assert len({effects(settings)[0] for settings in same}) == 1
    assert effects(same[0])[0] != effects(gates(kept_heads=5))[0]


def test_a_refusal_names_the_field_the_rule_what_was_received_and_what_to_do():
    with pytest.raises(InvalidSettingError) as caught:
        check(
            gates(warmup_ratio=0.25, ramp_steps=7),
            {"warmup_ratio must be 0.5": False, "tuning.ramp_steps must be even": False, "mode must be short": True},
        )
    message = str(caught.value)
    assert message == (
        "SubsetGates: warmup_ratio must be 0.5; tuning.ramp_steps must be even. Received warmup_ratio=0.25, "
        "tuning.ramp_steps=7. Change warmup_ratio or tuning.ramp_steps; help(SubsetGates) lists what each setting may "
        "be."
    )
    check(SubsetGates(), {"mode must be short": True})


def test_a_refused_value_is_shown_in_short():
    with pytest.raises(InvalidSettingError) as caught:
        SubsetGates(mode="x" * 100_000)
    assert len(str(caught.value)) < 1000


def test_settings_of_a_tuning_are_gathered_by_name():
    assert with_tuning({"density": 0.5}, MovementTuning) == {"density": 0.5}
    assert with_tuning({"density": 0.5, "seq_len": 9}, MovementTuning) == {
        "density": 0.5,
        "tuning": MovementTuning(seq_len=9),
    }
    given = MovementTuning(width_multiple=8)
    assert with_tuning({"tuning": given, "seq_len": 9}, MovementTuning)["tuning"] == replace(given, seq_len=9)
    with pytest.raises(InvalidSettingError, match=r"tuning must be MovementTuning\(...\), received 3"):
        with_tuning({"tuning": 3, "seq_len": 9}, MovementTuning)


def test_there_are_few_settings():
    own, inner = ({name: len(names) for name, names in part().items()} for part in (settings, tunings))
    assert sum(own.values()) <= MOST_SETTINGS, f"python -m tools.count_settings lists them: {own}"
    assert sum(inner.values()) <= MOST_TUNINGS, f"python -m tools.count_settings lists them: {inner}"
    assert {"AStarSearch", "SubsetGates", "Batching"} <= own.keys()
    assert len(inner) == 5
