"""Where groups lie, told apart by what a kernel can do with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from regkit.ops.kernel_args import NUM_AXES, GroupAxis

Axes = tuple[tuple[int, int], ...]
MOST_LEADS = 2
MOST_INNER = 3


@dataclass(frozen=True)
class Piece:
    """A row of the geometry, its axes merged: (number, stride), the longest stride first.

    leads: count groups; inner: entries of a group.
    """

    weight: int
    param_row: int
    offset: int
    leads: Axes
    inner: Axes

    @property
    def num_groups(self) -> int:
        """Return how many groups there are."""
        return prod(number for number, _ in self.leads)

    @property
    def length(self) -> int:
        """Return how many entries a group has."""
        return prod(number for number, _ in self.inner)

    @property
    def is_rows(self) -> bool:
        """Say whether every group is one run of memory, and one stride leads to the next."""
        return len(self.leads) < 2 and self.inner in ((), ((self.length, 1),))

    @property
    def stride(self) -> int:
        """Return how far it is from one row to the next."""
        return self.leads[0][1] if self.leads else self.length

    @property
    def runs_across(self) -> bool:
        """Say whether neighbouring groups are closer together than the entries of one."""
        if not self.leads or not self.inner:
            return bool(self.leads)
        return self.leads[-1][1] < self.inner[-1][1]

    def fills(self, weight: Tensor) -> bool:
        """Say whether these rows are all of a weight, one after the other."""
        whole = self.num_groups * self.length == weight.numel() and self.offset == 0
        return whole and self.is_rows and self.stride == self.length

    def axes(self) -> list[int]:
        """Return it as a row of geometry, and its row of params."""
        leads = ((1, 0),) * (MOST_LEADS - len(self.leads)) + self.leads
        inner = ((1, 0),) * (MOST_INNER - len(self.inner)) + self.inner
        flat = [number for axis in (*leads, *inner) for number in axis]
        return [0, self.weight, self.offset, *flat, self.param_row]


NUM_NUMBERS = NUM_AXES + 1


def group_sets(geometry: Tensor, param_row: Sequence[int]) -> list[list[Piece]]:
    """Return the pieces of every group set, in order."""
    found: dict[int, list[Piece]] = {}
    for row in geometry.tolist():
        leads = (
            (row[GroupAxis.COUNT1], row[GroupAxis.STRIDE1]),
            (row[GroupAxis.COUNT2], row[GroupAxis.STRIDE2]),
        )
        inner = tuple(
            (row[a], row[a + 1]) for a in (GroupAxis.SIZE1, GroupAxis.SIZE2, GroupAxis.SIZE3)
        )
        ordered = tuple(sorted(inner, key=lambda axis: -axis[1]))
        weight = row[GroupAxis.WEIGHT]
        piece = Piece(
            weight, param_row[weight], row[GroupAxis.OFFSET], _merged(leads), _merged(ordered)
        )
        found.setdefault(row[GroupAxis.BUNDLE], []).append(piece)
    return [found[number] for number in sorted(found)]


def overlap(pieces: Sequence[Piece], weights: Sequence[Tensor]) -> bool:
    """Say whether some entry is in two groups, on which two programs would work at one time."""
    seen: dict[int, list[Piece]] = {}
    for piece in pieces:
        seen.setdefault(weights[piece.weight].data_ptr(), []).append(piece)
    for several in seen.values():
        if len(several) == 1:
            continue
        marks = torch.zeros(weights[several[0].weight].numel(), dtype=torch.uint8)
        for piece in several:
            axes = (*piece.leads, *piece.inner)
            sizes, strides = [n for n, _ in axes], [s for _, s in axes]
            marks.as_strided(sizes, strides, piece.offset).add_(1)
        if marks.numel() and marks.max() > 1:
            return True
    return False


def _merged(axes: Axes) -> Axes:
    merged: list[tuple[int, int]] = []
    for size, stride in axes:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return tuple(merged)
