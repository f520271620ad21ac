"""Make the Auto classes know pruned checkpoints, without importing anything before it is needed.

`import hf_headprune` must be cheap and must not fail. So the model types of pruned models are registered when
Transformers imports the file of `AutoConfig`; the configuration class of a family is generated when its type is first
looked up, and brings its models and its tokenizer along; and a model class is generated when it is looked up. Reading a
pruned BERT thus imports the modeling file of BERT alone.
"""

from __future__ import annotations

import logging
import sys
from functools import partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from typing import TYPE_CHECKING, Any

from hf_headprune._compat import register_on_demand_
from hf_headprune.errors import HeadPruneError, InvalidConfigError
from hf_headprune.families import FAMILIES, PRUNABLE_PREFIX

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

logger = logging.getLogger(__name__)

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
AUTO_MODEL = "transformers.models.auto.modeling_auto"
AUTO_TOKENIZER = "transformers.models.auto.tokenization_auto"
# What a changed Transformers can raise; its own import must go on.
VERSION_FAULTS = (HeadPruneError, ImportError, AttributeError, KeyError, TypeError, ValueError)


def register_auto_classes() -> None:
    """Makes `AutoConfig`, `AutoModel…` and `AutoTokenizer` know pruned checkpoints; calling it again is harmless."""
    if AUTO_CONFIG in sys.modules:
        register_model_types(import_module(AUTO_CONFIG))  # which waits for an import that another thread is at
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def register_model_types(auto: Any) -> None:
    """Registers the model types of all families; the classes of their configurations are generated on demand.

    Args:
        auto: The module of `AutoConfig`.
    """
    try:
        for model_type, family in FAMILIES.items():
            register_on_demand_(auto.CONFIG_MAPPING, family.prunable_type, partial(_config_class, model_type))
        _let_dense_classes_refuse_pruned_ones_(import_module("transformers").PretrainedConfig)
    except VERSION_FAULTS as error:
        _warn("AutoConfig", error)


def register_models(config_class: Any) -> None:
    """Registers the models and the tokenizer that belong to the configuration class of pruned models of a family.

    Args:
        config_class: With the configuration class of the dense model as its `dense_class`.
    """
    try:
        auto = vars(import_module(AUTO_MODEL))
        mappings = {id(mapping): mapping for name, mapping in auto.items() if name.endswith("_MAPPING")}
        for mapping in mappings.values():
            if config_class.dense_class in mapping:
                make = partial(_model_classes, mapping, config_class.dense_class)
                register_on_demand_(mapping, config_class, make)
        if (body := FAMILIES[config_class.dense_class.model_type].body) is not None:
            make = partial(_prunable_named, f"Prunable{body}")
            register_on_demand_(import_module(AUTO_MODEL).MODEL_MAPPING, config_class, make)
        tokenizers = import_module(AUTO_TOKENIZER).TOKENIZER_MAPPING
        if config_class.dense_class in tokenizers:
            make = partial(tokenizers.get, config_class.dense_class, None)
            register_on_demand_(tokenizers, config_class, make)
    except VERSION_FAULTS as error:
        _warn("AutoModel and AutoTokenizer", error)


class _Watch(MetaPathFinder):
    """Waits for the import of `AutoConfig`, registers the model types after it, and goes."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Finds one module, as the other finders do, and leaves all others to them."""
        if fullname != AUTO_CONFIG:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    """Loads the module of `AutoConfig` with the loader that it had, and keeps, and then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Creates the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module, then registers."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Watch)]
        register_model_types(module)


def _let_dense_classes_refuse_pruned_ones_(config_base: Any) -> None:
    """Wraps, once, what reads a configuration, so that a dense class that opens a pruned checkpoint says what can.

    The error that Transformers raises otherwise is about `per_layer_config`. Without `from_dict` it stays so.
    """
    read: Any = getattr(vars(config_base).get("from_dict"), "__func__", None)
    if read is None or hasattr(read, "__wrapped__"):
        return

    @wraps(read)
    def from_dict(cls: Any, config_dict: Any, *args: Any, **kwargs: Any) -> Any:
        saved_type = config_dict.get("model_type") or ""
        if saved_type.startswith(PRUNABLE_PREFIX) and cls.model_type not in ("", saved_type):
            own_class = (config_dict.get("architectures") or [""])[0]
            by_name = f", or by hf_headprune.{own_class}" if hasattr(import_module("hf_headprune"), own_class) else ""
            raise InvalidConfigError(
                f"{cls.__name__}: this is the checkpoint of a pruned model, of type {saved_type!r}; a dense class has "
                "one number of heads and FFN units for all layers and can't hold it. Load it by the Auto class of its "
                f"task{by_name}. If all its layers have equal numbers, "
                'hf_headprune.export_model(model, folder, mode="plain") writes it for dense classes.'
            )
        return read(cls, config_dict, *args, **kwargs)

    config_base.from_dict = classmethod(from_dict)


def _config_class(model_type: str) -> type[Any]:
    return import_module("hf_headprune.shrink.config").prunable_config(model_type)


def _model_classes(mapping: Any, dense_config: type[Any]) -> Any:
    """Returns the prunable class, or classes, in place of those that a mapping has for a dense configuration."""
    prunable_of = import_module("hf_headprune.shrink.prunable").prunable_of
    found = mapping[dense_config]
    return tuple(map(prunable_of, found)) if isinstance(found, tuple | list) else prunable_of(found)


def _prunable_named(name: str) -> type[Any]:
    return import_module("hf_headprune.shrink.prunable").prunable_named(name)


def _warn(what: str, error: Exception) -> None:
    logger.warning(
        "This version of Transformers does not let %s learn of pruned checkpoints (%s: %s). Load them by their own "
        "class, such as hf_headprune.PrunableBertForSequenceClassification.from_pretrained(...).",
        what,
        type(error).__name__,
        error,
    )
