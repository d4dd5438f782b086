"""From a store to batches: labels, frame sampling, views, clips, augmentation, the data loader."""
