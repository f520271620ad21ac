"""SecondOrderBank: heads and FFN units leave where their removal costs least, and the rest is refitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.anatomy import base_model
from hf_headprune.cost import macs_per_unit, weights_per_unit
from hf_headprune.elimination import cheapest_first, elimination
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.score_bank import check_same_budget, checksum
from hf_headprune.learn.settings import budget_groups
from hf_headprune.masking import BeforeEveryPass, UnitScale, attach
from hf_headprune.moments import record_moments_by_gradient
from hf_headprune.plan import PruningPlan
from hf_headprune.reconstruction import Reconstruction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.utils.hooks import RemovableHandle

    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.elimination import Removal
    from hf_headprune.learn.second_order_settings import SecondOrder

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
        self._scored = [site for site in self._sites if site.is_attention or settings.density is not None]
        self._full = PruningPlan.full(anatomy)
        self._groups = () if settings.kept_heads is None else budget_groups(settings.kept_heads, anatomy)
        self.register_buffer("kept", torch.ones(sum(site.units for site in self._sites)))
        self.register_buffer("rounds", torch.tensor(0))
        self.register_buffer("steps", torch.tensor(0))
        how = settings.density, settings.density_of, settings.kept_heads, settings.rounds, settings.width_multiple
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
        reconstruction = self.choose(model, losses, number, over_processes=True)
        before = [(parameter, parameter.data) for parameter in self.refitted(model)]
        reconstruction.apply_(model, self.plan())
        for parameter, data in before:  # weights stay where whoever else holds them expects them
            parameter.data = data.copy_(parameter.data)

    def choose(
        self, model: nn.Module, losses: Iterable[torch.Tensor], number: int, *, over_processes: bool = False
    ) -> Reconstruction:
        """Chooses what leaves in the rounds up to a number, and returns what refits the model to the rest.

        Args:
            model: With exactly those units open that are open here.
            losses: Of training examples, summed over each batch; each is computed when it is asked for.
            number: Of the last round to be done, counted from one.
            over_processes: Whether all processes of a distributed run do so, each with losses of its own.

        Raises:
            TrainingStateError: The losses gave no gradient, or one that is not finite.
        """
        was_training, before = model.training, self.plan()
        try:
            recorded = record_moments_by_gradient(model.eval(), self._scored, losses, over_processes=over_processes)
        finally:
            model.train(was_training)
        reconstruction = Reconstruction(model, before, recorded)
        paths = {site.name: self._path(site, reconstruction, before) for site in self._scored}
        parts = self._parts()
        for removal in self._chosen(paths, number / self.settings.rounds):
            parts[removal.site][list(removal.units)] = 0.0
        self._count_rounds(number)
        return reconstruction

    def _path(self, site: Site, reconstruction: Reconstruction, before: PruningPlan) -> list[Removal]:
        block = reconstruction.blocks.get(site.name)
        sensitivity = None if block is None else block.sensitivity
        if block is None or sensitivity is None or not bool(sensitivity.isfinite().all()):
            raise TrainingStateError(
                f"SecondOrder: the loss gives {'no' if sensitivity is None else 'a non-finite'} gradient for "
                f"{site.output}. Check that it comes from the model's forward pass and is finite."
            )
        multiple, saved = self.settings.width_multiple, self._saved_per_unit(site)
        return elimination(block, before.kept(site.name), width_multiple=multiple, saved_per_unit=saved)

    def _saved_per_unit(self, site: Site) -> int:
        """Returns what the density counts of one unit."""
        settings = self.settings
        if settings.density_of == "parameters":
            return weights_per_unit(site)
        return macs_per_unit(site, settings.seq_len, settings.target_len)

    def refitted(self, model: nn.Module) -> list[nn.Parameter]:
        """Returns the parameters of a model that a round changes."""
        outputs = (base_model(model).get_submodule(site.output) for site in self._scored)
        return [parameter for output in outputs for parameter in output.parameters(recurse=False)]

    def _chosen(self, paths: dict[str, list[Removal]], share: float) -> list[Removal]:
        """Returns the removals that reach a share of what is to go."""
        if self.settings.density is not None:
            total = sum(site.units * self._saved_per_unit(site) for site in self._sites)
            now = sum(removal.saved for path in paths.values() for removal in path)
            aim = share * (1.0 - self.settings.density) * total - (total - now)
            return _up_to(cheapest_first(paths.values()), aim)
        owners = [site.name for site in self._scored for _ in range(site.units)]
        found = []
        for group in self._groups:
            names = dict.fromkeys(owners[position] for position in group.positions)
            removals = cheapest_first(paths[name] for name in names)
            already = len(group.positions) - len(removals)
            found += removals[: max(round(share * (len(group.positions) - group.kept)) - already, 0)]
        return found

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


def _up_to(removals: Sequence[Removal], aim: float) -> list[Removal]:
    """Returns the first removals that save so much together, to the nearest removal."""
    found, saved = [], 0.0
    for removal in removals:
        if saved + removal.saved / 2 > aim:
            break
        found.append(removal)
        saved += removal.saved
    return found


def second_order_quantities(bank: SecondOrderBank) -> dict[str, float]:
    """Returns what a training log should show, as scalars: units that stay per site."""
    plan = bank.plan()
    return {f"kept_units/{site}": float(len(kept)) for site, kept in {**plan.kept_heads, **plan.kept_ffn}.items()}
