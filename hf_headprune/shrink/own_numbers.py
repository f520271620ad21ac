"""The configuration as one attention block sees it, where its forward pass reads numbers of heads off it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LayerNumbers:
    """A configuration with some fields of its own; all others are those of the model, whatever becomes of them."""

    def __init__(self, config: Any, numbers: Mapping[str, int]) -> None:
        """Stores the model's configuration and the fields that differ."""
        vars(self).update(model_config=config, numbers=dict(numbers))

    @classmethod
    def over(cls, config: Any, numbers: Mapping[str, int]) -> LayerNumbers:
        """Returns the view of a configuration, or of what another view shows."""
        return cls(config.model_config if isinstance(config, cls) else config, numbers)

    def __getattr__(self, name: str) -> Any:
        """Finds the block's own number, or the field of the model."""
        if name.startswith("__") or name in ("model_config", "numbers"):  # while a copy is being made
            raise AttributeError(name)
        return self.numbers[name] if name in self.numbers else getattr(self.model_config, name)
