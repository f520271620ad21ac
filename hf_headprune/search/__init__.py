"""Search for what to remove: anytime A* over sets of units, and the evaluators that measure them."""
