"""The contract of every pruner: idle outside of a run, a state that is checked, nothing left behind."""

from __future__ import annotations

import copy
import gc
import logging
import re
import weakref
from pathlib import Path

import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback.settings import Settings
from hf_headprune.errors import TrainingStateError, UnsupportedModelError
from hf_headprune.learn.registry import PRUNERS, detach_pruners
from hf_headprune.learn.training_loop import TrainingLoop
from hf_headprune.masking import temporary_parts
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import text_inputs, tiny_bert
from tests.support.settings import gates, movement, second_order

ROOM = Path(__file__).parents[2] / "hf_headprune" / "learn"
STEPS = 10
SETTINGS = {
    "gates": gates(kept_heads=3, warmup_ratio=0.0, freeze_at=0.5, scoring_examples=4),
    "pipelined": gates(kept_heads=3, mode="pipelined", scoring_examples=4),
    "units": movement(attention_block="unit", density=0.5, width_multiple=8, warmup_ratio=0.0, freeze_at=0.5),
    "blocks": movement(attention_block=(8, 8), density=0.5, width_multiple=8, warmup_ratio=0.0, freeze_at=0.5),
    "threshold": movement(attention_block=(8, 8), method="threshold", width_multiple=8, freeze_at=0.5),
    "per matrix": movement(
        attention_block=(8, 8), counts="scores", ranking="per_matrix", density=0.5, width_multiple=8, freeze_at=0.5
    ),
    "second order": second_order(density=0.5, width_multiple=8, freeze_at=0.5),
    "rounds": second_order(density=0.5, width_multiple=8, rounds=2, freeze_at=0.8),
    "bytes": second_order(density=0.5, counts="bytes", width_multiple=8, freeze_at=0.5),
    "heads by costs": second_order(kept_heads=3, freeze_at=0.5),
}
every_method = pytest.mark.parametrize("name", SETTINGS)


def bert():
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def batch(seed):
    return {**text_inputs(seed=seed, batch=4), "labels": torch.tensor([0, 1, 1, 0])}


def loop_of(model, **settings):
    return TrainingLoop(
        learning_rate=1e-2,
        batches=lambda count, seed: [batch(seed)],
        loss=lambda given: model(**given).loss,
        summed_loss=lambda given: model(**given).loss * 4,
        peak_learning_rate=lambda _: 1e-2,
        **settings,
    )


def begun(name, steps):
    """A model and its pruner in a run of `STEPS` steps, of which so many are over."""
    model = bert()
    settings = SETTINGS[name]
    pruner = PRUNERS[type(settings)].of(model, anatomy_of(model), settings, loop_of(model))
    pruner.begin_run(STEPS, 0, loop_of(model))
    train(model, pruner, range(steps))
    return model, pruner


def train(model, pruner, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in steps:
        pruner.begin_step(model, step, loop_of(model))
        model.train()(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model):
    with torch.no_grad():
        return model(**text_inputs()).logits


def test_every_method_has_a_folder_with_the_same_files_and_an_argument_of_the_callback():
    for kind, pruner in PRUNERS.items():
        folder = ROOM / pruner.__module__.split(".")[-2]
        assert {path.name for path in folder.glob("*.py")} >= {"settings.py", "pruner.py"}
        assert f"{pruner.part}: {kind.__name__} | None" in "\n".join(
            f"{name}: {field.type}" for name, field in Settings.__dataclass_fields__.items()
        )


def test_no_method_knows_another():
    folders = [path.parent.name for path in ROOM.glob("*/__init__.py")]
    known = {
        (folder, other)
        for folder in folders
        for path in (ROOM / folder).glob("*.py")
        for other in re.findall(r"from hf_headprune\.learn\.(\w+)", path.read_text(encoding="utf-8"))
    }
    assert len(folders) == 4
    assert ("gates", "pruner") in known
    assert {pair for pair in known if pair[1] in folders and pair[0] != pair[1]} == set()


@every_method
@pytest.mark.parametrize("steps", [0, 3, 9])
def test_an_idle_model_computes_what_a_reload_of_its_weights_computes(name, steps):
    model, pruner = begun(name, steps)
    pruner.idle()
    plain = bert()
    plain.load_state_dict(
        {name: tensor for name, tensor in model.state_dict().items() if pruner.module_name() not in name}
    )
    assert torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(model.train()), logits(plain.train()))
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_method
def test_what_an_idle_pruner_had_chosen_is_there_again_when_the_run_is_resumed(name):
    model, pruner = begun(name, 9)
    trained, state = logits(model), copy.deepcopy(model.state_dict())
    pruner.idle()
    assert not torch.equal(logits(model), trained)
    other = bert()
    resumed = PRUNERS[type(pruner.settings)].of(other, anatomy_of(other), SETTINGS[name], loop_of(other))
    other.load_state_dict(state)
    for each, again in ((model, pruner), (other, resumed)):
        again.begin_run(STEPS, 9, loop_of(each))
        assert torch.equal(logits(each), trained)
        train(each, again, range(9, 10))
    assert torch.equal(logits(model), logits(other))


@every_method
def test_saving_an_interrupted_model_warns_and_saving_one_in_training_does_not(name, caplog):
    model, pruner = begun(name, 3)
    with caplog.at_level(logging.WARNING):
        model.state_dict()
        assert caplog.text == ""
        pruner.idle()
        model.state_dict()
    assert f"The training that {pruner.part} takes part in was interrupted after 3 steps" in caplog.text


@every_method
def test_a_model_that_still_carries_a_pruner_is_not_cut(name):
    model, pruner = begun(name, 3)
    pruner.idle()
    plan = PruningPlan.of(model).replace(kept_heads={"encoder.layer.0.attention": (0,)})
    with pytest.raises(UnsupportedModelError, match=f"it carries {pruner.part} of a training that did not end"):
        prune_model_(model, plan)
    pruner.detach(model)
    assert temporary_parts(model) == []
    assert prune_model_(model, plan) is not None


@every_method
def test_a_pruner_that_removed_nothing_for_good_can_be_taken_off(name):
    model, pruner = begun(name, 3)
    pruner.idle()
    before = logits(model)
    detach_pruners(model)
    assert temporary_parts(model) == []
    assert torch.equal(logits(model), before)


def test_a_model_of_which_units_were_removed_for_good_does_not_start_anew():
    model, _ = begun("second order", 9)
    with pytest.raises(TrainingStateError, match="has removed heads and FFN units of this model and refitted the othe"):
        detach_pruners(model)
    assert len(temporary_parts(model)) == 1


@every_method
def test_a_finished_pruner_has_kept_what_was_asked_for_and_left_no_hook(name):
    model, pruner = begun(name, STEPS)
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in bert().modules())
    choice = pruner.finish(model, loop_of(model))
    assert choice.wrote_zeros == (pruner.part == "movement")
    assert sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()) == hooks
    assert {type(module) for module in model.modules()} == {type(module) for module in bert().modules()}
    assert pruner.part != "gates" or choice.plan.num_kept_heads == 3


def damaged(state, pruner, what):
    """A checkpoint with one fault."""
    prefix = next(name for name in state if name.endswith("kept")).removesuffix("kept")
    kept = state[f"{prefix}kept"]
    if what == "half":
        kept[kept == 1] = 0.5
    elif what == "everything":
        kept.fill_(1.0)
    elif what == "one more":
        kept[int((kept == 0).nonzero()[0])] = 1.0
    elif what == "another":
        kept.copy_(kept.flip(0) if not torch.equal(kept, kept.flip(0)) else kept.roll(1))
    elif what == "undecided" and pruner.learns_scores:
        state[f"{prefix}decided"].fill_(False)
    elif what == "undecided":
        state[f"{prefix}rounds"].fill_(0)
    elif pruner.learns_scores:
        state[f"{prefix}importance_bias"][1] = float("nan")
    else:
        state[f"{prefix}rounds"].fill_(7)
    return state


@every_method
@pytest.mark.parametrize("what", ["half", "everything", "one more", "another", "undecided", "no number"])
def test_a_damaged_choice_is_refused_when_it_is_loaded(name, what):
    if name == "pipelined":
        pytest.skip("it decides in its last step")
    model, pruner = begun(name, 9)
    state = copy.deepcopy(model.state_dict())
    other = bert()
    PRUNERS[type(pruner.settings)].of(other, anatomy_of(other), SETTINGS[name], loop_of(other))
    with pytest.raises(TrainingStateError, match=f"{pruner.part}, after 9 optimizer steps: .*Nothing was cut"):
        other.load_state_dict(damaged(copy.deepcopy(state), pruner, what))
    other.load_state_dict(state)


@every_method
def test_a_choice_that_is_marked_as_made_before_it_was_is_refused(name):
    model, pruner = begun(name, 1)
    state = copy.deepcopy(model.state_dict())
    counter = "decided" if pruner.learns_scores else "rounds"
    state[next(key for key in state if key.endswith(f"{pruner.module_name()}.{counter}"))].fill_(1)
    with pytest.raises(TrainingStateError, match="is not the one that was made"):
        model.load_state_dict(state)


@pytest.mark.parametrize("name", [name for name, settings in SETTINGS.items() if PRUNERS[type(settings)].learns_scores])
def test_scores_that_are_no_numbers_end_a_run_before_anything_is_cut(name):
    model, pruner = begun(name, 3)
    pruner.check_state()
    with torch.no_grad():
        pruner.importance_bias[0] = float("inf")
    with pytest.raises(TrainingStateError, match=r"after 3 optimizer steps: 1 of \d+ scores are not finite"):
        pruner.check_state()
    with pytest.raises(TrainingStateError, match="not finite"):
        pruner.finish(model, loop_of(model))


@every_method
def test_nothing_keeps_a_pruner_and_its_model_alive(name):
    model, pruner = begun(name, 3)
    dead = weakref.ref(model), weakref.ref(pruner)
    del model, pruner
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


@every_method
def test_a_copy_of_a_model_in_training_has_a_pruner_of_its_own(name):
    model, pruner = begun(name, 3)
    twin = copy.deepcopy(model)
    (other,) = temporary_parts(twin)
    assert torch.equal(logits(twin), logits(model))
    pruner.detach(model)
    assert temporary_parts(twin) == [other]
    other.idle()
    assert torch.equal(logits(twin), logits(model))


def test_bytes_are_met_and_never_exceeded():
    model, pruner = begun("bytes", 6)
    sites = anatomy_of(model).sites
    kept = sum(len(pruner.plan().kept(site.name)) * site.bytes.per_unit for site in sites)
    total = sum(site.units * site.bytes.per_unit for site in sites)
    largest = max(site.bytes.per_unit * (1 if site.is_attention else 8) for site in sites)
    assert total / 2 - largest < kept <= total / 2
