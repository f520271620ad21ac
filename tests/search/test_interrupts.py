"""Wherever a measurement is interrupted, the model is left as it was."""

import linecache
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_headprune.search.evaluation
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.problem import Question
from tests.support.classifiers import batches_of, classifier, decided, examples

pytestmark = pytest.mark.slow

FOLDER = str(Path(hf_headprune.search.evaluation.__file__).parent)
RESTORING = {"open", "restore"}  # they put back; an interrupt inside them is one too many


def interrupted(call, at=-1):
    """Raises a KeyboardInterrupt before the line of the evaluation that comes at a place; returns how many came."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(FOLDER) or frame.f_code.co_name in RESTORING:
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event != "line" or text.startswith("with "):  # at its end, Python itself has yet to begin to restore
            return trace
        lines += 1
        if lines == at:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return lines


def state_of(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    return hooks, modes, pointers, len(model.bert.encoder.layer), torch.is_grad_enabled()


@pytest.mark.parametrize("refits", [False, True])
def test_an_interrupt_at_any_line_of_an_evaluation_leaves_the_model_as_it_was(refits):
    model = classifier(num_hidden_layers=2).train()
    batches = batches_of(decided(model.eval(), examples(16)))
    model.train()
    full = PruningPlan.of(model)
    margins = ExampleEvaluator(model, batches)(full).margins
    plan = full.replace(kept_heads={site: [0, 2] for site in full.kept_heads})

    def measure():
        evaluator = ExampleEvaluator(model, batches)
        if refits:
            evaluator.use_refit(full)
        evaluator.probe(plan, Question(margins))

    before, weights = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    lines = interrupted(measure)
    assert lines > 300
    for at in np.linspace(1, lines, 60, dtype=int):
        interrupted(measure, at)
        assert state_of(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
