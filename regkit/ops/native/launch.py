"""The sweeps on a CPU: a little C, compiled once on this machine at first use, called by ctypes.

Nothing is asked of the user: where there is no compiler, no OpenMP or no float32, `tabulate` gives
None, and the way through torch is taken. REGKIT_NATIVE=0 in the environment asks for that.
"""

import ctypes
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from regkit.ops.kernel_args import LIBRARY, GroupAxis, KernelArgs, LaunchTable
from regkit.ops.native.build import kernels
from regkit.ops.reference import reference_entries, reference_groups

# Entries that a thread works on before it takes the next ones.
ITEM = 1 << 16
# Groups up to this size are laid side by side, as many as there are lanes.
SHORT = 64
LANES = 16

# The threads of OpenMP do not live on in a forked process, which would wait for them for ever.
_forked = False


def tabulate(
    work: KernelArgs, formulas: Sequence[str], metric: str, update: str = "none"
) -> LaunchTable | None:
    """Lay down where the weights lie, None where the kernel does not serve them.

    It serves dense float32 weights on the CPU after the optimizer's own step (update "none"); the
    first call compiles it, a matter of seconds, and later processes find it in the user's cache.
    """
    if os.environ.get("REGKIT_NATIVE") == "0" or update != "none" or not _is_served(work, metric):
        return None
    if _overlaps(work) or (work.geometry is not None and tuple(formulas) != ("shrink",)):
        return None
    library = kernels()
    if library is None:
        return None
    if work.geometry is not None:
        return _table_of_groups(work, metric)
    names = [library.regkit_formula(name.encode()) for name in formulas]
    return None if -1 in names else _table_of_entries(work, metric, names)


def _is_served(work: KernelArgs, metric: str) -> bool:
    states = _seconds(work, metric)
    if metric == "root" and not states:
        return False
    like = all(s.stride() == w.stride() for s, w in zip(states, work.weights, strict=bool(states)))
    tensors = (*work.weights, *states, *work.counts)
    return like and all(
        t.device.type == "cpu" and t.dtype == torch.float32 and _is_dense(t) for t in tensors
    )


def _is_dense(tensor: Tensor) -> bool:
    """Say whether entries that do not overlap fill one block of memory."""
    if tensor.layout != torch.strided or tensor.is_neg():
        return False
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.numel() in (0, 1 + sum((size - 1) * stride for size, stride in pairs))


def _seconds(work: KernelArgs, metric: str) -> Sequence[Tensor]:
    return () if metric == "flat" else work.maxes or work.seconds


def _overlaps(work: KernelArgs) -> bool:
    """Say whether an entry is met twice: then there is an order, and no working at one time."""
    begins = [weight.data_ptr() for weight in work.weights]
    if work.geometry is None:
        filled = [b for b, weight in zip(begins, work.weights, strict=True) if weight.numel()]
        return len(set(filled)) < len(filled)
    seen: dict[int, list[list[int]]] = {}
    for piece in work.geometry.tolist():
        seen.setdefault(begins[piece[GroupAxis.WEIGHT]], []).append(piece)
    return any(len(pieces) > 1 and _cover_twice(work, pieces) for pieces in seen.values())


def _cover_twice(work: KernelArgs, pieces: list[list[int]]) -> bool:
    marks = torch.zeros(work.weights[pieces[0][GroupAxis.WEIGHT]].numel(), dtype=torch.uint8)
    for p in pieces:
        sizes = [p[a] for a in _SIZES]
        marks.as_strided(sizes, [p[a] for a in _STEPS], p[GroupAxis.OFFSET]).add_(1)
    return bool((marks > 1).any())


_SIZES = (GroupAxis.COUNT1, GroupAxis.COUNT2, GroupAxis.SIZE1, GroupAxis.SIZE2, GroupAxis.SIZE3)
_STEPS = (GroupAxis.STRIDE1, GroupAxis.STRIDE2, GroupAxis.STEP1, GroupAxis.STEP2, GroupAxis.STEP3)


def _addresses(work: KernelArgs, metric: str, place: int, offset: int) -> list[int]:
    """Return where the weight from an entry on, its second moments and its count lie; 0: none."""
    seconds = _seconds(work, metric)
    second = seconds[place].data_ptr() + 4 * offset if seconds else 0
    count = work.counts[place].data_ptr() if seconds and work.counts else 0
    return [work.weights[place].data_ptr() + 4 * offset, second, count]


def _table_of_entries(work: KernelArgs, metric: str, names: list[int]) -> LaunchTable:
    """Tabulate runs of entries and the formulas' numbers, see Run in entries.c."""
    runs, owners = [], []
    for place, weight in enumerate(work.weights):
        for at in range(0, weight.numel(), ITEM):
            length = min(ITEM, weight.numel() - at)
            runs.append([*_addresses(work, metric, place, at), length, work.which[place]])
            owners.append(place)
    return LaunchTable((_int64(runs, 5), torch.tensor(names)), _int64(owners))


def _table_of_groups(work: KernelArgs, metric: str) -> LaunchTable:
    """Tabulate batches of groups, pieces and the room a thread needs, see groups.c."""
    assert work.geometry is not None
    bundles: dict[int, list[list[int]]] = {}
    for piece in work.geometry.tolist():
        bundles.setdefault(piece[GroupAxis.BUNDLE], []).append(piece)
    batches, pieces, owners, floats = [], [], [], 0
    for owner, bundle in bundles.items():
        size = sum(_num_entries(piece) for piece in bundle)
        across = size <= SHORT or all(map(_are_neighbours, bundle))
        room = size * LANES if across else -(-size // LANES) * LANES
        if size:
            floats = max(floats, 2 * room)
        share = max(ITEM // max(size, 1), 1)
        share = max(share // LANES, 1) * LANES if across else share
        num_groups = bundle[0][GroupAxis.COUNT1] * bundle[0][GroupAxis.COUNT2]
        for at in range(0, num_groups if size else 0, share):
            end = min(at + share, num_groups)
            batches.append([len(pieces), len(bundle), at, end, size, int(across)])
            owners.append(owner)
        pieces += [_row_of(work, metric, piece) for piece in bundle]
    numbers = (_int64(batches, 6), _int64(pieces, 14), torch.tensor(floats))
    return LaunchTable(numbers, _int64(owners))


def _row_of(work: KernelArgs, metric: str, piece: list[int]) -> list[int]:
    place = piece[GroupAxis.WEIGHT]
    begin = _addresses(work, metric, place, piece[GroupAxis.OFFSET])
    groups = [piece[GroupAxis.COUNT2], piece[GroupAxis.STRIDE1], piece[GroupAxis.STRIDE2]]
    axes = [number for axis in _axes(piece) for number in axis]
    return [*begin, work.which[place], *groups, _num_entries(piece), *axes]


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


def native_entries(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    maxes: list[Tensor],
    counts: list[Tensor],
    which: list[int],
    rules: Tensor,
    numbers: list[Tensor] | None,
    skip: Tensor | None,
    scale: Tensor | None,
    tally: Tensor | None,
    update: str,
    metric: str,
    formulas: list[str],
) -> None:
    """Be the body of `regkit::sweep_entries` on the CPU: the kernel where there is a table."""
    if not numbers:
        reference_entries(
            *(weights, grads, firsts, seconds, maxes, counts, which, rules),
            *(numbers, skip, scale, tally, update, metric, formulas),
        )
        return
    if skip is not None and bool(skip != 0):
        return
    library, (runs, names) = _loaded(), numbers
    rules, written = rules.double().contiguous(), _writable(tally)
    library.regkit_entries(
        *(runs.data_ptr(), len(runs), names.data_ptr(), len(names), rules.data_ptr()),
        *(_address(written), _num_threads()),
    )
    _finish(weights, tally, written)


def native_groups(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    maxes: list[Tensor],
    counts: list[Tensor],
    which: list[int],
    rules: Tensor,
    geometry: Tensor,
    numbers: list[Tensor] | None,
    skip: Tensor | None,
    scale: Tensor | None,
    tally: Tensor | None,
    update: str,
    metric: str,
    formulas: list[str],
) -> None:
    """Be the body of `regkit::sweep_groups` on the CPU: the kernel where there is a table."""
    if not numbers:
        reference_groups(
            *(weights, grads, firsts, seconds, maxes, counts, which, rules, geometry),
            *(numbers, skip, scale, tally, update, metric, formulas),
        )
        return
    if skip is not None and bool(skip != 0):
        return
    library, (batches, pieces, floats) = _loaded(), numbers
    rules, written = rules.double().contiguous(), _writable(tally)
    failed = library.regkit_groups(
        *(batches.data_ptr(), len(batches), pieces.data_ptr(), rules.data_ptr()),
        *(int(floats), _address(written), _num_threads()),
    )
    if failed:
        raise MemoryError(f"sweep_groups found no room for {int(floats)} floats a thread.")
    _finish(weights, tally, written)


def _writable(tally: Tensor | None) -> Tensor | None:
    return None if tally is None else torch.empty(tally.shape, dtype=torch.float32)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _num_threads() -> int:
    return 1 if _forked else torch.get_num_threads()


def _finish(weights: list[Tensor], tally: Tensor | None, written: Tensor | None) -> None:
    torch.autograd.graph.increment_version(weights)
    if tally is not None and written is not None:
        tally.copy_(written)


def _loaded() -> ctypes.CDLL:
    library = kernels()
    assert library is not None, "a table was made by the kernels"
    return library


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
LIBRARY.impl("sweep_entries", native_entries, "CPU")
LIBRARY.impl("sweep_groups", native_groups, "CPU")
