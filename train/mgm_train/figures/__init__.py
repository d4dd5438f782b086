"""The paper's figures: masks, attention maps, reconstructions."""
