"""Targets, losses, the optimizer and the training loop."""
