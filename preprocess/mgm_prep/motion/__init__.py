"""Motion vectors to one velocity for each 8×8 cell; other sources of motion where a codec exports none."""
