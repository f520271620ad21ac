"""Plots: they are written, show what the plan says, and say what is missing."""

from dataclasses import dataclass

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from hf_headprune.errors import InvalidPlanError, InvalidSettingError, MissingExtraError
from hf_headprune.plan import PruningPlan
from hf_headprune.publish import plots
from hf_headprune.publish.layout import groups_of
from hf_headprune.publish.plots import plot_frontier, plot_head_map
from tests.support.families import made


@dataclass(frozen=True)
class Step:
    gain: float
    metric: float
    feasible: bool


def marian_plan(layers: int = 2, heads: int = 4, units: int = 8) -> PruningPlan:
    attention = [f"encoder.layers.{i}.self_attn" for i in range(layers)]
    attention += [f"decoder.layers.{i}.{block}" for i in range(layers) for block in ("self_attn", "encoder_attn")]
    ffn = [f"{side}.layers.{i}.fc1" for side in ("encoder", "decoder") for i in range(layers)]
    return PruningPlan(
        model_type="marian",
        num_heads=dict.fromkeys(attention, heads),
        num_ffn=dict.fromkeys(ffn, units),
        kept_heads={site: tuple(range(heads)) for site in attention},
        kept_ffn={site: tuple(range(units)) for site in ffn},
    )


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written, so that a test can look at what is drawn in them."""
    written: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *args, **kwargs):
        written.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return written


def test_groups_name_every_kind_of_attention_and_keep_the_layers_in_order():
    groups = groups_of(marian_plan(layers=11))
    assert [group.title for group in groups] == [
        "encoder self heads",
        "encoder FFN units",
        "decoder self heads",
        "cross heads",
        "decoder FFN units",
    ]
    assert groups[3].sites == tuple(f"decoder.layers.{i}.encoder_attn" for i in range(11))


def test_groups_refuse_a_site_that_the_family_does_not_have():
    plan = marian_plan()
    site = "encoder.layers.0.unheard_of"
    strange = PruningPlan(
        plan.model_type, {**plan.num_heads, site: 2}, plan.num_ffn, {**plan.kept_heads, site: (0,)}, plan.kept_ffn
    )
    with pytest.raises(InvalidPlanError, match=r"encoder\.layers\.0\.unheard_of is no site of the family 'marian'"):
        groups_of(strange)


def test_groups_refuse_an_unknown_family():
    with pytest.raises(InvalidPlanError, match="no family 'cnn' is declared"):
        groups_of(PruningPlan("cnn", {}, {}, {}, {}))


def test_the_head_map_draws_one_square_per_head_in_the_color_of_its_fate(tmp_path, figures):
    plan = marian_plan().replace(kept_heads={"decoder.layers.1.encoder_attn": (1, 3), "encoder.layers.0.self_attn": ()})
    path = plot_head_map(plan, tmp_path / "new folder" / "map.png")
    with Image.open(path) as image:
        assert min(image.size) > 200
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["encoder self heads", "decoder self heads", "cross heads"]
    colors = [patch.get_facecolor() for axis in axes for patch in axis.patches if isinstance(patch, Rectangle)]
    assert len(colors) == sum(plan.num_heads.values())
    assert colors.count(mpl.colors.to_rgba(plots._KEPT)) == plan.num_kept_heads
    cross = {
        (round(patch.get_y() + 0.44), round(patch.get_x() + 0.44))
        for patch in axes[2].patches
        if patch.get_facecolor() == mpl.colors.to_rgba(plots._REMOVED)
    }
    assert cross == {(1, 0), (1, 2)}


def test_the_head_map_shows_ffn_panels_when_units_go(tmp_path, figures):
    plan = marian_plan().replace(kept_ffn={"decoder.layers.0.fc1": (0, 1)})
    plot_head_map(plan, tmp_path / "map.svg")
    assert [axis.get_title() for axis in figures[0].axes][-1] == "decoder FFN units"
    assert "2" in [text.get_text() for text in figures[0].axes[-1].texts]


def test_the_head_map_accepts_a_model_that_was_pruned_before_and_lost_a_whole_layer(tmp_path):
    sizes = {"encoder.layers.0.self_attn": 0, "encoder.layers.1.self_attn": 3}
    plan = PruningPlan("marian", sizes, {}, {"encoder.layers.0.self_attn": (), "encoder.layers.1.self_attn": (1,)}, {})
    assert plot_head_map(plan, tmp_path / "map.png").stat().st_size > 1000


def test_the_frontier_tells_plans_that_hold_from_those_that_do_not_and_marks_the_chosen_one(tmp_path, figures):
    history = [Step(0, 0.9, True), Step(3, 0.89, True), Step(5, 0.7, False), Step(4, 0.885, True)]
    path = plot_frontier(history, tmp_path / "frontier.png", threshold=0.88, chosen=history[3])
    with Image.open(path) as image:
        assert min(image.size) > 200
    axis = figures[0].axes[0]
    feasible, infeasible, chosen = (collection.get_offsets().tolist() for collection in axis.collections)
    assert feasible == [[0, 0.9], [3, 0.89], [4, 0.885]]
    assert infeasible == [[5, 0.7]]
    assert chosen == [[4, 0.885]]
    best = next(line for line in axis.lines if line.get_label() == "best so far")
    assert list(best.get_xdata()) == [0, 3, 4]


def test_the_frontier_of_a_search_that_found_nothing_is_drawn_too(tmp_path):
    assert plot_frontier([Step(1, 0.1, False)], tmp_path / "f.png", threshold=0.5).exists()


def test_the_frontier_refuses_an_empty_history(tmp_path):
    with pytest.raises(InvalidSettingError, match="history is empty"):
        plot_frontier([], tmp_path / "f.png", threshold=0.5)


def test_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "Figure", None)
    with pytest.raises(MissingExtraError, match=r"hf-headprune\[plot\]"):
        plot_head_map(marian_plan(), tmp_path / "map.png")
    assert issubclass(MissingExtraError, ImportError)


def test_sites_of_towers_are_headed_by_the_tower():
    model, _ = made("clip")
    titles = [group.title for group in groups_of(PruningPlan.of(model))]
    assert titles == ["vision self heads", "vision FFN units", "text self heads", "text FFN units"]
