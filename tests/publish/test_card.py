"""The model card: all that it says is in the report, and it is kept with the weights that it is about."""

import dataclasses
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_headprune._model_card import CARD_NAME, attach_card_, merged
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.plan import PruningPlan
from hf_headprune.publish import plots
from hf_headprune.publish.card import is_hub_name, model_card, write_eval_results
from hf_headprune.publish.measurements import Frontier, MetricChange, Recipe, SizedMetric
from hf_headprune.publish.report import REPORT_NAME, PruningReport
from hf_headprune.publish.training import Curve
from hf_headprune.shrink.export import export_model
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import tiny_bert
from tools.model_cards import CARDS, NAMES

NUMBER = r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?"
FILES = {REPORT_NAME, plots.KEPT_NAME, plots.FRONTIER_NAME, plots.TRAINING_NAME}
STATEMENT = "Certificate: at 95 % confidence the accuracy on unseen data drops by less than 2 percentage points."


@pytest.fixture(autouse=True)
def no_pictures():
    """They are drawn here."""


@pytest.fixture
def bert():
    return tiny_bert(num_labels=2)


@pytest.fixture
def result(bert):
    plan = PruningPlan.of(bert).replace(kept_heads={"encoder.layer.1.attention": (0, 3)})
    unseen = MetricChange("accuracy", "unseen examples", 800, 0.9, 0.895)
    measured = SizedMetric(1.0, 0.31, 0.9, passed=True), SizedMetric(0.91, 0.29, 0.895, passed=True)
    frontier = Frontier("accuracy", "unseen examples", 0.02, measured, 0.95)
    loss = Curve("training loss", "loss", (10, 20), (0.7, 0.5))
    report = PruningReport.of(plan, anatomy_of(bert), unseen=unseen, frontier=frontier, training=(loss,))
    recipe = Recipe("removal costs", "max_drop=0.02", "trained on for 2 epochs")
    report = dataclasses.replace(report, certificate=STATEMENT, recipe=recipe)
    return PruningResult(plan, None, reference=PruningPlan.of(bert), report=report)


def numbers(text):
    return set(re.findall(NUMBER, text))


def body(card):
    """A card without its metadata, its code and the version of the package."""
    text = re.sub(r"```python.*?```", "", ModelCard(card).text, flags=re.DOTALL)
    return re.sub(r"(?<=` )\d+\.\d+\.\d+(?=:)|<!--.*?-->", "", text)


def test_every_number_of_a_card_is_in_its_report(result, bert):
    card = result.card(bert)
    assert "0.8717 and 0.9154" in card  # Clopper and Pearson's interval of 716 in 800
    assert {"800", "0.8950", "95"} <= numbers(body(card))
    assert numbers(body(card)) - numbers(result.report.to_text()) == set()


@pytest.mark.parametrize("folder", sorted(it.parent for it in CARDS.glob("*/README.md")), ids=lambda it: it.name)
def test_every_number_of_a_card_of_the_examples_is_in_its_report(folder):
    report = PruningReport.from_json((folder / REPORT_NAME).read_text(encoding="utf-8"))
    card = (folder / CARD_NAME).read_text(encoding="utf-8")
    assert len(numbers(body(card))) > 20
    assert numbers(body(card)) - numbers(report.to_text()) == set()
    assert all((folder / name).exists() for name in re.findall(r"\]\((headprune_\w+\.png)\)", card))


def test_the_page_of_the_cards_lists_those_that_the_examples_make():
    page = (CARDS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\w+)\]\(\1/README\.md\)", page, re.MULTILINE) == list(NAMES)
    assert {it.parent.name for it in CARDS.glob("*/README.md")} == set(NAMES)


def test_every_number_of_the_page_is_in_the_report(result):
    page = result.report.to_html("a model")
    words = re.sub(r"(?s)<style>.*?</style>|<[^>]*>|hf_headprune [\d.]+", " ", page)
    plans = [f"{100 * it.density:.1f} {it.size_mb:.1f} {it.metric:.4f}" for it in result.report.frontier.plans]
    assert {"0.8950", "91.0", "0.3", "95"} <= numbers(words)
    assert numbers(words) - numbers(result.report.to_text()) - numbers(" ".join(plans)) == set()
    assert page.count("data:image/png;base64,") == 3
    assert all(f"<li>{line}</li>" in page for line in result.report.how())


def test_the_page_is_made_without_pictures_where_matplotlib_is_missing_and_escapes_names(result, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    page = result.report.to_html("<b>")
    assert "data:image" not in page
    assert "<h1>&lt;b&gt;</h1>" in page
    assert "passed" in page


def test_report_and_pictures_lie_beside_the_card_and_share_its_fate(result, bert, tmp_path):
    prune_model_(bert, result).save_pretrained(tmp_path / "first")
    assert {file.name for file in (tmp_path / "first").iterdir()} >= FILES
    assert PruningReport.from_json((tmp_path / "first" / REPORT_NAME).read_text()) == result.report
    card = (tmp_path / "first" / CARD_NAME).read_text()
    assert all(f"]({name})" in card for name in FILES - {REPORT_NAME})
    loaded = type(bert).from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for name in FILES:
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    (tmp_path / "second" / "other.png").touch()
    with torch.no_grad():
        loaded.classifier.bias.add_(1)
    loaded.save_pretrained(tmp_path / "second")
    assert {file.name for file in (tmp_path / "second").iterdir()} & {*FILES, "other.png"} == {"other.png"}


def test_a_card_says_what_was_pruned_what_is_known_and_how_to_load_it(result, bert):
    prune_model_(bert, result)
    bert.config.name_or_path = "owner/bert-sst2"
    card = ModelCard(result.card(bert, dataset="stanfordnlp/sst2"))
    data = card.data.to_dict()
    assert data["base_model"] == "owner/bert-sst2"
    assert data["tags"] == ["hf-headprune", "pruned"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.895
    assert data["datasets"] == ["stanfordnlp/sst2"]
    for words in (
        "bert: 2 of 8 heads and 0 of 128 FFN units removed.",
        STATEMENT,
        'AutoModelForSequenceClassification.from_pretrained("<this model>", trust_remote_code=True)',
        "import hf_headprune",
        "- Budget: max_drop=0.02.",
        "- Recovery: trained on for 2 epochs.",
        "|---|---:|---:|---:|",  # numbers stand below one another
        "| parameters of embeddings |",
        "| MB of all else |",
        "headprune export <this model> plain --mode plain",
        "headprune export <this model> onnx-model --onnx",
        "## Limits",
    ):
        assert words in card.text


def test_the_metric_is_written_as_the_hub_reads_it_back(result, bert):
    (entry,) = parse_eval_result_entries(yaml.safe_load(result.eval_results(dataset="owner/benchmark", task="default")))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("owner/benchmark", "default", 0.895)
    assert "accuracy on 800 examples" in entry.notes
    plan = PruningPlan.of(bert)
    bare = PruningResult(plan, reference=plan, report=PruningReport.of(plan, anatomy_of(bert)))
    with pytest.raises(InvalidSettingError, match="there is no metric on unseen examples"):
        bare.eval_results(dataset="owner/benchmark", task="default")


def test_the_metric_is_written_into_the_folder_that_the_hub_reads(result, tmp_path):
    file = write_eval_results(result.report, tmp_path, dataset="owner/benchmark", task="default")
    assert file == tmp_path / ".eval_results" / "benchmark.yaml"
    assert file.read_text() == result.eval_results(dataset="owner/benchmark", task="default")


def test_a_card_says_how_to_load_the_other_forms_that_lie_beside_the_model(result, bert, tmp_path):
    for name in ("plain/config.json", "onnx/model.onnx"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    card = model_card(result.report, class_name="PrunableBertModel", folder=tmp_path)
    assert 'AutoModel.from_pretrained("<this model>", subfolder="plain")' in card
    assert 'hf_hub_download("<this model>", "onnx/model.onnx")' in card
    assert "headprune export" not in card


def test_the_card_of_a_folder_without_code_does_not_say_how_to_load_it_by_code(result, bert, tmp_path):
    prune_model_(bert, result)
    by_code, native = "trust_remote_code=True", "import hf_headprune\nfrom transformers"
    for mode in ("remote", "native"):
        card = (export_model(bert, tmp_path / mode, mode=mode) / CARD_NAME).read_text()
        assert (by_code in card, native in card) == (mode == "remote", True)
        assert "## How to load it" in card
    assert (tmp_path / "remote" / CARD_NAME).read_text() != (tmp_path / "native" / CARD_NAME).read_text()
    again = model_card(result.report, class_name="PrunableBertModel", folder=tmp_path / "native")
    assert (by_code in again, native in again) == (False, True)


def test_a_card_without_certificate_says_so_and_names_no_folder_of_this_machine(bert, tmp_path):
    plan = PruningPlan.of(bert)
    report = PruningReport.of(plan, anatomy_of(bert))
    card = model_card(report, class_name="PrunableBertModel", base_model=str(tmp_path), dataset="owner/data")
    assert "Nothing about unseen data is certified." in card
    assert str(tmp_path) not in card
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "model-index" not in ModelCard(card).data.to_dict()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/model", True), ("bert-base-uncased", True), ("/home/me/model", False), ("./model", False), ("", False)],
)
def test_a_name_on_the_hub_is_told_from_a_folder(name, expected):
    assert is_hub_name(name) is expected


def test_a_card_is_written_beside_its_weights_and_keeps_what_others_wrote(result, bert, tmp_path):
    prune_model_(bert, result)
    (tmp_path / CARD_NAME).write_text("---\nlicense: mit\ntags:\n- mine\n---\n\n# Mine\n\nMy words.\n")
    bert.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / CARD_NAME)
    assert card.data.license == "mit"
    assert card.data.tags == ["mine", "hf-headprune", "pruned"]
    assert "My words." in card.text
    assert card.text.count("## What was pruned") == 1
    bert.save_pretrained(tmp_path)  # again: one section, in the place of the first
    assert (tmp_path / CARD_NAME).read_text().count("## What was pruned") == 1


def test_a_loaded_model_takes_its_card_to_other_folders(result, bert, tmp_path):
    prune_model_(bert, result).save_pretrained(tmp_path / "first")
    type(bert).from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / CARD_NAME).read_text() for name in ("first", "second"))
    assert first == second
    assert "## What was pruned" in first


def test_a_card_about_other_weights_is_not_written_and_an_old_one_is_removed(result, bert, tmp_path, caplog):
    prune_model_(bert, result).save_pretrained(tmp_path)
    with torch.no_grad():
        bert.classifier.bias.add_(1)
    bert.save_pretrained(tmp_path)
    assert "about other weights" in caplog.text
    text = (tmp_path / CARD_NAME).read_text()
    assert "## What was pruned" not in text
    assert "# bert, pruned" in text
    attach_card_(bert, result.card(bert))
    bert.save_pretrained(tmp_path)
    assert "## What was pruned" in (tmp_path / CARD_NAME).read_text()


def test_metadata_that_cannot_be_read_are_left_alone(result, bert):
    broken = "---\n[not: yaml\n---\n\nText\n"
    assert merged(broken, result.card(bert)) == broken


def test_a_plan_without_a_report_writes_no_card(bert, tmp_path):
    prune_model_(bert, PruningPlan.of(bert).replace(kept_heads={"encoder.layer.1.attention": (0,)}))
    bert.save_pretrained(tmp_path)
    assert not (tmp_path / CARD_NAME).exists()
