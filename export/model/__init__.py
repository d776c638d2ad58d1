"""One-step models of any origin: loading, recipes, stock diffusers' own call."""
