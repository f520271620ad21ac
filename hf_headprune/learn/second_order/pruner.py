"""SecondOrderPruner: removes heads and FFN units whose removal costs least, and refits the others, during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune._distributed import is_part, reshard_
from hf_headprune.anatomy import base_model
from hf_headprune.budgets import budget_groups
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.closed_units import ClosedUnits
from hf_headprune.learn.pruner import Choice, Pruner
from hf_headprune.masking import BeforeEveryPass
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.choice import choose, scored_sites
from hf_headprune.refit.reach import budget_gap, check_budget
from hf_headprune.refit.settings import SecondOrder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.learn.training_loop import TrainingLoop
    from hf_headprune.refit.projections import Refit


class SecondOrderPruner(Pruner[SecondOrder]):
    """What is open in one model, whose output projections are refitted in one or several rounds.

    Attributes:
        kept: Ones and zeros, `(num_units,)`, in the order of the sites.
        rounds: Rounds done, as checkpoints carry it.
        rounds_done: The same, without waiting for the device.
    """

    part = "second_order"
    learns_scores = False
    rounds: torch.Tensor

    def __init__(self, anatomy: Anatomy, settings: SecondOrder, *, seed: int = 0) -> None:
        """Starts with everything open.

        Args:
            anatomy: Of the model.
            settings: The budget and its rounds.
            seed: Of the choice of examples.

        Raises:
            InvalidSettingError: A budget that the model can't meet.
        """
        sites = [site for site in anatomy.sites if site.units]
        density = None if settings.density is None else float(settings.density)
        check_budget(settings, anatomy)
        heads = None if settings.kept_heads is None else budget_groups(settings.kept_heads, anatomy)
        table = settings.tuning.latency_ms
        how: tuple[Any, ...] = (
            density,
            settings.counts,
            heads,
            int(settings.rounds),
            float(settings.last_round_at),
            settings.tuning.start_at,
            int(settings.tuning.width_multiple),
        )
        how = how if table is None else (*how, str(table))
        how = (*how, "whole groups") if settings.tuning.whole_groups else how
        how = (*how, "uniform") if settings.tuning.uniform else how
        how = how if settings.rewinds_to is None else (*how, f"rewind {float(settings.rewinds_to)}")
        super().__init__(settings, num_kept=sum(site.units for site in sites), budget=how)
        self.seed = seed
        self._sites, self._anatomy = sites, anatomy
        self._scored = scored_sites(anatomy, settings)
        self._full = PruningPlan.full(anatomy)
        self.register_buffer("rounds", torch.tensor(0))
        self.rounds_done = 0
        self._max_steps = 0
        self.units = ClosedUnits(self._scored)
        self._is_choosing = False
        self.seal()

    @property
    def stage(self) -> int:
        """Rounds done."""
        return self.rounds_done

    @classmethod
    def of(cls, model: nn.Module, anatomy: Anatomy, settings: SecondOrder, loop: TrainingLoop) -> SecondOrderPruner:
        """See `Pruner.of`."""
        found = cls(anatomy, settings, seed=loop.seed if settings.tuning.seed is None else settings.tuning.seed)
        found.attach(model)
        return found

    def attach(self, model: nn.Module) -> None:
        """Joins the base model as a submodule and hooks the sites that lose something."""
        self.join(model)
        self.handles = BeforeEveryPass(self.refresh).attach(model)
        self.handles += self.units.attach(model)

    def prepare(self, max_steps: int) -> None:
        """See `Pruner.prepare`."""
        self._max_steps = max_steps

    def reset(self) -> None:
        """Starts over: everything open, no round done.

        Raises:
            TrainingStateError: Units were removed already, and the others refitted: it is not the model that it was.
        """
        if self.rounds_done:
            raise TrainingStateError(
                "An earlier training, or a try of this one that ran out of memory (auto_find_batch_size), has removed "
                "heads and FFN units of this model and refitted the others, but did not end. Resume it with a batch "
                "size that fits (resume_from_checkpoint), or load the model anew."
            )
        super().reset()

    def begin_step(self, model: nn.Module, step: int, loop: TrainingLoop) -> None:
        """See `Pruner.begin_step`: does the rounds that are due."""
        self._catch_up(model, loop, self.settings.rounds_due(step, self._max_steps))
        super().begin_step(model, step, loop)

    def undecided_until(self) -> int | None:
        """See `Pruner.undecided_until`."""
        is_done = self.rounds_done >= self.settings.rounds
        return None if is_done else round(self.settings.last_round_at * self._max_steps)

    def finish(self, model: nn.Module, loop: TrainingLoop) -> Choice:
        """See `Pruner.finish`; rounds that the best model has not seen are done now."""
        self._catch_up(model, loop, self.settings.rounds)
        self.check_state()
        plan = self.plan()
        self.detach(model)
        return Choice(plan)

    def plan(self) -> PruningPlan:
        """Returns what is kept."""
        open_units = {name: tuple(part.nonzero().flatten().tolist()) for name, part in self._parts().items()}
        heads = {site.name: open_units[site.name] for site in self._sites if site.is_attention}
        ffn = {site.name: open_units[site.name] for site in self._sites if not site.is_attention}
        return self._full.replace(kept_heads=heads, kept_ffn=ffn)

    def _catch_up(self, model: nn.Module, loop: TrainingLoop, rounds: int) -> None:
        """Does the rounds that are due and not done yet, with the same result in all processes."""
        if rounds <= self.rounds_done:
            return
        self.is_idle = False
        batches = loop.batches(self.settings.tuning.scoring_examples, self.seed + rounds)
        self.remove(model, (loop.summed_loss(batch) for batch in batches), rounds)
        # What was evaluated before was the model with more units: no checkpoint of it is the best one.
        loop.forget_best_model()
        # Processes that stream have seen different examples, and rounding may differ between devices. What FSDP has
        # split was written as the first process has it.
        for values in (self.kept, *self.refitted(model)):
            if not is_part(values):
                values.data.copy_(loop.from_first(values.data))
        self.seal()

    def remove(self, model: nn.Module, losses: Iterable[torch.Tensor], number: int) -> None:
        """Does the rounds up to a number, in a model with this pruner attached: closes units, refits the others.

        Args:
            model: It is refitted in place.
            losses: See `choose`.
            number: Of the last round to be done, counted from one.

        Raises:
            TrainingStateError: The losses gave no gradient, or one that is not finite.
        """
        refit = self.choose(model, losses, number, over_processes=True)
        reshard_(model)
        before = [(parameter, parameter.data) for parameter in self.refitted(model) if not is_part(parameter)]
        refit.apply_(model, self.plan())
        for parameter, data in before:  # weights stay where whoever else holds them expects them
            parameter.data = data.copy_(parameter.data)

    def choose(
        self, model: nn.Module, losses: Iterable[torch.Tensor], number: int, *, over_processes: bool = False
    ) -> Refit:
        """Chooses what is removed in the rounds up to a number, and returns what refits the model to the rest.

        Args:
            model: With exactly those units open that are open here.
            losses: Of training examples, summed over each batch; each is computed when it is asked for.
            number: Of the last round to be done, counted from one.
            over_processes: Whether all processes of a distributed run do so, each with losses of its own.

        Raises:
            TrainingStateError: The losses gave no gradient, or one that is not finite.
        """
        share = number / self.settings.rounds
        self._is_choosing = True  # what is recorded has the width of the whole projections
        try:
            plan, refit = choose(model, self.settings, self.plan(), losses, share=share, over_processes=over_processes)
        finally:
            self._is_choosing = False
        for name, part in self._parts().items():
            part.zero_()
            part[list(plan.kept(name))] = 1.0
        self.rounds.fill_(number)
        self.rounds_done = number
        self.seal()
        return refit

    def refitted(self, model: nn.Module) -> list[nn.Parameter]:
        """Returns the parameters of a model that a round changes."""
        outputs = (base_model(model).get_submodule(site.output) for site in self._scored)
        return [parameter for output in outputs for parameter in output.parameters(recurse=False)]

    def quantities(self) -> dict[str, float]:
        """Returns what a training log should show, as scalars: units that are kept per site."""
        plan = self.plan()
        return {f"kept_units/{site}": float(len(kept)) for site, kept in {**plan.kept_heads, **plan.kept_ffn}.items()}

    def problems(self) -> Iterable[str]:
        """Yields what is wrong with the state, in words."""
        problems = [*super().problems()]
        yield from problems
        if problems:  # there may be no such plan
            return
        if not 0 <= self.rounds_done <= self.settings.rounds:
            yield f"{self.rounds_done} rounds are done, of {self.settings.rounds}"
        elif self.rounds_done == 0 and not bool(self.kept.all()):
            yield "units are removed, but no round is done"
        elif self.rounds_done:
            share = self.rounds_done / self.settings.rounds
            gap = budget_gap(self.plan(), self.settings, self._anatomy, share)
            yield from () if gap is None else (gap,)

    def refresh(self) -> None:
        """Hands each site its part of the choice."""
        parts = self._parts()
        factors = [parts[site.name] for site in self._scored]
        if self.is_idle or not self.rounds_done:
            self.units.scale([None] * len(factors))
        elif self._is_choosing:
            self.units.scale(factors)
        else:
            self.units.close(self.chosen(factors), factors)

    def _parts(self) -> dict[str, torch.Tensor]:
        """Returns each site's part of `kept`, as views."""
        parts = self.kept.split([site.units for site in self._sites])
        return {site.name: part for site, part in zip(self._sites, parts, strict=True)}

    def before_loading(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over the number of rounds."""
        self.rounds_done = int(state["rounds"])
