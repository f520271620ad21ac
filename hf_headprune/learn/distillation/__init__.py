"""Distillation: a teacher's logits and hidden states in the loss."""
