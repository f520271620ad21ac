"""How long a run takes is said before it, and how far it is is shown while it runs."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from hf_headprune.cli import duration
from hf_headprune.cli.budget import Budget
from hf_headprune.cli.splits import Splits
from hf_headprune.pipeline.cost_path import DEEP, DENSITIES
from hf_headprune.tasks.batches import Batching
from tests.support.classifiers import NUM_LABELS, own_examples
from tests.support.models import tiny_bert


@pytest.fixture(scope="module")
def model():
    return tiny_bert(num_labels=NUM_LABELS)


def splits(model, **sizes):
    rows = Dataset.from_list(2 * list(own_examples(model)))
    parts = {name: rows.select(range(size)) for name, size in sizes.items()}
    return Splits(parts["train"], parts.get("validation"), parts.get("certify"), None, (), ())


@pytest.mark.parametrize(
    ("searches", "tests", "sizes", "work"),
    [
        (
            False,
            True,
            {"train": 30, "certify": 20},
            ((3 + len(DENSITIES)) * 20 + len(DEEP) * 30, 30),
        ),  # the whole model, plans, certificate; and refits in order
        (False, False, {"train": 30, "certify": 20}, (2 * 20 + 2 * 30, 30)),
        (False, False, {"train": 30}, (2 * 30, 30)),
        (True, False, {"train": 30, "validation": 10, "certify": 20}, (0.4 * 150 * 10 + 8 * 20, 30)),
    ],
    ids=["the default", "a size, certified", "a size", "a search"],
)
def test_the_work_is_what_the_model_reads(model, searches, tests, sizes, work):
    assert duration.examples_of_work(splits(model, **sizes), searches=searches, tests=tests) == pytest.approx(work)


def test_deep_cuts_look_at_more_examples(model):
    parts = splits(model, train=30)
    few, many = (duration.examples_of_work(parts, searches=False, tests=False, looked_at=it) for it in (8, 20))
    assert (few, many) == ((16, 8), (40, 20))
    budgets = [Budget("density", value, None) for value in (0.5, 0.25, (0.75, 0.1))]
    budgets.append(Budget("max_drop", 0.01, None))
    assert [it.looked_at(model, trains_on=False) for it in budgets] == [1024, 4096, 4096, 1024]
    assert [it.looked_at(model, trains_on=True) for it in budgets] == [1024] * 4


def test_a_pass_forward_is_timed_and_one_backward_counts_as_three(model, monkeypatch):
    clock = iter([0.0, 2.0, 0.0, 2.0])
    monkeypatch.setattr(duration.time, "perf_counter", lambda: next(clock))
    parts = splits(model, train=30, certify=20)
    sized = Batching(batch_size=5)  # four batches of five are timed
    assert duration.seconds_of(model, parts, sized, (100, 0)) == pytest.approx(10.0)
    assert duration.seconds_of(model, parts, sized, (0, 100)) == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "less than a minute"), (40, "about 1 minute"), (130, "about 2 minutes"), (90_000, "about 1,500 minutes")],
)
def test_a_time_is_said_in_minutes(seconds, words):
    assert duration.in_words(seconds) == words


def test_the_bar_counts_examples_never_more_than_it_announced_and_leaves_the_model_alone(model, monkeypatch):
    bars = []
    monkeypatch.setattr(duration, "tqdm", lambda **settings: bars.append(Bar(**settings)) or bars[0])
    inputs = {"input_ids": torch.ones(8, 4, dtype=torch.long)}
    with duration.shown([model, "model.onnx", None], 13, "Pruning"), torch.no_grad():
        model(**inputs)
        assert bars[0].n == 8
        model(**inputs)
    assert (bars[0].n, bars[0].total, bars[0].closed) == (13, 13, True)
    assert not model._forward_pre_hooks


class Bar:
    """Stands in for a progress bar."""

    def __init__(self, **settings):
        self.title, self.total, self.n, self.closed = settings["desc"], settings["total"], 0, False

    def update(self, count):
        self.n += count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True
