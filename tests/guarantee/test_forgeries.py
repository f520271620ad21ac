"""Certificates with a wrong value in any place, signed again: refused or found not to hold, never a raw error."""

import contextlib
import copy
import dataclasses
import json
from zlib import crc32

import numpy as np
import pytest

from hf_headprune._strict_json import read
from hf_headprune.errors import CertificateError, HeadPruneError, InvalidSettingError
from hf_headprune.guarantee.certificate import DERIVED, Certificate, checksum_of
from hf_headprune.guarantee.certify import certify, certify_path
from hf_headprune.guarantee.claim import Claim, Metric
from hf_headprune.guarantee.disagreements import disagreements
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.guarantee.test_certificate import classifier, examples, names, without

pytestmark = pytest.mark.slow

NUM_EXAMPLES = 40
WRONG = (float("nan"), float("inf"), -1, 0, 1, 2, 10**6, 10**30, 10**400, 1e300, 0.5, "x", "", None, [], {}, True, [1])
NEW = ("labelled", "changed", "unlabelled", "dataset", "column", "value", "num_promises", "stops_early", "unused")
KINDS = ["binary", "path", "bounded", "corpus", "labels", "agreement", "several", "early"]
SIGNED = ("format", *DERIVED, "sha256")


@pytest.fixture(scope="module")
def dense():
    return classifier()


@pytest.fixture(scope="module")
def rows(dense):
    return [{**row, "group": i // 2, "half": i % 2} for i, row in enumerate(examples(NUM_EXAMPLES, model=dense))]


@pytest.fixture(scope="module")
def plans(dense):
    return [without(PruningPlan.of(dense), heads) for heads in ([1], [1, 2])]


@pytest.fixture(scope="module")
def pruned(dense, plans):
    model = copy.deepcopy(dense)
    prune_model_(model, plans[0])
    return model


def scores(generator, kind):
    if kind == "bounded":
        return generator.uniform(size=NUM_EXAMPLES)
    return np.column_stack([np.arange(NUM_EXAMPLES) % 2, generator.uniform(size=NUM_EXAMPLES) < 0.5])  # (n, 2)


@pytest.fixture(scope="module", params=KINDS)
def case(request, dense, pruned, plans, rows):
    """A certificate of each kind, with all that it takes to check it."""
    kind = request.param if request.param in ("bounded", "corpus") else "binary"
    if request.param in ("labels", "agreement"):
        given, rows = rows, [{name: row[name] for name in ("input_ids", "group", "half")} for row in rows]
    split = CertificationData(rows, train=examples(9, seed=7), groups="group" if kind == "bounded" else None)
    if kind == "binary":
        metric = "agreement" if request.param == "agreement" else None
        if request.param == "labels":  # the last disagreement stays without one
            known = [*disagreements(dense, pruned, split)][:-1]
            split = dataclasses.replace(split, labels={index: given[index]["label"] for index in known})
    else:
        tables = {id(model): scores(np.random.default_rng(seed), kind) for seed, model in enumerate((dense, pruned))}
        aggregate = None if kind == "bounded" else lambda table: float((table[:, 0] == table[:, 1]).mean())
        metric = Metric("agreement", kind, lambda model, _: tables[id(model)], aggregate)
    path = None
    if request.param == "path":
        path = certify_path(dense, plans, split, max_drop=0.45)
        assert path.certified_index is not None
        pruned = copy.deepcopy(dense)
        prune_model_(pruned, plans[path.certified_index])
    asked = {"several": {"each": "half"}, "early": {"stop_early": True}}.get(request.param, {"path": path})
    certificate = certify(dense, pruned, split, metric, max_drop=0.45, **asked)
    return certificate, pruned, split, metric


def places(content, path=()):
    """Every place in JSON content, containers too."""
    if path:
        yield path
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in entries:
        yield from places(value, (*path, name))


def replaced(content, place, value):
    changed = copy.deepcopy(content)
    part = changed
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    return changed


def signed(content):
    """The content as a forger would sign it: with the words and the checksum that go with it, where it has any."""
    body = {name: value for name, value in content.items() if name not in SIGNED}
    try:
        certificate = read(Certificate, body, "certificate")
        content = content | certificate._words()
    except HeadPruneError:
        pass  # it will be refused
    return json.dumps(content | {"sha256": checksum_of(content)})


def test_a_wrong_value_in_any_place_is_refused_or_found(request, case, dense):
    certificate, pruned, split, metric = case
    content = json.loads(certificate.to_json())
    refused, checked = 0, 0
    kind = request.node.callspec.params["case"]
    is_first = kind in KINDS[:4]  # the others add fields, and differ in nothing else
    tried = [place for place in places(content) if is_first or set(NEW) & set(place)]
    step = (
        {"corpus": 9}.get(kind, 3) if is_first else 1
    )  # a place that the first kinds share gets all values between them
    for place in tried:
        first = (KINDS.index(kind) + crc32(repr(place).encode())) % step
        for value in WRONG[first::step]:
            text = signed(replaced(content, place, value))
            try:
                forgery = Certificate.from_json(text)
            except CertificateError:
                refused += 1
                continue
            checked += 1
            alone = verify_certificate(forgery)
            assert alone.to_text()
            with contextlib.suppress(CertificateError):  # where the forgery is about another metric
                found = verify_certificate(forgery, pruned, split, dense=dense, metric=metric)
                assert alone.holds or not found.holds, (place, value)
    assert refused > 100
    assert checked > 10
    assert Certificate.from_json(signed(content)) == certificate
    assert verify_certificate(certificate, pruned, split, dense=dense, metric=metric).holds


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}"])
def test_text_that_no_reader_of_json_can_take_is_refused(text):
    with pytest.raises(CertificateError, match="not JSON"):
        Certificate.from_json(text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "certificate.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CertificateError, match=r"certificate\.json: "):
        Certificate.load(tmp_path / "certificate.json")


@pytest.mark.parametrize("seed", [-1, 2**53 + 1])
def test_a_seed_that_no_certificate_can_hold_is_refused(seed):
    with pytest.raises(InvalidSettingError, match=r"seed must be in \[0, 2\^53\]"):
        Claim("accuracy", "binary", 0.01, 0.05, 0.05, seed=seed)


@pytest.mark.parametrize("case", ["bounded"], indirect=True)
@pytest.mark.parametrize("score", ["nan", "2.0", "-0.5", "inf"])
def test_outcomes_out_of_their_range_are_named(case, score):
    certificate = case[0]
    content = json.loads(certificate.to_json())
    outcomes = [score, *content["examples"]["pruned"].split(";")[1:]]
    forgery = Certificate.from_json(signed(replaced(content, ("examples", "pruned"), ";".join(outcomes))))
    assert names(verify_certificate(forgery)) == {"examples"}
