"""Sentence chrF: what a model generates is scored, alike in search and certificate."""

import sys

import numpy as np
import pytest
import torch
from sacrebleu.metrics import CHRF

from hf_headprune.errors import InvalidSettingError, MissingExtraError
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.pipeline import search_plan
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.batches import Batching
from hf_headprune.tasks.registry import metrics_of, scorer_for
from hf_headprune.tasks.scores import scores_of
from tests.guarantee.test_tasks import smaller
from tests.support.tasks import task_of, word_tokenizer

COUNT = 40


def generated(model, example, longest):
    ids = torch.tensor([example["input_ids"]])
    with torch.no_grad():
        return model.generate(input_ids=ids, do_sample=False, max_new_tokens=2 * longest)[0].tolist()


@pytest.fixture(scope="module")
def case():
    """Half of the references are what the model generates itself."""
    model, rows, _ = task_of("references", COUNT)
    model.eval()
    for row in rows[::2]:
        row["labels"] = [token for token in generated(model, row, 4) if token > 2][:7] or row["labels"]
    return model, rows, word_tokenizer()


@pytest.mark.slow
def test_scores_are_those_of_one_example_after_the_other(case):
    model, rows, tokenizer = case
    found = scores_of(model, rows, "chrf", Batching(tokenizer, batch_size=7))
    longest = max(len(row["labels"]) for row in rows)

    def slow(row):
        found = generated(model, row, longest)
        text, gold = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (found, row["labels"]))
        return CHRF().sentence_score(text, [gold]).score / 100

    assert found == pytest.approx([slow(row) for row in rows], abs=1e-9)
    assert found.max() > 0.3
    assert len({*found.tolist()}) > 3


@pytest.mark.slow
def test_it_is_certified_and_searched_by_name(case):
    model, rows, tokenizer = case
    data = CertificationData(rows, batching=Batching(processing_class=tokenizer))
    pruned = smaller(model)
    certificate = certify(model, pruned, data, "chrf", max_drop=0.9)
    assert "the sentence chrF of the pruned model drops by less" in certificate.statement
    scores = [scores_of(each, rows, "chrf", data.batching) for each in (model, pruned)]
    evidence = certificate.evidence
    assert [evidence.dense_metric, evidence.pruned_metric] == pytest.approx([np.mean(each) for each in scores])
    assert verify_certificate(certificate, pruned, data, dense=model, metric="chrf").holds
    search = AStarSearch(max_drop=0.5, max_evaluations=3)
    found = search_plan(model, rows, "chrf", search, processing_class=tokenizer, progress=False)
    assert found.search.reference_metric == pytest.approx(np.mean(scores[0]))
    assert found.plan.num_removed_heads > 0


def test_it_needs_a_tokenizer_and_the_package(case, monkeypatch):
    model, rows, tokenizer = case
    assert metrics_of(model) == ("likelihood", "chrf")
    with pytest.raises(InvalidSettingError, match=r"chrF needs the tokenizer .* received NoneType"):
        scores_of(model, rows, "chrf")
    assert scorer_for(model, "chrf", tokenizer=tokenizer).tokenizer is tokenizer
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"hf-headprune\[chrf\]\""):
        scores_of(model, rows, "chrf", Batching(tokenizer))
