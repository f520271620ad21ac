"""Classifiers of images are scored, certified and pruned as those of texts are."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_headprune import HeadPruneCallback
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.masking import masked, plain_copy
from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.pipeline.search import search_plan
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.tasks.batches import Batching
from hf_headprune.tasks.registry import metrics_of
from hf_headprune.tasks.scores import scores_of
from tests.support.classifiers import decisive, random_plan
from tests.support.models import TINY_FAMILIES


@pytest.fixture
def model():
    return decisive(TINY_FAMILIES["vit"].make())


def images(model, count=40, seed=0):
    """Examples whose class is mostly what the model answers."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, config.num_channels, config.image_size, config.image_size, generator=generator)
    with torch.no_grad():
        answers = model.eval()(pixels).logits.argmax(dim=-1).tolist()
    labels = [(answer + (place % 5 == 0)) % config.num_labels for place, answer in enumerate(answers)]
    return [{"pixel_values": x.numpy(), "label": y} for x, y in zip(pixels, labels, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_images_are_scored_one_by_one(model, batch_size):
    rows, plan = images(model), random_plan(model, 0)
    with masked(model, plan), torch.no_grad():
        answers = [int(model(torch.tensor(row["pixel_values"])[None]).logits.argmax()) for row in rows]
        found = scores_of(model, rows, batching=Batching(batch_size=batch_size))
    assert found.tolist() == [float(answer == row["label"]) for answer, row in zip(answers, rows, strict=True)]
    assert metrics_of(model)[0] == "accuracy"


@pytest.mark.slow
@pytest.mark.parametrize("search", [None, AStarSearch(max_drop=0.4, max_evaluations=10)], ids=["costs", "a star"])
def test_the_smallest_classifier_of_images_is_found_and_certified(model, search):
    how = {"max_drop": 0.4} if search is None else {"search": search}
    result = search_plan(model, images(model), calibration=images(model, 60, 1), progress=False, **how)
    assert result.plan.num_removed_heads + result.plan.num_removed_ffn > 0
    pruned, unseen = prune_model_(plain_copy(model), result), images(model, 60, 2)
    certificate = certify(model, pruned, unseen, max_drop=0.6)
    assert (certificate.claim.metric, certificate.claim.kind) == ("accuracy", "binary")
    assert certificate.evidence.pruned_metric == pytest.approx(scores_of(pruned, unseen).mean())
    assert verify_certificate(certificate, pruned, unseen, dense=model).holds


def test_a_budget_is_met_on_images(model):
    result = plan_for_budget(model, images(model, 60), density=0.5)
    assert result.report.linear_density == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_the_callbacks_defaults_prune_and_certify_a_classifier_of_images(model, tmp_path):
    how = {"max_steps": 3, "per_device_train_batch_size": 8, "save_strategy": "no", "report_to": "none"}
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **how)
    callback = HeadPruneCallback(max_drop=0.4)
    data = {"train_dataset": images(model, 48), "eval_dataset": images(model, 60, 3)}
    Trainer(model=model, args=arguments, callbacks=[callback], **data).train()
    assert callback.report.unseen.name == "accuracy"
    assert callback.certificate.claim.metric == "accuracy"
    assert callback.report.latency.seq_len is None


def test_images_of_several_sizes_are_refused(model):
    rows = images(model, 2)
    rows[1]["pixel_values"] = np.zeros((3, 5, 5), dtype=np.float32)
    with pytest.raises(InvalidSettingError, match="'pixel_values' must be of one size"):
        scores_of(model, rows)


def test_examples_without_images_are_refused(model):
    with pytest.raises(InvalidSettingError, match="must hold 'pixel_values'"):
        scores_of(model, [{"input_ids": [1, 2], "label": 0}])
