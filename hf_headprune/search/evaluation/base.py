"""What a search asks of whatever measures its plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_headprune.search.problem import MetricFacts

if TYPE_CHECKING:
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.problem import Measurement, Question


class Evaluator:
    """Measures plans; a subclass says how, and overrides what it can answer with less work or more knowledge.

    Attributes:
        refit: Refits output projections to each plan that is measured; None leaves them.
        facts: What is known about the metric besides its values.
    """

    refit: Refit | None = None
    facts = MetricFacts()

    def __call__(self, plan: PruningPlan) -> Measurement:
        """Measures a plan on all examples."""
        raise NotImplementedError

    def probe(self, plan: PruningPlan, question: Question) -> Measurement:
        """Measures a plan as far as a question needs; here to the end."""
        del question
        return self(plan)

    def use_refit(self, start: PruningPlan, *, ffn: bool = False, apply: bool = True) -> Refit | None:
        """Records what removals cost, and from now on refits output projections to each plan; here nothing.

        Args:
            start: Units whose contribution is to be kept.
            ffn: Whether those of FFNs are refitted, too.
            apply: Whether to refit; else the costs are recorded alone.
        """
        del start, ffn, apply
        return None

    def fingerprint(self) -> str:
        """Returns what identifies all that is measured, for a journal."""
        return ""
