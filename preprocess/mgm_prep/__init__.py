"""Stage 1: videos → store."""
