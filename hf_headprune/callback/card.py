"""The Trainer writes a model card of its own; what is known about the pruning is added to it, not lost."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from hf_headprune._model_card import write_card_
from hf_headprune.callback.trainer_compat import model_of

if TYPE_CHECKING:
    from transformers import Trainer


def let_card_tell_of_pruning(trainer: Trainer) -> None:
    """Lets `trainer.create_model_card`, and thus `trainer.push_to_hub`, keep our section of the card.

    Args:
        trainer: Whose bound method is wrapped.
    """
    create = trainer.create_model_card

    @wraps(create)
    def create_with_section(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        if trainer.is_world_process_zero():
            write_card_(model_of(trainer), str(trainer.args.output_dir), name=getattr(trainer, "hub_model_id", None))

    trainer.create_model_card = create_with_section
