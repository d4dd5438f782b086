"""The ViT encoder, the masked autoencoder, the classifier, their position tables and their cost in FLOPs."""
