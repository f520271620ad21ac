"""Write a pruned model for one way of loading it: with this package, with code of its own, or by Transformers alone."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_headprune._beside_weights import folder_at, older_weights_removed
from hf_headprune._model_card import remove_code_from_card_
from hf_headprune._offloaded import Weights
from hf_headprune.anatomy import KEPT_HEADS, anatomy_of, family_of
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError, shown
from hf_headprune.shrink.config import added_fields
from hf_headprune.shrink.empty_layers import empty_layers
from hf_headprune.shrink.prunable import PrunableModel
from hf_headprune.shrink.remote_code import AUTO_MAP, file_name, travels
from hf_headprune.shrink.surgery import probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from hf_headprune.anatomy import Site
    from hf_headprune.shrink.empty_layers import EmptyLayers

SHOWN = 2
OWN_FILES = "headprune_*"  # plan, certificate, report and pictures
Mode = Literal["remote", "native", "plain"]


def export_model(model: nn.Module, path: str | Path, *, mode: Mode = "remote") -> Path:
    """Saves a pruned model in a folder for one way of loading it.

    `save_pretrained` writes what "remote" does, where it can: such a folder is also loaded by this package.

    Args:
        model: Pruned model, as `prune_model_` leaves it.
        path: Folder; it is made where there is none.
        mode: "remote" writes the code of the model, and `from_pretrained(path, trust_remote_code=True)` needs neither
            this package nor its import. "native" writes no code; the folder is loaded after `import hf_headprune`.
            "plain" writes a checkpoint of the dense class, which any Transformers loads: possible where all layers
            have equally many heads and FFN units, and the family's configuration can say that number. Layers that have
            lost all units are left out where they hand on what they are given, as those of Llama, Mistral and Qwen do.
            A plain folder holds neither plan nor certificate, which are about the pruned class.

    Returns:
        The folder.

    Raises:
        InvalidSettingError: The mode is unknown, or the path is a file; or, of "plain", a folder with the plan,
            certificate or report of a pruned class.
        UnsupportedModelError: The model is not pruned, is of a class of your own ("remote"), or differs between its
            layers or from what a configuration can say ("plain"); the message lists every reason.
    """
    if mode not in get_args(Mode):
        raise InvalidSettingError(
            f"export_model: mode must be one of {', '.join(map(repr, get_args(Mode)))}, received {shown(mode)}."
        )
    if not isinstance(model, PrunableModel):
        raise UnsupportedModelError(
            f"export_model: the model must be a pruned one, received a {type(model).__name__}. Call prune_model_ "
            "first; a dense model is saved by its save_pretrained."
        )
    folder = folder_at(path, where="export_model")
    {"remote": _save_with_code, "native": _save_without_code, "plain": _save_plain}[mode](model, folder)
    return folder


def _save_with_code(model: Any, folder: Path) -> None:
    if not travels(model):
        raise UnsupportedModelError(
            f"export_model: {type(model).__name__} is of a class of your own, whose code is not ours to write. Pass "
            'mode="native", and load it by hf_headprune.register_prunable(<the dense class>).from_pretrained.'
        )
    model.save_pretrained(folder)


def _save_without_code(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    Path(folder, file_name(family_of(model).model_type)).unlink(missing_ok=True)
    config = copy.deepcopy(model.config)
    vars(config).pop(AUTO_MAP, None)
    config.save_pretrained(folder)
    remove_code_from_card_(folder)


def _save_plain(model: Any, folder: Path) -> None:
    if about_other := sorted(file.name for file in folder.glob(OWN_FILES)):
        raise InvalidSettingError(
            f'export_model(mode="plain"): {folder} holds {shown(about_other)}, which are about a pruned class and not '
            "about what would be written there. Choose another folder, or delete them."
        )
    plain = plain_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as trial:  # what is wrong is never in the folder
        plain.save_pretrained(trial)
        probed, reread = probe(model), probe(type(plain).from_pretrained(trial))
    if (
        probed is not None
        and reread is not None
        and not torch.allclose(probed, reread.to(probed.device), rtol=1e-4, atol=1e-5)
    ):
        raise UnsupportedModelError(
            f'export_model(mode="plain"): {type(plain).__name__} loads weights that compute something else than the '
            'pruned model. Nothing was written; pass mode="remote".'
        )
    with older_weights_removed(folder):
        plain.save_pretrained(folder)


def plain_model(model: Any) -> Any:
    """Returns a model of the dense class that has the numbers and, in the same memory, the weights of a pruned one.

    Args:
        model: Pruned model; it is not changed.

    Raises:
        UnsupportedModelError: No configuration of the dense class says these numbers.
    """
    empty = empty_layers(model)
    problems = [*_problems_of_layers(empty), *_problems_of_numbers(model, empty)]
    weights = empty.renumbered(dict(Weights(model)))
    try:
        with torch.random.fork_rng(devices=[]):
            plain = None if problems else _dense_class(model)(_plain_config(model, empty))
    except (ValueError, StrictDataclassError) as error:  # such as heads that must divide the hidden size
        problems, plain = [str(error).splitlines()[-1].strip().removeprefix("ValueError: ").rstrip(".")], None
    if plain is not None:
        problems += _misfits(plain, model, weights)
    if plain is None or problems:
        raise UnsupportedModelError(
            f"{_dense_class(model).__name__} can't be what this {type(model).__name__} is: {'; '.join(problems)}. Pass "
            'mode="remote" to export_model; or prune to equal numbers in all layers, where the configuration of the '
            "family can say them."
        )
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    if hasattr(model, "generation_config"):
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.train(model.training)


def _problems_of_layers(empty: EmptyLayers) -> list[str]:
    """Returns, in words, why layers without units can't be left out."""
    if not empty.acting:
        return []
    listed = ", ".join(map(str, empty.acting))
    return [f"no layer can be left out, since the norm or bias of an empty layer still acts (layers {listed})"]


def _problems_of_numbers(model: Any, empty: EmptyLayers) -> list[str]:
    """Returns, in words, why one number per field can't say what the layers have, but those that are left out."""
    sites = [site for site in anatomy_of(model).sites if site.layer not in empty.left_out]
    problems = []
    fields = dict.fromkeys(
        (site.tower, site.block.units if isinstance(site.block.units, str) else site.field) for site in sites
    )
    for tower, field in fields:
        found = [site for site in sites if site.tower == tower and field in (site.block.units, site.field)]
        numbers = sorted({site.units for site in found})
        if len(numbers) > 1:
            problems.append(f"its layers have {numbers[0]} to {numbers[-1]} {field}, and one number says all")
        elif numbers == [0]:
            problems.append(f"{field} is 0")
        elif not isinstance(found[0].block.units, str) and numbers != [found[0].dense_units(model.config)]:
            problems.append(f"no field of the configuration says {numbers[0]} {field}")
    if any(name.endswith(KEPT_HEADS) for name, _ in model.named_buffers()):
        problems.append("its heads take their parts of a bias that has an entry for each head of the dense model")
    return problems


def _plain_config(model: Any, empty: EmptyLayers) -> Any:
    """Returns the configuration of the dense class with the numbers of a model, which are the same in all layers.

    Those of the layers that are left out don't count.
    """
    family, config = family_of(model), _dense_config(model.config)
    empty.leave_out_(config)
    for site in _changed(model):
        if site.layer in empty.left_out:
            continue
        own = site.config_of(config)
        setattr(own, str(site.block.units), site.units)
        if site.block.groups is not None:
            setattr(own, site.block.groups, site.groups)
        if site.is_attention and family.head_dim is None:
            own.head_dim = site.unit_width  # some families read it; where they do not, the shapes differ
    return type(config).from_dict(config.to_dict())  # which checks the numbers


def _dense_config(config: Any) -> Any:
    """Returns the configuration of the dense model that a pruned one was cut from."""
    family, content = family_of(config), config.to_dict()
    for name in ("per_layer_config", "model_type", "architectures", AUTO_MAP, *added_fields(family)):
        content.pop(name, None)
    for tower in family.towers:
        content[tower] = _dense_config(getattr(config, tower))
    return config.dense_class.from_dict(content)


def _misfits(plain: Any, model: Any, found: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns, in words, the first weights that a model of the dense class has in another shape."""
    wanted = plain.state_dict()
    problems = [f"{name} is in one of them alone" for name in sorted(wanted.keys() ^ found.keys())]
    problems += [
        f"{name} would have shape {tuple(wanted[name].shape)} and has {tuple(found[name].shape)}"
        for name in found
        if name in wanted and wanted[name].shape != found[name].shape
    ]
    follows = family_of(model).head_dim is None and any(site.is_attention for site in _changed(model))
    if problems and follows:
        problems.insert(0, "the width of a head follows from the number of heads there")
    return problems[:SHOWN]


def _changed(model: Any) -> list[Site]:
    """Returns the sites that have other numbers of units than the dense model, by fields of its configuration."""
    sites = [site for site in anatomy_of(model).sites if isinstance(site.block.units, str)]
    return [site for site in sites if site.units != site.dense_units(model.config)]


def _dense_class(model: Any) -> Any:
    """Returns the class that a pruned model's own is made from."""
    return next(base for base in type(model).__mro__ if not issubclass(base, PrunableModel))
