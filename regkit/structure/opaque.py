"""Layers whose inside is not followed while a model is traced: it is known without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regkit.structure.attention import is_pooled
from regkit.structure.labels import Axis, Labels


@contextmanager
def opaque(model: nn.Module, follower: Any) -> Iterator[None]:
    """Hand labels past the recurrent layers of a replica, and let them end at pooled attention.

    A recurrent layer has channels for each direction: Axis("rnn", 0) and Axis("rnn", 1).
    """
    own: dict[nn.Module, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            opaque_forward: Any = _Recurrent(module.forward, name, module, follower)
        elif is_pooled(module):
            opaque_forward = _Pooled(module.forward, name, follower)
        else:
            continue
        own[module] = module.__dict__.get("forward")
        module.forward = opaque_forward
    try:
        yield
    finally:
        for module, forward in own.items():
            del module.forward
            if forward is not None:
                module.forward = forward


class _Recurrent:
    """A recurrent layer: its weights read the last axis of its input, its units write."""

    def __init__(self, forward: Any, name: str, layer: nn.RNNBase, follower: Any) -> None:
        self._forward, self._name, self._layer, self._follower = forward, name, layer, follower

    def __call__(self, x: Any, state: Any = None) -> Any:
        follower, layer, channels = self._follower, self._layer, self._follower.channels
        follower.resting = True
        try:
            made = self._forward(x, state)
        finally:
            follower.resting = False
        given = x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x
        for facet in follower.labels_of(given).facets:
            if facet.shape[-1] > 1:
                places = channels.fuse(facet, range(facet.ndim - 1)).flatten()
                for end in ("", "_reverse") if layer.bidirectional else ("",):
                    leaf = f"{self._name}.weight_ih_l0{end}" if self._name else f"weight_ih_l0{end}"
                    own = channels.new(Axis(leaf, 1), layer.input_size)
                    channels.unify(own, places)
                    channels.read([own])
        for begun in tree_leaves(state):
            why = f"is the first state of {self._name}"
            channels.refuse(follower.labels_of(begun).facets, why)
        self._label(made)
        return made

    def _label(self, made: Any) -> None:
        """Label the outputs, and the last state of the last layer."""
        layer, channels = self._layer, self._follower.channels
        directions = 2 if layer.bidirectional else 1
        width = layer.proj_size or layer.hidden_size
        units = [channels.new(Axis(self._name, d), width) for d in range(directions)]
        channels.written(units)
        if layer.proj_size:
            channels.refuse(units, f"passes {self._name}, a recurrent layer with projections")
        found, state = made
        found = found.data if isinstance(found, nn.utils.rnn.PackedSequence) else found
        joined = torch.cat(units).view([1] * (found.ndim - 1) + [-1])
        self._follower.labels[found] = Labels((joined,), data=True)
        for last in tree_leaves(state):
            if last.shape[-1] == width:
                levels = torch.zeros(len(last), width, dtype=torch.long)
                levels[-directions:] = torch.stack(units)
                facet = levels.view(len(last), *[1] * (last.ndim - 2), width)
                self._follower.labels[last] = Labels((facet,), data=True)


class _Pooled:
    """Attention that pools all heads alike: its heads are known, and its stream ends."""

    def __init__(self, forward: Any, name: str, follower: Any) -> None:
        self._forward, self._name, self._follower = forward, name, follower

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._follower.resting = True
        try:
            made = self._forward(*args, **kwargs)
        finally:
            self._follower.resting = False
        for x in tree_leaves((args, kwargs)):
            why = f"passes {self._name}, an attention layer"
            self._follower.channels.refuse(self._follower.labels_of(x).facets, why)
        for x in tree_leaves(made):
            if isinstance(x, Tensor):
                self._follower.labels[x] = Labels(data=True)
        return made
