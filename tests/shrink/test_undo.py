"""A model that can't be pruned to the end is what it was: after an error, and after Ctrl-C, wherever it comes."""

import copy

import pytest
import torch

from hf_headprune.errors import HeadPruneError
from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink import surgery, vocabulary
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.shrink.vocabulary import prune_vocabulary_
from tests.support.command_line import tokenizer_of_words
from tests.support.families import made, random_plan
from tests.support.models import tiny_bert
from tests.support.trainers import labelled_rows

# One with heads that share a bias, one with groups of heads, one with towers, one with transposed weights.
FAMILIES = ("bert", "t5", "llama", "clip", "gpt2")
# Functions of the surgery, each with the call before which it stops.
STOPS = (
    ("cut_site_", 1),
    ("cut_site_", 4),
    ("adopt_classes_", 1),
    ("_replace_configs_", 1),
    ("probe", 1),
    ("probe", 2),
    ("attach_plan_", 1),
)


class Kept:
    """All that a model is, to see that it is the same again."""

    def __init__(self, model):
        self.said, self.weights = self._said_of(model), copy.deepcopy(model.state_dict())
        self.parameters = dict(model.named_parameters())

    @staticmethod
    def _said_of(model):
        modules = [
            (path, type(module), {name: it for name, it in vars(module).items() if isinstance(it, int | str)})
            for path, module in model.named_modules()
        ]
        hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
        return modules, hooks, model.config.to_dict(), {name: it.shape for name, it in model.named_parameters()}

    def check(self, model):
        assert self._said_of(model) == self.said
        assert all(it is self.parameters[name] for name, it in model.named_parameters())
        now = model.state_dict()
        assert now.keys() == self.weights.keys()
        assert all(torch.equal(tensor, self.weights[name]) for name, tensor in now.items())


def stopped(module, name, call, verb, *given):
    """Lets Ctrl-C come before the n-th call of a function of a module, while a verb is at work."""
    original, calls = getattr(module, name), []

    def stopping(*args, **settings):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            verb(*given)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_ctrl_c_in_any_step_leaves_the_model_as_it_was(name):
    model, inputs = made(name)
    plan = random_plan(model, seed=0)
    pruned = prune_model_(copy.deepcopy(model), plan)
    kept = Kept(model)
    for stop in STOPS:
        stopped(surgery, *stop, prune_model_, model, plan)
        kept.check(model)
    prune_model_(model, plan)  # nothing is in its way
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], pruned(**inputs)[0])


@pytest.mark.parametrize("density", [0.5, 0.2])  # output projections are refitted, or all in order
def test_a_refit_is_taken_back(density):
    model = tiny_bert(num_labels=2)
    result = plan_for_budget(model, labelled_rows(40, seed=0), density=density)
    kept = Kept(model)
    for stop in (("probe", 1), ("cut_site_", 2), ("probe", 2)):
        stopped(surgery, *stop, prune_model_, model, result)
        kept.check(model)


def test_a_model_that_would_compute_something_else_is_what_it_was_and_can_be_pruned_without_the_hook():
    model = tiny_bert()
    value = model.bert.encoder.layer[0].attention.self.value
    hook = value.register_forward_hook(lambda module, args, output: output * module.out_features)
    plan = PruningPlan.of(model).replace(kept_heads={"encoder.layer.0.attention": (0,)})
    kept = Kept(model)
    with pytest.raises(HeadPruneError, match=r"after pruning, the last hidden state .* differs"):
        prune_model_(model, plan)
    kept.check(model)
    hook.remove()  # its handle still knows where it is
    assert not value._forward_hooks
    assert prune_model_(model, plan).bert.encoder.layer[0].attention.self.value.out_features < value.in_features


def test_the_whole_that_a_body_belongs_to_says_again_what_it_said():
    model = tiny_bert()
    plan, kept = random_plan(model.bert, seed=0), Kept(model)
    for stop in (("adopt_classes_", 2), ("attach_plan_", 1)):
        stopped(surgery, *stop, prune_model_, model.bert, plan)
        kept.check(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT reads it
def test_adapters_are_what_they_were():
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model = peft.get_peft_model(tiny_bert(num_labels=2), peft.LoraConfig(task_type="SEQ_CLS", r=2))
    plan = random_plan(model.get_base_model(), seed=0)
    kept = Kept(model)
    for stop in (("cut_site_", 2), ("probe", 2)):
        stopped(surgery, *stop, prune_model_, model, plan)
        kept.check(model)
    prune_model_(model, plan)


def test_a_vocabulary_that_was_not_cut_to_the_end_is_whole():
    tokenizer = tokenizer_of_words()
    model = tiny_bert(vocab_size=len(tokenizer), num_labels=2, pad_token_id=tokenizer.pad_token_id)
    kept = Kept(model)
    stopped(vocabulary, "_outputs", 2, prune_vocabulary_, model, tokenizer, ["good bad"])
    kept.check(model)
    assert len(prune_vocabulary_(model, tokenizer, ["good bad"])) == model.config.vocab_size < len(tokenizer)
