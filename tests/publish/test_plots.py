"""Plots: they are written, show what the plan says, and say what is missing."""

import dataclasses
import re

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, MissingExtraError
from hf_headprune.families import FAMILIES
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan
from hf_headprune.publish import plots
from hf_headprune.publish.layout import groups_of
from hf_headprune.publish.measurements import Frontier, SizedMetric
from hf_headprune.publish.plots import captions, pictures, plot_frontier, plot_head_map
from hf_headprune.search.settings import AStarSearch, SearchTuning
from tests.support.families import made
from tests.support.models import tiny_bert
from tests.support.trainers import labelled_rows

PLANS = (
    SizedMetric(1.0, 90.9, 0.9, passed=True),
    SizedMetric(0.75, 74.5, 0.895, passed=True),
    SizedMetric(0.5, 55.2, 0.893, passed=True),
    SizedMetric(0.45, 51.1, 0.87, passed=False),
)


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


def squares(axis) -> list[Rectangle]:
    return [patch for patch in axis.patches if isinstance(patch, Rectangle)]


def test_the_head_map_draws_one_square_per_head_in_the_color_of_its_fate(tmp_path, figures):
    plan = marian_plan().replace(kept_heads={"decoder.layers.1.encoder_attn": (1, 3), "encoder.layers.0.self_attn": ()})
    path = plot_head_map(plan, tmp_path / "new folder" / "map.png")
    with Image.open(path) as image:
        assert min(image.size) > 200
    axes = [axis for axis in figures[0].axes if "heads" in axis.get_title(loc="left")]
    titles = [axis.get_title(loc="left") for axis in axes]
    assert titles == ["encoder self heads", "decoder self heads", "cross heads"]
    colors = [patch.get_facecolor() for axis in axes for patch in squares(axis)]
    assert len(colors) == sum(plan.num_heads.values())
    assert colors.count(mpl.colors.to_rgba(plots._KEPT)) == plan.num_kept_heads
    removed = mpl.colors.to_rgba(plots._REMOVED)
    cross = {(int(it.get_y()), int(it.get_x())) for it in squares(axes[2]) if it.get_facecolor() == removed}
    assert cross == {(1, 0), (1, 2)}


def test_heads_that_would_leave_later_are_darker(tmp_path, figures):
    plan = marian_plan(layers=1, heads=3)
    order = Frontier(
        "accuracy", "unseen examples", 0.01, PLANS, leaves_at={"encoder.layers.0.self_attn": (0.0, 0.3, 0.1)}
    )
    plot_head_map(plan, tmp_path / "map.png", order)
    heads, others = figures[0].axes[0], figures[0].axes[2]
    last, next_, between = (sum(patch.get_facecolor()[:3]) for patch in squares(heads))
    assert last < between < next_
    assert {patch.get_facecolor() for patch in squares(others)} == {
        mpl.colors.to_rgba(plots._KEPT)
    }  # of no known order
    assert [text.get_text() for text in figures[0].legends[0].texts][:2] == ["would leave last", "would leave next"]


def test_the_map_shows_how_many_ffn_units_of_each_layer_are_kept(tmp_path, figures):
    plan = marian_plan().replace(kept_ffn={"decoder.layers.0.fc1": (0, 1)})
    plot_head_map(plan, tmp_path / "map.svg")
    axis = figures[0].axes[-1]
    assert axis.get_title(loc="left") == "decoder FFN units"
    assert [text.get_text() for text in axis.texts] == ["2", "8"]
    widths = [patch.get_width() / plots._BAR for patch in squares(axis)]
    assert widths == [1, 2 / 8, 1, 1]


def test_the_head_map_accepts_a_model_that_was_pruned_before_and_lost_a_whole_layer(tmp_path):
    sizes = {"encoder.layers.0.self_attn": 0, "encoder.layers.1.self_attn": 3}
    plan = PruningPlan("marian", sizes, {}, {"encoder.layers.0.self_attn": (), "encoder.layers.1.self_attn": (1,)}, {})
    assert plot_head_map(plan, tmp_path / "map.png").stat().st_size > 1000


@pytest.mark.parametrize(("confidence", "is_shaded"), [(0.95, True), (None, False)])
def test_the_frontier_shades_what_is_certified_and_marks_what_was_pruned(confidence, is_shaded, tmp_path, figures):
    frontier = Frontier("accuracy", "unseen examples", 0.01, PLANS, confidence)
    with Image.open(plot_frontier(frontier, tmp_path / "frontier.png")) as image:
        assert min(image.size) > 200
    axis = figures[0].axes[0]
    passed, failed, pruned = (collection.get_offsets().tolist() for collection in axis.collections)
    assert (len(passed), failed, pruned) == (3, [[51.1, 0.87]], [[55.2, 0.893]])
    shaded = [(patch.get_x(), patch.get_width()) for patch in axis.patches]
    assert shaded == ([(55.2, pytest.approx(35.7))] if is_shaded else [])
    floor = next(line for line in axis.lines if "worse than before pruning" in line.get_label())
    assert set(floor.get_ydata()) == {0.89}
    assert axis.xaxis_inverted()


def test_a_second_panel_is_over_latency_where_that_of_every_plan_is_known(tmp_path, figures):
    timed = tuple(dataclasses.replace(plan, latency_ms=plan.size_mb / 10) for plan in PLANS)
    frontier = Frontier("accuracy", "unseen examples", 0.01, timed, 0.95)
    plot_frontier(frontier, tmp_path / "frontier.png")
    sizes, latencies = figures[0].axes
    assert latencies.get_xlabel() == "attention and FFN blocks, ms"
    drawn = [[collection.get_offsets() for collection in axis.collections] for axis in (sizes, latencies)]
    for over_sizes, over_latencies in zip(*drawn, strict=True):
        assert over_latencies.tolist() == [[pytest.approx(x / 10), y] for x, y in over_sizes.tolist()]
    assert sizes.get_ylim() == latencies.get_ylim()
    assert latencies.xaxis_inverted()
    assert "pruned: 55.2 MB, 5.52 ms, 0.8930" in [text.get_text() for text in sizes.get_legend().texts]
    assert "over its latency" in captions(marian_plan(), frontier)[plots.FRONTIER_NAME]
    partly = Frontier("accuracy", "unseen examples", 0.01, (*timed[:-1], PLANS[-1]), 0.95)
    plot_frontier(partly, tmp_path / "frontier.png")
    assert len(figures[1].axes) == 1


def test_a_search_for_latency_says_that_of_each_plan(tmp_path):
    model, rows = tiny_bert(), labelled_rows(24, 0)
    sites = anatomy_of(model).sites
    table = {site.name: {0: 1.0, site.units: 1.0 + site.units / 8} for site in sites}
    search = AStarSearch(0.5, "latency", max_evaluations=6, tuning=SearchTuning(latency_ms=table))
    frontier = search_plan(model, rows, search=search, progress=False).report.frontier
    assert frontier.has_latency
    assert frontier.plans[0].latency_ms == sum(site.units for site in sites) / 8
    assert frontier.plans[-1].latency_ms < frontier.plans[0].latency_ms
    ordered = search_plan(model, rows, search=AStarSearch(0.5, max_evaluations=6), progress=False).report.frontier
    assert not ordered.has_latency


def test_the_line_of_what_is_allowed_lies_above_where_less_is_better(tmp_path, figures):
    frontier = Frontier("perplexity", "searched examples", 0.5, (SizedMetric(1, 9, 20, passed=True),), None, False)
    plot_frontier(frontier, tmp_path / "frontier.png")
    assert set(figures[0].axes[0].lines[0].get_ydata()) == {20.5}


def test_every_number_that_is_written_in_the_frontier_is_in_it(tmp_path, figures):
    plot_frontier(Frontier("accuracy", "unseen examples", 0.01, PLANS, 0.95), tmp_path / "frontier.png")
    axis = figures[0].axes[0]
    words = [axis.get_title(loc="left"), *(text.get_text() for text in axis.get_legend().texts)]
    assert set(re.findall(r"\d[\d.]*", " ".join(words))) == {"4", "1", "95", "55.2", "0.8930"}


def test_pictures_have_names_and_captions_and_are_the_same_each_time():
    frontier = Frontier("accuracy", "unseen examples", 0.01, PLANS)
    drawn = pictures(marian_plan(), frontier)
    assert drawn.keys() == captions(marian_plan(), frontier).keys() == {plots.KEPT_NAME, plots.FRONTIER_NAME}
    assert drawn == pictures(marian_plan(), frontier)
    assert captions(marian_plan(), None).keys() == {plots.KEPT_NAME}


def test_the_frontier_refuses_no_plans(tmp_path):
    with pytest.raises(InvalidSettingError, match="no plan was measured"):
        plot_frontier(Frontier("accuracy", "unseen examples", 0.01, ()), tmp_path / "f.png")


def test_without_matplotlib_there_are_no_pictures_and_asking_for_one_names_the_extra(tmp_path, monkeypatch):
    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr(plots, "import_module", missing)
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert pictures(marian_plan(), None) == {}
    with pytest.raises(MissingExtraError, match=r"hf-headprune\[plot\]"):
        plot_head_map(marian_plan(), tmp_path / "map.png")
    assert issubclass(MissingExtraError, ImportError)


def test_sites_of_towers_are_headed_by_the_tower():
    model, _ = made("clip")
    titles = [group.title for group in groups_of(PruningPlan.of(model))]
    assert titles == ["vision self heads", "vision FFN units", "text self heads", "text FFN units"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_of_a_family_has_one_place(name):
    plan = PruningPlan.of(made(name)[0])
    sites = [site for group in groups_of(plan) for site in group.sites]
    assert sorted(sites) == sorted({*plan.num_heads, *plan.num_ffn})
