"""What tests of moments, costs and removals share."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from hf_headprune.anatomy import anatomy_of

ATTENTION, FFN = "encoder.layer.1.attention", "encoder.layer.0.intermediate"


def losses_of(model, batches):
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        yield cross_entropy(logits, batch["labels"], reduction="sum")


def site_of(model, name):
    return next(site for site in anatomy_of(model).sites if site.name == name)
