"""Random crops, flips, RandAugment and erasing of clips, on a CPU or on the device of the batch."""
