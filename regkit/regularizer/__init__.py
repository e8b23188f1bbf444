"""Penalties bound to a model: the shell of the library for plain PyTorch.

Enters: a model, penalties, an optimizer. Leaves: a model whose weights are regularized after each
step, and what there is to say of them. Never: Lightning, video, Hydra.
"""
