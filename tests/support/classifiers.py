"""Tiny classifiers whose heads decide, their examples, and plans and questions about them."""

import numpy as np
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.problem import Question
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import PadRight
from tests.support.models import tiny_bert

NUM_LABELS = 3


def classifier(seed=0, **settings):
    return decisive(tiny_bert(seed=seed, num_labels=NUM_LABELS, **settings))


def decisive(model):
    with torch.no_grad():  # fresh tiny models answer the same to everything; make their heads decide
        for name, parameter in model.named_parameters():
            if "attention" in name and "LayerNorm" not in name:
                parameter.mul_(30.0)
            elif "classifier" in name or "pooler" in name:
                parameter.mul_(20.0)
    return model


def examples(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (count,), generator=generator).tolist()
    return [
        {
            "input_ids": torch.randint(3, 100, (length,), generator=generator).tolist(),
            "label": int(torch.randint(0, NUM_LABELS, (1,), generator=generator)),
        }
        for length in lengths
    ]


def labelled(dataset):
    return [{"input_ids": example["input_ids"], "labels": example["label"]} for example in dataset]


def batches_of(dataset, batch_size=4):
    return length_sorted_batches(labelled(dataset), PadRight(0), batch_size=batch_size)


def random_plan(model, seed):
    rng = np.random.default_rng(seed)
    full = PruningPlan.of(model)
    return full.replace(
        kept_heads={s: [h for h in heads if rng.random() < 0.6] for s, heads in full.kept_heads.items()}
    )


def decided(model, dataset):
    """The examples, labelled with what the model answers, so that plans differ in how many they keep right."""
    with torch.no_grad():
        answers = [int(model(input_ids=torch.tensor([e["input_ids"]])).logits.argmax()) for e in dataset]
    return [{**example, "label": answer} for example, answer in zip(dataset, answers, strict=True)]


def near(plan, rng):
    """A plan that differs from another in a few heads or FFN units of one or two layers."""
    sites = [*plan.kept_heads, *plan.kept_ffn]
    kept = {}
    for site in rng.choice(sites, size=int(rng.integers(1, 3)), replace=False):
        units = plan.num_heads.get(site) or plan.num_ffn[site]
        kept[site] = [unit for unit in range(units) if rng.random() < 0.7]
    heads = {site: units for site, units in kept.items() if site in plan.num_heads}
    return plan.replace(kept_heads=heads, kept_ffn={s: units for s, units in kept.items() if s in plan.num_ffn})


def asked(base_margins, rng, **more):
    expected = base_margins + rng.normal(0, 0.3, len(base_margins)).astype(np.float32)
    return Question(expected, **more)


def own_examples(model):
    """Examples labelled with what the model itself answers, so that every head matters."""
    return decided(model, examples())


def searched(model, dataset, search, *, metric=None, calibration=None, **arguments):
    """What a search of a model over its own examples finds."""
    evaluator = ExampleEvaluator(model, batches_of(dataset), metric=metric, calibration=calibration)
    arguments = {"fingerprint": evaluator.fingerprint(), **arguments}
    return search_over_plans(anatomy_of(model), evaluator, search, **arguments)
