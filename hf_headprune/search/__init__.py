"""Search for what to remove: anytime A* over sets of units, which knows functions of them and never a model."""
