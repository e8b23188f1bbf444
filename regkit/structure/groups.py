"""How weights are seen as rows of groups, and back, without a copy where memory allows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regkit.structure.selectors import Entry

Read = Callable[[nn.Parameter], Tensor]


@dataclass(frozen=True)
class GroupView:
    """A tensor seen group by group: the axes that count the groups first, then what is in one.

    narrowed: (axis, start, length) of the part that is seen; the whole when None.
    shape: that part, its axes split.
    order: of the axes of `shape`; the first `lead` of them count the groups.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    lead: int = 1
    narrowed: tuple[int, int, int] | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the view, in as many axes as `shape` has."""
        if self.narrowed is not None:
            tensor = tensor.narrow(*self.narrowed)
        return tensor.view(self.shape).permute(self.order)

    def rows(self, tensor: Tensor) -> Float[Tensor, "groups size"]:
        """Return (groups, size); a copy where the memory order asks for one."""
        seen = self(tensor)
        return seen.reshape(prod(seen.shape[: self.lead]), -1)

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return prod(self.shape[axis] for axis in self.order[: self.lead])

    @property
    def size(self) -> int:
        """Number of entries in a group."""
        return prod(self.shape[axis] for axis in self.order[self.lead :])

    def in_memory_order(self, tensor: Tensor) -> "GroupView":
        """Sort the axes within a group as they lie in memory: the order within one is free."""
        # Of an empty stand-in: a DTensor (FSDP2) cannot be viewed in every way that its shards can.
        strides = self(torch.empty_strided(tensor.shape, tensor.stride(), device="meta")).stride()
        inner = range(self.lead, len(self.order))
        inner = sorted(inner, key=lambda place: -strides[place])
        return replace(
            self, order=self.order[: self.lead] + tuple(self.order[place] for place in inner)
        )


def along(
    shape: Sequence[int], axis: int, count: int, *, inner: int = 1, start: int = 0, outer: int = 1
) -> GroupView:
    """See `count` groups along one axis: group g holds start + (o * count + g) * inner + i.

    inner: entries of a group that follow each other (a channel flattened over space, the rows of
        an attention head); outer: how often the pattern repeats (the gates of a recurrent layer).
    """
    split = (*shape[:axis], outer, count, inner, *shape[axis + 1 :])
    order = (axis + 1, *(a for a in range(len(split)) if a != axis + 1))
    length = outer * count * inner
    whole = start == 0 and length == shape[axis]
    return GroupView(split, order, 1, None if whole else (axis, start, length))


@dataclass(frozen=True, eq=False)
class Piece:
    """What one parameter holds of the groups of a group_set."""

    name: str
    parameter: nn.Parameter
    view: GroupView


@dataclass(frozen=True, eq=False)
class GroupSet:
    """Groups of equal size that lie side by side in the same parameters.

    name: of the parameter, or of what ties several together.
    pieces: row g of the group set is row g of every piece, one after the other.
    """

    name: str
    pieces: tuple[Piece, ...]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return self.pieces[0].view.num_groups

    @property
    def size(self) -> int:
        """Number of entries in a group."""
        return sum(piece.view.size for piece in self.pieces)

    def rows(self, read: Read = torch.Tensor.detach) -> Float[Tensor, "groups size"]:
        """Return the groups as rows, of the parameters or of what `read` gives for each."""
        parts = [piece.view.rows(read(piece.parameter)) for piece in self.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def write(self, rows: Float[Tensor, "groups size"], read: Read = torch.Tensor.detach) -> None:
        """Write rows into the parameters, or into what `read` gives for each."""
        parts = rows.split([p.view.size for p in self.pieces], dim=1)
        for piece, part in zip(self.pieces, parts, strict=True):
            seen = piece.view(read(piece.parameter))
            seen.copy_(part.reshape(seen.shape))


def view_of(entry: Entry, layout: str) -> GroupView | str:
    """Return how one parameter is seen in a layout of single parameters, or why it is not.

    layout: "filter", "in_channel", "kernel" or "time_tap" (`GroupPenalty.groups`); "time": the
        taps of each 3-D kernel, one row for every place in space; "fiber": the entries along the
        input axis.
    """
    shape = tuple(entry.parameter.shape)
    if len(shape) < 2:
        if layout == "filter":
            return GroupView((*shape, 1), tuple(range(len(shape) + 1)))
        return "has no rows and columns"
    view = _VIEWS[layout](entry, shape)
    return view if isinstance(view, str) else view.in_memory_order(entry.parameter)


def _filters(entry: Entry, shape: tuple[int, ...]) -> GroupView:
    module = entry.module
    if isinstance(module, _ConvTransposeNd):
        return _two_axes(shape, module.groups)
    gates = _gates(entry, shape)
    return along(shape, 0, shape[0] // gates, outer=gates)


def _inputs(entry: Entry, shape: tuple[int, ...]) -> GroupView:
    module = entry.module
    if isinstance(module, _ConvTransposeNd):
        return along(shape, 0, shape[0])
    if isinstance(module, _ConvNd) and module.groups > 1:
        return _two_axes(shape, module.groups)
    return along(shape, 1, shape[1])


def _kernels(entry: Entry, shape: tuple[int, ...]) -> GroupView | str:
    if not isinstance(entry.module, _ConvNd):
        return "is no convolution"
    return GroupView(shape, tuple(range(len(shape))), lead=2)


def _taps(entry: Entry, shape: tuple[int, ...]) -> GroupView | str:
    return _lacks_taps(entry, shape) or along(shape, 2, shape[2])


def _over_time(entry: Entry, shape: tuple[int, ...]) -> GroupView | str:
    return _lacks_taps(entry, shape) or GroupView(shape, (0, 1, 3, 4, 2), lead=4)


def _fibers(entry: Entry, shape: tuple[int, ...]) -> GroupView:
    axis = 0 if isinstance(entry.module, _ConvTransposeNd) else 1
    others = tuple(a for a in range(len(shape)) if a != axis)
    return GroupView(shape, (*others, axis), lead=len(others))


def _two_axes(shape: tuple[int, ...], groups: int) -> GroupView:
    """Count the channels that axis 1 numbers within each convolution group, a run of axis 0."""
    split = (groups, shape[0] // groups, *shape[1:])
    return GroupView(split, (0, 2, 1, *range(3, len(split))), lead=2)


def _gates(entry: Entry, shape: tuple[int, ...]) -> int:
    """Return how many rows of a recurrent weight belong to one hidden unit."""
    if isinstance(entry.module, nn.RNNBase | nn.RNNCellBase) and "_hr" not in entry.name:
        return shape[0] // entry.module.hidden_size
    return 1


def _lacks_taps(entry: Entry, shape: tuple[int, ...]) -> str | None:
    if not isinstance(entry.module, _ConvNd) or len(shape) != 5:
        return "is no 3-D convolution"
    return "has one tap in time only" if shape[2] == 1 else None


ViewOf = Callable[[Entry, tuple[int, ...]], GroupView | str]
# Kinds of groups that lie in one parameter, by name: how it is seen, or why it has none.
SINGLE: dict[str, ViewOf] = {
    "filter": _filters,
    "in_channel": _inputs,
    "kernel": _kernels,
    "time_tap": _taps,
}
# Kinds that several parameters hold together, by name: what finds them, "module:function". Called
# with (model, example), it returns their sets of groups, and notes on what is none. Named and not
# imported, for those modules build on this one.
COUPLED: dict[str, str] = {
    "hidden_unit": "regkit.structure.recurrent:units",
    "head": "regkit.structure.coupling:heads",
    "channel": "regkit.structure.coupling:channels",
    "channel_inputs": "regkit.structure.coupling:readers",
}
# What `GroupPenalty.groups` may be.
KINDS = (*SINGLE, *COUPLED)
# Layouts that some penalties have of themselves.
_VIEWS: dict[str, ViewOf] = {**SINGLE, "time": _over_time, "fiber": _fibers}
