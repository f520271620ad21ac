"""The host's own tests of models, on the pruned classes of each family with uneven layers: run by `make test-host`.

`tools.host_suite` unpacks these tests where `import host_tests` finds them, and runs this file; `make test` does not
collect it. With HEADPRUNE_HOST_CLASSES=dense the same tests run on the dense classes: what fails there is not ours.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import unittest
from typing import Any

import torch
import transformers
from host_tests import test_modeling_common
from host_tests.test_modeling_common import ModelTesterMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from hf_headprune._compat import is_older_than
from hf_headprune.families import FAMILIES
from hf_headprune.shrink import prunable
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import random_plan
from tests.support.models import TINY_FAMILIES

torch.set_printoptions(
    threshold=1, edgeitems=1
)  # the host writes two tensors into a message for each one that is equal
IS_DENSE = os.environ.get("HEADPRUNE_HOST_CLASSES") == "dense"


# Tests that load each class up to 50 times: they run on the base model and on one class with a task, whose attention
# and loading are those of all others. They would take three quarters of the time.
REPEATED = ("test_eager_matches_sdpa_inference", "test_bc_torch_dtype")
# Classes without a loss, or whose loss takes more than labels: a teacher, or negative samples that are drawn.
WITHOUT_LOSS = ("DeiTForImageClassificationWithTeacher", "SiglipTextModel", "Wav2Vec2ForPreTraining")


class Tester:
    """What the host calls a model tester: a configuration with uneven layers, inputs, and sizes of the dense model."""

    is_training = True
    batch_size = 7  # the host fills up smaller ones with texts of its own, which may have a second end
    num_choices = 2
    num_hidden_layers = 2
    num_masks = 2

    def __init__(self, name: str) -> None:
        model = TINY_FAMILIES[name].make()
        self.inputs = TINY_FAMILIES[name].inputs(batch=self.batch_size)
        if {"input_ids", "decoder_input_ids"} <= self.inputs.keys():  # a classifier has both, and one end of each text
            self.inputs["decoder_input_ids"] = self.inputs["input_ids"].clone()
            self.inputs["input_ids"][:, 0] = model.config.eos_token_id
        if hasattr(model.config, "layerdrop"):  # a layer left out at random takes its attentions along
            model.config.layerdrop = 0.0
        states = _hidden_states(model, self.inputs)
        self.expected_num_hidden_layers, (_, self.encoder_seq_length, self.hidden_size) = len(states), states[0].shape
        self.seq_length = self.inputs.get("decoder_input_ids", states[0]).shape[1]
        self.num_attention_heads = getattr(model.config, "num_attention_heads", None)
        if FAMILIES[name].probe == "pixels":
            self.image_size, self.patch_size = model.config.image_size, model.config.patch_size
            self.mask_length = (self.image_size // self.patch_size) ** 2
            # an image is painted from the last layer's patches, which are fewer than the first one's in a Swin
            model.config.encoder_stride = self.image_size // math.isqrt(states[-1].shape[1])
        config = model.config if IS_DENSE else prune_model_(model, random_plan(model, seed=0)).config
        self.config = type(config).from_dict(config.to_dict())  # without what the model has set, such as its attention

    def get_config(self) -> Any:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.get_config(), copy.deepcopy(self.inputs)


@torch.no_grad()
def _hidden_states(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns the hidden states of a model, of its encoder if it has two stacks, of its texts if it has two towers."""
    found = model(**inputs, output_hidden_states=True)
    found = getattr(found, "text_model_output", found)
    return found.encoder_hidden_states if model.config.is_encoder_decoder else found.hidden_states


def names_in(mapping: Any) -> list[str]:
    """Returns the names of the classes in a mapping, where the host looks up what a model is given; ours, too."""
    names = get_values(mapping)
    if mapping is MODEL_FOR_BACKBONE_MAPPING_NAMES:  # the host looks here for nothing but classes that have no loss
        names = [*names, *WITHOUT_LOSS]
    return [*names, *(f"Prunable{name}" for name in names)]


get_values, test_modeling_common.get_values = test_modeling_common.get_values, names_in


class Case(ModelTesterMixin):
    """The host's tests, with the inputs that the host's test case of each model adds on its own."""

    # the layer norm of a block that has lost all units has none
    test_all_params_have_gradient = False

    def setUp(self) -> None:
        if self._testMethodName.startswith(REPEATED):
            self.all_model_classes = self.all_model_classes[:1] + self.all_model_classes[1:][-1:]
        super().setUp()

    def _prepare_for_class(self, inputs_dict: dict[str, Any], model_class: Any, return_labels: bool = False) -> Any:
        given = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        taken = inspect.signature(model_class.forward).parameters
        given = {name: value for name, value in given.items() if name not in self.model_tester.inputs or name in taken}
        if not return_labels:
            return given
        texts, tokens = (self.model_tester.batch_size,), (self.model_tester.batch_size, self.model_tester.seq_length)
        if model_class.__name__.endswith("ForPreTraining"):
            sizes = {"labels": tokens, "next_sentence_label": texts, "sentence_order_label": texts}
        elif model_class.__name__.endswith("ForAudioFrameClassification"):
            sizes = {"labels": (*tokens, self.model_tester.config.num_labels)}
        else:
            sizes = {"labels": texts if model_class.__name__.endswith("ForXVector") else tokens}
        labels = {name: torch.zeros(size, dtype=torch.long) for name, size in sizes.items() if name in taken}
        return labels | ({"return_loss": True} if "return_loss" in taken else {}) | given


def classes_of(name: str, tester: Tester) -> tuple[Any, ...]:
    """Returns the classes of a family that the tester's inputs fit, as the dense class shows.

    An encoder or a decoder that stands alone is none of a family with both: it returns other outputs than the host
    expects by the configuration.
    """
    case, found = Case(), []
    case.model_tester = tester
    for class_name, model_type in prunable._dense_classes().items():
        if model_type != name:
            continue
        dense = getattr(transformers, class_name)
        config = TINY_FAMILIES[name].make().config
        model = dense(config).eval()
        try:
            with torch.no_grad():
                model(**case._prepare_for_class(tester.inputs, dense))
        except Exception:  # noqa: BLE001 # whatever a class makes of inputs that are not its own
            continue
        if model.config.is_encoder_decoder == tester.config.is_encoder_decoder:
            found.append(dense if IS_DENSE else prunable.prunable_named(f"Prunable{class_name}"))
    return tuple(found)


def case_of(name: str) -> type[Any]:
    """Returns the tests of a family, whose model is made when the first of them runs."""

    def set_up_class(cls: Any) -> None:
        cls.model_tester = Tester(name)
        cls.all_model_classes = classes_of(name, cls.model_tester)
        cls.is_encoder_decoder = bool(cls.model_tester.config.is_encoder_decoder)
        cls._is_composite = bool(FAMILIES[name].towers)

    members = {"setUpClass": classmethod(set_up_class), "__module__": __name__}
    if FAMILIES[name].towers:
        members["additional_model_inputs"] = ["pixel_values"]
    members["test_resize_embeddings"] = FAMILIES[name].probe in ("tokens", "spectrogram")
    return type(f"Test_{name.replace('-', '_')}", (Case, unittest.TestCase), members)


for _name, _family in FAMILIES.items():
    if _family.since is None or not is_older_than(_family.since):
        vars()[f"Test_{_name.replace('-', '_')}"] = case_of(_name)
