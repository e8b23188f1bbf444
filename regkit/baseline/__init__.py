"""The old recipe: histograms of oriented gradients, and sparse logistic regression on them."""
