"""Files for onnxruntime and OpenVINO: what they compute, where they lie, and that a certificate is about them."""

import copy
import hashlib
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_headprune.errors import HeadPruneError, InvalidSettingError, MissingExtraError, UnsupportedModelError
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.external import answers_of
from hf_headprune.plan import PruningPlan
from hf_headprune.publish import exported
from hf_headprune.publish.onnx import export_onnx
from hf_headprune.publish.openvino import export_openvino
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import made
from tests.support.models import tiny_bert
from tests.support.trainers import labelled_rows

pytestmark = pytest.mark.slow

NEEDS = ("onnx", "onnxruntime", "onnxscript")


@pytest.fixture(scope="module")
def pruned():
    model = tiny_bert(num_labels=2)
    heads = {"encoder.layer.0.attention": (1,), "encoder.layer.1.attention": ()}
    ffn = {"encoder.layer.1.intermediate": range(7)}
    return prune_model_(model, PruningPlan.of(model).replace(kept_heads=heads, kept_ffn=ffn))


def test_the_file_computes_what_torch_computes_and_is_what_is_certified(pruned, tmp_path):
    for name in NEEDS:
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    found = export_onnx(pruned, tmp_path)
    assert found.path == tmp_path / "onnx" / "model.onnx"
    assert found.difference < 1e-5
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {"model.onnx"}  # weights included
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertForSequenceClassification"])
    assert "per_layer_config" not in config
    certificate = certify(tiny_bert(num_labels=2), found.path, labelled_rows(40, 0), max_drop=0.9)
    assert certificate.pruned.weights == hashlib.sha256(found.path.read_bytes()).hexdigest()
    small = export_onnx(pruned, tmp_path / "int8", int8=True)
    assert small.path.stat().st_size < found.path.stat().st_size
    assert 0 < small.difference < 0.5
    pruned.save_pretrained(tmp_path / "saved")
    export_onnx(pruned, tmp_path / "saved")  # the configuration of the weights stays
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")) is type(pruned)
    installed = str(Path(torch.__file__).parents[1]).encode()
    assert all(installed not in file.path.read_bytes() for file in (found, small))  # of traces of the export


def test_the_second_text_of_a_pair_is_one_for_the_file_too(pruned, tmp_path):
    for name in NEEDS:
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    model = copy.deepcopy(pruned)
    pairs = [{**row, "token_type_ids": [1] * 6} for row in labelled_rows(60, 0)]
    tokens, types = (torch.tensor([row[name] for row in pairs]) for name in ("input_ids", "token_type_ids"))
    with torch.no_grad():
        table = model.bert.embeddings.token_type_embeddings.weight
        table[1] = 5 * torch.randn(len(table[1]), generator=torch.Generator().manual_seed(0))
        both = torch.cat([model(input_ids=tokens, token_type_ids=types).logits, model(input_ids=tokens).logits])
        model.classifier.bias[1] -= (both[:, 1] - both[:, 0]).quantile(0.5)  # between two: both answers, and no tie
        paired = model(input_ids=tokens, token_type_ids=types).logits.argmax(-1)
        alone = model(input_ids=tokens).logits.argmax(-1)
    assert not torch.equal(paired, alone)
    path = export_onnx(model, tmp_path).path
    for rows, expected in ((pairs, paired), (labelled_rows(60, 0), alone)):  # without, all are of the first text
        assert answers_of(path, rows).tolist() == [[it] for it in expected.tolist()]
    given = {"input_ids": tokens[:2], "attention_mask": torch.ones_like(tokens[:2])}
    without = export_onnx(model, tmp_path / "without", inputs=given).path
    assert answers_of(without, labelled_rows(60, 0)).tolist() == [[it] for it in alone.tolist()]
    with pytest.raises(InvalidSettingError, match="takes no token_type_ids, by which the model tells the texts of a"):
        answers_of(without, pairs)


TOKENS = torch.ones(2, 5, dtype=torch.long)


@pytest.mark.parametrize("values", [10_000 * TOKENS, TOKENS.float()], ids=["other tokens", "no whole numbers"])
def test_inputs_on_which_the_model_fails_are_refused(pruned, tmp_path, values):
    pytest.importorskip("transformers.exporters", reason="Transformers has no exporters before 5.24")
    for name in NEEDS:
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    with pytest.raises(InvalidSettingError, match=r"export: a PrunableBert.* can't be run on a batch of input_ids"):
        export_onnx(pruned, tmp_path / "file", inputs={"input_ids": values})


@pytest.mark.parametrize(
    ("inputs", "rule"),
    [
        ([TOKENS], "a mapping from names to tensors, received"),
        ({"input_ids": TOKENS.tolist()}, "a mapping from names to tensors, received"),
        ({"input_ids": TOKENS, "words": TOKENS}, r"of which it takes no \['words'\]\. Leave others out"),
        (
            {"input_ids": TOKENS[:1]},
            r"with at least 2 rows each, equally many, of at least 2 tokens, received \{'input_ids': \(1, 5\)\}",
        ),
        ({"input_ids": TOKENS, "attention_mask": TOKENS[:1]}, "equally many"),
        ({"input_ids": torch.tensor(3)}, "at least 2 rows"),
        ({}, "at least 2 rows"),
        ({"input_ids": TOKENS[:, :1]}, "of at least 2 tokens"),
        ({"input_ids": TOKENS, "labels": TOKENS[:, 0]}, r"takes no \['labels'\]"),
    ],
)
def test_inputs_that_can_not_be_traced_are_refused(pruned, tmp_path, inputs, rule):
    pytest.importorskip("transformers.exporters", reason="Transformers has no exporters before 5.24")
    for name in NEEDS:
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    with pytest.raises(InvalidSettingError, match=f"export: inputs must be .*{rule}"):
        export_onnx(pruned, tmp_path / "file", inputs=inputs)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    "family", ["vit", "swin", "gpt2", "marian"], ids=["pixels", "windows", "decoder", "encoder-decoder"]
)
def test_the_file_computes_what_torch_computes_for_each_kind_of_input(family, tmp_path):  # of tokens: above
    for name in NEEDS:
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    pytest.importorskip("transformers.exporters", reason="Transformers has no exporters before 5.24")
    model, inputs = made(family)
    plan = PruningPlan.of(model)
    heads, ffn = list(plan.num_heads), list(plan.num_ffn)
    prune_model_(model, plan.replace(kept_heads={heads[0]: (1,)}, kept_ffn={ffn[-1]: range(5)}))
    session = import_module("onnxruntime").InferenceSession(export_onnx(model, tmp_path).path)
    names = [it.name for it in session.get_inputs()]
    received = session.run(None, {name: inputs[name].numpy() for name in names})[0]
    with torch.no_grad():
        expected = model.eval()(**{name: inputs[name] for name in names})[0]
    torch.testing.assert_close(torch.from_numpy(received), expected, rtol=1e-4, atol=1e-5)


def test_openvino_files_compute_what_torch_computes_and_are_what_is_certified(pruned, tmp_path):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    pytest.importorskip("transformers.exporters", reason="Transformers has no exporters before 5.24")
    found = export_openvino(pruned, tmp_path)
    assert found.path == tmp_path / "openvino" / "openvino_model.xml"
    assert found.difference < 1e-5
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    rows = labelled_rows(40, 0)
    certificate = certify(pruned, found.path, rows, max_drop=0.9)
    assert certificate.pruned.name == "the OpenVINO file openvino_model.xml"
    assert certificate.evidence.regressions == certificate.evidence.improvements == 0  # it answers as torch does
    weights = found.path.with_suffix(".bin")
    content = found.path.read_bytes() + weights.read_bytes()
    assert certificate.pruned.weights == hashlib.sha256(content).hexdigest()
    weights.unlink()
    with pytest.raises(InvalidSettingError, match=r"of an OpenVINO one \(\.xml, its \.bin beside it\)"):
        certify(pruned, found.path, rows, max_drop=0.9)


def test_without_the_extra_the_error_names_it(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "import_module", _missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf-headprune\[onnx\]'"):
        export_onnx(pruned, tmp_path)
    with pytest.raises(MissingExtraError, match=r"export_openvino: .* pip install 'hf-headprune\[openvino\]'"):
        export_openvino(pruned, tmp_path)


def _missing(name):
    raise ImportError(f"No module named {name!r}")


class Runtime:
    """Answers with zeros, as a wrong export would."""

    def InferenceSession(self, *args, **kwargs):  # noqa: N802 - as onnxruntime calls it
        return self

    def get_inputs(self):
        return []

    def run(self, *args):
        return [torch.zeros(3, 2).numpy()]


class Exporters:
    """Writes nothing that can be run."""

    OnnxConfig = dict

    class OnnxExporter:
        program = b"a program"

        def export(self, *args, **kwargs):
            return self


class Ir:
    def save(self, program, path):
        with open(path, "wb") as file:  # noqa: PTH123 - as onnx_ir is called
            file.write(program)


class Passes:
    ClearMetadataAndDocStringPass = staticmethod(lambda: id)


@pytest.mark.parametrize("export", [export_onnx, export_openvino])
def test_a_model_in_half_precision_is_refused_before_anything_is_written(export, pruned, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"weights in torch\.bfloat16.*model\.float\(\)"):
        export(copy.deepcopy(pruned).bfloat16(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch's own quantization is
@pytest.mark.parametrize("export", [export_onnx, export_openvino])
def test_what_is_no_model_that_can_be_exported_is_refused_in_words(export, pruned, tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(tiny_bert(), {torch.nn.Linear})
    for given, words in (
        (torch.nn.DataParallel(copy.deepcopy(pruned)), r"pass its \.module"),
        (None, "NoneType: no declaration says"),
        ("bert", "str: no declaration says"),
        (quantized, "is no plain tensor.*Export the model before it is quantized"),
    ):
        with pytest.raises(UnsupportedModelError, match=words):
            export(given, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_configuration_names_the_class_of_transformers_whatever_wraps_it(tmp_path):
    exported.write_dense_config(torch.compile(tiny_bert(), backend="eager"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]


def test_a_file_that_computes_something_else_is_not_left_behind(pruned, tmp_path, monkeypatch):
    stand_ins = {
        "transformers.exporters": Exporters,
        "onnxruntime": Runtime(),
        "onnx_ir": Ir(),
        "onnx_ir.passes.common": Passes,
    }
    monkeypatch.setattr(exported, "import_module", stand_ins.get)
    with pytest.raises(HeadPruneError, match="differs from the model by 1 of its largest output"):
        export_onnx(pruned, tmp_path)
    assert not list((tmp_path / "onnx").iterdir())
    for name in ("model.onnx", "model.int8.onnx"):
        (tmp_path / "onnx" / name).write_text(f"an earlier {name}")
    with pytest.raises(HeadPruneError, match="differs from the model by 1 of its largest output"):
        export_onnx(pruned, tmp_path)
    assert {file.name: file.read_text() for file in (tmp_path / "onnx").iterdir()} == {
        name: f"an earlier {name}" for name in ("model.onnx", "model.int8.onnx")
    }
