"""The host's own tests of models, on the pruned classes of each family with uneven layers: run by `make test-host`.

`tools.host_suite` unpacks these tests where `import host_tests` finds them, and runs this file; `make test` does not
collect it. With HEADPRUNE_HOST_CLASSES=dense the same tests run on the dense classes: what fails there is not ours.
"""

from __future__ import annotations

import copy
import os
import unittest
from typing import Any

import torch
import transformers
from host_tests import test_modeling_common
from host_tests.test_modeling_common import ModelTesterMixin

from hf_headprune._compat import is_older_than
from hf_headprune.anatomy import anatomy_of
from hf_headprune.families import FAMILIES
from hf_headprune.shrink import prunable
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import random_plan
from tests.support.models import TINY_FAMILIES

IS_DENSE = os.environ.get("HEADPRUNE_HOST_CLASSES") == "dense"


class Tester:
    """What the host calls a model tester: a configuration with uneven layers, its inputs, and a few sizes."""

    is_training = True
    batch_size = 3
    seq_length = 9
    num_choices = 2
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    num_masks = 2

    def __init__(self, name: str) -> None:
        model = TINY_FAMILIES[name].make()
        self.inputs = TINY_FAMILIES[name].inputs()
        if FAMILIES[name].probe == "pixels":
            self.image_size, self.patch_size = model.config.image_size, model.config.patch_size
            self.mask_length = (self.image_size // self.patch_size) ** 2
            self.seq_length = anatomy_of(model).ffn_sites[0].tokens[0]
        config = model.config if IS_DENSE else prune_model_(model, random_plan(model, seed=0)).config
        self.config = type(config).from_dict(config.to_dict())  # without what the model has set, such as its attention

    def get_config(self) -> Any:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.get_config(), copy.deepcopy(self.inputs)


def names_in(mapping: Any) -> list[str]:
    """Returns the names of the classes in a mapping, where the host looks up what a model is given; ours, too."""
    names = get_values(mapping)
    return [*names, *(f"Prunable{name}" for name in names)]


get_values, test_modeling_common.get_values = test_modeling_common.get_values, names_in


def classes_of(name: str, tester: Tester) -> tuple[Any, ...]:
    """Returns the classes of a family that the tester's inputs fit, as the dense class shows."""
    case, found = ModelTesterMixin(), []
    case.model_tester = tester
    for class_name, model_type in prunable._dense_classes().items():
        if model_type != name:
            continue
        dense = getattr(transformers, class_name)
        config = TINY_FAMILIES[name].make().config
        try:
            with torch.no_grad():
                dense(config).eval()(**case._prepare_for_class(tester.inputs, dense))
        except Exception:  # noqa: BLE001 # whatever a class makes of inputs that are not its own
            continue
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
    members["test_all_params_have_gradient"] = False  # the layer norm of a block that has lost all units has none
    return type(f"Test_{name.replace('-', '_')}", (ModelTesterMixin, unittest.TestCase), members)


for _name, _family in FAMILIES.items():
    if _family.since is None or not is_older_than(_family.since):
        vars()[f"Test_{_name.replace('-', '_')}"] = case_of(_name)
