"""HeadPruneCallback: Trainer events on one side, the rooms on the other; the only place that knows the Trainer."""

from hf_headprune.callback.hooks import HeadPruneCallback

__all__ = ["HeadPruneCallback"]
