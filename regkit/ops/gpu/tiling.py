"""What each program works on, the longest first: the last ones to finish are then short."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regkit.ops.gpu.group_layout import NUM_NUMBERS, Piece

# Groups up to this size are worked on many at a time.
SHORT = 64


@dataclass(frozen=True)
class Sizes:
    """How much a program takes on; smaller in tests.

    block, num_blocks: entries at a time, and how often.
    tiles: (rows, columns) held in registers. tile: a long row is held in pieces of this length;
        long: how many of them there may be.
    kinds: (groups, entries) at a time, of any geometry: one long group, many short ones; the same
        where the next group is closer than the next entry.
    """

    block: int = 1024
    num_blocks: int = 4
    tiles: tuple[tuple[int, int], ...] = (
        (32, 32), (16, 128), (8, 256), (4, 512), (2, 1024), (1, 2048),
    )  # fmt: skip
    tile: int = 2048
    long: tuple[int, ...] = (4, 7)
    kinds: tuple[tuple[int, int], ...] = ((1, 2048), (32, 32), (8, 128), (32, 32))


@dataclass
class Stack:
    """Items of one kernel: rows of numbers, and how long they take."""

    width: int
    rows: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)

    def add(self, columns: Sequence[int | Tensor], size: int | Tensor) -> None:
        """Add items, as many as a column that is a tensor has numbers."""
        (length,) = {len(c) for c in columns if isinstance(c, Tensor)}
        self.rows.append(torch.stack([torch.as_tensor(c).expand(length) for c in columns], 1))
        self.sizes.append(torch.as_tensor(size).expand(length))

    def sorted(self) -> Tensor:
        """Return the items, the longest first."""
        if not self.rows:
            return torch.zeros(0, self.width).long()
        order = torch.cat(self.sizes).argsort(descending=True, stable=True)
        return torch.cat(self.rows)[order]


def of_entries(stack: Stack, place: int, param_row: int, count: int, sizes: Sizes) -> None:
    """Add the entries of a weight: weight, row of params, start, count."""
    chunk = sizes.block * sizes.num_blocks
    starts = torch.arange(0, count, chunk)
    counts = (count - starts).clamp_max(chunk)
    stack.add((place, param_row, starts, counts), counts)


def of_rows(stack: Stack, piece: Piece, kind: int, num: int, gate: int) -> None:
    """Add rows, `num` at a time, see `GpuTable`.

    gate: address of the first row's byte; 0 where there are none.
    """
    first = torch.arange(0, piece.num_groups, num)
    rows = (piece.num_groups - first).clamp_max(num)
    start = piece.offset + first * piece.stride
    gates = gate + first if gate else 0
    columns = (piece.weight, piece.param_row, kind, start, rows, piece.length, piece.stride, gates)
    stack.add(columns, rows * piece.length)


def of_groups(
    stack: Stack, pieces: Sequence[Piece], kind: int, num: int, place: int, gate: int
) -> None:
    """Add groups, `num` at a time, see `GpuTable`.

    gate: address of the first group's byte; 0 where there are none.
    """
    first = torch.arange(0, pieces[0].num_groups, num)
    groups = (pieces[0].num_groups - first).clamp_max(num)
    length = sum(piece.length for piece in pieces)
    stack.add((place, len(pieces), first, groups, kind, gate), groups * length)


def kind_of(pieces: Sequence[Piece]) -> int:
    """Return the class of groups of any geometry: see `Sizes.kinds`."""
    longest = max(pieces, key=lambda piece: piece.length)
    is_short = longest.length <= SHORT
    return 2 * longest.runs_across + is_short


def table_of(pieces: Sequence[Piece]) -> Tensor:
    """Return the table of pieces."""
    rows = [piece.axes() for piece in pieces]
    return torch.tensor(rows, dtype=torch.int64).view(-1, NUM_NUMBERS)
