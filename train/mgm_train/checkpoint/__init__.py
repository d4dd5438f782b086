"""The run folder, weights files, and the transfer of weights to another model or library."""
