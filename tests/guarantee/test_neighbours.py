"""Embedding models without labels: the share of texts whose nearest neighbour in a collection changes is bounded."""

import numpy as np
import pytest
from scipy.stats import binom

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.neighbours import nearest_neighbours
from hf_headprune.guarantee.verify import verify_certificate

COUNT, SIZE, WIDTH = 300, 40, 8
TEXTS = [{"text": f"text number {number}"} for number in range(COUNT)]


def embedded(noise=0.0, width=WIDTH):
    """Embeddings of the texts and of the collection, those of a pruned model with noise."""
    generator, other = np.random.default_rng(0), np.random.default_rng(1)
    found = [generator.normal(size=(rows, width)) for rows in (COUNT, SIZE)]
    return [rows * 3 + noise * other.normal(size=rows.shape) for rows in found]


def test_neighbours_are_those_of_a_slow_search_by_cosine():
    texts, collection = embedded()

    def cosine(one, other):
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    slow = [int(np.argmax([cosine(text, other) for other in collection])) for text in texts[:20]]
    assert list(nearest_neighbours(texts[:20].tolist(), collection)) == slow
    assert nearest_neighbours(2 * texts, 5 * collection) == nearest_neighbours(texts, collection)
    assert nearest_neighbours([[1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]) == (1,)  # the first of equal ones


def test_the_share_of_changed_neighbours_is_bounded_and_said_to_be_that():
    dense, pruned = nearest_neighbours(*embedded()), nearest_neighbours(*embedded(0.3))
    changed = sum(before != after for before, after in zip(dense, pruned, strict=True))
    assert 0 < changed < COUNT // 4
    certificate = certify(dense, pruned, TEXTS, "agreement", max_drop=0.3)
    evidence = certificate.evidence
    assert (certificate.verdict, evidence.changed) == ("PASS", changed)
    assert binom.cdf(changed, COUNT, evidence.upper_bound) == pytest.approx(0.05, abs=1e-3)
    said = "the share of texts whose nearest neighbour the pruned model changes is less than 30 %"
    assert said in certificate.statement
    assert f"the nearest neighbours of {changed} changed" in certificate.statement
    assert "accuracy" not in certificate.statement
    assert certificate.pruned.name == "recorded nearest neighbours"
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert verify_certificate(certificate, pruned, TEXTS, dense=dense).holds
    assert not verify_certificate(certificate, dense, TEXTS, dense=dense).holds


def test_neighbours_are_compared_with_neighbours_alone():
    dense, pruned = nearest_neighbours(*embedded()), nearest_neighbours(*embedded(0.3))
    for models, metric in (((dense, list(pruned)), "agreement"), ((dense, pruned), None)):
        with pytest.raises(InvalidSettingError, match="nearest neighbours are compared with those of another model"):
            certify(*models, [{**text, "label": 0} for text in TEXTS], metric)
    assert certify(list(dense), list(pruned), TEXTS, "agreement", max_drop=0.3).evidence.changed


@pytest.mark.parametrize(
    "texts", [[], "abc", [[1.0, 2.0], [0.0, 0.0]], [[float("nan"), 1.0]], [1.0, 2.0], None], ids=str
)
def test_what_is_no_embedding_is_refused(texts):
    with pytest.raises(InvalidSettingError, match="embeddings must hold a row of finite numbers"):
        nearest_neighbours(texts, [[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(InvalidSettingError, match=r"of one width, with at least two .* received shapes \(1, 2\) and"):
        nearest_neighbours([[1.0, 0.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
