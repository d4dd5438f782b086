"""Which videos a data set has, with their labels and splits."""
