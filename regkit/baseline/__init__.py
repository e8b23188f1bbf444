"""The old recipe: histograms of oriented gradients, and sparse logistic regression on them.

Enters: videos of a data set. Leaves: a detector in one readable file, its scores, two pictures.
Never: a net.
"""
