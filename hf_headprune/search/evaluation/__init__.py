"""Measures plans on a live model: exact verdicts at the least cost, for every kind of task."""
