"""A video file to pictures, motion vectors and presentation times."""
