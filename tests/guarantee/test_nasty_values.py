"""Whatever is passed to a public function, it is taken or refused: in few words, and by an error of the library."""

import copy
import math

import numpy as np
import pytest

from hf_headprune.errors import LONGEST_MESSAGE, HeadPruneError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify, certify_path, furthest_within
from hf_headprune.guarantee.claim import Claim, Metric
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.power import PowerAssumptions, describe_power, detectable_drop, examples_needed, power_of
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.sequence import AlphaLedger, evenly_spaced
from hf_headprune.guarantee.splits import SplitSettings, three_way_split
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.plan import PruningPlan
from tests.support.tasks import task_of

DEEP = []
for _ in range(2000):
    DEEP = [DEEP]
NASTY = [None, True, 0, -1, 0.5, math.nan, math.inf, 10**400, 1e300, "", "x" * 10**6, b"x", [], {}, (), DEEP]
NASTY += [object(), np.zeros(3), np.array("x"), [None], {"x" * 10**5: [1] * 10**5}, lambda *given: 1 / 0]


@pytest.fixture(scope="module")
def case():
    model, rows, _ = task_of("classes", 12)
    plan = PruningPlan.of(model)
    return model, copy.deepcopy(model), rows, plan


def uses(case, folder):
    """Each use of a public function with one value in the place of one argument, by name."""
    model, pruned, rows, plan = case
    told = {"metric": "accuracy", "kind": "binary", "max_drop": 0.1, "alpha": 0.05, "alpha_spent": 0.05}
    metric = {"name": "m", "kind": "bounded", "score": lambda model, dataset: [0.5] * len(dataset)}
    uses = {
        "certify data": lambda it: certify(model, pruned, it),
        "certify row": lambda it: certify(model, pruned, [*rows, it]),
        "certify label": lambda it: certify(model, pruned, [*rows, {**rows[0], "label": it}]),
        "certify tokens": lambda it: certify(model, pruned, [*rows, {**rows[0], "input_ids": it}]),
        "certify metric": lambda it: certify(model, pruned, rows, it),
        "certify path": lambda it: certify(model, pruned, rows, path=it),
        "path plans": lambda it: certify_path(model, it, rows),
        "path plan": lambda it: certify_path(model, [plan, it], rows),
        "path reference": lambda it: certify_path(model, [plan], rows, reference=it),
        "within drop": lambda it: furthest_within(model, [plan], rows, max_drop=it),
        "within plans": lambda it: furthest_within(model, it, rows),
        "scores": lambda it: certify(model, pruned, rows, Metric("m", "bounded", lambda *_: it)),
        "aggregate": lambda it: certify(
            model, pruned, rows, Metric("m", "corpus", lambda *_: np.zeros((12, 2)), lambda _: it)
        ),
        "verify": verify_certificate,
        "verify data": lambda it: verify_certificate(certify(model, pruned, rows), pruned, it),
        "verify metric": lambda it: verify_certificate(certify(model, pruned, rows), pruned, rows, metric=it),
        "from_json": Certificate.from_json,
        "load": Certificate.load,
        "fingerprints": ExampleFingerprints.of,
        "fingerprint": lambda it: ExampleFingerprints.of([{"input_ids": it}]),
        "columns": lambda it: ExampleFingerprints.of([{"text": "a"}], columns=it),
        "split": three_way_split,
        "split train": lambda it: three_way_split(rows, it),
        "split settings": lambda it: three_way_split(rows, None, it),
        "power n": power_of_n,
        "power epsilon": lambda it: power_of(50, it),
        "power assumptions": lambda it: power_of(50, 0.1, it),
        "describe": lambda it: describe_power(it, 0.1),
        "describe drop": lambda it: describe_power(50, it),
        "needed": examples_needed,
        "detectable": detectable_drop,
        "spaced": lambda it: evenly_spaced("abc", it),
        "spaced list": lambda it: evenly_spaced(it, 2),
        "ledger": lambda it: AlphaLedger(folder / "new").spend("a" * 64, it),
        "ledger split": lambda it: AlphaLedger(folder / "other").spend(it, 0.05),
        "ledger file": AlphaLedger,
    }
    for name in ("max_drop", "confidence", "num_candidates", "seed", "ledger", "reference_name"):
        uses[f"certify {name}"] = lambda it, name=name: certify(model, pruned, rows, **{name: it})
    for name in ("max_drop", "confidence", "seed", "ledger", "metric"):
        uses[f"certify_path {name}"] = lambda it, name=name: certify_path(model, [plan], rows, **{name: it})
    for kind, given in ((CertificationData, {"dataset": rows}), (SplitSettings, {}), (PowerAssumptions, {})):
        for name in kind.__dataclass_fields__:
            uses[f"{kind.__name__} {name}"] = lambda it, kind=kind, given=given, name=name: kind(**{**given, name: it})
    for name in ("train", "search", "groups", "columns"):
        uses[f"data {name}"] = lambda it, name=name: certify(model, pruned, CertificationData(rows, **{name: it}))
    for kind, given in ((Claim, told), (Metric, metric)):
        for name in kind.__dataclass_fields__:
            uses[f"{kind.__name__} {name}"] = lambda it, kind=kind, given=given, name=name: kind(**{**given, name: it})
    return uses


def power_of_n(it):
    return power_of(it, 0.1)


@pytest.mark.parametrize("value", NASTY, ids=lambda value: type(value).__name__)
def test_any_value_is_taken_or_refused_in_few_words(case, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    messages = {}
    for name, use in uses(case, tmp_path).items():
        try:
            use(value)
        except HeadPruneError as error:
            messages[name] = str(error)
        except ZeroDivisionError:
            assert callable(value)  # an error of the user's own function is the user's
    too_long = {name: len(text) for name, text in messages.items() if len(text) > LONGEST_MESSAGE}
    assert not too_long
    assert len(messages) > 30
