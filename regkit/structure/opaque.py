"""Layers that stand in the graph as one operation: their insides are known without it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch_pruning.pruner.function import BasePruningFunc

from regkit.structure.attention import is_attention

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def make_opaque(model: nn.Module) -> list[nn.Module]:
    """Make each recurrent and attention layer of a replica one operation of the graph."""
    sealed = [m for m in model.modules() if isinstance(m, _RECURRENT) or is_attention(m)]
    for module in sealed:
        module.forward = _Sealed(module.forward)
    return sealed


def opaque_pruners(sealed: list[nn.Module]) -> dict[type[nn.Module], BasePruningFunc]:
    """Return what tells the tracer how many channels each kind of sealed layer has."""
    return {type(module): _Opaque() for module in sealed}


class _Sealed:
    """A forward whose outputs depend on its inputs by one operation."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            leaves, spec = tree_flatten(self._forward(*args, **kwargs))
        at = [place for place, leaf in enumerate(leaves) if _is_real(leaf)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if _is_real(leaf)]
        sealed = _Seal.apply(len(at), *(leaves[place] for place in at), *inputs)
        for place, tensor in zip(at, sealed, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, spec)


class _Seal(torch.autograd.Function):
    """Hand the first tensors on, as if they came from the others."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise AssertionError("the graph is only read, never run backward")


class _Opaque(BasePruningFunc):
    """The numbers of channels of a sealed layer; the tracer is not asked to cut it."""

    TARGET_MODULES = nn.Module

    def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        return layer

    def get_out_channels(self, layer: Any) -> int:
        if isinstance(layer, nn.RNNBase):
            width = layer.proj_size or layer.hidden_size
            return width * (2 if layer.bidirectional else 1)
        if isinstance(layer, nn.RNNCellBase):
            return layer.hidden_size
        if isinstance(layer, nn.MultiheadAttention):
            return layer.embed_dim
        last = layer.proj if hasattr(layer, "proj") else layer.project[0]
        return last.out_features

    def get_in_channels(self, layer: Any) -> int:
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            return layer.input_size
        if isinstance(layer, nn.MultiheadAttention):
            return layer.embed_dim
        return layer.qkv.in_features


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
