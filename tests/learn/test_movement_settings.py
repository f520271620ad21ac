import pytest

from hf_headprune.anatomy import anatomy_of
from hf_headprune.cost import cost_of
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.learn.movement.layout import score_layout, with_exact_fraction
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import tiny_bert, tiny_marian
from tests.support.settings import movement


def layout_of(model, **settings):
    return score_layout(model, anatomy_of(model), movement(**({"attention_block": (8, 8)} | settings)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_block": (0, 8)}, "attention_block must be"),
        ({"attention_block": "heads"}, "attention_block must be"),
        ({"attention_block": (8,)}, "attention_block must be"),
        ({"ffn_block": "head"}, "ffn_block must be"),
        ({"blocks": {"*": "heads"}}, "blocks must map patterns"),
        ({"blocks": {0: (8, 8)}}, "blocks must map patterns"),
        ({"attention_block": None, "ffn_block": None}, "must not both be None"),
        ({"attention_block": "unit", "score_gradient": "weights"}, 'needs tuning.score_gradient="unit"'),
        ({"method": "topK"}, "method must be one of"),
        ({"counts": "flops"}, "counts must be one of"),
        ({"ranking": "layer"}, "ranking must be one of"),
        ({"score_gradient": "unit "}, "score_gradient must be one of"),
        ({"min_kept": 1.0}, "min_kept must be"),
        ({"method": "threshold", "threshold": 0.1}, "threshold must be two numbers"),
        ({"method": "threshold", "threshold": (0.0, float("nan"))}, "threshold must be two numbers"),
        ({"method": "sigmoid_threshold", "threshold": (0.0, 1.5)}, "of a sigmoid must be from 0 to below 1"),
        ({"width_multiple": 0}, "width_multiple must be"),
        ({"score_learning_rate": 0.0}, "score_learning_rate must be a number above 0"),
        ({"ffn_penalty": -0.1}, "ffn_penalty must be a number >= 0"),
        ({"warmup_ratio": 0.7}, "0 <= warmup_ratio <= freeze_at <= 1 must hold"),
        ({"ramp_end": 0.9, "freeze_at": 0.8}, "ramp_end <= freeze_at"),
        ({"seq_len": 0}, "seq_len must be a whole number >= 1"),
        ({"density": 1.5}, "density must be a number from 0 to 1"),
        ({"kept": -1}, "kept must be a whole number"),
        ({"density": True}, "density must be a number from 0 to 1"),
        ({"kept": 100}, 'needs counts="scores"'),
        ({"density": 0.5, "kept": 32, "counts": "scores"}, "must not both be given"),
        ({"kept": 33, "counts": "scores", "attention_block": None}, "multiple of width_multiple"),
        ({"ranking": "per_matrix"}, 'ranking="per_matrix" needs counts="scores"'),
        ({"method": "threshold", "density": 0.3}, "keeps what its threshold says, so density and tuning.kept must be"),
        ({"threshold": (0.0, 0.1)}, "top_k has no threshold"),
        ({"method": "magnitude", "min_kept": 0.1}, "magnitude has no threshold"),
        ({"method": "magnitude", "penalty": 1.0}, "magnitude learns no scores"),
    ],
)
def test_a_wrong_setting_is_named_at_construction(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        movement(**settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BlockMovement.hybrid(density=0.26, kept=0.9),
        lambda: BlockMovement.to_speedup(2.0, density=0.9),
        lambda: BlockMovement.to_speedup(2.0, counts="scores"),
    ],
    ids=["recipe", "speed-up", "what is counted"],
)
def test_a_share_beside_a_target_is_refused(make):
    with pytest.raises(InvalidSettingError, match="says how much is kept, and so would"):
        make()


@pytest.mark.parametrize("recipe", [BlockMovement.hybrid, BlockMovement.hybrid_filled, BlockMovement.struct])
@pytest.mark.parametrize("arguments", [{"penalty": 40.0, "density": 0.3}, {"density": 40}, {"density": 0.0}])
def test_a_recipe_takes_a_penalty_or_a_share(recipe, arguments):
    with pytest.raises(InvalidSettingError, match="density is a share above"):
        recipe(**arguments)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention_block": None},
        {"ffn_block": None, "attention_block": "head"},
        {"ffn_block": (1, 1), "attention_block": (1, 1), "method": "magnitude"},
        {"kept": 64, "counts": "scores", "attention_block": None},
        {"ranking": "per_matrix", "counts": "scores", "density": 0.0},
    ],
)
def test_sound_settings_are_taken(settings):
    assert movement(**settings).tuning.width_multiple == 32


def test_the_published_recipes_have_their_published_values():
    hybrid, filled, struct = BlockMovement.hybrid(), BlockMovement.hybrid_filled(), BlockMovement.struct()
    for recipe in (hybrid, filled, struct):
        assert (recipe.method, recipe.levels) == ("sigmoid_threshold", (0.0, 0.1))
        assert recipe.tuning.score_learning_rate == 1e-2
        assert (recipe.ffn_block, recipe.tuning.score_gradient, recipe.freeze_at) == ("unit", "weights", 1.0)
        assert recipe.warmup_ratio * 110_660 == pytest.approx(5_400)
        assert (1 - recipe.ramp_end) * 110_660 == pytest.approx(54_000)
    assert (hybrid.tuning.penalty, hybrid.tuning.attention_penalty, hybrid.tuning.ffn_penalty) == (20.0, 1.0, 0.25)
    assert (hybrid.attention_block, hybrid.tuning.mask_bias, hybrid.refill_ratio) == ((32, 32), True, 0.0)
    assert filled == BlockMovement.hybrid(refill_ratio=0.25)
    assert (struct.tuning.penalty, struct.tuning.attention_penalty, struct.tuning.ffn_penalty) == (15.0, 0.05, 1.0)
    assert (struct.attention_block, struct.tuning.mask_bias, struct.refill_ratio) == ("head", False, 0.0)
    assert BlockMovement.hybrid(40.0, width_multiple=1).tuning.width_multiple == 1


def test_a_published_recipe_takes_a_density_in_place_of_its_penalty():
    for recipe in (BlockMovement.hybrid, BlockMovement.hybrid_filled, BlockMovement.struct):
        asked, published = recipe(density=0.26), recipe()
        assert (asked.method, asked.kept, asked.tuning.counts, asked.tuning.penalty) == (
            "top_k",
            0.26,
            "parameters",
            0.0,
        )
        assert (asked.attention_block, asked.refill_ratio) == (published.attention_block, published.refill_ratio)
        assert (asked.warmup_ratio, asked.ramp_end) == (published.warmup_ratio, published.ramp_end)


def test_the_layout_lists_blocks_and_units_in_the_order_of_the_forward_pass():
    layout = layout_of(tiny_bert(), attention_block=(8, 16))
    first = layout[:5]
    assert [tensor.name.split(".")[-1] for tensor in first] == ["query", "key", "value", "dense", "intermediate"]
    assert [tensor.shape for tensor in first] == [(4, 2)] * 3 + [(2, 4), (64,)]
    assert [tensor.kind for tensor in first] == ["attention"] * 4 + ["ffn"]
    assert [tensor.cost for tensor in first] == [8 * 16] * 4 + [2 * 32]
    assert len(layout) == 10


def test_head_blocks_are_one_score_per_head_and_matrix():
    layout = layout_of(tiny_bert(), attention_block="head", ffn_block=None)
    assert [tensor.shape for tensor in layout[:4]] == [(4, 1)] * 3 + [(1, 4)]


def test_ffn_blocks_are_transposed_on_the_second_matrix():
    layout = layout_of(tiny_bert(), attention_block=None, ffn_block=(1, 32))
    assert [tensor.shape for tensor in layout[:2]] == [(64, 1), (1, 64)]


def test_other_shapes_are_given_by_patterns_of_sites_and_the_last_one_holds():
    blocks = {"*.0.*": None, "encoder.layer.0.intermediate": (8, 16), "encoder.layer.1.attention": "unit"}
    layout = layout_of(tiny_bert(), blocks=blocks)
    ffn, second = ["encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"], "encoder.layer.1."
    assert [tensor.name for tensor in layout] == [*ffn, second + "attention", second + "intermediate"]
    assert [tensor.shape for tensor in layout] == [(8, 2), (2, 8), (4,), (64,)]
    alone = layout_of(tiny_bert(), attention_block=None, blocks={"*.attention": (8, 8)})
    assert {tensor.kind for tensor in alone} == {"ffn"}


def test_units_of_attention_are_heads():
    layout = layout_of(tiny_bert(), attention_block="unit")
    heads, units = layout[:2]
    assert (heads.shape, heads.multiple, heads.cost) == ((4,), 1, 4 * 32 * 8)
    assert (units.shape, units.multiple, units.cost) == ((64,), 32, 2 * 32)


def test_a_decoder_has_kinds_of_its_own():
    kinds = {tensor.kind for tensor in layout_of(tiny_marian())}
    assert kinds == {"attention", "ffn", "decoder_attention", "decoder_ffn"}


@pytest.mark.parametrize("make", [tiny_bert, tiny_marian])
@pytest.mark.parametrize("block", [(8, 8), "head", "unit"])
def test_macs_of_all_scores_are_those_of_the_model(make, block):
    model = make()
    lengths = {"seq_len": 12, "target_len": 7}
    total = cost_of(PruningPlan.of(model), anatomy_of(model), **lengths).macs
    layout = layout_of(model, attention_block=block, counts="macs", **lengths)
    assert sum(tensor.cost * tensor.numel for tensor in layout) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_block": (12, 8)}, r"query of shape \(32, 32\) can't be cut into blocks of \(12, 8\)"),
        ({"width_multiple": 48}, "has 64 units, no multiple of 48"),
        ({"ffn_block": (4, 4), "width_multiple": 48}, "has 64 units, no multiple of 48"),
        ({"blocks": {"encoder.layer.7.*": None}}, r"no site's name matches 'encoder.layer.7.\*' in blocks"),
        ({"blocks": {"*": "head"}}, "encoder.layer.0.intermediate has no heads"),
        ({"blocks": {"*": "unit"}, "score_gradient": "weights"}, "encoder.layer.0.attention in units needs score_grad"),
        ({"blocks": {"*": None}}, "nothing that the settings score"),
        ({"blocks": {"*.attention": None}}, "no attention to score; say so with attention_block=None"),
    ],
)
def test_what_does_not_divide_the_model_is_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        layout_of(tiny_bert(), **settings)


def test_a_model_without_heads_is_named_as_such():
    model = tiny_bert()
    prune_model_(model, PruningPlan.of(model).replace(kept_heads=dict.fromkeys(PruningPlan.of(model).kept_heads, ())))
    with pytest.raises(InvalidSettingError, match="the model has no heads to score; say so with attention_block=None"):
        layout_of(model)


def test_other_than_plain_linear_modules_are_refused():
    model = tiny_bert()
    query = model.bert.encoder.layer[0].attention.self.query
    query.__class__ = type("Adapted", (query.__class__,), {})
    with pytest.raises(UnsupportedModelError, match=r"query.*Adapted"):
        layout_of(model)


@pytest.mark.parametrize(
    ("kept", "exact"), [(96, 96 / 128), (0, 0.0), (0.5, 0.5), (0.6, 64 / 128), (0.65, 96 / 128), (1.0, 1.0)]
)
def test_budgets_of_units_become_fractions_that_whole_chunks_meet(kept, exact):
    layout = layout_of(tiny_bert(), attention_block=None, counts="scores")
    assert with_exact_fraction(BlockMovement.ffn_units(kept), layout).kept == exact


def test_more_units_than_there_are_can_t_stay():
    layout = layout_of(tiny_bert(), attention_block=None, counts="scores")
    with pytest.raises(InvalidSettingError, match="160 scores are to be kept, but the model has 128"):
        with_exact_fraction(BlockMovement.ffn_units(160), layout)


def test_a_speedup_is_a_share_of_the_macs():
    settings = BlockMovement.to_speedup(2.5, seq_len=64)
    assert (settings.kept, settings.tuning.counts, settings.tuning.seq_len) == (0.4, "macs", 64)
    with pytest.raises(InvalidSettingError, match="factor must be a number above 1"):
        BlockMovement.to_speedup(1.0)
