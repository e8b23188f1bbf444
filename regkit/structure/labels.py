"""Labels of channels: numbers that tell, of each entry of a tensor, the channel that it belongs to.

A weight has a number for each place along each of its axes. While the model runs, these numbers
follow the entries (`operations.py`); numbers that meet in one entry are one and the same channel.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

# The labels of a tensor's entries, as many axes as it has: of size 1 along those that do not tell
# channels apart, so that it broadcasts to the tensor. 0 is no label.
Facet = Int[Tensor, "..."]


@dataclass(frozen=True)
class Labels:
    """What is known of a tensor.

    facets: labels of different kinds: a weight has one for each axis.
    data: whether it depends on the input of the network; else it is made of weights alone.
    """

    facets: tuple[Facet, ...] = ()
    data: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter or buffer, or the outputs of a layer whose inside is not followed."""

    tensor: str
    axis: int


@dataclass
class LabelStore:
    """All labels, which of them are one channel, and what was seen of them.

    first: the label of place 0, by axis.
    reads, writes: axes that take a channel in, and that make it.
    headed: labels of which attention takes some together, as one head.
    """

    first: dict[Axis, int] = field(default_factory=dict)
    sizes: dict[Axis, int] = field(default_factory=dict)
    count: int = 1
    _equal: list[Int[Tensor, "2 pairs"]] = field(default_factory=list)
    _parts: list[Int[Tensor, "2 pairs"]] = field(default_factory=list)
    _read: list[Tensor] = field(default_factory=list)
    _written: list[Tensor] = field(default_factory=list)
    _headed: list[Tensor] = field(default_factory=list)
    _broken: list[tuple[Tensor, str]] = field(default_factory=list)

    def new(self, axis: Axis, size: int) -> Int[Tensor, " size"]:
        """Return the labels of an axis, new ones where it has none yet."""
        if axis not in self.first:
            self.first[axis], self.sizes[axis] = self.count, size
            self.count += size
        return torch.arange(size) + self.first[axis]

    def unify(self, a: Facet, b: Facet, within_weight: bool = False) -> None:
        """Take labels that meet for one channel; the facets broadcast to each other.

        within_weight: both are parts of one weight, so that what one does the other does.
        """
        pairs = torch.stack([x.flatten() for x in torch.broadcast_tensors(a, b)])
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs > 0).all(0)]
        if pairs.numel():
            (self._parts if within_weight else self._equal).append(torch.unique(pairs, dim=1))

    def fuse(self, facet: Facet, axes: Iterable[int]) -> Facet:
        """Take all that differ along these axes for one channel; return the facet without them."""
        for axis in axes:
            if facet.shape[axis] > 1:
                kept = facet.amax(axis, keepdim=True)
                self.unify(facet, kept)
                facet = kept
        return facet

    def read(self, facets: Iterable[Facet]) -> None:
        """Note that these labels, of weights, take channels in."""
        self._read += [f.flatten() for f in facets]

    def written(self, facets: Iterable[Facet]) -> None:
        """Note that these labels, of weights, make channels."""
        self._written += [f.flatten() for f in facets]

    def headed(self, facets: Iterable[Facet]) -> None:
        """Note that these labels are what is left of a head."""
        self._headed += [f.flatten() for f in facets]

    def refuse(self, facets: Iterable[Facet], why: str) -> None:
        """Note why the channels with these labels must not be touched."""
        self._broken += [(f.flatten(), why) for f in facets]

    def roots(self) -> Int[Tensor, " labels"]:
        """Return the smallest label of the channel that each label belongs to."""
        return _components(self.count, self._equal + self._parts)

    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return, by label, whether it takes in, makes, and belongs to a head."""
        part = _components(self.count, self._parts)
        masks = []
        for found in (self._read, self._written, self._headed):
            mask = torch.zeros(self.count, dtype=torch.bool)
            mask[part[torch.cat([torch.zeros(1, dtype=torch.long), *found])]] = True
            mask[0] = False
            masks.append(mask[part])
        return masks[0], masks[1], masks[2]

    def agrees(self, other: "LabelStore") -> bool:
        """Say whether the same was seen of the same axes."""
        return (
            (self.first, self.sizes) == (other.first, other.sizes)
            and torch.equal(self.roots(), other.roots())
            and all(map(torch.equal, self.seen(), other.seen()))
            and self.refused() == other.refused()
        )

    def used(self) -> set[str]:
        """Return the names of the tensors that take channels in or make them."""
        reads, writes, _ = self.seen()
        seen = reads | writes
        spans = {a: slice(first, first + self.sizes[a]) for a, first in self.first.items()}
        return {axis.tensor for axis, span in spans.items() if bool(seen[span].any())}

    def refused(self) -> dict[int, str]:
        """Return the first reason against each label that there is one against."""
        why: dict[int, str] = {}
        for labels, reason in self._broken:
            for label in torch.unique(labels).tolist():
                why.setdefault(label, reason)
        why.pop(0, None)
        return why


def _components(count: int, pairs: list[Int[Tensor, "2 pairs"]]) -> Int[Tensor, " labels"]:
    """Return the smallest label that each is joined with, through any number of pairs."""
    root = torch.arange(count)
    a, b = torch.cat([torch.zeros(2, 1, dtype=torch.long), *pairs], dim=1)
    while True:
        low = torch.minimum(root[a], root[b])
        new = root.scatter_reduce(0, root[a], low, "amin")
        new = new.scatter_reduce(0, root[b], low, "amin")
        new = new[new]
        if torch.equal(new, root):
            return root
        root = new


def compact(facet: Facet) -> Facet:
    """Return the facet with size 1 along the axes on which nothing changes."""
    for axis, size in enumerate(facet.shape):
        if size > 1:
            first = facet.narrow(axis, 0, 1)
            if facet.stride(axis) == 0 or bool((facet == first).all()):
                facet = first
    return facet


def lifted(facet: Facet, ndim: int) -> Facet:
    """Return the facet with axes of size 1 in front, `ndim` in all."""
    return facet.reshape((1,) * (ndim - facet.ndim) + tuple(facet.shape))


def meets(a: Facet, b: Facet) -> bool:
    """Say whether both tell channels apart along one axis."""
    return any(m > 1 and n > 1 for m, n in zip(a.shape, b.shape, strict=True))
