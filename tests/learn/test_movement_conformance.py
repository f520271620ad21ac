"""Block movement against values that the authors' own code computed (arXiv 2109.04838; see the fields of `GOLDEN`).

The model is a BERT of 2 layers, hidden 64, 4 heads, FFN 128, 3 labels, no dropout; blocks of 16 x 16 and one score per
FFN unit; step 500 of 1000. Gradients and updated parameters of the model were kept at every 7th entry.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from hf_headprune.anatomy import anatomy_of
from hf_headprune.learn.movement.blocks import block_sums, live_rows, masked_blocks
from hf_headprune.learn.movement.masks import ScoreTensor, at_least, top_k_per_tensor
from hf_headprune.learn.movement.pruner import MovementPruner
from hf_headprune.learn.movement.schedule import MovementSchedule
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.learn.training_loop import TrainingLoop
from hf_headprune.shrink.folding import fold_dead_units_
from hf_headprune.shrink.surgery import prune_model_

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "block_movement.npz")
STRIDE = 7
STEP, MAX_STEPS = 500, 1000
LEARNING_RATE, SCORE_LEARNING_RATE, WEIGHT_DECAY = 3e-5, 1e-2, 0.01


def golden(name):
    return torch.tensor(GOLDEN[name])


def names(prefix):
    return [key.removeprefix(prefix) for key in GOLDEN.files if key.startswith(prefix)]


def same(received, name, *, atol=1e-7, rtol=1e-5):
    torch.testing.assert_close(received.detach(), golden(name), atol=atol, rtol=rtol)


@pytest.fixture
def student():
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        attn_implementation="eager",
    )
    model = transformers.BertForSequenceClassification(config)
    model.load_state_dict({name: golden(f"student0/{name}") for name in names("student0/")})
    return model.train()


@pytest.fixture
def bank(student):
    settings = BlockMovement.hybrid(
        penalty=10.0,
        attention_block=(16, 16),
        width_multiple=1,
        min_kept=0.005,
        attention_penalty=0.7,
        ffn_penalty=1.3,
        warmup_ratio=0.05,
        ramp_end=0.8,
    )
    bank = MovementPruner.of(student, anatomy_of(student), settings, TrainingLoop(learning_rate=LEARNING_RATE))
    bank.set_scores(torch.cat([golden(f"scores/bert.{tensor.paths[0]}.scores").flatten() for tensor in bank.layout]))
    bank.prepare(MAX_STEPS)
    bank.set_step(STEP)
    return bank


def inputs():
    return {key: golden(f"input/{key}") for key in ("input_ids", "attention_mask")}


def distilled_loss(output):
    teacher = functional.softmax(golden("teacher_logits") / 2.0, -1)
    kd = functional.kl_div(functional.log_softmax(output.logits / 2.0, -1), teacher, reduction="batchmean") * 4.0
    return kd, 0.1 * output.loss + 0.9 * kd


def alive(name, size):
    return torch.tensor(np.unpackbits(GOLDEN[name])[:size].astype(bool))


def test_masks_leave_the_same_weights_and_biases(student, bank):
    parts = dict(zip(bank.layout, bank.mask.split([tensor.numel for tensor in bank.layout]), strict=True))
    seen = []
    for tensor, part in parts.items():
        for position, path in enumerate(tensor.paths):
            linear = student.bert.get_submodule(path)
            rows, columns = linear.weight.shape
            if tensor.is_units:
                weight = part[:, None].expand(rows, columns) if position == 0 else part.expand(rows, columns)
                bias = part if position == 0 else torch.ones(rows)
            else:
                mask = part.view(tensor.shape)
                weight, bias = masked_blocks(torch.ones(rows, columns), mask), live_rows(mask, rows)
            assert torch.equal(weight.flatten().bool(), alive(f"masked_weight_alive/bert.{path}", rows * columns))
            assert torch.equal(bias.bool(), alive(f"masked_bias_alive/bert.{path}", rows))
            seen.append(f"bert.{path}")
    assert sorted(seen) == sorted(names("masked_weight_alive/"))


def test_logits_losses_and_penalty_are_the_same(student, bank):
    output = student(**inputs(), labels=golden("input/labels"))
    same(output.logits, "logits_masked")
    kd, combined = distilled_loss(output)
    penalty = bank.penalty()
    found = [output.loss.item(), kd.item(), combined.item(), penalty / 9.36, combined.item() + penalty]
    np.testing.assert_allclose(found, GOLDEN["loss"], rtol=1e-6)


def backward(student, bank):
    _, loss = distilled_loss(student(**inputs(), labels=golden("input/labels")))
    loss.backward()
    bank.add_penalty_grad()


def optimizer_step(student, bank):
    parameters = {name: p for name, p in student.named_parameters() if p is not bank.importance_bias}
    decay = [p for name, p in parameters.items() if not ("bias" in name or "LayerNorm" in name)]
    no_decay = [p for name, p in parameters.items() if "bias" in name or "LayerNorm" in name]
    # The authors' AdamW adds epsilon before it corrects the second moment's bias, which is .001 in the first step.
    optimizer = torch.optim.AdamW(
        [
            {"params": [*no_decay, bank.importance_bias], "weight_decay": 0.0},
            {"params": decay, "weight_decay": WEIGHT_DECAY},
        ],
        lr=LEARNING_RATE,
        eps=1e-8 / 0.001**0.5,
    )
    optimizer.step()


def scored(bank, values):
    sizes = [tensor.numel for tensor in bank.layout]
    for tensor, part in zip(bank.layout, values.split(sizes), strict=True):
        yield f"bert.{tensor.paths[0]}.scores", part.view(tensor.shape)


def test_gradients_of_scores_and_weights_are_the_same(student, bank):
    backward(student, bank)
    compared = {f"bert.{tensor.paths[0]}.scores" for tensor in bank.layout}
    for name, parameter in student.named_parameters():
        if parameter is not bank.importance_bias:
            same(parameter.grad.flatten()[::STRIDE], f"grad/{name}")
            compared.add(name)
    for name, grad in scored(bank, bank.importance_bias.grad):
        same(grad, f"grad/{name}", atol=2e-8)
    assert compared == set(names("grad/"))


def test_parameters_after_one_optimizer_step_are_the_same(student, bank):
    backward(student, bank)
    optimizer_step(student, bank)
    for name, parameter in student.named_parameters():
        if parameter is not bank.importance_bias:
            same(parameter.flatten()[::STRIDE], f"after_step/{name}", atol=2e-8)
    for name, scores in scored(bank, bank.scores):
        same(scores, f"after_step/{name}", atol=2e-6)


def test_logits_at_the_final_threshold_and_after_the_cut_are_the_same(student, bank):
    backward(student, bank)
    optimizer_step(student, bank)
    student.eval()
    with torch.no_grad():
        same(student(**inputs()).logits, "logits_eval_final_tau", atol=1e-6)
        bank.apply_(student)
        same(student(**inputs()).logits, "logits_compiled", atol=1e-6)
        plan = fold_dead_units_(student)
        assert dict(plan.kept_heads) == {"encoder.layer.0.attention": (2, 3), "encoder.layer.1.attention": (0, 1, 2, 3)}
        assert [len(kept) for kept in plan.kept_ffn.values()] == [83, 76]
        prune_model_(student, plan)
        same(student(**inputs()).logits, "logits_optimized", atol=1e-6)


@pytest.mark.parametrize("row", GOLDEN["schedule"], ids=lambda row: f"{row[0]:.0f}-{row[4]:.0f}-{row[7]:.0f}")
def test_threshold_and_penalty_follow_the_same_schedule(row):
    steps, warmup, initial, final, start, end, strength, step, threshold, penalty, progress = row
    schedule = MovementSchedule(
        open_steps=initial * warmup,
        reached_step=steps - final * warmup,
        decided_step=steps,
        start=start,
        end=end,
        end_penalty=strength,
    )
    assert schedule.level(step) == pytest.approx(threshold, abs=1e-9)
    assert schedule.penalty(step) == pytest.approx(penalty, abs=1e-7)
    assert schedule.progress(step) == pytest.approx(progress, abs=1e-9)


def test_top_k_and_the_least_number_kept_are_the_same():
    scores = golden("unit/topk_in").flatten()
    layout = [ScoreTensor(name="w", paths=("w",), kind="attention", shape=(7, 9))]
    assert torch.equal(top_k_per_tensor(scores, 0.3, layout).view(7, 9), golden("unit/topk_0.3"))
    rising = torch.arange(100.0)
    assert torch.equal(at_least(torch.zeros(100), rising, 0.05).view(10, 10), golden("unit/min_elements_0.05"))


def test_score_gradients_are_sums_over_blocks_and_rows():
    products = torch.arange(1.0, 25.0).view(4, 6)
    assert torch.equal(block_sums(products, torch.empty(2, 3)), golden("unit/block_score_grad"))
    assert torch.equal(block_sums(products, torch.empty(4, 1)).flatten(), golden("unit/row_score_grad"))


def test_masks_expand_over_blocks_and_rows():
    ones = torch.ones(4, 6)
    assert torch.equal(masked_blocks(ones, torch.tensor([[0.0, 0, 1], [1, 1, 0]])), golden("unit/block_mask"))
    assert torch.equal(masked_blocks(ones, torch.tensor([[0.0], [1], [1], [0]])), golden("unit/row_mask"))
