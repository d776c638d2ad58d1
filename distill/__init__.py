"""Teacher to one-step student by Teacher-Feature Drifting (arXiv 2605.07327)."""
