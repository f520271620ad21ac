"""Fixtures of the whole suite; nothing here reaches a network."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")  # else it waits for a network, again and again
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_headprune import latency
from tests.support.environments import python_of
from tests.support.models import FAMILY_NAMES, TINY_FAMILIES, TinyFamily


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from walking through all imported libraries again and again: a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def short_latency_runs(monkeypatch):
    """Lets every training end sooner; what is measured is the same, with more noise."""
    monkeypatch.setattr(latency, "_SHORTEST_RUN_SECONDS", 0.002)
    monkeypatch.setattr(latency, "MOST_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Lets saving end sooner: drawing the pictures of a card takes longer than a tiny model's training."""
    monkeypatch.setattr("hf_headprune.publish.report.pictures", lambda *_: {})


@pytest.fixture(scope="session")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The interpreter of an environment, by its name; see `tests.support.environments`."""
    return cache(lambda environment: python_of(environment, tmp_path_factory.mktemp(environment)))


@pytest.fixture(autouse=True)
def no_hidden_fault(caplog):
    """Sees that no fault of ours hides behind what is done where a loss of the user's can't be run on a copy."""
    yield
    said = [it.getMessage() for it in caplog.get_records("call") if it.name == "hf_headprune.refit.projections"]
    assert not [words for words in said if words.startswith("Only output projections are refitted")]


@pytest.fixture(params=FAMILY_NAMES)
def tiny_family(request: pytest.FixtureRequest) -> TinyFamily:
    """Every family in turn: `tiny_family.make()`, `tiny_family.inputs()`."""
    return TINY_FAMILIES[request.param]


@pytest.fixture
def any_model(tiny_family: TinyFamily) -> Any:
    """A tiny model of every family in turn, in evaluation mode."""
    return tiny_family.make()


@pytest.fixture
def any_inputs(tiny_family: TinyFamily) -> dict[str, torch.Tensor]:
    """Inputs for `any_model`."""
    return tiny_family.inputs()
