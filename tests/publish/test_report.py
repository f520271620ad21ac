"""The report: exact costs, honest words, a table that fits, JSON that comes back equal; and measured latency."""

import dataclasses
import json
import time

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPForImageClassification,
    MarianConfig,
    MarianMTModel,
)

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError, InvalidSettingError
from hf_headprune.latency import LatencyChange, LatencySample, LatencySettings, measure_latency, random_inputs
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.measurements import Effort, MetricChange
from hf_headprune.publish.report import PruningReport
from hf_headprune.publish.training import Curve
from tests.support.families import made
from tests.support.models import tiny_bert

FAST = LatencySample(33.0, 32.5, 33.4)
SLOW = LatencySample(41.2, 40.9, 41.6)


def latency(before: LatencySample, after: LatencySample) -> LatencyChange:
    return LatencyChange(before, after, "cpu", "float32", batch_size=8, seq_len=128, threads=1, runs=15)


@pytest.fixture(scope="module")
def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=100, max_position_embeddings=64))


@pytest.fixture(scope="module")
def plan(bert) -> PruningPlan:
    kept_ffn = {"encoder.layer.1.intermediate": tuple(range(16))}
    return PruningPlan.of(bert).replace(kept_heads={"encoder.layer.0.attention": (1,)}, kept_ffn=kept_ffn)


@pytest.fixture(scope="module")
def report(bert, plan) -> PruningReport:
    return PruningReport.of(
        plan,
        anatomy_of(bert),
        seq_len=16,
        unseen=MetricChange("accuracy", "unseen examples", 500, 0.8810, 0.8799),
        metric=MetricChange("accuracy", "search split", 872, 0.8730, 0.8704),
        latency=latency(SLOW, FAST),
        effort=Effort(120.4, 45.2, 1321, "stopped by its budget"),
        training=(Curve("training loss", "loss", (10, 20), (0.7, 0.5)),),
    )


def test_costs_are_those_of_the_model_and_of_what_leaves_it(bert, report):
    assert report.before.parameters == sum(parameter.numel() for parameter in bert.parameters())
    head = 3 * (8 * 32 + 8) + 32 * 8  # rows and biases of query, key and value; columns of the output
    unit = 32 + 1 + 32
    assert report.before.parameters - report.after.parameters == 3 * head + 48 * unit
    assert report.before.size_bytes - report.after.size_bytes == 4 * (3 * head + 48 * unit)


def test_embeddings_are_told_apart_from_all_else(bert, report):
    tables = bert.bert.embeddings
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    count = sum(getattr(tables, name).weight.numel() for name in names)
    assert (report.before.embedding_parameters, report.after.embedding_parameters) == (count, count)
    assert report.before.embedding_bytes == 4 * count
    rows = {name: (before, after, change) for name, before, after, change in report.rows()}
    assert rows["parameters of embeddings"] == (f"{count:,}", f"{count:,}", "unchanged")
    assert rows["parameters of all else"][0] == f"{report.before.parameters - count:,}"
    shares = {name: float(rows[name][2].rstrip("%")) for name in ("file, MB", "MB of all else")}
    assert shares["MB of all else"] < shares["file, MB"] < 0  # what is pruned is a larger share of it


def test_tied_embeddings_are_counted_once_and_those_of_attention_are_its_own():
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    model, _ = made("t5")
    anatomy = anatomy_of(model)
    assert bias in dict(model.named_parameters())
    assert anatomy.num_embedding_parameters == model.get_input_embeddings().weight.numel()
    assert anatomy.num_embedding_bytes == 4 * anatomy.num_embedding_parameters


def test_the_report_comes_back_equal_from_json(report, bert, plan):
    assert PruningReport.from_json(report.to_json()) == report
    bare = PruningReport.of(plan, anatomy_of(bert))
    assert PruningReport.from_json(bare.to_json()) == bare
    assert bare != report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format="x/9"), "format must be 'hf_headprune.report/2', received 'x/9'"),
        (lambda content: content.update(colour="red"), "unknown or malformed"),
        (lambda content: content.pop("after"), "missing"),
        (lambda content: content["latency"].pop("before"), "malformed"),
        (lambda content: content["metric"].update(num_examples=0), "num_examples must be at least 1, received 0"),
        (lambda content: content["plan"]["kept_heads"].update({"encoder.layer.0.attention": [9]}), r"received \[9\]"),
    ],
)
def test_a_damaged_report_is_refused(report, change, message):
    content = json.loads(report.to_json())
    change(content)
    with pytest.raises(InvalidSettingError, match=message):
        PruningReport.from_json(json.dumps(content))


def test_the_number_on_unseen_examples_comes_before_the_optimistic_one(report):
    text = report.to_text()
    assert 0 < text.index("unseen examples") < text.index("search split")


def test_text_that_is_no_json_is_refused():
    with pytest.raises(InvalidSettingError, match="not JSON"):
        PruningReport.from_json("heads: 3")


def test_the_table_says_everything_in_few_lines(report):
    text = report.to_text()
    lines = text.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert lines[0] == "bert: 3 of 8 heads and 48 of 128 FFN units removed"
    for words in (
        "0.8810",
        "0.8799",
        "0.8730",
        "0.8704",
        "attention and FFN weights",
        "-0.0026",
        "872 examples",
        "1.25x faster",
        "40.90 .. 41.60",
        "32.50 .. 33.40",
        "so it is optimistic",
        "batch 8 x length 128, 1 thread",
        "training 120 s",
        "search 1,321 plans evaluated",
        "stopped by its budget",
    ):
        assert words in text
    by_layer = {line[:38].strip(): line[38:].split() for line in lines if "by layer" in line}
    assert by_layer == {"kept heads of 4, by layer": ["1", "4"], "kept FFN units of 64, by layer": ["64", "16"]}


def test_a_long_name_of_a_metric_leaves_its_split_to_the_note(report):
    change = MetricChange("matthews_correlation", "search split: eval_dataset", 10, 0.5, 0.4, "the heads that are kept")
    text = dataclasses.replace(report, metric=change).to_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "\nmatthews_correlation   " in text
    assert "on 10 examples (search split: eval_dataset); before: the heads that are kept." in " ".join(text.split())


def test_the_table_says_what_was_not_measured(bert, plan):
    text = PruningReport.of(plan, anatomy_of(bert)).to_text()
    assert "Metric: not measured." in text
    assert "Latency: not measured." in text
    assert "faster" not in text


@pytest.mark.parametrize(("layers", "rows"), [(12, 1), (24, 2)])
def test_the_table_of_a_deep_model_wraps_and_still_fits(layers, rows):
    sizes = {"hidden_size": 32, "num_attention_heads": 16, "num_hidden_layers": layers, "intermediate_size": 4096}
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=100))
    change = MetricChange("matthews_correlation", "search split", 10, 0.5, 0.25)
    report = PruningReport.of(PruningPlan.of(model), anatomy_of(model), metric=change, latency=latency(SLOW, FAST))
    lines = report.to_text().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert sum("4096" in line[38:] for line in lines) == rows


def test_a_plan_that_was_pruned_before_shows_the_heads_each_layer_had():
    sizes = {"encoder.layer.0.attention": 0, "encoder.layer.1.attention": 3}
    kept = {"encoder.layer.0.attention": (), "encoder.layer.1.attention": (2,)}
    plan = PruningPlan("bert", sizes, {}, kept, {})
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(vocab_size=100))
    report = dataclasses.replace(PruningReport.of(PruningPlan.of(model), anatomy_of(model)), plan=plan)
    assert "0/0  1/3" in report.to_text()


def test_a_report_on_another_model_is_refused(plan):
    with torch.device("meta"):
        other = BertForSequenceClassification(BertConfig(vocab_size=100))
    with pytest.raises(InvalidPlanError, match="does not fit"):
        PruningReport.of(plan, anatomy_of(other))


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (SLOW, FAST, "1.25x faster"),
        (FAST, SLOW, "1.25x slower"),
        (SLOW, LatencySample(33.0, 32.0, 40.9), "no difference shown"),
        (SLOW, SLOW, "no difference shown"),
    ],
)
def test_a_difference_is_claimed_only_when_the_quartile_intervals_are_apart(before, after, verdict):
    change = latency(before, after)
    assert change.verdict == verdict
    assert (change.speed_up is None) == (verdict == "no difference shown")


def test_a_sample_whose_quartiles_are_out_of_order_is_refused():
    with pytest.raises(InvalidSettingError, match="lower quartile <= median"):
        LatencySample(1.0, 2.0, 3.0)


class Sleeper(nn.Module):
    """Takes a known time and remembers how it was called."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds = seconds
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, input_ids: torch.Tensor) -> None:
        self.calls.append((self.training, torch.is_grad_enabled()))
        time.sleep(self.seconds)


def test_latency_is_measured_without_gradients_in_evaluation_mode_and_restores_the_mode():
    slow, fast = Sleeper(0.03).train(), Sleeper(0.002).eval()
    inputs = {"input_ids": torch.zeros(3, 7, dtype=torch.long)}
    change = measure_latency(slow, fast, LatencySettings(runs=5, threads=1), inputs=inputs)
    assert change.before.median_ms > 29  # at least what it sleeps, however busy the machine is
    assert change.after.median_ms > 1.5
    assert (change.batch_size, change.seq_len, change.runs, change.device) == (3, 7, 5, "cpu")
    assert set(slow.calls) == {(False, False)}
    assert slow.training
    assert not fast.training


def test_latency_of_a_real_model_uses_random_tokens(bert):
    change = measure_latency(bert, bert, LatencySettings(batch_size=2, seq_len=8, runs=5, threads=1))
    assert change.dtype == "float32"
    assert (change.batch_size, change.seq_len) == (2, 8)


def test_images_have_no_length():
    model, _ = made("vit")
    change = measure_latency(model, model, LatencySettings(batch_size=2, runs=5, threads=1))
    assert (change.batch_size, change.seq_len) == (2, None)


def test_the_length_of_multiple_choice_is_that_of_a_choice():
    model = tiny_bert("MultipleChoice")
    change = measure_latency(model, model, LatencySettings(batch_size=2, seq_len=8, runs=5, threads=1))
    assert (change.batch_size, change.seq_len) == (2, 8)


def test_a_model_with_layer_norms_in_another_precision_is_measured(bert):
    mixed = BertForSequenceClassification(bert.config).to(torch.bfloat16)
    mixed.bert.embeddings.float()
    mixed.bert.encoder.register_forward_pre_hook(lambda _, given: (given[0].bfloat16(), *given[1:]))
    change = measure_latency(mixed, mixed, LatencySettings(batch_size=2, seq_len=8, runs=5, threads=1))
    assert change.dtype == "bfloat16 and float32"


def test_models_of_different_dtypes_are_not_compared(bert):
    half = BertForSequenceClassification(bert.config).to(torch.bfloat16)
    with pytest.raises(InvalidSettingError, match="same dtypes"):
        measure_latency(bert, half)


def test_random_tokens_hold_no_padding_and_feed_both_sides_of_a_translation_model():
    config = MarianConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=12,
        pad_token_id=11,
        decoder_start_token_id=11,
    )
    inputs = random_inputs(MarianMTModel(config), LatencySettings(batch_size=4, seq_len=50))
    assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    assert inputs["input_ids"].shape == (4, 50)
    assert not (inputs["input_ids"] == 11).any()
    assert inputs["input_ids"].unique().numel() == 11


def test_random_texts_and_images_feed_the_towers_that_a_model_has():
    model, _ = made("clip")
    settings = LatencySettings(batch_size=2, seq_len=6)
    inputs = random_inputs(model, settings)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "pixel_values": (2, 3, 16, 16),
        "input_ids": (2, 6),
        "attention_mask": (2, 6),
    }
    assert set(random_inputs(CLIPForImageClassification(model.config), settings)) == {"pixel_values"}


@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_models_of_sound_are_given_sound_and_can_be_measured(name):
    model, given = made(name)
    settings = LatencySettings(batch_size=2, seq_len=6, runs=5)
    inputs = random_inputs(model, settings)
    assert inputs.keys() == given.keys()
    sound = model.main_input_name
    assert inputs[sound].shape[0] == 2
    assert inputs[sound].shape[1:-1] == given[sound].shape[1:-1]
    assert measure_latency(model, model, settings).before.median_ms > 0


def test_a_sequence_longer_than_the_model_is_refused(bert):
    with pytest.raises(InvalidSettingError, match="seq_len must be at most 64"):
        measure_latency(bert, bert, LatencySettings(seq_len=65))


def test_the_default_length_fits_a_model_with_few_positions(bert):
    assert random_inputs(bert, LatencySettings())["input_ids"].shape == (8, 32)


def test_a_slow_model_is_measured_fewer_times(monkeypatch):
    monkeypatch.setattr("hf_headprune.latency.MOST_SECONDS", 0.1)
    slow = Sleeper(0.005)
    settings = LatencySettings(runs=500, threads=1)
    change = measure_latency(slow, slow, settings, inputs={"input_ids": torch.zeros(1, 1, dtype=torch.long)})
    assert change.runs == 5


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"seq_len": 0}, {"runs": 4}, {"threads": 0}])
def test_latency_settings_out_of_range_are_refused(setting):
    with pytest.raises(InvalidSettingError, match=next(iter(setting))):
        LatencySettings(**setting)
