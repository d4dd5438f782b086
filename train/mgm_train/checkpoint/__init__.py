"""The run folder, weights files, and what weights become in another model or another library."""
