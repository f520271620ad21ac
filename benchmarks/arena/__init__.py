"""The arena: ways to make a fine-tuned MiniLM smaller, on the same models, examples and steps. See `__main__`."""
