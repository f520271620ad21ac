"""The model card: all that it says is in the report, and it is kept with the weights that it is about."""

import dataclasses
import re

import pytest
import torch
from huggingface_hub import ModelCard

from hf_headprune._model_card import CARD_NAME, attach_card_, merged
from hf_headprune.anatomy import anatomy_of
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.card import is_hub_name, model_card
from hf_headprune.publish.measurements import MetricChange
from hf_headprune.publish.report import PruningReport
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import tiny_bert

NUMBER = r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?"
STATEMENT = "Certificate: at 95 % confidence the accuracy on unseen data drops by less than 2 percentage points."


@pytest.fixture
def bert():
    return tiny_bert(num_labels=2)


@pytest.fixture
def result(bert):
    plan = PruningPlan.of(bert).replace(kept_heads={"encoder.layer.1.attention": (0, 3)})
    unseen = MetricChange("accuracy", "unseen examples", 800, 0.9, 0.895)
    report = PruningReport.of(plan, anatomy_of(bert), unseen=unseen)
    report = dataclasses.replace(report, certificate=STATEMENT)
    return PruningResult(plan, None, reference=PruningPlan.of(bert), report=report)


def numbers(text):
    return set(re.findall(NUMBER, text))


def body(card):
    """A card without its metadata, its code and the version of the package."""
    text = re.sub(r"```python.*?```", "", ModelCard(card).text, flags=re.DOTALL)
    return re.sub(r"(?<=\) )\d+\.\d+\.\d+(?=:)|<!--.*?-->", "", text)


def test_every_number_of_a_card_is_in_its_report(result, bert):
    card = result.card(bert)
    assert "0.8717 and 0.9154" in card  # Clopper and Pearson's interval of 716 in 800
    assert {"800", "0.8950", "95"} <= numbers(body(card))
    assert numbers(body(card)) - numbers(result.report.to_text()) == set()


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
        'mode="plain"',
        "## Limits",
    ):
        assert words in card.text


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
