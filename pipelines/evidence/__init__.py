"""Evidence: what pretraining and motion-guided masks are worth, at a size that everyone can repeat."""
