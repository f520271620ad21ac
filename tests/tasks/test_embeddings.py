"""Models without a head are scored by their embeddings: near the dense ones, or near what people say of pairs."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.guarantee.certify import certify, certify_path
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.masking import masked, plain_copy
from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.one_shot import ExampleLosses
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.tasks.batches import Batching
from hf_headprune.tasks.examples import embeds_texts
from hf_headprune.tasks.registry import scorer_for
from hf_headprune.tasks.scores import ScoredExamples, scores_of
from tests.support.classifiers import decisive, random_plan
from tests.support.models import tiny_bart, tiny_bert, tiny_distilbert, tiny_marian
from tests.support.tasks import embedding, sequences, texts


@pytest.fixture
def model():
    return decisive(tiny_bert(None, add_pooling_layer=False))


def pairs_of_texts(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = zip(sequences(count, generator), sequences(count, generator), strict=True)
    numbers = (5 * torch.rand(count, generator=generator)).tolist()
    return [{"input_ids": [*pair], "labels": number} for pair, number in zip(both, numbers, strict=True)]


def similarities(dense, pruned, rows):
    with torch.no_grad():
        return [float(embedding(dense, row["input_ids"]) @ embedding(pruned, row["input_ids"])) for row in rows]


def test_bodies_of_text_models_embed_and_no_others():
    assert all(map(embeds_texts, (tiny_bert(None), tiny_distilbert(None))))
    others = [tiny_bert(), tiny_bert("MaskedLM"), tiny_marian(), tiny_marian("MarianModel"), tiny_bart("BartModel")]
    assert not any(map(embeds_texts, others))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_texts_need_no_labels_and_are_compared_with_the_dense_model(model, batch_size):
    rows = texts(20)
    examples = ScoredExamples(model, rows, batching=Batching(batch_size=batch_size), where="test")
    assert examples.scores_of(model) == pytest.approx(np.ones(20), abs=1e-6)
    pruned = prune_model_(plain_copy(model), random_plan(model, 0))
    assert examples.scores_of(pruned) == pytest.approx(similarities(model, pruned, rows), abs=1e-5)
    assert examples.scores_of(pruned).min() < 0.999


def test_pairs_are_ranked_by_the_similarity_of_their_texts(model):
    rows = pairs_of_texts()
    with torch.no_grad():
        near = [float(embedding(model, row["input_ids"][0]) @ embedding(model, row["input_ids"][1])) for row in rows]
    found = scores_of(model, rows, "spearman", Batching(batch_size=5))
    assert found[:, 1] == pytest.approx(near, abs=1e-5)
    labels = [row["labels"] for row in rows]
    assert scorer_for(model, "spearman").aggregate(found) == pytest.approx(spearmanr(labels, near).statistic, abs=1e-9)


@pytest.mark.slow
def test_projections_are_the_same_in_batches_of_any_size_and_their_squares_are_the_curvature(model):
    rows = texts(12)
    weight = model.encoder.layer[0].attention.output.dense.weight

    def gradients(seed, batch_size):
        losses = ExampleLosses(model, rows, 12, 0, batch_size=batch_size)
        losses._seed = seed
        return [torch.autograd.grad(loss, weight)[0] for loss in losses]

    assert sum(gradients(0, 4)) == pytest.approx(sum(gradients(0, 12)), abs=1e-4)
    squares = sum(sum(each.square().sum() for each in gradients(seed, 1)) for seed in range(40)) / 40
    exact = 0.0
    for row in rows:
        entries = embedding(model, row["input_ids"])
        exact += sum(torch.autograd.grad(e, weight, retain_graph=True)[0].square().sum() for e in entries)
    assert float(squares) == pytest.approx(float(exact), rel=0.15)


def test_a_budget_is_met_without_labels_and_the_refit_keeps_embeddings_nearer(model):
    rows, unseen = texts(120), texts(30, seed=1)
    result = plan_for_budget(model, rows, density=0.5)
    scored = ScoredExamples(model, unseen, where="test")
    refitted = scored.scores_of(prune_model_(plain_copy(model), result)).mean()
    cut = scored.scores_of(prune_model_(plain_copy(model), result.plan)).mean()
    assert cut < refitted < 1


@pytest.mark.slow
@pytest.mark.parametrize("search", [None, "a star"])
def test_the_smallest_model_with_near_embeddings_is_found_and_certified_without_labels(model, search):
    how = {"max_drop": 0.1} if search is None else {"search": AStarSearch(max_drop=0.1, max_evaluations=12)}
    rows = texts(80, seed=2)
    result = search_plan(model, rows, calibration=texts(60), progress=False, **how)
    assert result.plan.num_removed_heads + result.plan.num_removed_ffn > 0
    pruned = prune_model_(plain_copy(model), result)
    assert np.mean(similarities(model, pruned, rows)) > 0.9 - 1e-6
    unseen = texts(80, seed=3)
    certificate = certify(model, pruned, unseen, max_drop=0.5)
    assert (certificate.claim.metric, certificate.claim.kind) == ("similarity to the dense embeddings", "bounded")
    assert certificate.evidence.dense_metric == pytest.approx(1, abs=1e-6)
    assert certificate.evidence.pruned_metric == pytest.approx(np.mean(similarities(model, pruned, unseen)), abs=1e-5)
    assert verify_certificate(certificate, pruned, unseen, dense=model).holds
    alone = verify_certificate(certificate, pruned, unseen)
    assert alone.holds
    assert any("needs the dense model" in words for words in alone.skipped)


@pytest.mark.slow
def test_a_path_and_its_certificate_compare_with_the_same_embeddings(model):
    full = PruningPlan.of(model)
    first, second = full.kept_heads
    part, plan = (full.replace(kept_heads=kept) for kept in ({first: [0, 1]}, {first: [0], second: [1, 2]}))
    rows = texts(60)
    path = certify_path(model, [plan], rows, max_drop=0.45, reference=part)
    dense, pruned = (prune_model_(plain_copy(model), each) for each in (part, plan))
    assert path.dense_metric == pytest.approx(1, abs=1e-6)
    assert path.steps[0].metric == pytest.approx(np.mean(similarities(dense, pruned, rows)), abs=1e-5)
    for other in (dense, model):  # of another model than the path's, nothing is taken from the path
        found = certify(other, pruned, rows, max_drop=0.45, path=path).evidence.pruned_metric
        assert found == pytest.approx(np.mean(similarities(other, pruned, rows)), abs=1e-5)


@pytest.mark.slow
def test_pairs_certify_their_correlation_by_a_bootstrap(model):
    plan = PruningPlan.of(model)
    pruned = prune_model_(plain_copy(model), plan.replace(kept_heads={next(iter(plan.kept_heads)): [0, 1, 2]}))
    certificate = certify(model, pruned, pairs_of_texts(60), "spearman", max_drop=0.9)
    assert (certificate.claim.metric, certificate.claim.kind) == ("spearman", "corpus")
    with masked(model, plan.replace(kept_heads={next(iter(plan.kept_heads)): [0, 1, 2]})):
        found = scorer_for(model, "spearman").aggregate(scores_of(model, pairs_of_texts(60), "spearman"))
    assert certificate.evidence.pruned_metric == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        (None, {"labels": 1}, 'an embedding for each text, or left out.*"spearman" for pairs'),
        (None, {"input_ids": [[5, 6], [7]]}, "embedding for each text"),
        (
            "spearman",
            {"labels": 1.0},
            r"two texts for each example, \(batch, 2, length\).*tokenizer\(\[first, second\]",
        ),
        ("spearman", {"input_ids": [[5], [6], [7]], "labels": 1.0}, r"\(batch, 2, length\), received \(1, 3, 1\)"),
        ("spearman", {"input_ids": [[5], [6]]}, "one finite number per example"),
    ],
)
def test_examples_that_a_metric_cannot_read_are_refused(model, metric, change, message):
    with pytest.raises(InvalidSettingError, match=message):
        scores_of(model, [{"input_ids": [5, 6, 7], **change}], metric)


def test_models_that_embed_in_another_size_are_refused(model):
    examples = ScoredExamples(model, texts(4), where="test")
    with pytest.raises(UnsupportedModelError, match="embeddings of the width of those it is compared with"):
        examples.scores_of(tiny_bert(None, hidden_size=16))


def test_a_mixed_list_of_pairs_and_texts_is_refused(model):
    with pytest.raises(InvalidSettingError, match="must all hold the tokens of 2 texts"):
        scores_of(
            model, [{"input_ids": [[5], [6]], "labels": 1.0}, {"input_ids": [5, 6, 7], "labels": 1.0}], "spearman"
        )
