"""SecondOrderBank: heads and FFN units leave where their removal costs least, and the rest is refitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.anatomy import base_model
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.score_bank import check_same_budget, checksum
from hf_headprune.masking import BeforeEveryPass, UnitScale, attach
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.choice import check_budget, choose, scored_sites
from hf_headprune.refit.projections import Refit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.utils.hooks import RemovableHandle

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.refit.settings import SecondOrder

BANK_NAME = "headprune_second_order"


class SecondOrderBank(nn.Module):
    """What stays open, in one model. It lives inside the base model, so that checkpoints carry it.

    Attributes:
        settings: What is asked for.
        kept: Ones and zeros, `(num_units,)`, in the order of the sites.
        rounds: Rounds done, as checkpoints carry it.
        rounds_done: The same, without waiting for the device.
        steps: Optimizer steps begun; tells whether a resumed checkpoint carried this bank.
        handles: Of the hooks; empty when it is not attached.
    """

    kept: torch.Tensor
    rounds: torch.Tensor
    steps: torch.Tensor

    def __init__(self, anatomy: Anatomy, settings: SecondOrder) -> None:
        """Starts with everything open.

        Raises:
            InvalidSettingError: A budget that the model can't meet.
        """
        super().__init__()
        self.settings = settings
        self._sites = [site for site in anatomy.sites if site.units]
        self._scored = scored_sites(anatomy, settings)
        self._full = PruningPlan.full(anatomy)
        check_budget(settings, anatomy)
        self.register_buffer("kept", torch.ones(sum(site.units for site in self._sites)))
        self.register_buffer("rounds", torch.tensor(0))
        self.register_buffer("steps", torch.tensor(0))
        how = settings.density, settings.counts, settings.kept_heads, settings.rounds, settings.width_multiple
        self.register_buffer("budget", checksum(how))
        self.rounds_done = 0
        self.scales = [UnitScale(site.unit_width) for site in self._scored]
        self.handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Joins the base model as a submodule and hooks the sites that lose something."""
        base = base_model(model)
        base.add_module(BANK_NAME, self)
        self.to(next(model.parameters()).device)
        self.handles = BeforeEveryPass(self._refresh).attach(model)
        self.handles += [attach(model, site, scale) for site, scale in zip(self._scored, self.scales, strict=True)]

    def detach(self, model: nn.Module) -> None:
        """Leaves the model, whose weights stay refitted; what is closed opens, with whatever it then computes."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        delattr(base_model(model), BANK_NAME)

    def reset(self) -> None:
        """Starts over: everything open, no round done."""
        self.kept.fill_(1.0)
        self.steps.fill_(0)
        self._count_rounds(0)

    def plan(self) -> PruningPlan:
        """Returns what stays."""
        open_units = {name: tuple(part.nonzero().flatten().tolist()) for name, part in self._parts().items()}
        heads = {site.name: open_units[site.name] for site in self._sites if site.is_attention}
        ffn = {site.name: open_units[site.name] for site in self._sites if not site.is_attention}
        return self._full.replace(kept_heads=heads, kept_ffn=ffn)

    def remove(self, model: nn.Module, losses: Iterable[torch.Tensor], number: int) -> None:
        """Does the rounds up to a number at once, in a model with this bank attached: closes units, refits the rest.

        Args:
            model: It is refitted in place.
            losses: See `choose`.
            number: Of the last round to be done, counted from one.

        Raises:
            TrainingStateError: The losses gave no gradient, or one that is not finite.
        """
        refit = self.choose(model, losses, number, over_processes=True)
        before = [(parameter, parameter.data) for parameter in self.refitted(model)]
        refit.apply_(model, self.plan())
        for parameter, data in before:  # weights stay where whoever else holds them expects them
            parameter.data = data.copy_(parameter.data)

    def choose(
        self, model: nn.Module, losses: Iterable[torch.Tensor], number: int, *, over_processes: bool = False
    ) -> Refit:
        """Chooses what leaves in the rounds up to a number, and returns what refits the model to the rest.

        Args:
            model: With exactly those units open that are open here.
            losses: Of training examples, summed over each batch; each is computed when it is asked for.
            number: Of the last round to be done, counted from one.
            over_processes: Whether all processes of a distributed run do so, each with losses of its own.

        Raises:
            TrainingStateError: The losses gave no gradient, or one that is not finite.
        """
        plan, refit = choose(
            model,
            self.settings,
            self.plan(),
            losses,
            share=number / self.settings.rounds,
            over_processes=over_processes,
        )
        for name, part in self._parts().items():
            part.zero_()
            part[list(plan.kept(name))] = 1.0
        self._count_rounds(number)
        return refit

    def refitted(self, model: nn.Module) -> list[nn.Parameter]:
        """Returns the parameters of a model that a round changes."""
        outputs = (base_model(model).get_submodule(site.output) for site in self._scored)
        return [parameter for output in outputs for parameter in output.parameters(recurse=False)]

    def _parts(self) -> dict[str, torch.Tensor]:
        """Returns each site's part of `kept`, as views."""
        parts = self.kept.split([site.units for site in self._sites])
        return {site.name: part for site, part in zip(self._sites, parts, strict=True)}

    def _count_rounds(self, number: int) -> None:
        self.rounds.fill_(number)
        self.rounds_done = number

    def _refresh(self) -> None:
        """Hands each site its slice."""
        parts = self._parts()
        for site, scale in zip(self._scored, self.scales, strict=True):
            scale.scale = parts[site.name] if self.rounds_done else None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Refuses weights without a choice: a resumed run would silently choose anew.

        Raises:
            TrainingStateError: The choice is missing or belongs to another model.
        """
        saved = state_dict.get(f"{prefix}kept")
        if saved is None or saved.shape != self.kept.shape:
            raise TrainingStateError(
                f"{prefix}kept: this model has {self.kept.numel()} heads and FFN units, the checkpoint holds a choice "
                f"among {'none' if saved is None else saved.numel()}. Resume from a checkpoint that was written with "
                "this callback on the same model."
            )
        check_same_budget(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.rounds_done = int(self.rounds)


def second_order_quantities(bank: SecondOrderBank) -> dict[str, float]:
    """Returns what a training log should show, as scalars: units that stay per site."""
    plan = bank.plan()
    return {f"kept_units/{site}": float(len(kept)) for site, kept in {**plan.kept_heads, **plan.kept_ffn}.items()}
