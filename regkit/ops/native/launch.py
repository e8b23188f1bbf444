"""The passes on a CPU: a little C, compiled once on this machine at first use, called by ctypes.

Nothing is asked of the user: where there is no compiler, no OpenMP or another type, `prepare` gives
None, and torch takes the prox. REGKIT_NATIVE=0 in the environment asks for that.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkit.ops.formula import FOLD, KEEP, SHRINK, Formula
from regkit.ops.kernel_args import (
    SIZES,
    STRIDES,
    UPDATES,
    GroupAxis,
    KernelArgs,
    LaunchTable,
    are_like,
)
from regkit.ops.native.build import LANES, SHORT, TYPES, kernels, prox_address

# Entries that a thread works on before it takes the next ones.
ITEM = 1 << 16
# The penalties of groups that C knows, in its order.
GROUPED = (SHRINK, KEEP, FOLD)
# Columns of Weight in common.h, the address of the gradient among them.
WEIGHT_COLUMNS, GRAD = 7, 1

# The threads of OpenMP do not live on in a forked process, which would wait for them for ever.
_forked = False


class NativeTable(NamedTuple):
    """What C reads, as its structs have it, on the CPU.

    runs: (runs, 9) entries, see Run in entries.c; before a pass over groups, those that it does not
        update itself. proxes: addresses of formulas.
    batches, pieces: groups, (batches, 8) and (pieces, 17), see groups.c.
    room: numbers that a thread needs, 0-d.
    run_places, piece_places: (2, rows) which weight a row is of, and how many bytes behind its
        beginning.
    counts: addresses of the numbers of steps.
    """

    runs: Tensor
    proxes: Tensor
    batches: Tensor
    pieces: Tensor
    room: Tensor
    run_places: Tensor
    piece_places: Tensor
    counts: Tensor


def prepare(
    args: KernelArgs, formulas: Sequence[Formula], metric: str, update: str = "none"
) -> LaunchTable | None:
    """Lay down where the weights lie, None where the kernel does not serve them.

    It serves dense float32, float64 and bfloat16 weights on the CPU, states of their type and
    strides; the first call compiles it, a matter of seconds, and later processes find it in the
    user's cache.
    """
    if os.environ.get("REGKIT_NATIVE") == "0" or not _is_served(args, metric, update):
        return None
    dtype = args.weights[0].dtype
    if _overlaps(args) or kernels(dtype) is None:
        return None
    if args.geometry is not None:
        known = len(formulas) == 1 and formulas[0] in GROUPED
        return _table_of_groups(args, metric, update) if known else None
    if any(formula.grouped for formula in formulas):
        return None
    proxes = [prox_address(formula, dtype) for formula in formulas]
    return None if None in proxes else _table_of_entries(args, metric, proxes)


def refresh(table: LaunchTable, args: KernelArgs) -> LaunchTable | None:
    """Tell the kernels where the gradients of this step are."""
    n = NativeTable(*table.table)
    addresses = torch.tensor([grad.data_ptr() for grad in args.grads], dtype=torch.int64)
    for rows, places in ((n.runs, n.run_places), (n.pieces, n.piece_places)):
        if len(rows):
            torch.add(addresses[places[0]], places[1], out=rows[:, GRAD])
    return table


def count_step(table: LaunchTable) -> None:
    """Raise the numbers of steps by one: torch would take longer for it than for the step."""
    counts, library = NativeTable(*table.table).counts, kernels(torch.float32)
    assert library is not None, "a table was made by the kernels"
    library.regkit_count(counts.data_ptr(), len(counts))


def _is_served(args: KernelArgs, metric: str, update: str) -> bool:
    if not args.weights or (metric == "adaptive" and not _roots(args)):
        return False
    needed = {"none": (), "sgd": (args.grads,), "adamw": (args.grads, args.exp_avgs)}
    if not all(needed[update]) or (update == "adamw" and not args.exp_avg_sqs):
        return False
    dtype = args.weights[0].dtype
    moments = (args.exp_avgs, args.exp_avg_sqs, args.max_exp_avg_sqs)
    if dtype not in TYPES or not all(
        are_like(some, args.weights) for some in (args.grads, *moments)
    ):
        return False
    if args.geometry is None and not are_like(args.gates, args.weights):
        return False
    of_type = [*args.weights, *args.grads, *(t for some in moments for t in some)]
    counted = all(t.dtype == torch.float32 for t in args.step_counts)
    here = all(t.device.type == "cpu" for t in (*of_type, *args.step_counts, *args.gates))
    return (
        counted
        and here
        and all(t.dtype == dtype for t in of_type)
        and all(map(_is_dense, args.weights))
    )


def _is_dense(tensor: Tensor) -> bool:
    """Say whether entries that do not overlap fill one block of memory."""
    if tensor.layout != torch.strided or tensor.is_neg():
        return False
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.numel() in (0, 1 + sum((size - 1) * stride for size, stride in pairs))


def _roots(args: KernelArgs) -> Sequence[Tensor]:
    """Return the second moments that the metric reads."""
    return args.max_exp_avg_sqs or args.exp_avg_sqs


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


def _weight(args: KernelArgs, metric: str, place: int, offset: int) -> list[int]:
    """Return a row as Weight in common.h has it, of a weight from an entry on; 0: none."""
    used = (args.weights, args.grads, args.exp_avgs, args.exp_avg_sqs, args.max_exp_avg_sqs)
    adaptive = metric == "adaptive"
    lists = (*used[:3], *(some if adaptive else () for some in used[3:]))
    behind = args.weights[place].itemsize * offset
    addresses = [some[place].data_ptr() + behind if some else 0 for some in lists]
    count = args.step_counts[place].data_ptr() if adaptive and args.step_counts else 0
    return [*addresses, count, args.param_row[place]]


def _runs(
    args: KernelArgs, metric: str, places: Sequence[int]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Return runs of entries of some weights, see Run in entries.c, and where they are."""
    runs, where = [], []
    gates = args.gates if args.geometry is None else ()
    for place in places:
        weight = args.weights[place]
        for at in range(0, weight.numel(), ITEM):
            gate = gates[place].data_ptr() + at if gates else 0
            length = min(ITEM, weight.numel() - at)
            runs.append([*_weight(args, metric, place, at), gate, length])
            where.append((place, at * weight.itemsize))
    return runs, where


def _table_of_entries(args: KernelArgs, metric: str, proxes: Sequence[int | None]) -> LaunchTable:
    """Tabulate runs of entries, and where the formulas are."""
    return _table(args, *_runs(args, metric, range(len(args.weights))), proxes)


def _table_of_groups(args: KernelArgs, metric: str, update: str) -> LaunchTable | None:
    """Tabulate batches of groups, pieces and the room a thread needs, see groups.c.

    Rows one behind the other are updated as they are gathered; of other groups the whole weight is
    updated before, for its entries are needed in another order.
    """
    assert args.geometry is not None
    group_sets: dict[int, list[list[int]]] = {}
    for piece in args.geometry.tolist():
        group_sets.setdefault(piece[GroupAxis.BUNDLE], []).append(piece)
    batches, pieces, where, before, room = [], [], [], [], 0
    for number, group_set in enumerate(group_sets.values()):
        gate = args.gates[number].data_ptr() if args.gates else 0
        size = sum(_num_entries(piece) for piece in group_set)
        num_groups = group_set[0][GroupAxis.COUNT1] * group_set[0][GroupAxis.COUNT2]
        place = group_set[0][GroupAxis.WEIGHT]
        if update != "none":
            if len(group_set) > 1 or num_groups * size != args.weights[place].numel():
                return None
            if not _are_rows(group_set[0]):
                before.append(place)
        across = size <= SHORT or all(map(_are_neighbours, group_set))
        if size:
            room = max(room, 2 * (size * LANES if across else -(-size // LANES) * LANES))
        share = max(ITEM // max(size, 1), 1)
        share = max(share // LANES, 1) * LANES if across else share
        updates = update != "none" and place not in before
        for at in range(0, num_groups if size else 0, share):
            end = min(at + share, num_groups)
            marks = [int(across), int(updates), gate]
            batches.append([len(pieces), len(group_set), at, end, size, *marks])
        for piece in group_set:
            offset = piece[GroupAxis.OFFSET]
            pieces.append(_piece(args, metric, piece))
            where.append((piece[GroupAxis.WEIGHT], offset * args.weights[place].itemsize))
    return _table(args, *_runs(args, metric, before), (), batches, pieces, where, room)


def _table(
    args: KernelArgs,
    runs: Sequence[object],
    run_places: Sequence[object],
    proxes: Sequence[object],
    batches: Sequence[object] = (),
    pieces: Sequence[object] = (),
    piece_places: Sequence[object] = (),
    room: int = 0,
) -> LaunchTable:
    def rows(some: Sequence[object], width: int) -> Tensor:
        return torch.tensor(some, dtype=torch.int64).reshape(-1, width)

    counts = [count.data_ptr() for count in args.step_counts]
    return LaunchTable(
        NativeTable(
            rows(runs, WEIGHT_COLUMNS + 2),
            rows(proxes, 1),
            rows(batches, 8),
            rows(pieces, WEIGHT_COLUMNS + 10),
            torch.tensor(room),
            rows(run_places, 2).t().contiguous(),
            rows(piece_places, 2).t().contiguous(),
            torch.tensor(counts, dtype=torch.int64),
        )
    )


def _piece(args: KernelArgs, metric: str, piece: list[int]) -> list[int]:
    """Return a row as Piece in groups.c has it."""
    begin = _weight(args, metric, piece[GroupAxis.WEIGHT], piece[GroupAxis.OFFSET])
    groups = [piece[GroupAxis.COUNT2], piece[GroupAxis.STRIDE1], piece[GroupAxis.STRIDE2]]
    axes = [number for axis in _axes(piece) for number in axis]
    return [*begin, *groups, _num_entries(piece), *axes]


def _are_rows(piece: list[int]) -> bool:
    """Say whether groups lie one behind the other, and the entries of each likewise."""
    size, apart = _axes(piece)[-1]
    count1, count2 = piece[GroupAxis.COUNT1], piece[GroupAxis.COUNT2]
    return (
        (size, apart) == (_num_entries(piece), 1)
        and (count2 == 1 or piece[GroupAxis.STRIDE2] == size)
        and (count1 == 1 or piece[GroupAxis.STRIDE1] == size * count2)
    )


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
    library, n = kernels(args.weights[0].dtype), NativeTable(*table.table)
    assert library is not None, "a table was made by the kernels"
    params = params.double().contiguous()
    grad_scale = 1.0 if scale is None else float(scale)
    common = (UPDATES.index(update), grad_scale, params.data_ptr())
    if len(n.runs):
        library.regkit_entries(
            *(n.runs.data_ptr(), len(n.runs), n.proxes.data_ptr(), len(n.proxes)),
            *(*common, _num_threads()),
        )
    if len(n.batches):
        failed = library.regkit_groups(
            *(n.batches.data_ptr(), len(n.batches), n.pieces.data_ptr()),
            *(GROUPED.index(formulas[0]), *common, int(n.room), _num_threads()),
        )
        if failed:
            raise MemoryError(f"prox_groups found no room for {int(n.room)} numbers a thread.")
    states = (*args.exp_avgs, *args.exp_avg_sqs, *args.max_exp_avg_sqs) if update != "none" else ()
    torch.autograd.graph.increment_version((*args.weights, *states, *args.gates))


def _num_threads() -> int:
    return 1 if _forked else torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
