"""Where a named metric comes from."""

from __future__ import annotations

import pytest

from hf_headprune.cli.metrics import metric_named
from hf_headprune.errors import InvalidSettingError
from tests.support.evaluate_modules import own_modules
from tests.support.models import tiny_bert

MODULE = """
import datasets
import evaluate

NUMBER = datasets.Value("int32")


class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": NUMBER, "references": NUMBER})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


@pytest.fixture(scope="module")
def model():
    return tiny_bert(num_labels=3)


def test_without_a_name_the_task_decides(model):
    assert metric_named(None, model) == (None, "")


def test_a_module_on_disk_is_loaded_offline(model, tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "share.py").write_text(MODULE, encoding="utf-8")
    with own_modules(tmp_path):
        metric, note = metric_named(str(tmp_path / "share"), model)
        assert metric.compute(predictions=[0, 1], references=[0, 0]) == {"share": 0.5}
        assert note.endswith("from evaluate.")
        (tmp_path / "share" / "share.py").write_text("1 / 0", encoding="utf-8")
        (tmp_path / "share").rename(tmp_path / "other")
        with pytest.raises(InvalidSettingError, match="evaluate can't load this module"):
            metric_named(str(tmp_path / "other"), model)


def test_what_the_hub_can_not_give_is_ours_or_of_scikit_learn_and_said(model):
    metric, note = metric_named("accuracy", model)
    assert metric == "accuracy"
    assert note.startswith("Metric: the library's own accuracy; evaluate can't load it (")
    assert metric_named("spearmanr", tiny_bert(num_labels=1))[0] == "spearman"
    metric, note = metric_named("balanced_accuracy", model)
    assert metric([0, 0, 1], [0, 0, 0]) == 0.5
    assert "from scikit-learn; evaluate can't load it" in note


def test_f1_of_questions_is_that_of_spans(monkeypatch):
    monkeypatch.setattr("hf_headprune.cli.metrics.import_module", lambda name: 1 / 0)
    assert metric_named("f1", tiny_bert("QuestionAnswering")) == ("f1", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "neither the library nor scikit-learn has it. Pass one of accuracy, macro_f1"),
        ("precision", "it can't be computed of the classes 0 to 2: Target is multiclass but average='binary'"),
    ],
)
def test_a_metric_that_is_nowhere_or_of_another_task_is_refused(model, name, message):
    with pytest.raises(InvalidSettingError) as caught:
        metric_named(name, model)
    assert message in str(caught.value)
