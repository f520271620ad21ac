"""Read what Transformers 4 and other libraries saved of a pruned model, and make it a pruned model of this package.

Four things say what is gone: smaller matrices, `pruned_heads` in the configuration, zeros in matrices of full size, and
masks beside a dense model. They may come together.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hf_headprune._beside_weights import CONFIG_NAME
from hf_headprune.anatomy import anatomy_of, attention_by_layer, family_of
from hf_headprune.errors import HeadPruneError, InvalidConfigError, InvalidSettingError, UnsupportedModelError, shown
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.config import Entries, entries_of, to_prunable
from hf_headprune.shrink.folding import fold_dead_units_
from hf_headprune.shrink.foreign_masks import MASK_FILES, apply_masks_
from hf_headprune.shrink.prunable import PrunableModel, check_config, prunable_of
from hf_headprune.shrink.saved_plan import attach_plan_
from hf_headprune.shrink.surgery import probe, prune_model_

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hf_headprune.anatomy import Site

PRUNED_HEADS = "pruned_heads"  # of the configurations of Transformers 4
_OWN_CLASSES = "CoFi"  # what the CoFi repository puts before the names of its classes
_DIMENSIONS = 6  # more than any weight has
_WEIGHTS = {SAFE_WEIGHTS_NAME: SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME: WEIGHTS_INDEX_NAME}


def migrate_checkpoint(source: str | Path, *, allow_pickle: bool = False) -> Any:
    """Reads a checkpoint that was pruned by Transformers 4 or by another library, as a pruned model of this package.

    Read are: checkpoints of `prune_heads` (`pruned_heads` in the configuration, smaller matrices), of TextPruner (the
    same, and narrower FFNs), of nn_pruning (heads and FFN units whose weights are zero), and dense checkpoints with a
    mask beside them: `head_mask.pt`, a tensor `(layers, heads)`, or `zs.pt` of CoFi. The model that is returned
    computes what the source computes. What a removed unit adds by its bias is folded into the next bias.

    Args:
        source: Folder with `config.json`, the weights, and a mask if there is one. It is not changed.
        allow_pickle: Whether `.bin` and `.pt` files are read. They are pickles; torch reads them as weights only.

    Returns:
        A `Prunable...` model in evaluation mode, ready for `save_pretrained`. It knows its plan in the numbering of the
        dense model where the source says it.

    Raises:
        InvalidSettingError: A file is a pickle, which was not allowed, or can't be read.
        InvalidConfigError: Configuration, weights and mask contradict each other, or nothing is pruned.
        UnsupportedModelError: The family is not supported, or the source computes what no model of it can.
    """
    folder = Path(source)
    config = _config(folder)
    listed = _listed_heads(config)
    weights, masks = _weights(folder, allow_pickle=allow_pickle), _masks(folder, allow_pickle=allow_pickle)
    model = _loaded(folder, config, weights, listed)
    if masks is not None:
        apply_masks_(model, *masks)
    expected = probe(model)
    plan = fold_dead_units_(model)
    _check_listed(model, plan, listed)
    if plan == PruningPlan.of(model) and not isinstance(model, PrunableModel):
        raise InvalidConfigError(
            f"{folder}: nothing is pruned in it: no {PRUNED_HEADS}, no smaller matrix, no unit whose weights are zero, "
            f"and no mask ({' or '.join(MASK_FILES)}) that closes one. Load it with Transformers, and prune it with "
            "this package."
        )
    prune_model_(model, plan)
    _check_same(expected, probe(model), folder)
    return model


def _config(folder: Path) -> Any:
    if not (folder / CONFIG_NAME).is_file():
        raise InvalidConfigError(
            f"{folder}: there is no {CONFIG_NAME}. Pass the folder of a saved model; one of the Hub is downloaded "
            "first: huggingface_hub.snapshot_download(name)."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, StrictDataclassError) as error:
        raise InvalidConfigError(f"{folder}: Transformers can't read its {CONFIG_NAME}: {shown(str(error))}") from error
    family_of(config)  # refuses one that is not declared
    if getattr(config, "layer_norm_type", "layer_norm") != "layer_norm":
        raise UnsupportedModelError(
            f"{folder}: layer_norm_type is {config.layer_norm_type!r}, so its layers have no layer norm, which those "
            "of Transformers have. It can't be migrated."
        )
    return config


def _listed_heads(config: Any) -> dict[int, tuple[int, ...]]:
    """Takes `pruned_heads` out of a configuration, in place; an entry without heads says nothing."""
    found = vars(config).pop(PRUNED_HEADS, None) or {}
    if not isinstance(found, Mapping) or not all(
        str(layer).isdecimal() and _are_numbers(heads) for layer, heads in found.items()
    ):
        raise InvalidConfigError(
            f"config.json: {PRUNED_HEADS} must map layers to lists of heads, each a whole number and there once, "
            f"received {shown(found)}."
        )
    return {int(layer): tuple(sorted(heads)) for layer, heads in found.items() if heads}


def _are_numbers(heads: Any) -> bool:
    is_list = isinstance(heads, list) and all(type(head) is int and head >= 0 for head in heads)
    return is_list and len({*heads}) == len(heads)


def _weights(folder: Path, *, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint, those of safetensors first."""
    for name, index in _WEIGHTS.items():
        files = [folder / name] if (folder / name).is_file() else []
        if not files and (folder / index).is_file():
            files = _shards(folder / index)
        if files:
            tensors = [_tensors(file, allow_pickle=allow_pickle) for file in files]
            return {key: tensor for part in tensors for key, tensor in part.items()}
    raise InvalidSettingError(f"{folder}: there is neither {' nor '.join(_WEIGHTS)}. Pass the folder of a saved model.")


def _shards(index: Path) -> list[Path]:
    """Returns the files that an index names."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidSettingError(f"{index}: it must be JSON: {shown(str(error))}. Download it again.") from error
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not parts or not all(isinstance(part, str) for part in parts.values()):
        raise InvalidSettingError(
            f"{index}: weight_map must name the file of each tensor, received {shown(parts)}. Download it again."
        )
    files = [index.parent / Path(part).name for part in sorted({*parts.values()})]
    if lacking := [file.name for file in files if not file.is_file()]:
        raise InvalidSettingError(f"{index}: it names {shown(lacking)}, and there are no such files. Download them.")
    return files


def _tensors(file: Path, *, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Reads a file of weights."""
    found = _read(file, allow_pickle=allow_pickle)
    entries = found if isinstance(found, dict) else {}
    wrong = [name for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if wrong or not entries:
        kind = type(entries[wrong[0]] if wrong else found).__name__
        received = f"{kind} as {wrong[0]!r}" if wrong else kind
        raise InvalidSettingError(
            f"{file}: it must hold tensors by their names and nothing else, received {received}. Save the model's "
            "state_dict."
        )
    return entries


def _masks(folder: Path, *, allow_pickle: bool) -> tuple[str, Any] | None:
    """Returns the name of the mask beside a checkpoint, and its content."""
    present = [name for name in MASK_FILES if (folder / name).is_file()]
    if len(present) > 1:
        raise InvalidSettingError(f"{folder}: it has {' and '.join(present)}. Leave the one that applies.")
    return (present[0], _read(folder / present[0], allow_pickle=allow_pickle)) if present else None


def _read(file: Path, *, allow_pickle: bool) -> Any:
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise InvalidSettingError(
                f"{file}: safetensors can't read it: {shown(str(error))}. Download or save it again."
            ) from error
    if not allow_pickle:
        raise InvalidSettingError(
            f"{file}: it is a pickle, a format that can run code while it is read. If you trust its author, pass "
            "allow_pickle=True (--allow-pickle): torch then reads it as weights only."
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidSettingError(f"{file}: torch can't read it as weights only: {shown(reason)}") from error


def _loaded(folder: Path, config: Any, weights: dict[str, torch.Tensor], listed: Mapping[int, tuple[int, ...]]) -> Any:
    """Returns the model that has the sizes of the weights: a dense one, or a pruned one that knows its plan."""
    kind = _class_of(folder, config)
    check_config(kind, folder, {})
    model, info = _read_as(kind, config, weights)
    entries = _sizes(model, {key: shape for key, shape, _ in info["mismatched_keys"]})
    lacking = {*info["missing_keys"]} | ({key for key, *_ in info["mismatched_keys"]} if not entries else set())
    if lacking:
        raise InvalidConfigError(
            f"{folder}: its weights lack {shown(sorted(lacking))}, or have them in another shape, so they are not "
            f"those of a {kind.__name__} of this config.json."
        )
    if not entries:
        return model.eval()
    _check_sizes(model, entries, listed)
    is_ours = weights.keys() <= model.state_dict().keys()
    renamed = weights if is_ours else _renamed(kind, config, weights)
    filled = {name: tensor for name, tensor in renamed.items() if tensor.numel()}  # a block without units has none
    prunable: Any = prunable_of(kind)
    with _quiet():
        pruned = prunable.from_pretrained(None, config=to_prunable(config, entries), state_dict=filled)
    attach_plan_(pruned, _plan(model, entries, listed))
    return pruned.eval()


def _read_as(kind: Any, config: Any, weights: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    """Returns a dense model with those weights that have its shapes, and what Transformers says of the others."""
    with _quiet():
        model, info = kind.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=dict(weights),  # Transformers empties what it is given
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return model, info


def _renamed(kind: Any, config: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns weights under the names that Transformers gives those of earlier versions when it loads a dense model.

    It does so by the type of the model, and a pruned one has another. Each name is found by a shape of its own.
    """
    marked = {name: torch.empty(number, *[1] * (_DIMENSIONS - 1)) for number, name in enumerate(weights, start=1)}
    found = {shape[0]: key for key, shape, _ in _read_as(kind, config, marked)[1]["mismatched_keys"]}
    return {found.get(number, name): tensor for number, (name, tensor) in enumerate(weights.items(), start=1)}


def _class_of(folder: Path, config: Any) -> Any:
    names = config.architectures or ["none"]
    kind = getattr(transformers, names[0].removeprefix(_OWN_CLASSES), None)
    if not isinstance(kind, type) or prunable_of(kind) is None:
        raise UnsupportedModelError(
            f"{folder}: architectures in config.json must name a model class of Transformers of a supported family, "
            f"received {shown(config.architectures)}. Write the class that the weights belong to there."
        )
    return kind


def _sizes(model: Any, shapes: Mapping[str, Any]) -> Entries:
    """Returns, as `to_prunable` takes them, the numbers of units that differ from the configuration.

    Args:
        model: As the configuration has it.
        shapes: Shape in the checkpoint of each tensor that differs, by its name in the model.
    """
    found: list[tuple[Site, dict[str, int]]] = []
    named = {name.removeprefix(f"{model.base_model_prefix}."): tuple(shape) for name, shape in shapes.items()}
    for site in anatomy_of(model).sites:
        shape = named.get(f"{site.output}.weight")
        if shape is not None:
            columns = shape[0 if site.block.transposed else 1]
            if columns % site.unit_width or columns > site.units * site.unit_width:
                raise InvalidConfigError(
                    f"{site.output}: it has {columns} columns, which are no number of units of {site.unit_width} up to "
                    f"{site.units}, the number in config.json."
                )
            found.append((site, {site.field: columns // site.unit_width}))
    return entries_of(found)


def _number_in(entries: Entries, site: Site) -> int | None:
    """Returns the number of units of a site, or None where it is that of the dense model."""
    layers = entries.get(site.tower, {}) if site.tower else entries
    return layers.get(site.layer, {}).get(site.field)


def _check_sizes(model: Any, entries: Entries, listed: Mapping[int, tuple[int, ...]]) -> None:
    """Checks that smaller matrices and the list of pruned heads say the same."""
    for site in anatomy_of(model).attention_sites:
        smaller = _number_in(entries, site)
        if smaller is None or site.kind == "cross":
            continue
        if site.block.shared_bias is not None:
            raise UnsupportedModelError(
                f"{site.name}: it has {smaller} of {site.units} heads, and takes them of a bias that one layer makes "
                "for all heads. Such a checkpoint can't be migrated. Cut the dense model with prune_model_."
            )
        heads = listed.get(site.layer, ())
        if heads and site.units - len(heads) != smaller:
            raise InvalidConfigError(
                f"layer {site.layer}: {PRUNED_HEADS} lists {len(heads)} of {site.units} heads, and the weights have "
                f"{smaller}. Pass config.json and weights that were saved together."
            )


def _plan(model: Any, entries: Entries, listed: Mapping[int, tuple[int, ...]]) -> PruningPlan | None:
    """Returns what smaller matrices have kept of the dense model, or None where the source does not say which."""
    sites, plan = attention_by_layer(model) if listed else {}, PruningPlan.of(model)
    kept = {}
    for layer, heads in listed.items():
        site = sites.get(layer)
        if site is not None and _number_in(entries, site) is not None:
            kept[site.name] = [head for head in range(site.units) if head not in heads]
    plan = plan.replace(kept_heads=kept)
    for site in anatomy_of(model).sites:
        number = _number_in(entries, site)
        if len(plan.kept(site.name)) != (site.units if number is None else number):
            return None
    return plan


def _check_listed(model: Any, plan: PruningPlan, listed: Mapping[int, tuple[int, ...]]) -> None:
    """Checks that heads listed as pruned contribute nothing where the weights still have all of them."""
    sites = attention_by_layer(model) if listed else {}
    for layer, heads in listed.items():
        site = sites.get(layer)
        dense = 0 if site is None else site.dense_units(model.config)
        if site is None or max(heads) >= dense:
            raise InvalidConfigError(f"{PRUNED_HEADS} lists head {max(heads)} of layer {layer}, which has {dense}.")
        alive = sorted({*heads} & {*plan.kept(site.name)}) if site.units == dense else []
        if alive:
            raise InvalidConfigError(
                f"layer {layer}: {PRUNED_HEADS} lists heads {alive}, and the weights have them, with values that are "
                "not zero. Pass config.json and weights that were saved together."
            )


def _check_same(expected: torch.Tensor | None, received: torch.Tensor | None, folder: Path) -> None:
    if expected is None or received is None or torch.allclose(expected, received, rtol=1e-3, atol=1e-4):
        return
    raise HeadPruneError(f"{folder}: the migrated model computes something else than the source. Please report it.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the report of a loading: what differs in shape is looked at here."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
