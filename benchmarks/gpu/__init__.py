"""What a run costs on an accelerator."""
