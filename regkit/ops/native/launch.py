"""The passes on a CPU: a little C, compiled once on this machine at first use, called by ctypes.

Nothing is asked of the user: where there is no compiler, no OpenMP or no float32, `prepare` gives
None, and torch takes the prox. REGKIT_NATIVE=0 in the environment asks for that.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from regkit.ops.formula import SHRINK, Formula
from regkit.ops.kernel_args import SIZES, STRIDES, GroupAxis, KernelArgs, LaunchTable
from regkit.ops.native.build import kernels, prox_address

# Entries that a thread works on before it takes the next ones.
ITEM = 1 << 16
# Groups up to this size are laid side by side, as many as there are lanes.
SHORT = 64
LANES = 16

# The threads of OpenMP do not live on in a forked process, which would wait for them for ever.
_forked = False


def prepare(
    args: KernelArgs, formulas: Sequence[Formula], metric: str, update: str = "none"
) -> LaunchTable | None:
    """Lay down where the weights lie, None where the kernel does not serve them.

    It serves dense float32 weights on the CPU after the optimizer's own step (update "none"); the
    first call compiles it, a matter of seconds, and later processes find it in the user's cache.
    """
    if os.environ.get("REGKIT_NATIVE") == "0" or update != "none" or not _is_served(args, metric):
        return None
    if _overlaps(args) or kernels() is None:
        return None
    if args.geometry is not None:
        return _table_of_groups(args, metric) if tuple(formulas) == (SHRINK,) else None
    if any(formula.grouped for formula in formulas):
        return None
    proxes = [prox_address(formula) for formula in formulas]
    return None if None in proxes else _table_of_entries(args, metric, proxes)


def refresh(table: LaunchTable, args: KernelArgs) -> LaunchTable | None:
    """Return the table: the kernels read no gradients."""
    return table


def _is_served(args: KernelArgs, metric: str) -> bool:
    states = _second_moments(args, metric)
    if metric == "adaptive" and not states:
        return False
    like = all(s.stride() == w.stride() for s, w in zip(states, args.weights, strict=bool(states)))
    if args.geometry is None:
        like = like and all(
            gate.stride() == w.stride()
            for gate, w in zip(args.gates, args.weights, strict=bool(args.gates))
        )
    tensors = (*args.weights, *states, *args.step_counts)
    return like and all(
        t.device.type == "cpu" and t.dtype == torch.float32 and _is_dense(t) for t in tensors
    )


def _is_dense(tensor: Tensor) -> bool:
    """Say whether entries that do not overlap fill one block of memory."""
    if tensor.layout != torch.strided or tensor.is_neg():
        return False
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.numel() in (0, 1 + sum((size - 1) * stride for size, stride in pairs))


def _second_moments(args: KernelArgs, metric: str) -> Sequence[Tensor]:
    return () if metric == "scalar" else args.max_exp_avg_sqs or args.exp_avg_sqs


def _overlaps(args: KernelArgs) -> bool:
    """Say whether an entry is met twice: then there is an order, and no working at one time."""
    begins = [weight.data_ptr() for weight in args.weights]
    if args.geometry is None:
        filled = [b for b, weight in zip(begins, args.weights, strict=True) if weight.numel()]
        return len(set(filled)) < len(filled)
    seen: dict[int, list[list[int]]] = {}
    for piece in args.geometry.tolist():
        seen.setdefault(begins[piece[GroupAxis.WEIGHT]], []).append(piece)
    return any(len(pieces) > 1 and _cover_twice(args, pieces) for pieces in seen.values())


def _cover_twice(args: KernelArgs, pieces: list[list[int]]) -> bool:
    marks = torch.zeros(args.weights[pieces[0][GroupAxis.WEIGHT]].numel(), dtype=torch.uint8)
    for p in pieces:
        sizes = [p[a] for a in SIZES]
        marks.as_strided(sizes, [p[a] for a in STRIDES], p[GroupAxis.OFFSET]).add_(1)
    return bool((marks > 1).any())


def _addresses(args: KernelArgs, metric: str, place: int, offset: int) -> list[int]:
    """Return where the weight from an entry on, its second moments and its count lie; 0: none."""
    seconds = _second_moments(args, metric)
    second = seconds[place].data_ptr() + 4 * offset if seconds else 0
    count = args.step_counts[place].data_ptr() if seconds and args.step_counts else 0
    return [args.weights[place].data_ptr() + 4 * offset, second, count]


def _table_of_entries(args: KernelArgs, metric: str, proxes: Sequence[int | None]) -> LaunchTable:
    """Tabulate runs of entries, see Run in entries.c, and where the formulas are."""
    runs = []
    for place, weight in enumerate(args.weights):
        for at in range(0, weight.numel(), ITEM):
            length = min(ITEM, weight.numel() - at)
            gate = args.gates[place].data_ptr() + at if args.gates else 0
            begin = _addresses(args, metric, place, at)
            runs.append([*begin, gate, length, args.param_row[place]])
    return LaunchTable((_int64(runs, 6), _int64(proxes)))


def _table_of_groups(args: KernelArgs, metric: str) -> LaunchTable:
    """Tabulate batches of groups, pieces and the room a thread needs, see groups.c."""
    assert args.geometry is not None
    group_sets: dict[int, list[list[int]]] = {}
    for piece in args.geometry.tolist():
        group_sets.setdefault(piece[GroupAxis.BUNDLE], []).append(piece)
    batches, pieces, floats = [], [], 0
    for number, group_set in enumerate(group_sets.values()):
        gate = args.gates[number].data_ptr() if args.gates else 0
        size = sum(_num_entries(piece) for piece in group_set)
        across = size <= SHORT or all(map(_are_neighbours, group_set))
        room = size * LANES if across else -(-size // LANES) * LANES
        if size:
            floats = max(floats, 2 * room)
        share = max(ITEM // max(size, 1), 1)
        share = max(share // LANES, 1) * LANES if across else share
        num_groups = group_set[0][GroupAxis.COUNT1] * group_set[0][GroupAxis.COUNT2]
        for at in range(0, num_groups if size else 0, share):
            end = min(at + share, num_groups)
            batches.append([len(pieces), len(group_set), at, end, size, int(across), gate])
        pieces += [_row_of(args, metric, piece) for piece in group_set]
    return LaunchTable((_int64(batches, 7), _int64(pieces, 14), torch.tensor(floats)))


def _row_of(args: KernelArgs, metric: str, piece: list[int]) -> list[int]:
    place = piece[GroupAxis.WEIGHT]
    begin = _addresses(args, metric, place, piece[GroupAxis.OFFSET])
    groups = [piece[GroupAxis.COUNT2], piece[GroupAxis.STRIDE1], piece[GroupAxis.STRIDE2]]
    axes = [number for axis in _axes(piece) for number in axis]
    return [*begin, args.param_row[place], *groups, _num_entries(piece), *axes]


def _num_entries(piece: list[int]) -> int:
    return piece[GroupAxis.SIZE1] * piece[GroupAxis.SIZE2] * piece[GroupAxis.SIZE3]


def _axes(piece: list[int]) -> list[tuple[int, int]]:
    """Return three pairs (size, step) in the order of memory, with runs made one.

    The order within a group is free.
    """
    pairs = [(piece[a], piece[a + 1]) for a in (GroupAxis.SIZE1, GroupAxis.SIZE2, GroupAxis.SIZE3)]
    joined: list[tuple[int, int]] = []
    for size, step in sorted((p for p in pairs if p[0] != 1), key=lambda pair: -pair[1]):
        if joined and joined[-1][1] == size * step:
            size *= joined.pop()[0]
        joined.append((size, step))
    return [(1, 1)] * (3 - len(joined)) + joined


def _are_neighbours(piece: list[int]) -> bool:
    """Say whether the entries of a group lie apart, and those of the next groups between them."""
    return (
        piece[GroupAxis.STRIDE2] == 1
        and piece[GroupAxis.COUNT2] >= LANES
        and _axes(piece)[-1][1] > 1
    )


def _int64(rows: Sequence[object], columns: int | None = None) -> Tensor:
    table = torch.tensor(rows, dtype=torch.int64)
    return table if columns is None else table.reshape(-1, columns)


def run(
    args: KernelArgs,
    table: LaunchTable,
    params: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    update: str,
    metric: str,
    formulas: Sequence[Formula],
) -> None:
    """Make the pass over entries or groups by the kernels."""
    if skip is not None and bool(skip != 0):
        return
    library, params = kernels(), params.double().contiguous()
    assert library is not None, "a table was made by the kernels"
    if args.geometry is None:
        runs, proxes = table.table
        library.regkit_entries(
            *(runs.data_ptr(), len(runs), proxes.data_ptr(), len(proxes)),
            *(params.data_ptr(), _num_threads()),
        )
    else:
        batches, pieces, floats = table.table
        failed = library.regkit_groups(
            *(batches.data_ptr(), len(batches), pieces.data_ptr(), params.data_ptr()),
            *(int(floats), _num_threads()),
        )
        if failed:
            raise MemoryError(f"prox_groups found no room for {int(floats)} floats a thread.")
    torch.autograd.graph.increment_version((*args.weights, *args.gates))


def _num_threads() -> int:
    return 1 if _forked else torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
