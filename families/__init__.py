"""What models there are: their sizes and their weights, without JAX."""
