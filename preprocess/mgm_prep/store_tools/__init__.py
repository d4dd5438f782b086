"""Commands on an existing store: verify, repair, index, describe, optical flow, saliency."""
