"""Targets of the decoder: what it predicts of the masked tokens, one module for each target."""
