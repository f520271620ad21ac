import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from hf_headprune.learn.movement.blocks import (
    BlockMaskedLinear,
    MaskSlot,
    UnitMaskedLinear,
    UnitRowScores,
    become_masked_,
    become_plain_,
    block_sums,
    close_blocks_,
    close_units_,
    live_rows,
    masked_blocks,
)

OUT, IN = 12, 8


def expanded(mask, rows, columns):
    """The mask of full size: each entry of the matrix looks up its block."""
    return torch.stack(
        [
            torch.stack([mask[i * mask.shape[0] // rows, j * mask.shape[1] // columns] for j in range(columns)])
            for i in range(rows)
        ]
    )


def random_mask(*shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4).float()


def linear(rows=OUT, columns=IN, *, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(columns, rows, bias=bias)


@pytest.mark.parametrize("shape", [(12, 8), (3, 2), (1, 8), (12, 1), (1, 1), (4, 4)])
def test_block_operations_equal_those_with_a_mask_of_full_size(shape):
    matrix, mask = torch.randn(OUT, IN), random_mask(*shape)
    full = expanded(mask, OUT, IN)
    assert torch.equal(masked_blocks(matrix, mask), matrix * full)
    assert torch.equal(live_rows(mask, OUT), full.amax(1))
    sums = torch.zeros(shape)
    for i in range(OUT):
        for j in range(IN):
            sums[i * shape[0] // OUT, j * shape[1] // IN] += matrix[i, j]
    torch.testing.assert_close(block_sums(matrix, mask), sums)


@pytest.mark.parametrize("shape", [(12, 8), (3, 2), (4, 1)])
@pytest.mark.parametrize("masks_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_masked_linear_gives_the_outputs_and_gradients_of_an_explicit_mask(shape, masks_bias, bias):
    module, hidden = linear(bias=bias), torch.randn(2, 5, IN, requires_grad=True)
    mask = random_mask(*shape)
    mask[0] = 0.0  # rows without a living block
    full = expanded(mask, OUT, IN).requires_grad_(True)
    weight, other = module.weight.detach().clone().requires_grad_(True), hidden.detach().clone().requires_grad_(True)
    bias_left = None
    if bias:
        bias_left = module.bias.detach() * (full.detach().amax(1) if masks_bias else 1.0)
    expected = functional.linear(other, weight * full, bias_left)
    expected.square().sum().backward()

    slot = MaskSlot()
    slot.mask, slot.scores = mask, torch.zeros(shape, requires_grad=True)
    become_masked_(module, BlockMaskedLinear, slot, masks_bias=masks_bias)
    output = module(hidden)
    output.square().sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(hidden.grad, other.grad)
    torch.testing.assert_close(module.weight.grad, weight.grad)
    torch.testing.assert_close(slot.scores.grad, block_sums(full.grad, mask))
    assert not module.weight.grad[full == 0].any()
    if bias and masks_bias:
        assert not module.bias.grad[full.amax(1) == 0].any()


def ffn(slot, *, hooked):
    up, down = linear(16, IN, seed=1), linear(IN, 16, seed=2)
    become_masked_(down, UnitMaskedLinear, slot)
    if hooked:
        up.register_forward_hook(UnitRowScores(slot))
    return up, down


def test_units_masked_between_the_matrices_equal_masked_rows_and_columns():
    slot = MaskSlot(scores_closed=False)
    slot.mask, slot.scores = random_mask(16), torch.zeros(16, requires_grad=True)
    up, down = ffn(slot, hooked=True)
    hidden = torch.randn(3, IN)
    rows, columns = slot.mask[:, None].expand(16, IN).clone(), slot.mask.expand(IN, 16).clone()
    rows.requires_grad_(True)
    columns.requires_grad_(True)
    weights = [m.weight.detach().clone().requires_grad_(True) for m in (up, down)]
    inner = functional.gelu(functional.linear(hidden, weights[0] * rows, up.bias.detach() * slot.mask))
    expected = functional.linear(inner, weights[1] * columns, down.bias.detach())
    expected.square().sum().backward()

    output = down(functional.gelu(up(hidden)))
    output.square().sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(up.weight.grad, weights[0].grad)
    torch.testing.assert_close(down.weight.grad, weights[1].grad)
    torch.testing.assert_close(slot.scores.grad, rows.grad.sum(1) + columns.grad.sum(0))
    assert not slot.scores.grad[slot.mask == 0].any()


@pytest.mark.parametrize("units", [16, 4])
def test_the_score_of_a_unit_gets_the_derivative_by_its_factor_also_when_it_is_closed(units):
    slot = MaskSlot()
    slot.mask, slot.scores = random_mask(units), torch.zeros(units, requires_grad=True)
    up, down = ffn(slot, hooked=False)
    hidden = torch.randn(2, 3, IN)
    factor = slot.mask.clone().requires_grad_(True)
    inner = functional.gelu(up(hidden)) * factor.repeat_interleave(16 // units)
    functional.linear(inner, down.weight, down.bias).square().sum().backward()
    expected = factor.grad
    down(functional.gelu(up(hidden))).square().sum().backward()
    torch.testing.assert_close(slot.scores.grad, expected)
    assert slot.scores.grad[slot.mask == 0].all()


def test_without_a_mask_modules_compute_what_they_computed():
    module, hidden = linear(), torch.randn(3, IN)
    expected = module(hidden)
    for kind, settings in ((BlockMaskedLinear, {"masks_bias": True}), (UnitMaskedLinear, {})):
        become_masked_(module, kind, MaskSlot(), **settings)
        assert torch.equal(module(hidden), expected)
        become_plain_(module)
        assert type(module) is nn.Linear
        assert not {"slot", "masks_bias"} & vars(module).keys()


@pytest.mark.parametrize("kind", [BlockMaskedLinear, UnitMaskedLinear])
def test_gradients_keep_their_dtypes_under_autocast(kind):
    module, hidden, slot = linear(), torch.randn(3, IN, requires_grad=True), MaskSlot()
    slot.mask = random_mask(3, 2) if kind is BlockMaskedLinear else random_mask(IN)
    slot.scores = torch.zeros_like(slot.mask, requires_grad=True)
    become_masked_(module, kind, slot, **({"masks_bias": True} if kind is BlockMaskedLinear else {}))
    exact = [
        g.clone() for g in torch.autograd.grad(module(hidden).square().sum(), [hidden, module.weight, slot.scores])
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(hidden)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    for received, expected in zip([hidden.grad, module.weight.grad, slot.scores.grad], exact, strict=True):
        assert received.dtype == torch.float32
        torch.testing.assert_close(received, expected, atol=0.05, rtol=0.05)


def test_under_autocast_masks_are_laid_on_what_the_product_reads_and_doubles_stay():
    module, slot = linear(), MaskSlot()
    slot.mask, slot.scores = random_mask(3, 2), torch.zeros(3, 2, requires_grad=True)
    become_masked_(module, BlockMaskedLinear, slot, masks_bias=True)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
        module(torch.randn(3, IN))
    assert [t.dtype for t in kept if t.numel() == OUT * IN] == [torch.bfloat16]  # one, as a plain module keeps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.double()(torch.randn(3, IN).double()).dtype == torch.float64


def test_the_backward_pass_keeps_no_masked_weight():
    module, slot = linear(), MaskSlot()
    slot.mask, slot.scores = random_mask(3, 2), torch.zeros(3, 2, requires_grad=True)
    become_masked_(module, BlockMaskedLinear, slot, masks_bias=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(torch.randn(3, IN))
    of_weight_size = [t for t in kept if t.numel() == OUT * IN]
    assert [t.data_ptr() for t in of_weight_size] == [module.weight.data_ptr()]


def test_a_masked_module_with_a_graph_can_be_copied():
    module, slot = linear(), MaskSlot()
    slot.mask = random_mask(3, 2)
    slot.scores = torch.zeros(3, 2, requires_grad=True) * 2
    become_masked_(module, BlockMaskedLinear, slot, masks_bias=True)
    twin, hidden = copy.deepcopy(module), torch.randn(2, IN)
    assert torch.equal(twin(hidden), module(hidden))
    assert twin.slot.scores is None


def test_closing_writes_what_the_masks_computed_into_the_weights():
    module, hidden, slot = linear(), torch.randn(3, IN), MaskSlot()
    slot.mask = random_mask(3, 2)
    slot.mask[1] = 0.0
    become_masked_(module, BlockMaskedLinear, slot, masks_bias=True)
    with torch.no_grad():
        expected = module(hidden)
        become_plain_(module)
        close_blocks_(module, slot.mask, masks_bias=True)
        assert torch.equal(module(hidden), expected)

    slot.mask = random_mask(4)
    up, down = ffn(slot, hooked=False)
    with torch.no_grad():
        expected = down(functional.gelu(up(hidden)))
        become_plain_(down)
        close_units_((up, down), slot.mask)
        torch.testing.assert_close(down(functional.gelu(up(hidden))), expected)
    closed = slot.mask.repeat_interleave(4) == 0
    assert not up.weight[closed].any()
    assert not up.bias[closed].any()
    assert not down.weight[:, closed].any()
