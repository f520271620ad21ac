"""Certificates of the format before are read, and say the same in the words of today."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from hf_headprune.errors import CertificateError
from hf_headprune.guarantee.certificate import Certificate, checksum_of
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.records import old_configs_of, record_of
from hf_headprune.guarantee.verify import verify_certificate
from tests.guarantee.test_certificate import certificate, data, dense, names, pruned, rows  # noqa: F401 - fixtures

FILE = Path(__file__).parent / "certificate_format_2.json"  # as the version before wrote it
OLD_NAMES = {
    "alpha_spent": "spent",
    "num_candidates": "chosen_among",
    "regressions": "broken",
    "improvements": "fixed",
    "regressions_to_spare": "further_broken",
}


def in_format_2(certificate, **configs):  # noqa: F811
    """What the version before would have written, with its fingerprints of the configurations."""

    def renamed(part):
        if isinstance(part, list):
            return [renamed(item) for item in part]
        if not isinstance(part, dict):
            return part
        return {OLD_NAMES.get(name, name): renamed(value) for name, value in part.items()}

    content = renamed(json.loads(certificate.to_json()))
    content |= {"format": "hf_headprune.certificate/2", "statement": "PASS. In the words of then."}
    content["evidence"]["hand_bound"] = 0.5
    for holder in (content, content["path"] or {"claim": {"scored": ""}}):
        del holder["claim"]["scored"]
    del content["reference"]
    for model, config in configs.items():
        content[model]["config"] = config
    return json.dumps(content | {"sha256": checksum_of(content)})


def test_a_stored_one_is_read_and_its_numbers_still_follow():
    found = Certificate.load(FILE)
    assert found.verdict == "PASS"
    assert (found.evidence.regressions, found.evidence.improvements, found.evidence.examples) == (14, 0, 60)
    assert found.statement.startswith(
        "PASS. Compared with the dense model, the accuracy of the pruned model drops by less than 45 percentage points"
    )
    assert "Scored of each example: whether the predicted class is right." in found.statement
    assert found.path.certified_index == 1
    assert found.path.claim == found.claim
    assert verify_certificate(found).holds
    assert Certificate.from_json(found.to_json()) == found
    assert json.loads(found.to_json())["format"] == "hf_headprune.certificate/3"


def test_one_that_was_changed_is_refused():
    content = json.loads(FILE.read_text())
    content["evidence"]["broken"] = 3
    with pytest.raises(CertificateError, match="was changed after it was written"):
        Certificate.from_json(json.dumps(content))
    signed = json.dumps(content | {"sha256": checksum_of(content)})
    assert not verify_certificate(Certificate.from_json(signed)).holds
    for old, new in (("/2", "/1"), ('"spent"', '"other"')):
        text = json.dumps(json.loads(FILE.read_text())).replace(old, new)
        text = json.dumps((found := json.loads(text)) | {"sha256": checksum_of(found)})
        with pytest.raises(CertificateError, match=r"format must be .*/3' or .*/2'|missing \['alpha_spent'\]"):
            Certificate.from_json(text)


@pytest.mark.parametrize("written", [None, "single_label_classification"])
def test_what_the_host_had_written_by_then_makes_no_difference(certificate, dense, pruned, data, written):  # noqa: F811
    configs = {}
    for name, given in (("dense", dense), ("pruned", pruned)):
        model = copy.deepcopy(given)
        model.config.problem_type = written
        configs[name] = next(iter(old_configs_of(model) & exactly(model)))
    found = Certificate.from_json(in_format_2(certificate, **configs))
    assert found.dense.config != certificate.dense.config
    verified = verify_certificate(found, pruned, data, dense=dense)
    assert verified.holds, verified.to_text()
    other = copy.deepcopy(pruned)
    other.config.layer_norm_eps = 0.5
    assert names(verify_certificate(found, other)) == {"pruned config"}


def exactly(model):
    """The fingerprint of a configuration in format 2, with all that the host has written."""
    volatile = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map")
    content = json.loads(model.config.to_json_string(use_diff=False))
    kept = {name: value for name, value in content.items() if name not in volatile}
    return {checksum_of(kept)}


def test_a_metric_of_the_user_is_one_in_the_old_format_too(dense, pruned, data):  # noqa: F811
    scores = {id(dense): [0.5] * 160, id(pruned): [0.6] * 160}
    metric = Metric("word F1", "bounded", lambda model, _: scores[id(model)])
    made = certify(dense, pruned, data, metric, max_drop=0.4)
    found = Certificate.from_json(in_format_2(made))
    assert found == dataclasses.replace(made, evidence=found.evidence)
    assert verify_certificate(found, pruned, data, dense=dense, metric=metric).holds


# What the host changes by itself


@pytest.mark.parametrize("change", ["loss", "trainer"])
def test_what_the_host_writes_by_itself_is_no_part_of_a_fingerprint(certificate, dense, pruned, data, change):  # noqa: F811
    model = copy.deepcopy(pruned)
    if change == "loss":
        model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([0]))
        assert model.config.problem_type == "single_label_classification"
    else:
        model.config.use_cache = not model.config.use_cache  # as every Trainer sets it
    assert verify_certificate(certificate, model, data, dense=dense).holds
    assert record_of(model) == record_of(pruned)
    model.config.hidden_act = "relu"
    assert names(verify_certificate(certificate, model)) == {"pruned config"}
