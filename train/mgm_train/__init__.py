"""Stage 2: store → model."""
