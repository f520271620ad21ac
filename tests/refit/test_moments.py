"""Moments: what is recorded of which tokens, against the sums written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_headprune import anatomy_of
from hf_headprune.refit.moments import EVEN_SHARE, record_moments, record_moments_by_gradient, without_gradient
from tests.support.classifiers import batches_of, classifier, examples
from tests.support.models import EOS, PAD, text_inputs, tiny_bart, tiny_bert, tiny_bert_decoder, tiny_marian
from tests.support.second_order import ATTENTION, FFN, losses_of, site_of


@pytest.fixture
def case():
    return classifier().eval(), batches_of(examples(40))


def seen_at(model, site, batches):
    """Of each example, inputs of an output projection and gradients of the loss for its outputs, over real tokens."""
    inputs, gradients = [], []
    output = model.bert.get_submodule(site.output)

    def note(module, args, result):
        inputs.append(args[0].detach())
        result.register_hook(gradients.append)

    handle = output.register_forward_hook(note)
    for loss in losses_of(model, batches):
        loss.backward()
    handle.remove()
    model.zero_grad()
    masks = [batch["attention_mask"].bool() for batch in batches]
    rows = [row for batch in zip(inputs, gradients, masks, strict=True) for row in zip(*batch, strict=True)]
    return [(x[m].double(), g[m].double()) for x, g, m in rows]


@pytest.mark.parametrize("name", [ATTENTION, FFN])
def test_moments_weigh_tokens_of_an_example_by_their_squared_gradient_and_leave_no_trace(case, name):
    model, batches = case
    site = site_of(model, name)
    moments = record_moments_by_gradient(model, [site], losses_of(model, batches))[name]
    assert all(parameter.grad is None for parameter in model.parameters())
    total, count, sensitivity = 0.0, 0, 0.0
    for x, g in seen_at(model, site, batches):
        given = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        shares = g.square().sum(1, keepdim=True) / g.square().sum() * len(x)
        total = total + (given * (EVEN_SHARE + (1 - EVEN_SHARE) * shares)).T @ given
        count += len(x)
        sensitivity = sensitivity + g.T @ g
    torch.testing.assert_close(moments.inputs.dense(), (total / count).float(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(moments.sensitivity, sensitivity.float(), rtol=1e-3, atol=1e-7)
    assert moments.tokens == pytest.approx(count, rel=1e-5)


def cached(model, batch):
    """The loss of a batch as contrastive losses with a cache make it: the model runs again in the backward pass."""
    bias = torch.zeros(3, requires_grad=True)  # of the loss itself

    def logits():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits

    with torch.no_grad():
        leaf = logits().requires_grad_()
    loss = cross_entropy(leaf + bias, batch["labels"], reduction="sum")

    def run_again(gradient):
        with torch.enable_grad():
            (logits() * cache).sum().mul(gradient).backward()

    (cache,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    loss.register_hook(run_again)
    return loss, bias


def test_a_loss_that_runs_the_model_in_its_backward_pass_gives_the_moments_of_one_that_does_not(case):
    model, batches = case
    site, weight = site_of(model, FFN), model.classifier.weight
    weight.grad = torch.ones_like(weight)
    expected = record_moments_by_gradient(model, [site], losses_of(model, batches))[FFN]
    made = [cached(model, batch) for batch in batches]
    moments = record_moments_by_gradient(model, [site], (loss for loss, _ in made))[FFN]
    torch.testing.assert_close(moments.inputs.dense(), expected.inputs.dense())
    torch.testing.assert_close(moments.sensitivity, expected.sensitivity)
    assert without_gradient(model, [site], lambda: cached(model, batches[0])[0]) == []
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not weight)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(bias.grad is None for _, bias in made)


def test_sites_that_a_loss_does_not_depend_on_are_named(case):
    model, batches = case
    sites = [site_of(model, name) for name in (ATTENTION, FFN)]
    constant = torch.zeros((), requires_grad=True)
    assert without_gradient(model, sites, lambda: next(losses_of(model, batches))) == []
    assert without_gradient(model, sites, lambda: constant * 2) == sites


def test_what_is_recorded_inside_of_inference_mode_is_the_same(case):
    model, batches = case
    site = site_of(model, FFN)
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]

    def run():
        return [model(**batch) for batch in inputs]

    expected = record_moments(model, [site], run)[FFN]
    moments = record_moments(model, [site], torch.inference_mode()(run))[FFN]
    assert not any(block.is_inference() for block in moments.inputs.blocks)
    assert torch.equal(moments.inputs.dense(), expected.inputs.dense())


def test_without_losses_every_real_token_counts_alike(case):
    model, batches = case
    site = site_of(model, ATTENTION)

    def run():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    moments = record_moments(model, [site], run)[ATTENTION]
    x = torch.cat([x for x, _ in seen_at(model, site, batches)])
    assert moments.tokens == len(x) == sum(int(batch["attention_mask"].sum()) for batch in batches)
    torch.testing.assert_close(moments.inputs.dense()[:-1, :-1], (x.T @ x / len(x)).float(), rtol=1e-4, atol=1e-6)
    assert moments.sensitivity is None


def test_padding_of_a_model_that_is_a_decoder_is_not_counted():
    model = tiny_bert_decoder(add_cross_attention=False)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    sites = [site_of(model, name) for name in (ATTENTION, FFN)]
    moments = record_moments(model, sites, lambda: model(input_ids=torch.full((2, 4), 5), attention_mask=mask))
    assert [found.tokens for found in moments.values()] == [6, 6]


def test_padding_of_a_decoder_that_reads_what_its_encoder_reads_is_not_counted():
    model = tiny_bart("BartForSequenceClassification")
    tokens, mask = torch.full((2, 4), 5), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    tokens[0, 3], tokens[1, 1] = EOS, EOS
    sites = anatomy_of(model).sites
    moments = record_moments(model, sites, lambda: model(input_ids=tokens, attention_mask=mask))
    assert {found.tokens for found in moments.values()} == {6}
    target = torch.tensor([[PAD, 7, 8], [PAD, 7, PAD]])  # the first token starts the text, whatever it is
    moments = record_moments(model.model, sites, lambda: model.model(input_ids=tokens, decoder_input_ids=target))
    assert moments["decoder.layers.0.fc1"].tokens == 5


def test_padding_is_not_counted_where_generation_runs_the_encoder_alone():
    model = tiny_marian()
    batches = [text_inputs(seed=1, batch=2, length=12), text_inputs(seed=2, batch=2, length=12)]
    batches[1]["attention_mask"] = batches[1]["attention_mask"].flip(0)  # as large as before, another padding
    site = anatomy_of(model).sites[0]

    def translate():
        for batch in batches:
            model.generate(**batch, max_new_tokens=3, num_beams=1)

    def read():
        for batch in batches:
            model(**batch, decoder_input_ids=torch.full((2, 1), 7))

    generated, whole = (
        record_moments(model, [site], translate)[site.name],
        record_moments(model, [site], read)[site.name],
    )
    assert generated.tokens == sum(int(batch["attention_mask"].sum()) for batch in batches) == 40
    torch.testing.assert_close(generated.inputs.dense(), whole.inputs.dense())


def test_padding_is_not_counted_where_inputs_are_passed_by_position():
    model, inputs = tiny_bert(None), text_inputs()
    site = anatomy_of(model).sites[0]
    moments = record_moments(model, [site], lambda: model(inputs["input_ids"], inputs["attention_mask"]))
    assert moments[site.name].tokens == int(inputs["attention_mask"].sum()) < inputs["input_ids"].numel()


def moments_of(model, losses):
    recorded = record_moments_by_gradient(model, anatomy_of(model).sites, losses)
    return {name: (found.inputs.dense(), found.sensitivity, found.tokens) for name, found in recorded.items()}


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for name, (inputs, sensitivity, tokens) in expected.items():
        torch.testing.assert_close(found[name][0], inputs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[name][1], sensitivity, rtol=1e-3, atol=1e-6 * float(sensitivity.abs().max()))
        assert found[name][2] == pytest.approx(tokens, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_moments_do_not_depend_on_how_examples_are_put_into_batches(case, batch_size):
    model, batches = case
    expected = moments_of(model, losses_of(model, batches))
    rows = examples(40)
    others = batches_of(rows[::-1] if batch_size == 3 else rows, batch_size=batch_size)
    assert len(others) != len(batches)
    assert_alike(moments_of(model, losses_of(model, others)), expected)


def side(lengths, *, width, seed):
    """Token ids `(sequences, width)` of which so many are real."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    padded = torch.zeros(len(lengths), width, dtype=torch.long)
    padded[:, : max(lengths)] = ids
    return {"input_ids": padded * mask, "attention_mask": mask.long()}


def embedded(model, inputs):
    hidden, real = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1))


def contrastive(queries, documents):
    return cross_entropy(20 * queries @ documents.T, torch.arange(len(queries)), reduction="sum")


@pytest.mark.parametrize(("of_queries", "of_documents"), [(12, 12), (30, 12), (9, 34)])
def test_each_pass_of_a_loss_counts_its_tokens_once_with_its_own_padding(of_queries, of_documents):
    model = tiny_bert(None)
    queries, documents = ([4, 5, 6, 7], [12, 11, 10, 9])
    width = max(of_queries, of_documents)

    def one_pass():
        both = [side(queries, width=width, seed=1), side(documents, width=width, seed=2)]
        hidden = embedded(model, {name: torch.cat([part[name] for part in both]) for name in both[0]})
        yield contrastive(hidden[:4], hidden[4:])

    def two_passes():
        first = embedded(model, side(queries, width=of_queries, seed=1))
        yield contrastive(first, embedded(model, side(documents, width=of_documents, seed=2)))

    expected = moments_of(model, one_pass())
    assert {round(tokens) for *_, tokens in expected.values()} == {sum(queries + documents)}
    assert_alike(moments_of(model, two_passes()), expected)


def test_a_pass_that_the_loss_does_not_use_is_not_counted():
    model = tiny_bert(None)

    def losses():
        model(**side([6, 5], width=6, seed=3))
        yield embedded(model, side([4, 3], width=4, seed=1)).square().sum(1).log().sum() + 1.0

    assert {round(tokens) for *_, tokens in moments_of(model, losses()).values()} == {7}
