"""SecondOrder: the settings of the wing `refit`, which uses them without any training, too."""

from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning

__all__ = ["SecondOrder", "SecondOrderTuning"]
