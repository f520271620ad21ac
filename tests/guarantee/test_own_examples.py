"""A model whose tokenizer is another one comes with the same examples as that encodes them."""

import copy

import pytest
import torch

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certify import certify, certify_path, furthest_within
from hf_headprune.guarantee.disagreements import disagreements
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.plan import PruningPlan
from tests.guarantee.test_external import DROP
from tests.guarantee.test_labels import label_of, without_labels
from tests.guarantee.test_tasks import smaller
from tests.support.tasks import task_of

COUNT = 60


def renumbered(model, rows, *, seed=0):
    """A model that reads the same tokens by other numbers, and the examples in these numbers."""
    table = model.get_input_embeddings()
    order = torch.randperm(table.num_embeddings, generator=torch.Generator().manual_seed(seed))
    new = torch.argsort(order)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_input_embeddings().weight.copy_(table.weight[order])
    twin.config.pad_token_id = int(new[model.config.pad_token_id or 0])
    return twin, [{**row, "input_ids": [int(new[token]) for token in row["input_ids"]]} for row in rows]


@pytest.fixture(scope="module")
def case():
    model, rows, _ = task_of("classes", COUNT)
    rows = [{name: row[name] for name in row} for row in rows]
    return model, smaller(model), rows, renumbered(model, rows)


def test_a_pair_is_certified_as_the_model_that_it_is(case):
    model, pruned, rows, (twin, own) = case
    plain = certify(model, pruned, rows, max_drop=DROP)
    assert certify(twin, pruned, rows, max_drop=DROP).evidence != plain.evidence  # by the numbers of the other
    found = certify((twin, own), pruned, rows, max_drop=DROP)
    assert found.evidence == plain.evidence
    assert (found.split, found.pruned) == (plain.split, plain.pruned)
    assert found.dense.weights != plain.dense.weights
    assert certify((twin, own), pruned, rows, max_drop=DROP, each="label").parts()[1:]
    early = [certify(it, pruned, rows, max_drop=DROP, stop_early=True) for it in (model, (twin, own))]
    assert early[0].evidence == early[1].evidence
    assert verify_certificate(found, pruned, rows, dense=(twin, own)).holds
    assert not verify_certificate(found, pruned, rows, dense=twin).holds
    answers = [int(it) for it in _answers(pruned, rows)]
    assert certify((twin, own), answers, rows, max_drop=DROP).evidence == plain.evidence


def _answers(model, rows):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax() for row in rows]


def test_a_path_is_compared_with_another_model(case):
    model, _, rows, pair = case
    full = PruningPlan.of(model)
    plans = [
        full.replace(kept_heads={next(iter(full.kept_heads)): [0]}),
        full.replace(kept_ffn={site: [] for site in full.kept_ffn}),
    ]
    plain, found = (certify_path(model, plans, rows, max_drop=DROP, reference=it) for it in (None, pair))
    assert (found.steps, found.dense_metric) == (plain.steps, plain.dense_metric)
    own = furthest_within(model, plans, rows, max_drop=DROP, reference=pair)
    assert own == furthest_within(model, plans, rows, max_drop=DROP)


def test_few_labels_are_enough_for_a_pair(case):
    model, pruned, rows, (twin, own) = case
    texts, own_texts = without_labels(rows), without_labels(own)
    differing = disagreements((twin, own_texts), pruned, texts)
    assert differing == disagreements(model, pruned, texts)
    labels = {index: label_of(rows[index]) for index in differing}
    plain = certify(model, pruned, texts, max_drop=DROP, labels=labels)
    assert certify((twin, own_texts), pruned, texts, max_drop=DROP, labels=labels).evidence == plain.evidence


def test_tokens_that_a_model_lacks_are_refused_in_words(case):
    model, pruned, rows, _ = case
    wrong = [{**row, "input_ids": [*row["input_ids"], 1000]} for row in rows]
    with pytest.raises(InvalidSettingError, match=r"hold token 1,000, .* another tokenizer has encoded them"):
        certify(model, pruned, wrong, max_drop=DROP)


def test_rows_of_other_examples_are_refused(case):
    _, pruned, rows, (twin, own) = case
    other = [{**own[0], "label": 3 - own[0]["label"]}, *own[1:]]
    for wrong, said in ((own[:-1], "59 for 60"), (other, r"of which 1 .* \(indices \[0\]\)")):
        with pytest.raises(InvalidSettingError, match=said):
            certify((twin, wrong), pruned, rows, max_drop=DROP)
    texts = [{**row, "text": f"text {n}"} for n, row in enumerate(rows)]
    swapped = [{**row, "text": f"text {n + (n < 2)}"} for n, row in enumerate(own)]
    with pytest.raises(InvalidSettingError, match="of which 2"):
        certify((twin, swapped), pruned, texts, max_drop=DROP)
