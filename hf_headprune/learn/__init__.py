"""Learn which heads matter while the model is fine-tuned."""
