"""From motion to masks: guidance, the geometry of moving rectangles, the masking strategies (paper §3.2 and §3.3)."""
