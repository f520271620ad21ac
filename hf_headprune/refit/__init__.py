"""What a removal costs, and how the weights that remain make up for it: Optimal Brain Surgeon for whole units."""
