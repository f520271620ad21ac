"""Subset gates: learned multipliers that keep an exact number of heads."""
