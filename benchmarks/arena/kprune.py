"""K-prune: one block after the other loses units, and its output projection is solved for what the dense model holds.

Source: Park et al. 2024 (arXiv 2308.03449), algorithm 1, with the coefficients of the authors' script. Where the paper
is silent we do as their code does: gradients of masks are squared by batch, those of a head are averaged over its
columns, and a weight counts in the place of a FLOP. Of spans, starts and ends count alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from benchmarks.arena.case import Case, answers_of, best_units, plan_of, real_tokens, weights_of
from hf_headprune import prune_model_
from hf_headprune.anatomy import base_model
from hf_headprune.masking import UnitScale, attach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.anatomy import Site

TEMPERATURE = 2.0
PREDICTIVE, REPRESENTATIONAL = 1.0, 2.5e-4  # what both kinds of knowledge count
HEADS = 64.0  # what the score of a head counts


class Recorder:
    """Keeps what projections are given and return, for the length of a `with` block; of real tokens alone.

    Attributes:
        given: Inputs of each output projection, `{site: (tokens, width)}`, of the last batch.
        streams: Input of each block, `(tokens, hidden_size)`, of the last batch.
        added: What each block adds to it, of the last batch.
        masks: Factors of those inputs; their gradients are asked for.
    """

    def __init__(self, model: Any, sites: Sequence[Site]) -> None:
        """Attaches itself."""
        self.given: dict[str, torch.Tensor] = {}
        self.streams: dict[str, torch.Tensor] = {}
        self.added: dict[str, torch.Tensor] = {}
        widths = {site.name: site.units * site.unit_width for site in sites}
        self.masks = {name: torch.ones(width, requires_grad=True) for name, width in widths.items()}
        base = base_model(model)
        self._handles = [attach(model, site, UnitScale(1, self.masks[site.name])) for site in sites]
        for site in sites:
            module, output = base.get_submodule(site.parts[0].path), base.get_submodule(site.output)
            self._handles.append(module.register_forward_pre_hook(self._keep_stream(site.name)))
            self._handles.append(output.register_forward_hook(self._keep_output(site.name)))

    def _keep_stream(self, name: str) -> Any:
        def keep(module: Any, args: Any) -> None:
            self.streams[name] = args[0].detach()

        return keep

    def _keep_output(self, name: str) -> Any:
        def keep(module: Any, args: Any, output: Any) -> None:
            self.given[name], self.added[name] = args[0].detach(), output.detach()

        return keep

    def __enter__(self) -> Recorder:
        """Is attached already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Detaches itself."""
        for handle in self._handles:
            handle.remove()


def cut(case: Case) -> None:
    """Prunes a model in place."""
    model, budget = case.model, case.budget
    answers, wanted = _of_dense(case)
    kept: dict[str, list[int]] = {}
    for index, site in enumerate(case.sites):
        scores, given, streams = _knowledge(case, case.sites[index:], answers)
        kept[site.name] = best_units(case.sites[index:], scores, budget)[site.name]
        budget -= weights_of(site) * len(kept[site.name])
        _solve_(model, site, kept[site.name], given, wanted[site.name] - streams)
    prune_model_(model, plan_of(model, kept))


@torch.no_grad()
def _of_dense(case: Case) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Returns the softened answers of the dense model to each batch, and its residual stream after each block."""
    answers: list[torch.Tensor] = []
    streams: dict[str, list[torch.Tensor]] = {site.name: [] for site in case.sites}
    with Recorder(case.model, case.sites) as seen:
        for batch in case.batches:
            answers.append((answers_of(case.model(**batch)) / TEMPERATURE).softmax(-1))
            for name, found in streams.items():
                found.append(real_tokens(batch, seen.streams[name] + seen.added[name]))
    return answers, {name: torch.cat(found) for name, found in streams.items()}


def _knowledge(
    case: Case, sites: Sequence[Site], answers: Sequence[torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Returns the score of each unit per weight, and what the first site's projection and block are given."""
    model, examples = case.model, sum(len(batch["input_ids"]) for batch in case.batches)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in case.batches)
    totals = {site.name: torch.zeros(site.units * site.unit_width) for site in sites}
    given: list[torch.Tensor] = []
    streams: list[torch.Tensor] = []
    with Recorder(model, sites) as seen:
        for batch, answer in zip(case.batches, answers, strict=True):
            logits = (answers_of(model(**batch)) / TEMPERATURE).log_softmax(-1)
            loss = torch.nn.functional.kl_div(logits, answer, reduction="batchmean") * TEMPERATURE**2
            grads = torch.autograd.grad(loss, list(seen.masks.values()))
            for site, grad in zip(sites, grads, strict=True):
                weight = base_model(model).get_submodule(site.output).weight.detach()
                squares = real_tokens(batch, seen.given[site.name]).square().sum(0) * weight.square().mean(0)
                totals[site.name] += PREDICTIVE * grad.square() / 2 / examples + REPRESENTATIONAL * squares / tokens
            given.append(real_tokens(batch, seen.given[sites[0].name]))
            streams.append(real_tokens(batch, seen.streams[sites[0].name]))
    scores = {
        site.name: totals[site.name].view(site.units, -1).mean(1)
        * (HEADS if site.is_attention else 1.0)
        / weights_of(site)
        for site in sites
    }
    return scores, torch.cat(given), torch.cat(streams)


@torch.no_grad()
def _solve_(model: Any, site: Site, kept: Sequence[int], given: torch.Tensor, wanted: torch.Tensor) -> None:
    """Gives the columns of units that stay what least squares says, and zero to the others."""
    output = base_model(model).get_submodule(site.output)
    columns = torch.tensor(site.columns(kept), dtype=torch.long)
    weight = torch.zeros_like(output.weight)
    if len(columns):
        inputs = given[:, columns].double()
        target = inputs.T @ (wanted - output.bias).double()
        solved = torch.linalg.lstsq(inputs.T @ inputs, target, driver="gelsd").solution
        weight[:, columns] = solved.T.to(weight)
    output.weight.data = weight
