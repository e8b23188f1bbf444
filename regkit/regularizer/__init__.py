"""Penalties bound to a model: the public shell of the library for plain PyTorch."""
