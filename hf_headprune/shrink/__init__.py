"""Cut a model down to a plan, and save and load what is left."""
