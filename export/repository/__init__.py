"""The model repository: versions, manifests, Triton's configs."""
