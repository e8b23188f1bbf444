"""Which strength: bounds from the model and the data, grids, cross-validation, stability."""
