"""One module per foreign checkpoint: weights that others published, as diffusers directories."""
