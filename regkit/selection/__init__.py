"""Which strength: bounds from the model and the data, grids, cross-validation, stability.

Enters: a model, a penalty, batches or scores. Leaves: strengths, and why. Never: training.
"""
