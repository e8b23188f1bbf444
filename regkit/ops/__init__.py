"""Threshold and difference operators: pure functions of tensors."""
