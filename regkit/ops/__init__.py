"""Operators on tensors: thresholds, differences, ranks; in torch, in C, in Triton.

Enters: tensors and numbers. Leaves: tensors; what kernels write stands in their arguments.
Never: a penalty, a parameter's name, an optimizer.
"""
