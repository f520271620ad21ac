"""NaN or infinity in a model is named before anything is measured or cut, also where every answer stays finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_headprune import (
    AStarSearch,
    HeadPruneCallback,
    PruningPlan,
    RefittedPlan,
    anatomy_of,
    certify,
    plan_for_budget,
    plan_ladder,
    prune_model_,
    scores_of,
    search_plan,
)
from hf_headprune._finite import are_finite, is_finite
from hf_headprune.errors import InvalidPlanError, UnsupportedModelError
from hf_headprune.refit.moments import record_moments
from hf_headprune.refit.projections import Refit
from tests.support.models import text_inputs, tiny_bart, tiny_bert
from tests.support.trainers import labelled_rows, trainer_of

EMBEDDINGS, QUERY = "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"
UNUSED = 2  # a token that no example holds
ROWS, OTHERS = labelled_rows(40, 1), labelled_rows(32, 5)
VERBS = {
    "search_plan": lambda model, _: search_plan(model, ROWS, calibration=OTHERS, progress=False),
    "A*": lambda model, _: search_plan(model, ROWS, search=AStarSearch(max_evaluations=3), progress=False),
    "A* by a function": lambda model, _: search_plan(model, None, lambda _: 0.5, search=AStarSearch(), progress=False),
    "plan_for_budget": lambda model, _: plan_for_budget(model, ROWS, density=0.5),
    "plan_ladder": lambda model, _: plan_ladder(model, ROWS, densities=(0.5, 0.25)),
    "prune_model_": lambda model, _: prune_model_(model, PruningPlan.of(model)),
    "scores_of": lambda model, _: scores_of(model, ROWS),
    "certify": lambda model, _: certify(tiny_bert(), model, ROWS, max_drop=0.2),
    "Trainer, default": lambda model, folder: trainer_of(folder, HeadPruneCallback(latency=None), model=model),
    "Trainer, density": lambda model, folder: trainer_of(folder, HeadPruneCallback(density=0.5), model=model),
}


def with_nan(name: str, row: int) -> nn.Module:
    model = tiny_bert()
    model.get_parameter(name).data[row, 0] = torch.nan
    return model


@pytest.mark.parametrize("verb", VERBS)
def test_it_is_named_before_anything_is_measured_or_cut(verb, tmp_path):
    model = with_nan(EMBEDDINGS, UNUSED)
    with torch.no_grad():
        assert model(**text_inputs()).logits.isfinite().all()  # so that no look at the answers could tell
    with pytest.raises(UnsupportedModelError, match=rf"in 1 of its \d+ tensors: {EMBEDDINGS}"):
        VERBS[verb](model, tmp_path)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_bad_row_of_queries_which_some_kernels_turn_into_zeros_is_named():
    with pytest.raises(UnsupportedModelError, match=QUERY):
        search_plan(with_nan(QUERY, 0), ROWS, calibration=OTHERS, progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_any_floating_tensor_is_looked_at(value, dtype):
    tensor = torch.arange(1000).reshape(10, 100).remainder(7).to(dtype)
    assert is_finite(tensor)
    assert is_finite(tensor[:0])
    tensor.view(-1)[501] = value
    assert not is_finite(tensor)
    assert not is_finite(tensor.T)


def test_largest_numbers_are_finite_and_codes_are_no_numbers():
    assert is_finite(torch.full((3,), torch.finfo(torch.float16).max, dtype=torch.float16))
    assert is_finite(torch.full((3,), -torch.finfo(torch.float32).max))
    assert is_finite(torch.arange(4))
    assert is_finite(torch.empty(3, device="meta"))


def test_buffers_count_where_they_are_saved():
    model = tiny_bart()
    model.register_buffer("running", torch.tensor([1.0, float("nan")]))
    model.register_buffer("scratch", torch.tensor([float("inf")]), persistent=False)
    assert [name for name, holds in are_finite(model).items() if not holds] == ["running"]


def test_many_bad_tensors_make_a_short_message():
    model = tiny_bert()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(UnsupportedModelError, match=r"and \d+ more\. Whatever") as caught:
        prune_model_(model, PruningPlan.of(model))
    assert len(str(caught.value)) < 600


def test_a_refit_that_the_precision_can_not_hold_is_refused_before_anything_is_cut():
    model = tiny_bert().half()
    site = anatomy_of(model).sites[0]
    layer = model.bert.encoder.layer[0].attention
    for linear in (layer.self.query, layer.self.key, layer.self.value):  # two heads that are one
        linear.weight.data[8:16] = linear.weight.data[:8]
    output = layer.output.dense
    output.weight.data[:, :16] = 6e4  # a head that makes up for its twin needs 1.2e5
    before = output.weight.clone()
    inputs = torch.randn(64, 32, dtype=torch.float16)
    inputs[:, 8:16] = inputs[:, :8]
    recorded = record_moments(model, [site], lambda: output(inputs * 1e-3))
    plan = PruningPlan.of(model)
    result = RefittedPlan(plan.replace(kept_heads={site.name: (0, 2, 3)}), Refit(model, plan, recorded))
    with pytest.raises(InvalidPlanError, match=r"attention to 3 units is not finite in torch\.float16"):
        prune_model_(model, result)
    assert torch.equal(output.weight, before)
    assert type(model).__name__ == "BertForSequenceClassification"
