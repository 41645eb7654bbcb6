"""Training and judging of weights: used from the repository, not installed into Slicer."""
