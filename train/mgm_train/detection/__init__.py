"""Action detection: annotations, proposals, key frames, the detector's test and its figures (AVA v2.2)."""
