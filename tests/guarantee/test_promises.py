"""Several promises at once: of each class, group, data set and metric; all must hold, and the worst is named."""

import copy
import dataclasses

import numpy as np
import pytest

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify, certify_path
from hf_headprune.guarantee.claim import Claim
from hf_headprune.guarantee.disagreements import disagreements
from hf_headprune.guarantee.evidence import evidence_of_counts
from hf_headprune.guarantee.outcomes import Counts
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.plan import PruningPlan
from hf_headprune.tasks.scores import scores_of
from tests.guarantee.test_certificate import names
from tests.guarantee.test_labels import label_of, without_labels
from tests.guarantee.test_tasks import smaller
from tests.support.tasks import task_of

COUNT, DROP = 60, 0.6


@pytest.fixture(scope="module")
def case():
    model, rows, _ = task_of("classes", COUNT)
    rows = [{**row, "country": "de" if i % 3 else "fr"} for i, row in enumerate(rows)]
    return model, smaller(model), rows


@pytest.fixture(scope="module")
def of_groups(case):
    return certify(*case, max_drop=DROP, each="country")


def test_every_group_and_the_whole_get_a_promise_of_their_own(case, of_groups):
    model, pruned, rows = case
    parts = {part.claim.value: part for part in of_groups.parts()}
    assert set(parts) == {"", "de", "fr"}
    lost = scores_of(model, rows) - scores_of(pruned, rows)
    for value, part in parts.items():
        own = [i for i, row in enumerate(rows) if value in ("", row["country"])]
        counts = len(own), int((lost[own] > 0).sum()), int((lost[own] < 0).sum())
        assert (part.evidence.examples, part.evidence.regressions, part.evidence.improvements) == counts
        assert part.claim.num_promises == 3
    p_values = [part.evidence.p_value for part in of_groups.parts()]
    assert of_groups.evidence.p_value == max(p_values)
    assert of_groups.verdict == "PASS"
    begins = "PASS. All 3 promises hold together, with 95 % confidence. The worst of them: PASS. Compared with "
    assert of_groups.statement.startswith(begins)
    assert "PASS: accuracy, n = 60," in of_groups.statement


def test_it_holds_when_it_is_checked_and_a_change_anywhere_is_found(case, of_groups):
    model, pruned, rows = case
    assert Certificate.from_json(of_groups.to_json()) == of_groups
    found = verify_certificate(of_groups, pruned, rows[::-1], dense=model)
    assert found.holds, found.to_text()
    assert any("run on 20 examples (whose country is fr)" in entry for entry in found.checked)
    assert any("no further promises" in entry for entry in found.on_trust)
    moved = [{**row, "country": "de"} if i == 0 else row for i, row in enumerate(rows)]
    assert {"example", "split"} <= names(verify_certificate(of_groups, pruned, moved, dense=model))
    last = of_groups.promises[-1]
    worse = dataclasses.replace(last.evidence, regressions=last.evidence.regressions + 1)
    for forged in (
        dataclasses.replace(of_groups, promises=(*of_groups.promises[:-1], dataclasses.replace(last, evidence=worse))),
        dataclasses.replace(of_groups, promises=of_groups.promises[:-1]),
        dataclasses.replace(of_groups, promises=(last, last)),
    ):
        assert not verify_certificate(Certificate.from_json(forged.to_json())).holds
    swapped = dataclasses.replace(
        of_groups,
        promises=(*(dataclasses.replace(of_groups.promises[0], **vars_of(of_groups)),), of_groups.promises[1]),
        **vars_of(of_groups.promises[0]),
    )
    assert "promises" in names(verify_certificate(swapped))


def vars_of(promise):
    return {name: getattr(promise, name) for name in ("claim", "evidence", "split", "disjointness", "examples")}


def test_classes_data_sets_and_metrics_are_promises_too(case):
    model, pruned, rows = case
    classes = certify(*case, max_drop=0.9, each=["label", "country"])
    values = {(part.claim.column, part.claim.value) for part in classes.parts()}
    assert values == {
        ("", ""),
        *(("label", str(c)) for c in {row["label"] for row in rows}),
        ("country", "de"),
        ("country", "fr"),
    }
    data = {"first": rows[:30], "second": CertificationData(rows[30:], steered_training=True)}
    both = certify(model, pruned, data, ["accuracy", "macro_f1"], max_drop=0.9)
    assert {(part.claim.dataset, part.claim.metric) for part in both.parts()} == {
        (name, metric) for name in data for metric in ("accuracy", "macro_f1")
    }
    assert both.steered_training
    assert verify_certificate(both, pruned, data, dense=model, metric=None).findings == []
    one = verify_certificate(both, pruned, rows)
    assert any("of second: no data of that name were given" in entry for entry in one.skipped)
    missing = verify_certificate(both, pruned, {"first": rows[:30]}, dense=model)
    assert any("of second: no data of that name" in entry for entry in missing.skipped)


def test_labels_of_the_disagreements_are_enough_for_groups_too(case):
    model, pruned, rows = case
    texts = without_labels(rows)
    labels = {index: label_of(rows[index]) for index in disagreements(model, pruned, texts)}
    few = certify(model, pruned, texts, labels=labels, max_drop=DROP, each="country")
    whole = certify(*case, max_drop=DROP, each="country")
    assert [p.evidence.p_value for p in few.parts()] == [p.evidence.p_value for p in whole.parts()]
    data = CertificationData(texts, labels=labels)
    assert verify_certificate(few, pruned, data, dense=model).holds


def test_a_promise_passes_at_the_full_level_and_fails_at_its_share():
    counts = Counts(872, 40, 15, 700)
    alone, among = (Claim("accuracy", "binary", 0.01, 0.05, 0.05, num_promises=n) for n in (1, 40))
    assert evidence_of_counts(counts, alone).verdict == "FAIL"
    assert evidence_of_counts(counts, among).verdict == "INCONCLUSIVE"
    good = Counts(1821, 34, 42, 1500)
    assert evidence_of_counts(good, alone).verdict == evidence_of_counts(good, among).verdict == "PASS"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"each": "nowhere"}, "every example must hold the column 'nowhere'"),
        ({"each": 5}, "each must be the name of a column or a list of some, received 5"),
        ({"each": ["country", "country"]}, "a metric or a column twice"),
        ({"metric": []}, "a metric or a list of some, received an empty list"),
        ({"dataset": {}}, "several data sets are a mapping of names to splits"),
        ({"each": "country", "path": 5}, "without path and ledger"),
    ],
)
def test_what_is_no_promise_is_refused(case, changes, message):
    model, pruned, rows = case
    with pytest.raises(InvalidSettingError, match=message):
        certify(model, pruned, **{"dataset": rows, **changes})


def test_the_certificate_that_a_model_takes_along_lists_all(case, tmp_path):
    model, pruned, rows = case
    taken = copy.deepcopy(pruned)
    made = certify(model, taken, rows, max_drop=DROP, each="country")
    taken.save_pretrained(tmp_path)
    assert Certificate.load(tmp_path) == made
    assert np.isclose(sum(part.evidence.examples for part in made.parts()), 2 * COUNT)


# Stopping early


def test_the_test_stops_as_soon_as_the_verdict_is_certain(case):
    model, pruned, rows = case
    certificate = certify(model, pruned, rows, max_drop=0.9, stop_early=True)
    used = certificate.evidence.examples
    assert certificate.verdict == "PASS"
    assert 0 < used <= COUNT == used + certificate.unused
    whole = certify(model, pruned, [*rows, *more(rows)], max_drop=0.9, stop_early=True)
    assert whole.unused > 0
    assert f"Stopped after {whole.evidence.examples:,} of {3 * COUNT:,} examples" in whole.statement
    assert Certificate.from_json(whole.to_json()) == whole
    for data in ([*rows, *more(rows)], [*more(rows), *rows]):
        found = verify_certificate(whole, pruned, data, dense=model)
        assert found.holds, found.to_text()
    forged = dataclasses.replace(whole, unused=whole.unused - 1)
    assert "unused" in names(verify_certificate(forged, pruned, [*rows, *more(rows)]))
    assert "example" in names(verify_certificate(whole, pruned, rows))
    with pytest.raises(InvalidSettingError, match="stop_early is for one model, a metric that is a mean"):
        certify(model, pruned, rows, "macro_f1", stop_early=True)


def more(rows):
    return [{**row, "input_ids": [*row["input_ids"], token]} for row in rows for token in (5, 6)]


def test_a_path_is_tested_for_one_promise(case):
    model, _, rows = case
    for dataset, metric in (({"dev": rows[:30], "test": rows[30:]}, None), (rows, ["accuracy", "macro_f1"])):
        with pytest.raises(InvalidSettingError, match="plans are tested for one promise, on one data set"):
            certify_path(model, [PruningPlan.of(model)], dataset, metric)
    assert certify_path(model, [PruningPlan.of(model)], rows, max_drop=DROP).certified_index == 0
