"""A live model that is changed while it is used: one thread changes it, and everything is put back."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import TrainerCallback

from hf_headprune import masked, plan_for_budget, prune_model_, search_plan
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import ModelInUseError, UnsupportedModelError
from hf_headprune.masking import UnitScale, evaluating, plain_copy
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit import moments
from hf_headprune.search.settings import AStarSearch
from tests.support.models import text_inputs, tiny_bert
from tests.support.trainers import labelled_rows, logits_of, trainer_of

FIRST, SECOND = "encoder.layer.0.attention", "encoder.layer.1.attention"


def answers(model):
    with torch.no_grad():
        return model(**text_inputs()).logits


def in_another_thread(function):
    """What a function returns, or the error that it raises, in a thread of its own."""
    found = []

    def run():
        try:
            found.append(function())
        except Exception as error:  # noqa: BLE001 - it is looked at
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def mask_of(model, plan):
    with masked(model, plan):
        return answers(model)


@pytest.fixture
def model():
    return tiny_bert()


@pytest.fixture
def plan(model):
    return PruningPlan.of(model).replace(kept_heads={FIRST: (0,)})


VERBS = {
    "masked": mask_of,
    "prune_model_": prune_model_,
    "masked body": lambda model, plan: masked(model.bert, plan).__enter__(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_one_thread_has_masked_is_changed_by_no_other(model, plan, verb):
    whole, expected = answers(model), mask_of(model, plan)
    with masked(model, plan):
        error = in_another_thread(lambda: VERBS[verb](model, plan))
        assert isinstance(error, ModelInUseError)
        assert "in use by masked in another thread" in str(error)
        assert torch.equal(answers(model), expected)
        assert torch.equal(in_another_thread(lambda: answers(model)), expected)  # as a thread that generates sees it
    assert torch.equal(answers(model), whole)
    assert torch.equal(in_another_thread(lambda: mask_of(model, plan)), expected)


def test_many_threads_get_right_answers_or_a_clear_error(model, plan):
    other = PruningPlan.of(model).replace(kept_heads={SECOND: (1, 2)})
    expected = {id(each): mask_of(model, each) for each in (plan, other)}
    whole, wrong, right = answers(model), [], []

    def work(own):
        for _ in range(20):
            try:
                found = mask_of(model, own)
            except ModelInUseError:
                continue
            (right if torch.equal(found, expected[id(own)]) else wrong).append(own)

    threads = [threading.Thread(target=work, args=(own,)) for own in (plan, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right
    assert not wrong
    assert torch.equal(answers(model), whole)


def test_a_masked_model_is_not_cut_and_neither_is_its_copy(model, plan):
    with masked(model, plan):
        with pytest.raises(ModelInUseError, match="in use by masked in this thread"):
            prune_model_(model, plan)
        twin = copy.deepcopy(model)
    elsewhere = PruningPlan.of(twin).replace(kept_heads={SECOND: (1,)})
    with pytest.raises(
        UnsupportedModelError, match=r"layer\.0\.attention\.output\.dense still carries gates or a mask"
    ):
        prune_model_(twin, elsewhere)
    prune_model_(model, plan)


def test_masks_with_a_refit_may_be_left_in_any_order(model):
    found = plan_for_budget(model, labelled_rows(32, 0), density=0.5)
    smaller = found.plan.replace(kept_heads={FIRST: ()})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)):
        blocks = [masked(model, RefittedPlan(plan, found.refit)) for plan in (found.plan, smaller, found.plan)]
        for block in blocks:
            block.__enter__()
        for place in order:
            blocks[place].__exit__(None, None, None)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


SEARCHES = {
    "order of costs": lambda model, rows: search_plan(model, rows, calibration=labelled_rows(32, 5), max_drop=0.3),
    "A*": lambda model, rows: search_plan(
        model, rows, search=AStarSearch(max_drop=0.2, max_evaluations=6), progress=False
    ),
    "budget": lambda model, rows: plan_for_budget(model, rows, density=0.5),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_a_model_that_is_searched_answers_as_ever_meanwhile(model, search, monkeypatch):
    expected, served, is_serving = answers(model), [], []

    def serving(hook):
        def run(*given):
            if not is_serving and len(served) < 20:
                is_serving.append(True)
                served.append(torch.equal(answers(model), expected))
                is_serving.clear()
            return hook(*given)

        return run

    monkeypatch.setattr(UnitScale, "__call__", serving(UnitScale.__call__))
    monkeypatch.setattr(moments._Recorder, "read", serving(moments._Recorder.read))
    SEARCHES[search](model, labelled_rows(60, 1))
    assert len(served) > 3
    assert all(served)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_trains_is_masked_by_no_other_thread(tmp_path, model, plan):
    errors = []

    class Asks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            errors.append(in_another_thread(lambda: mask_of(model, plan)))

    trainer_of(tmp_path, HeadPruneCallback(density=0.5, latency=None), model=model, callbacks=[Asks()]).train()
    assert len(errors) == 12
    assert all("in use by Trainer.train in another thread" in str(error) for error in errors)


def test_two_threads_do_not_switch_the_mode_of_one_model(model):
    model.train()
    with evaluating(model):
        assert not isinstance(in_another_thread(lambda: evaluating(model).__enter__()), Exception)  # nothing to switch
    assert model.training
    with evaluating(model):
        model.bert.train()
        error = in_another_thread(lambda: evaluating(model).__enter__())
        assert isinstance(error, ModelInUseError)
    assert all(module.training for module in model.modules())


# --- copies ----------------------------------------------------------------------------------------------------------


class Counter:
    """A hook with a state that can't be copied."""

    def __init__(self):
        self.lock, self.calls = threading.Lock(), 0

    def __call__(self, module, args, output):
        with self.lock:
            self.calls += 1


def with_activations(model):
    def keep(module, args, output):
        module.last = {"hidden": [output[0] if isinstance(output, tuple) else output]}

    model.bert.encoder.layer[1].register_forward_hook(keep)


def with_a_lock(model):
    model.bert.guard = [threading.Lock()]


def with_a_generator(model):
    model.bert.stream = (number for number in range(3))


def with_a_file(model):
    model.log = open(__file__, encoding="utf-8")  # noqa: SIM115, PTH123 - an attribute of the user's


def with_a_counting_hook(model):
    model.classifier.register_forward_hook(Counter())


@pytest.mark.parametrize("change", [with_activations, with_a_lock, with_a_generator, with_a_file, with_a_counting_hook])
def test_what_can_not_be_copied_keeps_no_model_from_being_copied(model, change):
    expected = logits_of(model)
    change(model)
    model.train()(**text_inputs(), labels=torch.tensor([0, 1, 0]))
    twin = plain_copy(model)
    assert torch.equal(logits_of(twin), expected)
    assert not any(module._forward_hooks for module in twin.modules())
    with torch.no_grad():
        twin.classifier.weight.zero_()
    assert torch.equal(logits_of(model), expected)
    if change is with_a_file:
        model.log.close()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # many models still use it
def test_hooks_that_a_model_is_made_of_stay_on_its_copy():
    model = tiny_bert()
    torch.nn.utils.weight_norm(model.bert.pooler.dense)
    with torch.no_grad():
        model.bert.pooler.dense.weight_g.mul_(2.0)
    assert torch.equal(logits_of(plain_copy(model)), logits_of(model))
