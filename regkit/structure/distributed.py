"""Tensors that lie on several ranks (DTensor, as FSDP2 makes them): a rank's part and the whole.

Everything here that says so is a collective: all ranks call it, with the same tensors in the same
order, those without a row among them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.structure.groups import GroupSet

T = TypeVar("T")

# Entries of whole tensors that are gathered at once: 64 MiB in float32. No set of groups is cut.
GATHERED_ENTRIES = 2**24
# Bytes: every tensor begins in the packed buffer where any type may.
ALIGNMENT = 16

# torch 2.14 renamed it, and warns of the old name.
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Rows:
    """How the ranks of a process group share the rows of a tensor: as `torch.chunk` cuts them.

    The last ranks may have fewer rows than `length`, or none.
    """

    group: dist.ProcessGroup
    rank: int
    num_ranks: int
    num_rows: int

    @property
    def length(self) -> int:
        """Number of rows of the first rank."""
        return -(-self.num_rows // self.num_ranks)

    @property
    def run(self) -> slice:
        """The rows of this rank."""
        start, stop = (min(k * self.length, self.num_rows) for k in (self.rank, self.rank + 1))
        return slice(start, stop)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, and any other tensor as it is."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local is not None else tensor


def full_tensor(value: Tensor) -> Tensor:
    """Return the whole of a DTensor (a collective), and any other tensor as it is."""
    full_tensor = getattr(value, "full_tensor", None)
    return full_tensor() if full_tensor is not None else value


def is_by_rows(tensor: Tensor) -> bool:
    """Say whether this rank holds the tensor whole, or a run of its rows."""
    shared = [p for p in _placements(tensor) if not p.is_replicate()]
    return len(shared) < 2 and all(p.is_shard(0) for p in shared)


def rows_of(tensor: Tensor) -> Rows | None:
    """Return who has which rows, None where this rank holds the whole tensor.

    Raises: InputError when the ranks share anything but rows.
    """
    if not is_by_rows(tensor):
        raise InputError(
            f"A tensor of shape {tuple(tensor.shape)} lies on the ranks as {_placements(tensor)}, "
            "and groups of its entries cannot be put together. Shard weights along axis 0 only, as "
            "fully_shard does by default (Shard(0), or Replicate and Shard(0)), or use an "
            "element-wise penalty such as L1."
        )
    axis = next((d for d, p in enumerate(_placements(tensor)) if p.is_shard()), None)
    mesh: Any = getattr(tensor, "device_mesh", None)
    if axis is None or mesh.size(axis) == 1:
        return None
    return Rows(mesh.get_group(axis), mesh.get_local_rank(axis), mesh.size(axis), tensor.shape[0])


def shared_rows(group_set: GroupSet) -> Rows | None:
    """Return `rows_of` the first parameter of a group_set.

    Raises: InputError as it does, and when the parameters of the group set are shared by different
        ranks.
    """
    found = [rows_of(piece.parameter) for piece in group_set.pieces]
    first = group_set.pieces[0]
    for piece, rows in zip(group_set.pieces, found, strict=True):
        if (rows and rows.group) != (found[0] and found[0].group):
            raise InputError(
                f"{first.name!r} and {piece.name!r} live and die together, and are not sharded "
                "over the same ranks. Give both to fully_shard with one mesh."
            )
    return found[0]


def buckets(parts: Sequence[tuple[T, GroupSet]]) -> Iterator[list[tuple[T, GroupSet]]]:
    """Yield group sets that are gathered together: of the same ranks, and a bounded size."""
    by_group: dict[Any, list[tuple[T, GroupSet]]] = defaultdict(list)
    for part in parts:
        rows = shared_rows(part[1])
        by_group[rows and rows.group].append(part)
    for found in by_group.values():
        bucket: list[tuple[T, GroupSet]] = []
        held: set[nn.Parameter] = set()
        for part in found:
            wanted = held | {piece.parameter for piece in part[1].pieces}
            if bucket and _entries(wanted) > GATHERED_ENTRIES:
                yield bucket
                bucket, held = [], set()
            bucket.append(part)
            held |= {piece.parameter for piece in part[1].pieces}
        if bucket:
            yield bucket


def parameters_of(parts: Sequence[tuple[Any, GroupSet]]) -> list[nn.Parameter]:
    """Return what the group sets lie in, each parameter once."""
    return list(dict.fromkeys(piece.parameter for _, b in parts for piece in b.pieces))


def whole_rows(
    parts: Sequence[tuple[T, GroupSet]],
) -> Iterator[tuple[T, Float[Tensor, "groups size"]]]:
    """Yield the groups of whole group sets as rows, on all ranks alike (a collective)."""
    for bucket in buckets(parts):
        parameters = parameters_of(bucket)
        whole = dict(zip(parameters, gathered([p.detach() for p in parameters]), strict=True))
        yield from ((mark, group_set.rows(whole.__getitem__)) for mark, group_set in bucket)


def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return whole tensors, by one all-gather for those of the same ranks (a collective).

    A tensor that this rank holds whole is returned itself, a DTensor as its local part.
    """
    whole = [local(t) for t in tensors]
    by_group: dict[Any, list[int]] = defaultdict(list)
    found = [rows_of(t) for t in tensors]
    for place, rows in enumerate(found):
        if rows is not None:
            by_group[rows.group, whole[place].device].append(place)
    for places in by_group.values():
        all_rows = [rows for place in places if (rows := found[place]) is not None]
        made = _all_gather([whole[place] for place in places], all_rows)
        for place, one in zip(places, made, strict=True):
            whole[place] = one
    return whole


def scatter_back(
    wholes: Mapping[nn.Parameter, Tensor], into: Mapping[nn.Parameter, Tensor]
) -> None:
    """Write of each whole tensor the rows of this rank into `into`, which they were gathered from.

    No collective: every rank has the same whole.
    """
    targets, sources = [], []
    for p, whole in wholes.items():
        rows, target = rows_of(into[p]), local(into[p])
        if rows is not None and target.numel() > 0:
            targets.append(target)
            sources.append(whole[rows.run])
    if targets:
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]: no public name


def all_reduce_counts(counts: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Add up over the ranks what each counted in its part of every tensor (a collective).

    counts: counts[i] is of the local part of tensors[i].
    """
    by_ranks: dict[Any, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        shared = (d for d, p in enumerate(_placements(tensor)) if not p.is_replicate())
        by_ranks[tuple(tensor.device_mesh.get_group(d) for d in shared)].append(place)  # type: ignore[attr-defined]: has placements
    total = counts.clone()
    for groups, places in by_ranks.items():
        if groups:
            some = counts[places]
            for group in groups:
                dist.all_reduce(some, group=group)
            total[places] = some
    return total


def placement(tensor: Tensor) -> Any:
    """Return what two tensors have in common that are shared by the same ranks on like devices."""
    mesh = getattr(tensor, "device_mesh", None)
    return mesh, _placements(tensor), local(tensor).device


def gathered_groups(numbers: Tensor, group_set: GroupSet) -> Tensor:
    """Return a number for each group of a group set of which every rank has its own (a collective).

    numbers: (groups of this rank,)
    """
    rows = shared_rows(group_set)
    if rows is None:
        return numbers.clone()
    found: list[Any] = [None] * rows.num_ranks
    dist.all_gather_object(found, numbers.cpu(), group=rows.group)
    return torch.cat(found)


def own_groups(numbers: Tensor, group_set: GroupSet) -> Tensor:
    """Return of `gathered_groups` what is this rank's: groups are counted row by row."""
    rows = shared_rows(group_set)
    if rows is None:
        return numbers
    per_row = len(numbers) // max(rows.num_rows, 1)
    return numbers[rows.run.start * per_row : rows.run.stop * per_row]


def _all_gather(parts: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]:
    """Return the whole of tensors of which every rank gives its rows.

    One buffer of bytes goes round, for types may differ; a rank with fewer rows than the first
    leaves the rest of its place unwritten, and nobody reads it.
    """
    first, device = rows[0], parts[0].device
    shapes = [(r.length, *part.shape[1:]) for part, r in zip(parts, rows, strict=True)]
    sizes = [prod(s) * part.element_size() for s, part in zip(shapes, parts, strict=True)]
    begins = [0]
    for size in sizes:
        begins.append(begins[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    sent = torch.empty(begins[-1], dtype=torch.uint8, device=device)
    places = [
        sent[begin : begin + part.numel() * part.element_size()].view(part.dtype).view(part.shape)
        for begin, part in zip(begins, parts, strict=False)
    ]
    torch._foreach_copy_(places, list(parts))  # pyright: ignore[reportPrivateImportUsage]: no public name
    received = torch.empty((first.num_ranks, begins[-1]), dtype=torch.uint8, device=device)
    _gather_single(received.view(-1), sent, group=first.group)
    made = []
    for begin, size, part, shape, r in zip(begins, sizes, parts, shapes, rows, strict=False):
        padded = received[:, begin : begin + size].view(part.dtype)
        made.append(padded.reshape(r.num_ranks * r.length, *shape[1:])[: r.num_rows])
    return made


def _placements(tensor: Tensor) -> tuple[Any, ...]:
    return getattr(tensor, "placements", ())


def _entries(tensors: set[nn.Parameter]) -> int:
    return sum(t.numel() for t in tensors)
