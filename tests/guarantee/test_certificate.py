"""Certificates of tiny models: made, saved, read and verified; each forgery is named."""

import base64
import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from hf_headprune._certificate_file import (
    CERTIFICATE_NAME,
    attach_certificate_,
    attach_saved_certificate_,
    write_certificate_,
)
from hf_headprune._seen_splits import seen_by
from hf_headprune.errors import CertificateError, DataLeakError, InvalidSettingError, UnsupportedModelError
from hf_headprune.guarantee import paired
from hf_headprune.guarantee.certificate import Certificate, checksum_of
from hf_headprune.guarantee.certify import certify, certify_path, furthest_within, name_of
from hf_headprune.guarantee.claim import METHODS, Claim, Metric
from hf_headprune.guarantee.evidence import evidence_of, evidence_of_counts
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.outcomes import Counts, PairedScores
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.sequence import AlphaLedger, alpha_of_use
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.masking import masked
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.tasks.scores import scores_of
from tests.support.models import VOCAB_SIZE, tiny_bert, tiny_marian

NUM_LABELS, NUM_EXAMPLES = 3, 160


def classifier():
    model = tiny_bert(num_labels=NUM_LABELS)
    with torch.no_grad():  # a fresh tiny model answers the same to everything; make its head decide
        for name, parameter in model.named_parameters():
            if "attention" in name and "LayerNorm" not in name:
                parameter.mul_(30.0)
            elif "classifier" in name or "pooler" in name:
                parameter.mul_(20.0)
    return model


def examples(count=NUM_EXAMPLES, seed=0, *, model=None):
    """Random sentences; where a model is given, two of three labels are its answers."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(3, 12, (), generator=generator))
        tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()
        rows.append({"input_ids": tokens, "label": int(torch.randint(0, NUM_LABELS, (), generator=generator))})
    if model is not None:
        answers = scores_of(model, rows, "macro_f1")[:, 1]
        rows = [{**row, "label": row["label"] if i % 3 == 0 else int(answers[i])} for i, row in enumerate(rows)]
    return rows


def without(plan, heads):
    site = next(iter(plan.kept_heads))
    return plan.replace(kept_heads={site: [head for head in plan.kept_heads[site] if head not in heads]})


@pytest.fixture(scope="module")
def dense():
    return classifier()


@pytest.fixture(scope="module")
def rows(dense):
    return examples(model=dense)


@pytest.fixture(scope="module")
def pruned(dense):
    model = copy.deepcopy(dense)
    prune_model_(model, without(PruningPlan.of(model), [1]))
    return model


@pytest.fixture(scope="module")
def data(rows):
    return CertificationData(rows, train=examples(40, seed=7), search=examples(40, seed=8))


@pytest.fixture(scope="module")
def certificate(dense, pruned, data):
    return certify(dense, pruned, data, max_drop=0.4)


def names(verification):
    return {finding.name for finding in verification.findings}


def levels(verification):
    return {finding.level for finding in verification.findings}


# What a certificate says


def test_the_numbers_are_those_of_the_models(certificate, dense, pruned, rows):
    right = [scores_of(model, rows) for model in (dense, pruned)]
    broken, fixed = int((right[0] > right[1]).sum()), int((right[0] < right[1]).sum())
    assert broken > 0
    assert fixed > 0
    evidence = certificate.evidence
    assert (evidence.examples, evidence.regressions, evidence.improvements) == (NUM_EXAMPLES, broken, fixed)
    assert (evidence.dense_metric, evidence.pruned_metric) == (right[0].mean(), right[1].mean())
    assert evidence.p_value == paired.p_value(broken, fixed, NUM_EXAMPLES, 0.4)
    assert certificate.verdict == "PASS"
    assert certificate.pruned.parameters < certificate.dense.parameters


@pytest.mark.parametrize(
    ("counts", "verdict", "needed"),
    [
        (Counts(1821, 34, 42, 1500), "PASS", False),
        (Counts(872, 60, 10, 700), "FAIL", False),
        (Counts(300, 4, 3, 250), "INCONCLUSIVE", True),
    ],
)
def test_verdicts_follow_from_the_counts(counts, verdict, needed):
    evidence = evidence_of_counts(counts, Claim("accuracy", "binary", 0.01, 0.05, 0.05))
    assert evidence.verdict == verdict
    assert (evidence.examples_needed is not None) == needed
    assert (evidence.regressions_to_spare >= 0) == (verdict == "PASS")
    assert (evidence.upper_bound < 0.01) == (verdict == "PASS")


def test_a_fail_is_a_pass_of_the_reverse_claim():
    evidence = evidence_of_counts(Counts(872, 60, 10, 700), Claim("accuracy", "binary", 0.01, 0.05, 0.05))
    assert evidence.p_value > 0.99
    assert paired.p_value(10, 60, 872, -0.01) < 0.05


def test_the_statement_says_what_was_found_and_what_was_not_checked(dense, pruned, rows, certificate):
    evidence = certificate.evidence
    assert certificate.statement.startswith(
        "PASS. Compared with the dense model, the accuracy of the pruned model drops by less than 40 percentage points "
        "on unseen examples like those of the certification split, with 95 % confidence. Scored of each example: "
        f"whether the predicted class is right. Of 160 examples {evidence.regressions} got worse and "
        f"{evidence.improvements} better;"
    )
    assert f"would survive {evidence.regressions_to_spare} further regressions" in certificate.statement
    assert "not checked" not in certificate.statement
    unchecked = certify(dense, pruned, CertificationData(rows, search=examples(9, seed=8)), max_drop=0.4)
    assert "It was not checked that no example is in the train split." in unchecked.statement


def test_a_split_that_chose_among_models_gives_each_its_share_of_alpha(dense, pruned, data, tmp_path):
    pruned = copy.deepcopy(pruned)
    alone, stricter = (certify(dense, pruned, data, max_drop=0.4, confidence=level) for level in (0.95, 0.99))
    chosen = certify(dense, pruned, data, max_drop=0.4, num_candidates=5)
    assert (chosen.claim.alpha, chosen.claim.alpha_spent) == (0.05, pytest.approx(0.01))
    assert chosen.evidence.upper_bound > alone.evidence.upper_bound
    assert chosen.evidence.upper_bound == stricter.evidence.upper_bound
    assert "These examples chose it among 5 models, each of which may spend an alpha of 0.01." in chosen.statement
    assert "Nothing but the choice among the candidates" in chosen.assumptions[-1]
    assert Certificate.load(chosen.save(tmp_path)) == chosen
    assert verify_certificate(chosen, pruned, data.dataset, dense=dense).holds
    ledger = AlphaLedger(tmp_path / "ledger.jsonl")
    assert certify(dense, pruned, data, num_candidates=5, ledger=ledger).claim.alpha_spent == alpha_of_use(0.05, 1) / 5


def test_a_split_that_steered_training_is_no_news_to_the_model_and_the_certificate_says_so(dense, pruned, data):
    steered = dataclasses.replace(data, steered_training=True)
    for among, last in ((1, "Nothing else about the model"), (5, "Nothing else but the choice among the candidates")):
        certificate = certify(dense, copy.deepcopy(pruned), steered, max_drop=0.4, num_candidates=among)
        assert "Training chose its checkpoint, its end or its learning rates by these examples" in certificate.statement
        assert "Training was steered by evaluations on them too" in certificate.assumptions[-2]
        assert certificate.assumptions[-1].startswith(last)
        assert Certificate.from_json(certificate.to_json()) == certificate
        assert verify_certificate(certificate, pruned, data, dense=dense).holds
    assert not any("steered" in text for text in certify(dense, pruned, data, max_drop=0.4).assumptions)


def test_more_alpha_than_the_share_of_a_chosen_model_is_refused(dense, pruned, data):
    with pytest.raises(
        InvalidSettingError, match=r"alpha_spent must be in \(0, alpha / num_candidates\], received 0.05"
    ):
        Claim("accuracy", "binary", 0.01, 0.05, 0.05, num_candidates=5)
    with pytest.raises(InvalidSettingError, match="num_candidates must be a count of at least 1, received 0"):
        certify(dense, pruned, data, num_candidates=0)
    path = certify_path(dense, [PruningPlan.of(dense)], data)
    with pytest.raises(InvalidSettingError, match="and num_candidates=2 beside it"):
        certify(dense, pruned, data, path=path, num_candidates=2)


def test_the_furthest_plan_within_a_drop_is_the_last_before_the_first_that_is_seen_to_lose_more(dense, data):
    full = PruningPlan.of(dense)
    plans = [without(full, range(count)) for count in range(1, 5)]
    right = scores_of(dense, data.dataset).sum()
    seen = []
    for plan in plans:
        with masked(dense, plan):
            seen.append(int(right - scores_of(dense, data.dataset).sum()))
    assert max(seen) > 0
    for allowed in sorted({0, max(seen) - 1, max(seen)}):
        more = [index for index, drop in enumerate(seen) if drop > allowed]
        last = more[0] - 1 if more else len(plans) - 1
        found, _ = furthest_within(dense, plans, data, max_drop=allowed / len(data.dataset))
        assert found == (None if last < 0 else last)


def test_a_certificate_survives_saving_and_reading(certificate, tmp_path):
    path = certificate.save(tmp_path / "model")
    assert path.name == CERTIFICATE_NAME
    assert Certificate.load(path) == Certificate.load(tmp_path / "model") == certificate
    content = json.loads(path.read_text())
    assert content["statement"] == certificate.statement
    assert content["method"] == METHODS["binary"]
    assert len(path.read_text()) < 3000 + 20 * NUM_EXAMPLES


# Verification of what is true


def test_a_true_certificate_holds_at_every_level(certificate, dense, pruned, data):
    found = verify_certificate(certificate, pruned, data, dense=dense)
    assert found.holds, found.to_text()
    assert found.skipped == []
    assert found.notes == []
    words = " ".join(found.checked)
    assert all(word in words for word in ("counts", "examples", "models", "fingerprints"))
    assert found.to_text().startswith("The certificate holds. It says PASS.\n")
    strict = certify(dense, pruned, data, max_drop=0.001)
    assert strict.verdict != "PASS"
    assert (
        verify_certificate(strict, pruned).to_text().startswith(f"The certificate holds. It says {strict.verdict}.\n")
    )


def test_that_no_drop_at_all_is_excluded_is_a_claim_like_others(dense, pruned, rows):
    found = certify(dense, copy.deepcopy(dense), rows, max_drop=0)
    assert found.verdict == "INCONCLUSIVE"  # no number of examples would tell
    assert found.evidence.examples_needed is None
    assert certify(dense, pruned, rows, max_drop=0).verdict == "FAIL"


def test_a_model_that_answers_otherwise_than_its_weights_will_is_refused(dense, pruned, rows):
    plan, model = without(PruningPlan.of(dense), [1]), copy.deepcopy(dense)
    with masked(model, plan):
        inside = copy.deepcopy(model)
        for pair in ((dense, model), (model, pruned), (dense, (model, rows))):
            with pytest.raises(UnsupportedModelError, match="carries gates or a mask"):
                certify(*pair, rows)
    with pytest.raises(UnsupportedModelError, match="no copy that was made inside"):
        certify(dense, inside, rows)
    assert certify(dense, model, rows).evidence.changed == 0


def test_examples_of_another_kind_and_without_label_are_named(dense, pruned, rows):
    with pytest.raises(InvalidSettingError, match="example 0 has no label"):
        certify(dense, pruned, [{**rows[0], "label": None}, *rows[1:]])
    frames = Dataset.from_list(rows).with_format("pandas")
    with pytest.raises(InvalidSettingError, match=r"received DataFrame.*with_format\(None\)"):
        certify(dense, pruned, frames)


def test_copies_among_the_examples_are_said(dense, pruned, rows, caplog):
    certify(dense, pruned, rows, max_drop=0.4)
    assert "copies" not in caplog.text
    repeated = [{**row, "label": copy_ % 2} for row in rows[:40] for copy_ in range(4)]  # whatever their labels
    certify(dense, pruned, repeated, max_drop=0.4)
    assert "Of 160 examples to certify on, 120 are copies of others" in caplog.text
    caplog.clear()
    certify(dense, pruned, repeated, max_drop=0.4)
    assert "copies" not in caplog.text  # once is enough
    certify(dense, pruned, CertificationData([{**row, "of": i % 40} for i, row in enumerate(repeated)], groups="of"))
    assert "copies" not in caplog.text


def test_it_holds_for_a_saved_and_reloaded_model_and_shuffled_data(certificate, dense, pruned, rows, tmp_path):
    pruned.save_pretrained(tmp_path)
    certificate.save(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    reloaded.__class__ = type("LocalCopy", (type(reloaded),), {})  # what a model computes is not in its name
    found = verify_certificate(tmp_path, reloaded, rows[::-1], dense=dense)
    assert found.holds, found.to_text()


def test_what_was_not_given_is_said_to_be_unchecked(certificate, pruned, rows):
    alone = verify_certificate(certificate)
    assert alone.holds
    assert any("no data were given" in text for text in alone.skipped)
    partly = verify_certificate(certificate, pruned, rows)
    assert partly.holds
    assert any("dense model on the certification split: it was not given" in text for text in partly.skipped)
    assert any("search split holds none" in text for text in partly.skipped)


# Forgeries


def forged(certificate, section, **changes):
    part = dataclasses.replace(getattr(certificate, section), **changes)
    return dataclasses.replace(certificate, **{section: part})


@pytest.mark.parametrize("which", ["dense", "pruned"])
def test_a_changed_weight_is_named(certificate, dense, pruned, data, which):
    models = {"dense": dense, "pruned": pruned}
    models[which] = copy.deepcopy(models[which])
    next(models[which].parameters()).data[0, 0] += 1e-6
    found = verify_certificate(certificate, models["pruned"], data, dense=models["dense"])
    assert names(found) == {f"{which} weights"}


def test_a_model_that_answers_otherwise_is_named(certificate, dense, data):
    other = copy.deepcopy(dense)
    prune_model_(other, without(PruningPlan.of(other), [0, 2, 3]))
    found = verify_certificate(certificate, other, data, dense=dense)
    assert {"pruned weights", "pruned config", "pruned parameters", "pruned model", "verdict"} == names(found)
    assert "THE CERTIFICATE DOES NOT HOLD" in found.to_text()


def test_a_changed_label_is_named_with_its_index(certificate, dense, pruned, rows):
    changed = [{**row, "label": (row["label"] + 1) % 3} if i == 17 else row for i, row in enumerate(rows)]
    found = verify_certificate(certificate, pruned, changed, dense=dense)
    assert names(found) == {"label", "split"}
    assert any("1 examples have another label (indices [17])" in finding.text for finding in found.findings)


def test_of_a_relabelled_example_an_extra_copy_is_one_that_the_certificate_lacks(certificate, dense, pruned, rows):
    other = {**rows[17], "label": (rows[17]["label"] + 1) % 3}
    found = verify_certificate(certificate, pruned, [*rows[:17], other, *rows[18:], other, other], dense=dense)
    told = {finding.name: finding.text for finding in found.findings}
    assert told["label"] == "1 examples have another label (indices [17])"
    assert told["example"] == f"2 examples are not in the certificate (indices [{len(rows)}, {len(rows) + 1}])"


@pytest.mark.parametrize("change", ["other", "missing", "twice"])
def test_changed_examples_are_named(certificate, dense, pruned, rows, change):
    changed = {
        "other": [*rows[:5], {"input_ids": [9, 8], "label": 0}, *rows[6:]],
        "missing": rows[1:],
        "twice": [*rows, rows[3]],
    }[change]
    found = verify_certificate(certificate, pruned, changed, dense=dense)
    assert names(found) == {"example", "split"}
    assert any("it is another one" in text for text in found.skipped)
    texts = {
        "other": ["1 examples are not in the certificate (indices [5])", "1 examples of the certificate are not in"],
        "missing": ["1 examples of the certificate are not in the data"],
        "twice": ["1 examples are not in the certificate (indices [160])"],
    }[change]
    told = [finding.text for finding in found.findings if finding.name == "example"]
    assert all(text.startswith(start) for text, start in zip(told, texts, strict=True))


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("claim", {"max_drop": 0.1}, "p_value"),
        ("claim", {"alpha_spent": 0.01}, "upper_bound"),
        ("claim", {"alpha_spent": 0.01}, "alpha_spent"),
        ("claim", {"num_candidates": 5, "alpha_spent": 0.001}, "alpha_spent"),
        ("claim", {"use": 2}, "alpha_spent"),
        ("evidence", {"p_value": 0.001}, "p_value"),
        ("evidence", {"verdict": "FAIL"}, "verdict"),
        ("evidence", {"regressions": 1}, "outcomes"),
        ("evidence", {"examples": 100}, "outcomes"),
        ("evidence", {"upper_bound": 0.0}, "upper_bound"),
        ("evidence", {"regressions_to_spare": 99}, "regressions_to_spare"),
        ("evidence", {"pruned_metric": 0.99}, "pruned_metric"),
    ],
)
def test_changed_numbers_are_named_from_the_certificate_alone(certificate, section, change, named):
    found = verify_certificate(forged(certificate, section, **change))
    assert named in names(found)
    assert levels(found) <= {"counts", "examples"}


def test_changed_outcomes_are_named(certificate, dense, pruned, rows):
    outcomes = certificate.examples.pruned
    flipped = ("1" if outcomes[0] == "0" else "0") + outcomes[1:]
    assert "outcomes" in names(verify_certificate(forged(certificate, "examples", pruned=flipped)))
    swapped = list(outcomes)  # the counts stay, the examples do not
    dense_right = [i for i, outcome in enumerate(certificate.examples.dense) if outcome == "1"]
    first = next(i for i in dense_right if outcomes[i] == "1")
    second = next(i for i in dense_right if outcomes[i] == "0")
    swapped[first], swapped[second] = "0", "1"
    forgery = forged(certificate, "examples", pruned="".join(swapped))
    assert "marks" in names(verify_certificate(forgery))  # an answer that both models gave scored for one alone
    found = verify_certificate(forgery, pruned, rows, dense=dense)
    where = sorted(ExampleFingerprints.of(rows).order[[first, second]].tolist())
    assert f"2 examples score differently (indices {where})" in {finding.text for finding in found.findings}


def test_another_fingerprint_of_the_split_is_named_and_no_model_is_run(certificate, dense, pruned, rows):
    forgery = dataclasses.replace(certificate, split="0" * 64)
    found = verify_certificate(forgery, pruned, rows, dense=dense)
    assert names(found) == {"split"}
    assert not any(text.startswith("models") for text in found.checked)


def test_a_forgery_without_contradictions_is_found_by_running_the_models(certificate, dense, pruned, rows):
    told = "".join("1" if "1" in pair else "0" for pair in zip(certificate.examples.dense, certificate.examples.pruned))  # noqa: B905
    examples = dataclasses.replace(certificate.examples, pruned=told)
    evidence = evidence_of(examples.scores("binary"), certificate.claim)
    forgery = dataclasses.replace(certificate, examples=examples, evidence=evidence)
    assert evidence.regressions == 0
    assert verify_certificate(forgery).holds
    found = verify_certificate(forgery, pruned, rows, dense=dense)
    assert names(found) == {"pruned model"}
    assert not found.notes


def one_less_broken(certificate, claim):
    """The certificate of a claim, had the pruned model one more answer right."""
    outcomes = certificate.examples.pruned
    turned = next(i for i, right in enumerate(certificate.examples.dense) if right > outcomes[i])
    examples = dataclasses.replace(certificate.examples, pruned=f"{outcomes[:turned]}1{outcomes[turned + 1 :]}")
    evidence = evidence_of(examples.scores("binary"), claim)
    return dataclasses.replace(certificate, claim=claim, examples=examples, evidence=evidence)


def turning_drop(broken, fixed):
    """A drop that is certified with one broken example less, and not with these."""
    level = paired.level_of(0.05)
    return next(
        d / 1000
        for d in range(1, 400)
        if paired.p_value(broken - 1, fixed, NUM_EXAMPLES, d / 1000)
        <= level
        < paired.p_value(broken, fixed, NUM_EXAMPLES, d / 1000)
    )


def test_one_answer_that_rounding_turned_is_only_noted(certificate, dense, pruned, rows):
    found = verify_certificate(one_less_broken(certificate, certificate.claim), pruned, rows, dense=dense)
    assert found.holds
    assert "1 examples score differently" in found.notes[0]


@pytest.mark.slow
def test_one_answer_that_turns_the_verdict_is_named(certificate, dense, pruned, rows):
    drop = turning_drop(certificate.evidence.regressions, certificate.evidence.improvements)
    forgery = one_less_broken(certificate, dataclasses.replace(certificate.claim, max_drop=drop))
    assert forgery.verdict == "PASS"
    found = verify_certificate(forgery, pruned, rows, dense=dense)
    assert names(found) == {"pruned model", "verdict"}
    assert not found.notes


def test_damaged_examples_are_named(certificate, rows):
    for change in ({"keys": certificate.examples.keys[:-4]}, {"keys": "§"}, {"dense": "2"}, {"pruned": "1"}):
        assert "examples" in names(verify_certificate(forged(certificate, "examples", **change)))
    keys = base64.b64decode(certificate.examples.keys)
    forgery = forged(certificate, "examples", keys=base64.b64encode(keys[12:] + b"x" * 12).decode())
    assert "example" in names(verify_certificate(forgery, None, rows))


def test_compared_splits_that_are_not_those_that_were_compared_are_named(certificate, data):
    train, search = certificate.disjointness
    larger = dataclasses.replace(search, examples=41)
    forgery = dataclasses.replace(certificate, disjointness=(train, larger))
    assert names(verify_certificate(forgery, None, data)) == {"search split"}
    assert train.compared_by == ("input_ids",)
    told = dataclasses.replace(train, compared_by=("input_ids", "text"))
    found = verify_certificate(dataclasses.replace(certificate, disjointness=(told, search)), None, data)
    assert any("the train split was compared by text: the data given lack it" in text for text in found.skipped)
    nothing = dataclasses.replace(train, compared_by=())
    for records in ((train, train), (search, train), (dataclasses.replace(train, name="test"),), (nothing,)):
        forgery = dataclasses.replace(certificate, disjointness=records)
        assert names(verify_certificate(forgery)) == {"disjointness"}


def test_another_dtype_of_the_weights_is_named(certificate, pruned):
    assert names(verify_certificate(forged(certificate, "environment", dtype="float16"), pruned)) == {"pruned dtype"}


def test_what_no_check_can_derive_is_said_to_rest_on_trust(certificate, dense, plans, data):
    found = verify_certificate(certificate)
    assert found.holds
    words = found.to_text()
    assert f"on trust: the assumptions: {certificate.assumptions[0]}" in words
    assert "on trust: that the split was used once until then" in words
    assert "on trust: the environment: versions, device and date" in words
    assert "on trust: that training did not choose by evaluations on the examples" in words
    assert "the path" not in words
    path = certify_path(dense, plans[:1], data, max_drop=0.4)
    model = copy.deepcopy(dense)
    prune_model_(model, plans[0])
    on_path = certify(dense, model, data, max_drop=0.4, path=path)
    assert (
        "on trust: the path: its names, and the counts of its other candidates" in verify_certificate(on_path).to_text()
    )


def test_a_split_that_was_seen_or_swapped_is_named(certificate, rows):
    seen = CertificationData(rows, search=[*examples(40, seed=8), rows[0]])
    found = verify_certificate(certificate, None, seen)
    assert found.findings[0].text.startswith("it holds 1 of the certification examples")
    other = verify_certificate(certificate, None, CertificationData(rows, train=examples(30, seed=7)))
    assert names(other) == {"train split"}
    assert "its sha256 is" in other.findings[0].text
    known = CertificationData(rows, train=ExampleFingerprints.of(examples(40, seed=7)))
    assert verify_certificate(certificate, None, known).holds
    forgery = dataclasses.replace(certificate, disjointness=certificate.disjointness[:1])
    uncompared = verify_certificate(forgery, None, CertificationData(rows, search=examples(40, seed=8)))
    assert [finding.text for finding in uncompared.findings] == ["the certificate was made without comparing it"]


def _text(certificate, edit, *, resign):
    content = json.loads(certificate.to_json())
    edit(content)
    if resign:
        content["sha256"] = checksum_of(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(format="hf_headprune.certificate/1"), "format must be"),
        (lambda content: content.pop("format"), "format must be"),
        (lambda content: content.pop("claim"), "missing .'claim'."),
        (lambda content: content["claim"].update(extra=1), "unknown .'extra'."),
        (lambda content: content["claim"].update(max_drop="0.4"), "certificate.claim.max_drop must be of type"),
        (lambda content: content["claim"].update(max_drop=2.0), "max_drop must be in"),
        (lambda content: content["evidence"].update(verdict="MAYBE"), "certificate.evidence.verdict must be"),
        (lambda content: content["evidence"].update(regressions=True), "certificate.evidence.regressions must be"),
        (lambda content: content["disjointness"].append({"name": "x"}), r"certificate.disjointness\[2\]"),
        (
            lambda content: content["claim"].update(max_drop=0.1),
            "statement, method and assumptions do not fit the rest",
        ),
        (lambda content: content.update(method="exact"), "statement, method and assumptions do not fit the rest"),
        (lambda content: content["assumptions"].pop(), "statement, method and assumptions do not fit the rest"),
        (lambda content: content.update(statement="PASS."), "statement, method and assumptions do not fit the rest"),
    ],
)
@pytest.mark.parametrize("resign", [False, True])
def test_changed_files_are_refused(certificate, edit, message, resign):
    with pytest.raises(CertificateError, match=message):
        Certificate.from_json(_text(certificate, edit, resign=resign))
    assert Certificate.from_json(_text(certificate, lambda content: None, resign=resign)) == certificate


@pytest.mark.parametrize("field", ["sha256", "statement", "assumptions"])
def test_a_file_without_its_words_or_checksum_is_refused(certificate, field):
    with pytest.raises(CertificateError, match=f"the fields .'{field}'. are missing"):
        Certificate.from_json(_text(certificate, lambda content: content.pop(field), resign=False))


def test_a_change_that_no_statement_shows_breaks_the_checksum(certificate):
    def edit(content):
        content["environment"]["date"] = "2001-01-01"

    with pytest.raises(CertificateError, match="changed after it was written"):
        Certificate.from_json(_text(certificate, edit, resign=False))


def test_what_is_no_certificate_is_refused(tmp_path):
    with pytest.raises(CertificateError, match=r"there is no headprune_certificate\.json"):
        Certificate.load(tmp_path)
    (tmp_path / CERTIFICATE_NAME).write_text("{")
    with pytest.raises(CertificateError, match=r"headprune_certificate\.json: certificate: not JSON"):
        Certificate.load(tmp_path)


# Refusals


def test_data_that_the_search_or_training_has_seen_are_refused(dense, pruned, rows):
    padded = {
        "input_ids": [*rows[5]["input_ids"], 0],
        "attention_mask": [1] * len(rows[5]["input_ids"]) + [0],
        "label": 0,
    }
    for name in ("search", "train"):
        with pytest.raises(DataLeakError, match=rf"may be in the {name} split.*received 1 of 160.*\[5\]"):
            certify(dense, pruned, CertificationData(rows, **{name: [padded]}))
    seen = ExampleFingerprints.of(rows[:3])
    with pytest.raises(DataLeakError, match="received 3 of 160"):
        certify(dense, pruned, CertificationData(rows, search=seen))


def test_what_a_search_of_the_model_has_seen_is_refused_though_nobody_tells():
    model = classifier()
    unseen, searched, refitted, scored = (examples(40, seed, model=model) for seed in range(1, 5))
    found = search_plan(model, searched, search=AStarSearch(max_evaluations=4), calibration=refitted, progress=False)
    pruned = prune_model_(copy.deepcopy(model), without(found.plan, {0}))
    second_order_plan(pruned, scored, SecondOrder(kept_heads=4, tuning=SecondOrderTuning(scoring_examples=30)))
    for split, name in ((searched, "search"), (refitted, "calibration"), (scored, "calibration")):
        with pytest.raises(DataLeakError, match=f"may be in the {name} split too"):
            certify(classifier(), pruned, unseen + split)  # the cut model is enough to know it
    for split, name in ((searched, "search"), (refitted, "calibration")):
        with pytest.raises(DataLeakError, match=f"may be in the {name} split too"):
            certify_path(model, [found.plan], unseen + split)
    record = certify(model, pruned, unseen).disjointness
    assert [(split.name, split.examples) for split in record] == [("search", 40)]
    assert not list(seen_by(pickle.loads(pickle.dumps(model))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 1.0}, "max_drop must be in"),
        ({"max_drop": -0.1}, "max_drop must be in"),
        ({"confidence": 1.0}, "confidence must be a number above 0.5 and below 1, received 1.0"),
        ({"confidence": 95}, "confidence must be a number above 0.5 and below 1, received 95"),
        ({"confidence": 0.4}, "confidence must be a number above 0.5 and below 1, received 0.4"),
        ({"metric": "f1"}, "must be one of accuracy, macro_f1, matthews_correlation .* received 'f1'"),
    ],
)
def test_impossible_claims_are_refused(dense, pruned, rows, settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        certify(dense, pruned, rows, **settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [3, 4]}, "no label"),
        ({"input_ids": [3, 4], "label": 3}, r"0\.\.2"),
        ({"input_ids": [3], "label": -1}, r"0\.\.2"),
    ],
)
def test_examples_without_a_class_are_refused(dense, pruned, rows, row, message):
    with pytest.raises(InvalidSettingError, match=message):
        certify(dense, pruned, [*rows[:5], row], max_drop=0.4)


def test_models_of_other_tasks_or_with_other_outputs_are_refused(dense, pruned, rows):
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM is no classifier of sequences"):
        certify(tiny_bert("MaskedLM", num_labels=NUM_LABELS), pruned, rows)
    with pytest.raises(UnsupportedModelError, match=r"must return logits of shape \(32, 3\), received .* \(32, 2\)"):
        certify(dense, tiny_bert(num_labels=2), rows)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_models_without_finite_answers_are_refused(dense, pruned, rows, value):
    broken = copy.deepcopy(pruned)
    broken.classifier.register_forward_hook(lambda *given: given[-1] + value)
    with pytest.raises(UnsupportedModelError, match=r"finite logits, received \d+ logits that are NaN or infinite"):
        certify(dense, broken, rows)
    broken = copy.deepcopy(pruned)
    broken.classifier.weight.data[0, 0] = value
    with pytest.raises(
        UnsupportedModelError, match=r"holds NaN or infinity in 1 of its \d+ tensors: classifier\.weight"
    ):
        certify(dense, broken, rows)


# Other metrics


def bounded(scores):
    return Metric("word F1", "bounded", score=lambda model, dataset: scores[model.config.hidden_dropout_prob])


@pytest.fixture(scope="module")
def two_models(dense):
    other = copy.deepcopy(dense)
    other.config.hidden_dropout_prob = 0.0  # tells the scoring functions of these tests which one it is
    return dense, other


def test_bounded_scores_get_a_finite_sample_certificate(two_models, rows):
    generator = np.random.default_rng(0)
    first = generator.uniform(size=NUM_EXAMPLES)
    second = np.clip(first + generator.normal(0, 0.05, NUM_EXAMPLES), 0, 1)
    metric = bounded({0.1: torch.tensor(first), 0.0: second.tolist()})
    certificate = certify(*two_models, rows, metric, max_drop=0.1)
    evidence = certificate.evidence
    assert certificate.verdict == "PASS"
    assert (evidence.regressions, evidence.improvements) == ((first > second).sum(), (first < second).sum())
    assert evidence.upper_bound < 0.1
    assert evidence.regressions_to_spare is None
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert verify_certificate(certificate, two_models[1], rows, dense=two_models[0], metric=metric).holds
    assert names(verify_certificate(forged(certificate, "evidence", p_value=0.0))) == {"p_value"}
    changed = bounded({0.1: first, 0.0: np.clip(second - 0.01, 0, 1)})
    assert "pruned model" in names(
        verify_certificate(certificate, two_models[1], rows, dense=two_models[0], metric=changed)
    )


def test_the_order_of_bets_is_that_of_the_fingerprints(two_models, rows):
    scores = {0.1: np.linspace(0, 1, NUM_EXAMPLES), 0.0: np.linspace(0, 1, NUM_EXAMPLES) ** 1.05}
    shuffled = np.random.default_rng(1).permutation(NUM_EXAMPLES)
    first = certify(*two_models, rows, bounded(scores), max_drop=0.1)
    moved = {name: values[shuffled] for name, values in scores.items()}
    second = certify(*two_models, [rows[i] for i in shuffled], bounded(moved), max_drop=0.1)
    assert (first.evidence, first.examples, first.split) == (second.evidence, second.examples, second.split)


def test_groups_weaken_the_evidence(two_models, rows):
    grouped = CertificationData([{**row, "paragraph": i // 8} for i, row in enumerate(rows)], groups="paragraph")
    metric = bounded({0.1: np.full(NUM_EXAMPLES, 0.8), 0.0: np.full(NUM_EXAMPLES, 0.8)})
    alone, together = (certify(*two_models, given, metric, max_drop=0.3) for given in (rows, grouped))
    assert together.evidence.p_value > alone.evidence.p_value
    assert any("none is larger than the largest" in text for text in together.assumptions)
    assert Certificate.from_json(together.to_json()) == together
    assert verify_certificate(together).holds
    given = {"model": two_models[1], "dense": two_models[0], "metric": metric}
    assert verify_certificate(together, dataset=grouped, **given).holds
    unread = verify_certificate(together, dataset=rows, **given)
    assert unread.holds
    assert any("their column was not given" in text for text in unread.skipped)
    split_up = dataclasses.replace(grouped, dataset=[{**row, "paragraph": i} for i, row in enumerate(rows)])
    assert names(verify_certificate(together, dataset=split_up, **given)) == {"groups"}
    assert names(verify_certificate(alone, dataset=grouped, **given)) == {"groups"}
    copies = dataclasses.replace(grouped, dataset=[*grouped.dataset[1:], {**rows[5], "paragraph": 9}])
    copied = certify(*two_models, copies, metric, max_drop=0.3)
    reordered = dataclasses.replace(copies, dataset=copies.dataset[::-1])  # nothing tells which copy is in which group
    assert verify_certificate(copied, dataset=reordered, **given).holds
    with pytest.raises(InvalidSettingError, match=r"groups=.*must hold the column 'page', received .*'paragraph'"):
        certify(*two_models, dataclasses.replace(grouped, groups="page"), metric)


def test_examples_are_compared_by_the_columns_of_the_certificate_where_none_are_named(two_models):
    rows = [{"sentence": f"{i * 7 % 160} words", "note": f"number {i}", "label": 0} for i in range(NUM_EXAMPLES)]
    train = [{"sentence": "other words", "note": "number 3", "label": 0}]
    scores = np.random.default_rng(0).uniform(size=NUM_EXAMPLES)
    metric = bounded({0.1: scores, 0.0: scores**1.05})
    split = CertificationData(rows, train=train, columns=("sentence",))
    certificate = certify(*two_models, split, metric, max_drop=0.1)
    for given in (split, dataclasses.replace(split, columns=None)):
        found = verify_certificate(certificate, two_models[1], given, dense=two_models[0], metric=metric)
        assert found.holds, found.to_text()
        assert any("the train split, and that it holds none of the examples, by text" in text for text in found.checked)
    notes = verify_certificate(certificate, dataset=dataclasses.replace(split, columns=("note",), train=None))
    assert notes.findings[0].text.startswith("the examples are compared by text ['note'], the certificate by text [")
    with pytest.raises(InvalidSettingError, match="a split must hold examples, received an empty list"):
        verify_certificate(certificate, dataset=[])
    lacking = verify_certificate(certificate, dataset=[{"note": row["note"], "label": 0} for row in rows])
    assert [finding.text for finding in lacking.findings] == ["the examples lack the text columns ['sentence']"]


def agreement(table):
    return float((table[:, 0] == table[:, 1]).mean())


def test_a_metric_in_percent_is_refused(two_models, rows):
    table = np.stack([np.arange(len(rows)), np.ones(len(rows))], axis=1).astype(float)
    metric = Metric("bleu", "corpus", lambda *_: table, lambda _: 87.5)
    with pytest.raises(InvalidSettingError, match=r"bleu must be in \[-1, 1\].*received 87\.5"):
        certify(*two_models, rows, metric=metric)


@pytest.mark.slow
def test_a_corpus_metric_gets_a_bootstrap_that_says_so(two_models, rows):
    generator = np.random.default_rng(0)
    gold = generator.integers(0, 2, NUM_EXAMPLES)
    tables = {
        dropout: np.column_stack([gold, np.where(generator.uniform(size=NUM_EXAMPLES) < 0.1, 1 - gold, gold)])
        for dropout in (0.1, 0.0)
    }
    metric = Metric("agreement", "corpus", lambda model, _: tables[model.config.hidden_dropout_prob], agreement)
    certificate = certify(*two_models, rows, metric, max_drop=0.15)
    assert certificate.verdict == "PASS"
    assert certificate.evidence.dense_metric == agreement(tables[0.1])
    assert "This is a bootstrap: the confidence is approximate, not finite-sample." in certificate.statement
    assert json.loads(certificate.to_json())["method"].endswith("not finite-sample")
    assert verify_certificate(certificate, two_models[1], rows, dense=two_models[0], metric=metric).holds
    assert any("the metric was not given" in text for text in verify_certificate(certificate).skipped)
    turned, wider = tables[0.0].copy(), np.column_stack([tables[0.0], gold])
    turned[:9, 1] = 1 - turned[:9, 1]  # the gold answers stay
    for table, text in ((turned, "9 examples score differently"), (wider, "its scores have shape (160, 3), on record")):
        other = dataclasses.replace(metric, score=lambda model, _, table=table: table)
        found = verify_certificate(certificate, two_models[1], rows, metric=other)
        assert [(finding.name, text in finding.text) for finding in found.findings[:1]] == [("pruned model", True)]
    forgery = forged(certificate, "evidence", upper_bound=0.0)
    assert names(verify_certificate(forgery, metric=metric)) == {"upper_bound"}
    same = Metric("agreement", "corpus", lambda model, _: tables[0.1], agreement)
    unchanged = certify(*two_models, rows, same, max_drop=0.15)
    assert unchanged.verdict == "PASS"
    assert certify(*two_models, rows, same, max_drop=0.005).verdict == "INCONCLUSIVE"  # one of 160 may have changed
    no_classes = dataclasses.replace(same, score=lambda model, _: wider)
    refused = certify(*two_models, rows, no_classes, max_drop=0.15)
    assert refused.verdict == "INCONCLUSIVE"
    assert "Fewer than 10 examples changed, which is too few for a bootstrap" in refused.statement


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ([0.5] * NUM_EXAMPLES, "binary"),
        ([1.5] * NUM_EXAMPLES, "bounded"),
        ([1] * 9, "bounded"),
        ([np.nan] * NUM_EXAMPLES, "bounded"),
    ],
)
def test_scores_that_are_not_of_their_kind_are_refused(two_models, rows, scores, kind):
    with pytest.raises(InvalidSettingError, match=f"scores of kind '{kind}' must be"):
        certify(*two_models, rows, Metric("m", kind, score=lambda model, dataset: scores))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "other"}, "kind must be one of"),
        ({"kind": None}, "kind must be one of"),
        ({"name": ""}, "name must be a text of 1 to 200 letters"),
        ({"name": 5}, "name must be a text"),
        ({"score": None}, "score must be a function of a model and a data set, received None"),
        ({"kind": "corpus"}, "aggregate is a function of rows for kind 'corpus'"),
        ({"kind": "corpus", "aggregate": 5}, "aggregate is a function of rows for kind 'corpus'"),
        ({"aggregate": len}, "and None for any other"),
    ],
)
def test_metrics_that_contradict_themselves_are_refused(settings, message):
    given = {"name": "f1", "kind": "bounded", "score": len}
    assert Metric(**given).name == "f1"
    with pytest.raises(InvalidSettingError, match=message):
        Metric(**{**given, **settings})


def test_a_verification_with_another_metric_is_refused(certificate):
    with pytest.raises(CertificateError, match="the certificate is about 'accuracy'"):
        verify_certificate(certificate, metric=Metric("other", "binary", score=len))
    with pytest.raises(CertificateError, match="of kind 'binary', received a metric 'accuracy' of kind 'bounded'"):
        verify_certificate(certificate, metric=Metric("accuracy", "bounded", score=len))


def test_any_model_can_be_scored_by_a_function():
    model = tiny_marian()
    rows = [{"text": f"sentence {i}", "target": "x"} for i in range(40)]
    metric = Metric("chrF", "bounded", score=lambda model, dataset: [0.5] * len(dataset))
    certificate = certify(model, copy.deepcopy(model), rows, metric, max_drop=0.4)
    assert certificate.verdict == "PASS"
    assert certificate.examples.columns == ("target", "text")


# Paths and ledgers


@pytest.fixture(scope="module")
def plans(dense):
    full = PruningPlan.of(dense)
    return [without(full, heads) for heads in ([1], [1, 2], [0, 1, 2, 3])]


@pytest.mark.slow
def test_plans_are_tested_in_order_and_none_after_the_first_failure(dense, plans, data):
    path = certify_path(dense, plans, data, max_drop=0.4)
    p_values = []
    for plan in plans:
        model = copy.deepcopy(dense)
        prune_model_(model, plan)
        right = [scores_of(m, data.dataset) for m in (dense, model)]
        p_values.append(paired.p_value(int((right[0] > right[1]).sum()), int((right[0] < right[1]).sum()), 160, 0.4))
    passed = [p <= paired.level_of(0.05) for p in p_values]
    assert passed[0]
    expected = passed.index(False) - 1 if False in passed else len(plans) - 1
    assert path.certified_index == expected
    assert [step.p_value for step in path.steps] == p_values[: expected + 2]
    assert path.steps[0].name == name_of(plans[0])
    assert path.planned == 3


def test_the_last_certified_plan_gets_the_certificate_with_its_path(dense, plans, data):
    path = certify_path(dense, plans, data, max_drop=0.4)
    model = copy.deepcopy(dense)
    prune_model_(model, plans[path.certified_index])
    certificate = certify(dense, model, data, max_drop=0.4, path=path)
    assert certificate.verdict == "PASS"
    assert certificate.path == path
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert verify_certificate(certificate, model, data, dense=dense).holds


def test_examples_that_chose_a_model_certify_it_again_only_where_the_choice_counts(dense, plans, data, tmp_path):
    path = certify_path(dense, plans, data, max_drop=0.4)
    model = copy.deepcopy(dense)
    prune_model_(model, plans[path.certified_index])
    certify(dense, model, data, max_drop=0.4, path=path)
    model.save_pretrained(tmp_path)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    others = [{**row, "input_ids": row["input_ids"][::-1]} for row in data.dataset]
    certify(dense, saved, others, max_drop=0.5)  # its certificate takes the place of the one that tells
    for again, how in ((model, {}), (saved, {}), (saved, {"each": "label"})):
        for part in (data, data.dataset[1:]):
            with pytest.raises(DataLeakError, match=f"have chosen the model among {len(plans)}"):
                certify(dense, again, part, max_drop=0.5, **how)
    counted = certify(dense, saved, data, max_drop=0.5, num_candidates=len(plans))
    assert counted.claim.num_candidates == len(plans)


def test_a_model_that_the_path_did_not_certify_gets_no_certificate_with_it(dense, plans, data):
    path = certify_path(dense, plans, data, max_drop=0.4)
    model = copy.deepcopy(dense)
    prune_model_(model, PruningPlan.of(dense).replace(kept_heads={site: [3] for site in plans[0].num_heads}))
    with pytest.raises(CertificateError, match="the pruned model must be candidate"):
        certify(dense, model, data, max_drop=0.4, path=path)


@pytest.mark.parametrize("count", ["regressions", "improvements"])
def test_a_model_that_answers_otherwise_than_the_candidate_gets_no_certificate_with_its_path(dense, plans, data, count):
    path = certify_path(dense, plans[:1], data, max_drop=0.4)
    model = copy.deepcopy(dense)
    prune_model_(model, plans[0])
    step = path.steps[0]
    for others, allowed in ((1, True), (2, False)):  # rounding may turn one of 160
        changed = dataclasses.replace(step, **{count: getattr(step, count) + others})
        other = dataclasses.replace(path, steps=(changed,))
        if allowed:
            assert certify(dense, model, data, max_drop=0.4, path=other).path == path
            continue
        with pytest.raises(CertificateError, match="the pruned model must be candidate 0"):
            certify(dense, model, data, max_drop=0.4, path=other)


def test_a_verdict_that_rounding_turned_ends_the_path_elsewhere(dense, plans, data):
    step = certify_path(dense, plans[:1], data, max_drop=0.4).steps[0]
    b, c = step.regressions, step.improvements
    drop = turning_drop(b, c)
    path = certify_path(dense, plans[:1], data, max_drop=drop)
    assert path.certified_index is None
    p = paired.p_value(b - 1, c, NUM_EXAMPLES, drop)
    masked_step = dataclasses.replace(path.steps[0], regressions=b - 1, p_value=p, certified=True)
    model = copy.deepcopy(dense)
    prune_model_(model, plans[0])
    with pytest.raises(
        CertificateError, match=r"rounding turned an answer, and the verdict with it\. Cut the plan before"
    ):
        certify(dense, model, data, max_drop=drop, path=dataclasses.replace(path, steps=(masked_step,)))


def test_plans_can_be_compared_with_a_part_of_the_model(dense, plans, rows):
    path = certify_path(dense, plans[1:2], rows, max_drop=0.4, reference=plans[0])
    part, pruned = copy.deepcopy(dense), copy.deepcopy(dense)
    prune_model_(part, plans[0])
    prune_model_(pruned, plans[1])
    certificate = certify(part, pruned, rows, max_drop=0.4, path=path)
    assert certificate.path == path
    assert path.steps != certify_path(dense, plans[1:2], rows, max_drop=0.4).steps


def test_a_forged_path_is_named(dense, plans, data):
    path = certify_path(dense, plans[:1], data, max_drop=0.4)
    model = copy.deepcopy(dense)
    prune_model_(model, plans[0])
    certificate = certify(dense, model, data, max_drop=0.4, path=path)
    step = path.steps[0]
    forgeries = {
        "its counts give": (dataclasses.replace(step, p_value=0.04),),
        "is not this model": (
            step,
            dataclasses.replace(step, regressions=0, p_value=paired.p_value(0, step.improvements, 160, 0.4)),
        ),
    }
    for text, steps in forgeries.items():
        found = verify_certificate(forged(certificate, "path", steps=steps))
        assert names(found) == {"path"}
        assert any(text in finding.text for finding in found.findings)
    assert names(verify_certificate(forged(certificate, "path", untested=("another plan",)))) == {"path"}
    assert names(verify_certificate(forged(certificate, "path", split="0" * 64))) == {"path"}
    assert names(verify_certificate(forged(certificate, "path", steps=()))) == {"path"}
    impossible = (dataclasses.replace(step, regressions=161),)
    assert names(verify_certificate(forged(certificate, "path", steps=impossible))) == {"counts"}


def test_a_path_without_a_success_gives_no_pass(dense, plans, data):
    path = certify_path(dense, plans[2:], data, max_drop=0.0)
    assert path.certified_index is None
    model = copy.deepcopy(dense)
    prune_model_(model, plans[2])
    certificate = certify(dense, model, data, max_drop=0.0, path=path)
    assert certificate.verdict != "PASS"
    assert verify_certificate(certificate, model, data, dense=dense).holds


def test_a_path_belongs_to_its_claim_and_data(dense, pruned, plans, data, rows):
    path = certify_path(dense, plans[:1], data, max_drop=0.4)
    for arguments in ({"max_drop": 0.3}, {"max_drop": 0.4, "confidence": 0.9}, {"max_drop": 0.4, "seed": 1}):
        with pytest.raises(CertificateError, match="same claim on the same split"):
            certify(dense, pruned, data, path=path, **arguments)
    with pytest.raises(CertificateError, match="same claim on the same split"):
        certify(dense, pruned, rows[1:], max_drop=0.4, path=path)
    with pytest.raises(InvalidSettingError, match="at least one plan"):
        certify_path(dense, [], data)


def test_each_further_use_of_a_split_costs_alpha(dense, pruned, rows, tmp_path):
    certificates = [
        certify(dense, pruned, rows, max_drop=0.4, ledger=AlphaLedger(tmp_path / "ledger.jsonl")) for _ in range(3)
    ]
    assert [certificate.claim.use for certificate in certificates] == [1, 2, 3]
    spent = [certificate.claim.alpha_spent for certificate in certificates]
    assert spent == [alpha_of_use(0.05, use) for use in (1, 2, 3)]
    bounds = [certificate.evidence.upper_bound for certificate in certificates]
    assert bounds == sorted(bounds)
    assert "for the 3th time" not in certificates[2].statement
    assert "use number 3" in certificates[2].statement
    assert verify_certificate(certificates[2], pruned, rows, dense=dense).holds


def test_a_path_and_its_certificate_are_one_use(dense, pruned, plans, rows, tmp_path):
    ledger = AlphaLedger(tmp_path / "ledger.jsonl")
    path = certify_path(dense, plans[:1], rows, max_drop=0.4, ledger=ledger)
    certificate = certify(dense, pruned, rows, max_drop=0.4, path=path)
    assert certificate.claim.use == 1
    assert len(ledger.uses(certificate.split)) == 1
    with pytest.raises(CertificateError, match="without the ledger"):
        certify(dense, pruned, rows, max_drop=0.4, path=path, ledger=ledger)


def test_evidence_of_scores_is_evidence_of_their_counts():
    dense, pruned = np.array([1, 1, 1, 0, 0] * 30), np.array([1, 1, 0, 0, 1] * 30)
    claim = Claim("accuracy", "binary", 0.2, 0.05, 0.05)
    assert evidence_of(PairedScores(dense, pruned), claim) == evidence_of_counts(Counts(150, 30, 30, 60), claim)


# It travels with its weights


def test_the_certified_model_takes_its_certificate_along_wherever_it_is_saved_and_loaded(dense, data, tmp_path, caplog):
    model = copy.deepcopy(dense)
    prune_model_(model, without(PruningPlan.of(model), [1]))
    certificate = certify(dense, model, data, max_drop=0.4)
    model.save_pretrained(tmp_path / "first")
    assert Certificate.load(tmp_path / "first") == certificate
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    reloaded.save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / CERTIFICATE_NAME).read_text() == (tmp_path / "first" / CERTIFICATE_NAME).read_text()
    assert verify_certificate(tmp_path / "second", reloaded, data, dense=dense).holds
    assert not caplog.records


@pytest.mark.parametrize("change", ["dtype", "weight"])
def test_a_loaded_certificate_is_not_written_beside_other_weights(certificate, pruned, tmp_path, caplog, change):
    pruned.save_pretrained(tmp_path / "first")
    certificate.save(tmp_path / "first")
    dtype = torch.bfloat16 if change == "dtype" else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first", dtype=dtype)
    assert not caplog.records
    if change == "weight":
        model.classifier.bias.data += 1.0
    model.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second" / CERTIFICATE_NAME).exists()
    assert caplog.text.count("The weights are not those that were certified") == 1
    model.save_pretrained(tmp_path / "third")
    assert caplog.text.count("not those that were certified") == 1
    model.save_pretrained(tmp_path / "first")
    assert not (tmp_path / "first" / CERTIFICATE_NAME).exists()
    assert "is about other weights than those which are saved there now" in caplog.text


def test_a_damaged_certificate_keeps_no_model_from_loading_and_is_not_passed_on(pruned, tmp_path):
    pruned.save_pretrained(tmp_path / "first")
    for damaged in (b"{", b"[]", b'{"pruned": 1}', b"NaN", b"\xff\xfe", b"[" * 200_000):
        (tmp_path / "first" / CERTIFICATE_NAME).write_bytes(damaged)
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
        assert not (tmp_path / "second" / CERTIFICATE_NAME).exists()


def test_other_weights_that_are_saved_in_place_of_the_model_s_own_get_no_certificate(certificate, pruned, tmp_path):
    model = copy.deepcopy(pruned)
    attach_certificate_(model, certificate.to_json())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "same", state_dict=weights)
    assert Certificate.load(tmp_path / "same") == certificate
    assert weights.keys() == model.state_dict().keys()
    model.save_pretrained(tmp_path / "other_process", False)
    assert not (tmp_path / "other_process" / CERTIFICATE_NAME).exists()
    model.save_pretrained(tmp_path / "zeros", state_dict={name: 0 * tensor for name, tensor in weights.items()})
    assert not (tmp_path / "zeros" / CERTIFICATE_NAME).exists()


def test_other_weights_than_the_model_s_own_are_not_uploaded(pruned, tmp_path):
    with pytest.raises(InvalidSettingError, match="uploads the weights of the model, received a state_dict"):
        pruned.save_pretrained(tmp_path / "pushed", state_dict=pruned.state_dict(), push_to_hub=True)
    with pytest.raises(InvalidSettingError, match="loaded without a variant, received variant='fp16'"):
        pruned.save_pretrained(tmp_path / "pushed", variant="fp16", push_to_hub=True)
    for option in ("folder_path", "variant"):  # before a repository is made
        with pytest.raises(InvalidSettingError, match=f"no such options, received {option}"):
            pruned.push_to_hub("me/pruned", **{option: "x"})
    assert not (tmp_path / "pushed").exists()


def test_a_model_loads_from_a_file_of_weights_alone(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: False)  # with it, the host refuses
    pruned.save_pretrained(tmp_path)
    loaded = type(pruned).from_pretrained(tmp_path / "model.safetensors", config=pruned.config)
    assert torch.equal(loaded.classifier.weight, pruned.classifier.weight)


def test_without_a_certificate_no_weight_is_read_for_one(dense, tmp_path, monkeypatch):
    model = copy.deepcopy(dense)
    prune_model_(model, without(PruningPlan.of(model), [1]))
    monkeypatch.setattr("hf_headprune._certificate_file.sha256_of", lambda *_: pytest.fail("the weights were read"))
    model.save_pretrained(tmp_path / "first")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")


def test_weights_that_are_not_in_memory_are_saved_without_a_certificate(certificate, pruned, tmp_path):
    model = copy.deepcopy(pruned)
    attach_certificate_(model, certificate.to_json())
    write_certificate_(model.to("meta"), tmp_path)
    assert not (tmp_path / CERTIFICATE_NAME).exists()


def test_a_model_of_the_hub_takes_its_certificate_from_the_cache(certificate, pruned, tmp_path, monkeypatch):
    pruned.save_pretrained(tmp_path / "commit" / "small")
    certificate.save(tmp_path / "commit" / "small")
    asked = []

    def cached(repository, name, **options):
        asked.append((repository, name, options))
        return str(tmp_path / "commit" / name)

    monkeypatch.setattr("hf_headprune._beside_weights.try_to_load_from_cache", cached)
    model = copy.deepcopy(pruned)
    attach_saved_certificate_(model, "someone/bert-pruned", {"revision": "v1", "subfolder": "small"})
    assert asked == [
        ("someone/bert-pruned", "small/config.json", {"cache_dir": None, "revision": "v1"}),
        ("someone/bert-pruned", f"small/{CERTIFICATE_NAME}", {"cache_dir": None, "revision": "commit"}),
    ]
    write_certificate_(model, tmp_path)
    assert Certificate.load(tmp_path) == certificate
    monkeypatch.undo()
    attach_saved_certificate_(other := tiny_bert(), "someone/never-seen", {})
    attach_saved_certificate_(other, None, {})
    assert getattr(other, "headprune_certificate", None) is None
