"""A trained model on videos outside a training: features, predictions."""
