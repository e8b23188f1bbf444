"""Sets of coupled channels, and everything in a model that belongs to each channel."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from regkit.structure.groups import GroupSet, GroupView, Piece, along
from regkit.structure.selectors import clean_name

WRITER, READER, BUFFER = "writer", "channel_inputs", "buffer"


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the channels lie along one axis of a parameter or buffer.

    index: the places of channel g along `axis` are index[g].
    role: of a parameter, WRITER (makes the channel) or READER (takes it in); BUFFER else.
    """

    tensor: str
    axis: int
    index: Int[Tensor, "groups size"]
    role: str


@dataclass(frozen=True)
class Width:
    """A number that a module keeps of its channels: it falls by `per` for each removed one."""

    module: str
    attribute: str
    per: int


LayerSlices = tuple[list[Slice], list[Width]]  # what channels hold of one layer


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels that are alike: each lives in the same tensors and can be removed by itself.

    name: the first layer that writes them.
    writers: what makes a channel: output rows, biases, scale and shift of norms, bare parameters.
    readers: input slices of the layers that take it in.
    together: sets of one recurrent layer, which keeps a single hidden size, have this name in
        common and lose equally many channels.
    by_writers: whether the outputs are the same without a channel whose writers are all zero.
    traced: whether a run said so; else the layer is known.
    head: whether they are heads of attention.
    """

    name: str
    writers: tuple[Piece, ...]
    readers: tuple[Piece, ...]
    slices: tuple[Slice, ...]
    widths: tuple[Width, ...]
    together: str | None = None
    by_writers: bool = True
    traced: bool = True
    head: bool = False

    @property
    def num_groups(self) -> int:
        """Number of channels."""
        return self.slices[0].index.shape[0]

    def group_set(self, kind: str) -> GroupSet:
        """Return what writes the channels ("channel") or what reads them ("channel_inputs")."""
        return GroupSet(self.name, self.writers if kind == "channel" else self.readers)


@dataclass(frozen=True, eq=False)
class Coupling:
    """The channels of a model that can be removed without a change of its outputs.

    A channel whose readers are all zero can go without conditions. One whose writers are all zero
    can where `by_writers`: whatever follows must turn zeros into zeros (ReLU, GELU and pools do, a
    sigmoid does not). Of a stream that passes a norm over channels (LayerNorm, GroupNorm) no
    channel can go, for the statistics of the others would change; such sets are in `notes`.

    notes: what is left out, one line each with its reason.
    """

    channels: tuple[Channels, ...]
    notes: tuple[str, ...]

    def group_sets(self, kind: str) -> list[GroupSet]:
        """Return the groups of one side; each weight is in one of them at most.

        kind: "channel", all that writes a channel, or "channel_inputs", all that reads it. The two
            overlap in weights that read one channel and write another, so take one of them.
        """
        chosen = [c for c in self.channels if kind == "channel_inputs" or c.by_writers]
        group_sets = [c.group_set(kind) for c in chosen]
        assert_disjoint(group_sets)
        return group_sets


def assert_disjoint(group_sets: Iterable[GroupSet]) -> None:
    """Stop when a weight is in two groups: a fault of this package, not of its user."""
    taken: dict[nn.Parameter, Tensor] = {}
    for piece in (p for group_set in group_sets for p in group_set.pieces):
        if piece.parameter not in taken:
            shape = piece.parameter.shape
            taken[piece.parameter] = torch.zeros(shape, dtype=torch.int16)
        piece.view(taken[piece.parameter]).add_(1)
    for count in taken.values():
        assert count.numel() == 0 or int(count.max()) <= 1, "a weight is in two groups"


def pieces_of(slice_: Slice, parameter: nn.Parameter) -> tuple[Piece, ...] | None:
    """Return the slice as views of its parameter, or None when its places follow no pattern."""
    views = _views(slice_, parameter.shape)
    if views is None:
        return None
    name = clean_name(slice_.tensor)
    return tuple(Piece(name, parameter, v.in_memory_order(parameter)) for v in views)


def _views(slice_: Slice, shape: Sequence[int]) -> list[GroupView] | None:
    """Return one view where the pattern repeats evenly, else one for each run."""
    index = slice_.index.sort(dim=1).values
    groups, size = index.shape
    inner = int(index[1, 0] - index[0, 0])
    if inner < 1 or size % inner:
        return None
    starts = index[0, ::inner].tolist()
    offsets = torch.arange(groups)[:, None] * inner + torch.arange(inner)
    if not torch.equal(index, torch.cat([start + offsets for start in starts], dim=1)):
        return None
    steps = torch.tensor(starts).diff()
    if bool((steps == groups * inner).all()):
        return [along(shape, slice_.axis, groups, inner=inner, start=starts[0], outer=len(starts))]
    return [along(shape, slice_.axis, groups, inner=inner, start=start) for start in starts]
