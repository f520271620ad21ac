"""What is deployed is what is certified: a function, a file, or recorded answers in place of a model of torch."""

import numpy as np
import pytest
import torch

from hf_headprune.errors import InvalidSettingError, MissingExtraError, UnsupportedModelError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.external import answers_of, fingerprint_of
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.shrink.surgery import check_can_prune
from hf_headprune.tasks.scores import scores_of
from tests.guarantee.test_certificate import names
from tests.guarantee.test_labels import label_of, without_labels
from tests.guarantee.test_tasks import smaller
from tests.support.models import tiny_bert
from tests.support.tasks import task_of

COUNT, DROP = 60, 0.6


@pytest.fixture(scope="module")
def case():
    model, rows, _ = task_of("classes", COUNT)
    pruned = smaller(model)
    answers = scores_of(pruned, rows, "macro_f1")[:, 1].astype(int).tolist()
    return model, pruned, rows, answers


def test_answers_give_the_numbers_of_the_model_that_gave_them(case):
    model, pruned, rows, answers = case
    whole = certify(model, pruned, rows, max_drop=DROP)
    before = scores_of(model, rows, "macro_f1")[:, 1].astype(int)
    for dense, deployed in ((model, answers), (before, lambda examples: answers), (before.tolist(), pruned)):
        found = certify(dense, deployed, rows, max_drop=DROP)
        assert found.evidence == whole.evidence
        assert Certificate.from_json(found.to_json()) == found
        for given in (deployed, None):
            checked = verify_certificate(found, given, rows, dense=dense)
            assert checked.holds, checked.to_text()
        assert not verify_certificate(found, [1 - min(answer, 1) for answer in answers], rows, dense=dense).holds


def test_the_certificate_names_what_has_no_fingerprint(case):
    model, _, rows, answers = case

    def service(examples):
        return answers[: len(examples)]

    certificate = certify(model, service, rows, max_drop=DROP)
    assert "service has no fingerprint: it may have changed." in certificate.statement
    assert any("service is what was compared" in entry for entry in verify_certificate(certificate).on_trust)
    recorded = certify(model, answers, rows, max_drop=DROP)
    assert "no fingerprint" not in recorded.statement
    assert recorded.pruned.name == "recorded answers"
    other = [answers[0] + 1, *answers[1:]]
    assert "pruned weights" in names(verify_certificate(recorded, other, rows, dense=model))


def test_few_labels_and_none_are_enough_for_answers_too(case):
    model, pruned, rows, answers = case
    texts = without_labels(rows)
    agreed = certify(model, answers, texts, "agreement", max_drop=0.9)
    assert agreed.evidence == certify(model, pruned, texts, "agreement", max_drop=0.9).evidence
    labels = {index: label_of(row) for index, row in enumerate(rows) if index % 2}
    few = certify(model, answers, texts, labels=labels, max_drop=DROP)
    assert few.evidence == certify(model, pruned, texts, labels=labels, max_drop=DROP).evidence


def test_what_can_not_answer_is_refused(case, tmp_path):
    model, _, rows, answers = case
    for given in (5, None, "nothing.onnx", {"a": 1}):
        with pytest.raises(
            InvalidSettingError, match="dense and pruned must be a model, a pair of a model and the examples"
        ):
            certify(model, given, rows)
    for given in (answers[:-1], lambda examples: "abc", [0.5] * COUNT):
        with pytest.raises(InvalidSettingError, match="answers must be one class, a whole number, for each of the 60"):
            certify(model, given, rows)
    with pytest.raises(InvalidSettingError, match="is compared by 'accuracy' or 'agreement', received the metric 'f1'"):
        certify(model, answers, rows, "f1")
    with pytest.raises(InvalidSettingError, match="every example needs a label, received none for 60"):
        certify(model, answers, without_labels(rows))
    numbers, others, _ = task_of("regression", COUNT)
    with pytest.raises(InvalidSettingError, match="compared with classifiers that give each example one class"):
        certify(numbers, answers, others)


@pytest.mark.parametrize("metric", [None, "agreement"])
@pytest.mark.parametrize("task", ["TokenClassification", "QuestionAnswering"])
def test_a_model_that_gives_no_class_per_example_is_refused_before_its_labels_are_read(task, metric):
    model = tiny_bert(task)
    rows = [{"input_ids": [5] * length, "labels": [0] * length} for length in (3, 4)]
    with pytest.raises(InvalidSettingError, match=f"each example one class, received BertFor{task}"):
        certify(model, lambda examples: [0] * len(examples), rows, metric)


class Packed(torch.Tensor):
    """Stands for the weights of a model that a quantizer has packed: no operation reads their bytes."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    def __tensor_flatten__(self):
        return [], self.shape

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].shape)
        raise NotImplementedError(function)


def test_packed_weights_have_no_fingerprint_and_can_not_be_cut():
    packed, dense, rows = tiny_bert(), tiny_bert(), [{"input_ids": [5, 6], "labels": 0}]
    linear = packed.bert.encoder.layer[0].attention.self.value
    linear.weight = torch.nn.Parameter(Packed(linear.weight.shape), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"value\.weight of a BertFor.* is no plain tensor"):
        certify(dense, packed, rows)
    with pytest.raises(UnsupportedModelError, match=r"value\.weight is no ordinary parameter"):
        check_can_prune(packed)


def test_a_file_is_run_by_onnxruntime(tmp_path, monkeypatch):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"graph")
    rows = [{"input_ids": [7] * (token % 5) + [token], "labels": 0} for token in range(40)]  # none is padded
    monkeypatch.setattr("hf_headprune.guarantee.external.import_module", lambda name: Runtime)
    assert answers_of(file, rows)[:, 0].tolist() == [token % 3 for token in range(40)]
    assert fingerprint_of(file)[0] == "the ONNX file model.onnx"
    assert len(fingerprint_of(file)[1]) == 64

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("hf_headprune.guarantee.external.import_module", missing)
    with pytest.raises(MissingExtraError, match="needs the package onnxruntime"):
        answers_of(file, rows)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(InvalidSettingError, match=r"onnxruntime can't open .*model\.onnx: .* Export it again"):
        answers_of(file, [{"input_ids": [1]}])


class Runtime:
    """A stand-in for onnxruntime: the answer is the last token, modulo three, as a decoder looks at it."""

    class InferenceSession:
        def __init__(self, path):
            assert path.endswith("model.onnx")

        def get_inputs(self):
            return [type("Input", (), {"name": "input_ids"})]

        def run(self, outputs, inputs):
            return [np.eye(3)[inputs["input_ids"][:, -1] % 3]]
