"""What is zero, and a smaller model without it: density, remaining sizes, shrink, latency.

Enters: a model and an example. Leaves: numbers, or a copy with equal outputs. Never: the user's own
model is changed.
"""
