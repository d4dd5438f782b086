"""Commands on an existing store: verify, repair, describe, optical flow, saliency."""
