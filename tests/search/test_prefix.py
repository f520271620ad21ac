"""Forward passes that somebody else makes: fewer layers are computed, and the bits are the same."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_headprune.errors import InvalidPlanError
from hf_headprune.masking import evaluating, masked
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import MetricEvaluator
from hf_headprune.search.evaluation.prefix import PrefixCache
from tests.search.test_evaluator import batches_of, classifier, examples, labelled, random_plan
from tests.support.models import FAMILY_NAMES, SEQ2SEQ_NAMES, TINY_FAMILIES, tiny_bert, tiny_bert_decoder


def logits_of(model, batches, **more):
    return [model(**{name: t for name, t in b.items() if name != "labels"}, **more).logits.clone() for b in batches]


def chain(model, count=6):
    """Plans that differ from one another in the second layer, and at times in the first."""
    full = PruningPlan.of(model)
    first, second = list(full.kept_heads)[:2]
    return [
        full.replace(kept_heads={first: range(1 + place // 3, 4), second: range(place % 3, 4)})
        for place in range(count)
    ]


def served(cache, model, plan, batches, **more):
    with masked(model, plan), evaluating(model), cache.serving(plan):
        return logits_of(model, batches, **more)


def plainly(model, plan, batches, **more):
    with masked(model, plan), evaluating(model):
        return logits_of(model, batches, **more)


def are_same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_bits_are_those_of_whole_forward_passes(autocast):
    model, batches = classifier(), batches_of(examples())
    cache = PrefixCache(model, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for plan in chain(model) * 2:
            assert are_same(served(cache, model, plan, batches), plainly(model, plan, batches))
    assert cache.layers_spared > 0


def test_lower_layers_that_plans_share_run_once():
    model, batches = classifier(), batches_of(examples())
    calls = []
    cache = PrefixCache(model, 64)
    full = PruningPlan.of(model)
    served(cache, model, full, batches)
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: calls.append(0))
    model.bert.encoder.layer[1].register_forward_hook(lambda *_: calls.append(1))
    first, second = full.kept_heads
    served(cache, model, full.replace(kept_heads={second: [1]}), batches)
    assert calls == [1] * len(batches)
    calls.clear()
    served(cache, model, full.replace(kept_heads={first: [1]}), batches)
    assert calls == [0, 1] * len(batches)


def test_another_precision_has_states_of_its_own():
    model, batches = classifier(), batches_of(examples())
    cache, full = PrefixCache(model, 64), PruningPlan.of(model)
    exact = served(cache, model, full, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = served(cache, model, full, batches)
        assert are_same(rough, plainly(model, full, batches))
    assert not are_same(exact, rough)
    assert are_same(served(cache, model, full, batches), exact)


def test_memory_stays_within_its_bound_and_does_not_change_the_bits():
    model, batches = classifier(), batches_of(examples())
    one_state = max(batch["input_ids"].numel() for batch in batches) * 32 * 4
    for limit in (0, one_state * 1.5, 1e9):
        cache = PrefixCache(model, limit / 2**20)
        for plan in chain(model):
            assert are_same(served(cache, model, plan, batches), plainly(model, plan, batches))
        assert cache.peak_bytes <= limit
        assert cache.num_bytes == sum(state.numel() * 4 for _, state in cache._held.values())
        assert (cache.layers_spared > 0) == (limit > 0)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_a_pass_that_asks_for_single_layers_is_whole(asked):
    model, batches = tiny_bert(num_labels=3, attn_implementation="eager"), batches_of(examples())
    cache, full = PrefixCache(model, 64), PruningPlan.of(model)
    served(cache, model, full, batches)
    batch = {name: tensor for name, tensor in batches[0].items() if name != "labels"}
    with evaluating(model), cache.serving(full):
        outputs = model(**batch, **{asked: True})
    assert len(outputs[asked.removeprefix("output_")]) == 2 + (asked == "output_hidden_states")
    model.config.output_hidden_states = True  # for all passes
    cache = PrefixCache(model, 64)
    with evaluating(model), cache.serving(full):
        assert [len(model(**batch).hidden_states) for _ in range(2)] == [3, 3]
    assert cache.layers_spared == 0


def test_training_and_gradients_are_left_alone():
    model, batches = classifier(hidden_dropout_prob=0.5), batches_of(examples())
    cache, full = PrefixCache(model, 64), PruningPlan.of(model)
    with cache.serving(full):
        model.train()
        one, other = logits_of(model, batches[:1]), logits_of(model, batches[:1])
        assert not are_same(one, other)
        model.eval()
        logits_of(model, batches[:1])[0].sum().backward()
    assert model.bert.encoder.layer[0].output.dense.weight.grad is not None
    assert cache.num_bytes == 0


def test_a_model_that_generates_from_a_cache_of_keys_is_not_served():
    model = tiny_bert_decoder()
    cache, full = PrefixCache(model, 64), PruningPlan.of(model)
    inputs = torch.tensor([[5, 6, 7]])
    with evaluating(model):
        expected = model.generate(inputs, max_new_tokens=6, do_sample=False)
        with cache.serving(full):
            assert torch.equal(model.generate(inputs, max_new_tokens=6, do_sample=False), expected)
    assert cache.layers_spared == 0


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_family_gives_its_own_bits(name):
    family = TINY_FAMILIES[name]
    model, inputs = family.make().eval(), family.inputs()
    cache = PrefixCache(model, 64)
    for seed in range(4):
        plan = random_plan(model, seed // 2)
        with masked(model, plan), torch.no_grad():
            expected = model(**inputs)[0]
            with cache.serving(plan):
                found = model(**inputs)[0]
        assert torch.equal(found, expected)
    assert (cache.layers_spared > 0) == (name not in SEQ2SEQ_NAMES)


def test_the_model_is_left_as_it_was_after_an_error_too():
    model, batches = classifier(), batches_of(examples())
    cache, full = PrefixCache(model, 64), PruningPlan.of(model)
    served(cache, model, full, batches)
    before = plainly(model, full, batches)
    handle = model.bert.encoder.layer[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        served(cache, model, full, batches)
    handle.remove()
    assert len(model.bert.encoder.layer) == 2
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert are_same(plainly(model, full, batches), before)
    with pytest.raises(InvalidPlanError), cache.serving(PruningPlan.of(tiny_bert(num_hidden_layers=1))):
        pass


def test_the_evaluation_of_a_trainer_is_spared_without_its_knowledge(tmp_path):
    model = classifier()

    def spread(prediction):
        return {"spread": float(prediction.predictions.std())}

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    data = labelled(examples(40))
    trainer = Trainer(
        model,
        arguments,
        eval_dataset=data,
        compute_metrics=spread,
        data_collator=lambda rows: batches_of([{**row, "label": row["labels"]} for row in rows], len(rows))[0],
    )
    evaluator = MetricEvaluator(lambda: trainer.evaluate()["eval_spread"], model)
    plain = MetricEvaluator(lambda: trainer.evaluate()["eval_spread"], model, cache_mib=0)
    found = [evaluator(plan).metric for plan in chain(model)]
    assert found == [plain(plan).metric for plan in chain(model)]
    assert len(set(np.round(found, 6))) > 1
    assert evaluator._prefix.layers_spared > 0
    assert plain._prefix.layers_spared == 0
