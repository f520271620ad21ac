"""SubsetGates: the settings of the learned head gates, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from hf_headprune._checks import check, is_above, is_rising, is_whole
from hf_headprune.budgets import Budget, BudgetGroup, budget_groups, budget_rules
from hf_headprune.learn.gates.estimators import Estimator
from hf_headprune.learn.gates.schedule import GateSchedule

if TYPE_CHECKING:
    from hf_headprune.anatomy import Anatomy

InitialScores = Literal["gradient", "zeros", "random"]
Mode = Literal["joint", "pipelined"]
# What each estimator learns well with, where the user asks for nothing else: learning rate of scores, temperatures.
NO_TEMPERATURE = (1.0, 1.0)
_JOINT: dict[Estimator, tuple[float, tuple[float, float]]] = {
    "ste": (0.5, NO_TEMPERATURE),
    "sigmoid": (0.1, (3.0, 0.05)),
    "dsp": (0.5, (10.0, 0.1)),
    "hard_concrete": (0.1, NO_TEMPERATURE),
}
# With frozen weights nothing but the scores can go astray, and they need to go far.
_OWN: dict[Mode, dict[Estimator, tuple[float, tuple[float, float]]]] = {
    "joint": _JOINT,
    "pipelined": _JOINT | {"sigmoid": (0.5, (10.0, 0.1))},
}
WITH_TEMPERATURE = tuple(name for name, (_, range_) in _JOINT.items() if range_ != NO_TEMPERATURE)


@dataclass(frozen=True)
class GateTuning:
    """What few runs need to change of `SubsetGates`.

    Attributes:
        score_learning_rate: Peak learning rate of the scores; it follows the run's own schedule. When left out, 0.5
            for "ste", "dsp" and pipelined "sigmoid", and 0.1 for the others.
        temperature: First and last temperature; in between it falls geometrically. When left out, 10 and 0.1 for "dsp"
            and pipelined "sigmoid", and 3 and 0.05 for joint "sigmoid"; the other estimators have none.
        anneal_end: Fraction of the run at which the last temperature is reached; `freeze_at` when left out.
        ramp_steps: Optimizer steps, from the first learning one, in which the gates are mixed with open ones, less
            and less: the number of open heads falls from all to the budget and weights can adapt, while the scores
            learn to choose the budget from the start. At most until the temperature has fallen. 0 closes them in the
            first learning step, as the paper does.
        initial_scores: Where the scores start, when `warmup_ratio` is over: "gradient" importance on training examples
            (standardised), "zeros", or "random" (uniform in +-0.5).
        scoring_examples: Training examples that "gradient" looks at.
        max_score_grad_norm: Clips the norm of the scores' gradient in an optimizer step; None leaves it to the Trainer.
        penalty: Strength of the penalty that steers `hard_concrete` towards the budget.
        seed: Of noise and random scores; the Trainer's seed when left out.

    Raises:
        InvalidSettingError: A value is out of range.
    """

    score_learning_rate: float | None = None
    temperature: tuple[float, float] | None = None
    anneal_end: float | None = None
    ramp_steps: int = 120
    initial_scores: InitialScores = "gradient"
    scoring_examples: int = 256
    max_score_grad_norm: float | None = 1.0
    penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks every value on its own."""
        norm, rate, range_ = self.max_score_grad_norm, self.score_learning_rate, self.temperature
        is_pair = isinstance(range_, tuple) and len(range_) == 2 and is_above(range_[1], 0)  # noqa: PLR2004 - first, last
        rules = {
            "score_learning_rate must be a number above 0": rate is None or is_above(rate, 0),
            "temperature must be a tuple of two numbers, first >= last > 0": range_ is None
            or (is_pair and is_rising(*range_[::-1])),
            "anneal_end must be from 0 to 1, or None": self.anneal_end is None or is_rising(0, self.anneal_end, 1),
            "ramp_steps must be a whole number >= 0": is_whole(self.ramp_steps, at_least=0),
            f"initial_scores must be one of {get_args(InitialScores)}": self.initial_scores in get_args(InitialScores),
            "scoring_examples must be a whole number >= 1": is_whole(self.scoring_examples, at_least=1),
            "max_score_grad_norm must be a number above 0, or None": norm is None or is_above(norm, 0),
            "penalty must be a number >= 0": is_rising(0, self.penalty),
            "seed must be a whole number >= 0, or None": self.seed is None or is_whole(self.seed, at_least=0),
        }
        check(self, rules)


@dataclass(frozen=True)
class SubsetGates:
    """Learned gates that keep exactly a given number of heads (Differentiable Subset Pruning).

    Fractions of the run are fractions of its optimizer steps. The run has three parts: all heads open; gates learn
    while the temperature falls; the hard choice is fixed and a plain model of K heads trains on.

    Attributes:
        kept_heads: Heads that are kept over the whole model: a number, or a fraction between 0.0 and 1.0 of all heads
            (rounded to the nearest number). A mapping from "encoder", "decoder" and "cross" to either gives each kind
            of attention a budget of its own; kinds left out keep all their heads. When left out, half of all heads, or
            what a density beside the gates says.
        estimator: Relaxation, see `hf_headprune.learn.gates.estimators`. When left out, what did best in each mode
            (docs/results.md): "ste" where weights train, too, and "sigmoid" where only scores do.
        mode: "joint" trains weights and scores together; "pipelined" freezes the (fine-tuned) weights and trains
            the scores alone, from the first step to the last.
        warmup_ratio: Fraction of the run in which all heads are open and only weights train.
        freeze_at: Fraction of the run at which the hard choice is fixed.
        tuning: What few runs need to change.

    Raises:
        InvalidSettingError: A value is out of range.

    Source: Li et al. 2021, arXiv 2108.04657.
    """

    kept_heads: Budget | None = field(default=None, hash=False)
    estimator: Estimator | None = None
    mode: Mode = "joint"
    warmup_ratio: float = 0.1
    freeze_at: float = 0.65
    tuning: GateTuning = field(default_factory=GateTuning)

    def __post_init__(self) -> None:
        """Checks every value that does not depend on the model."""
        if isinstance(self.kept_heads, Mapping):
            object.__setattr__(self, "kept_heads", dict(self.kept_heads))
        is_tuned = isinstance(self.tuning, GateTuning)
        cooled = self.tuning.anneal_end if is_tuned and self.tuning.anneal_end is not None else self.freeze_at
        has_temperature = is_tuned and self.tuning.temperature is not None
        rules = {
            f"estimator must be one of {get_args(Estimator)}": self.estimator in (None, *get_args(Estimator)),
            f"mode must be one of {get_args(Mode)}": self.mode in get_args(Mode),
            f"only the estimators {WITH_TEMPERATURE} have a tuning.temperature": not has_temperature
            or self.chosen_estimator in WITH_TEMPERATURE,
            "0 <= warmup_ratio <= tuning.anneal_end <= freeze_at <= 1 must hold": is_rising(
                0, self.warmup_ratio, cooled, self.freeze_at, 1
            ),
            "tuning must be GateTuning(...)": is_tuned,
            **budget_rules(self.chosen_kept_heads),
        }
        check(self, rules)

    @classmethod
    def paper_mnli(cls, kept_heads: Budget, *, mode: Mode = "joint") -> SubsetGates:
        """Returns the paper's own setting for BERT-base on MNLI, as published code runs it.

        Use it with learning rate 2e-5, batch 32, 3 epochs (joint) or 1 epoch (pipelined), linear decay, no warm-up.

        Source: Li et al. 2021, arXiv 2108.04657, and its code: tau 1000 -> 1e-8 over 25 000 of 36 800 steps (joint)
        or 8 333 of 12 272 (pipelined), learning rate 0.5, noise until the end.
        """
        cooled = 25_000 / 36_800 if mode == "joint" else 8_333 / 12_272
        return cls._paper(kept_heads, mode, learning_rate=0.5, temperature=(1000.0, 1e-8), anneal_end=cooled)

    @classmethod
    def paper_iwslt(cls, kept_heads: Budget, *, mode: Mode = "joint") -> SubsetGates:
        """Returns the paper's own setting for translation (IWSLT'14), as published code runs it.

        The paper's learning rate of the scores is constant and theirs decay with the run's schedule here.

        Source: Li et al. 2021, arXiv 2108.04657, and its code: tau 0.1 -> 1e-8 over 15 000 updates of about 60 epochs.
        """
        return cls._paper(kept_heads, mode, learning_rate=0.2, temperature=(0.1, 1e-8), anneal_end=0.25)

    @classmethod
    def _paper(
        cls,
        kept_heads: Budget,
        mode: Mode,
        *,
        learning_rate: float,
        temperature: tuple[float, float],
        anneal_end: float,
    ) -> SubsetGates:
        tuning = GateTuning(
            score_learning_rate=learning_rate,
            temperature=temperature,
            anneal_end=anneal_end,
            ramp_steps=0,
            initial_scores="random",
            max_score_grad_norm=None,
        )
        return cls(kept_heads=kept_heads, estimator="dsp", mode=mode, warmup_ratio=0.0, freeze_at=1.0, tuning=tuning)

    @property
    def chosen_kept_heads(self) -> Budget:
        """The budget that was asked for, or half of all heads."""
        return 0.5 if self.kept_heads is None else self.kept_heads

    @property
    def chosen_estimator(self) -> Estimator:
        """The relaxation that was asked for, or the one that does best in this mode."""
        return self.estimator or ("ste" if self.mode == "joint" else "sigmoid")

    @property
    def peak_score_learning_rate(self) -> float:
        """Learning rate of the scores: what was asked for, or what the estimator learns well with in this mode."""
        own, _ = _OWN[self.mode][self.chosen_estimator]
        return own if self.tuning.score_learning_rate is None else self.tuning.score_learning_rate

    @property
    def temperature_range(self) -> tuple[float, float]:
        """First and last temperature: what was asked for, or what the estimator learns well with in this mode."""
        _, own = _OWN[self.mode][self.chosen_estimator]
        return own if self.tuning.temperature is None else self.tuning.temperature

    @property
    def fractions(self) -> tuple[float, float, float]:
        """Fractions of the run at which gates begin to learn, have cooled, and are decided."""
        is_joint, cooled = self.mode == "joint", self.tuning.anneal_end
        decided = self.freeze_at if is_joint else 1.0
        return self.warmup_ratio if is_joint else 0.0, decided if cooled is None else cooled, decided

    def schedule(self, max_steps: int) -> GateSchedule:
        """Returns the schedule of a run of `max_steps` optimizer steps.

        A pipelined run learns from its first step to its last: with frozen weights there is nothing else to train.
        """
        opens, cools, decides = self.fractions
        open_steps, cooled_step = round(opens * max_steps), round(cools * max_steps)
        return GateSchedule(
            open_steps=open_steps,
            closed_step=min(open_steps + self.tuning.ramp_steps, cooled_step),
            cooled_step=cooled_step,
            decided_step=round(decides * max_steps),
            start_temperature=self.temperature_range[0],
            end_temperature=self.temperature_range[1],
        )

    def budget_groups(self, anatomy: Anatomy) -> tuple[BudgetGroup, ...]:
        """Turns the budget into numbers of heads for one model; see `budget_groups`."""
        return budget_groups(self.chosen_kept_heads, anatomy)
