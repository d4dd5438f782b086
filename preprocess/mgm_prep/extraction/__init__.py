"""The extract command: the plan, the parts of a store, labels, and the videos that were rejected."""
