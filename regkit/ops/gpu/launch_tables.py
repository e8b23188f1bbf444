"""Tables that the kernels read: where tensors lie, and what each program works on."""

import importlib.util
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.formula import KEEP, SHRINK, Formula
from regkit.ops.gpu import tiling
from regkit.ops.gpu.group_layout import group_sets, overlap
from regkit.ops.gpu.tiling import Sizes, Stack
from regkit.ops.kernel_args import METRICS, MOST_FORMULAS, UPDATES, KernelArgs, LaunchTable

TYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows of the table of addresses; a tensor that the pass does not use has address 0.
GRADS = 1
# Offsets within an item, and entries of a group, are counted in 32 bits.
LONGEST = 2**31 - 2**16
SIZES = Sizes()


class GpuTable(NamedTuple):
    """The tensors of a table; `shape`, `grads` and the classes are on the CPU.

    shape: block, num_blocks, tile, and whether steps may differ within a flat group.
    pointers: (lists, weights) addresses, in the order of `_LISTS`.
    grads: the addresses of the gradients that `pointers` holds.
    entries: (items, 4) weight, row of params, start, count.
    tiles, long: (items, 8) weight, row of params, class, start, rows, length, stride, where the
        bytes of the rows are.
    groups: (items, 6) first piece, pieces, first group, groups, class, where the byte of the
        group set's first group is.
    pieces: (pieces, NUM_NUMBERS) geometry and row of params.
    tile_classes: (rows, columns); long_classes: tiles; group_classes: (groups, entries, across).
    """

    shape: Tensor
    pointers: Tensor
    grads: Tensor
    entries: Tensor
    tiles: Tensor
    long: Tensor
    groups: Tensor
    pieces: Tensor
    tile_classes: Tensor
    long_classes: Tensor
    group_classes: Tensor


def prepare(
    args: KernelArgs,
    formulas: Sequence[Formula],
    metric: str,
    update: str = "none",
    sizes: Sizes = SIZES,
) -> LaunchTable | None:
    """Lay down where everything is, None where the kernels do not serve.

    They serve dense float32, bfloat16 and float16 on one CUDA device, states and gradients with
    the strides of their weight, up to two formulas of entries; or SHRINK or KEEP of groups that do
    not overlap, with an update only where they are the rows of a whole weight. In Triton's
    interpreter they serve the CPU.
    Raises: InputError for a formula that cannot be translated.
    """
    if args.geometry is None:
        known = len(formulas) <= MOST_FORMULAS and not any(f.grouped for f in formulas)
    else:
        known = tuple(formulas) in ((SHRINK,), (KEEP,))
    if not (known and args.weights and _is_here(args) and _is_served(args, metric, update)):
        return None
    used = _used(args, metric, update)
    used["gates"] = args.gates if args.geometry is None else ()
    pointers = torch.tensor(
        [[t.data_ptr() for t in used[name]] or [0] * len(args.weights) for name in _LISTS]
    )
    made = (
        _entries(args, formulas, sizes) if args.geometry is None else _groups(args, update, sizes)
    )
    if made is None:
        return None
    stacks, classes, pieces, differ = made
    adaptive = metric == "adaptive"
    shape = torch.tensor([sizes.block, sizes.num_blocks, sizes.tile, adaptive or differ])
    entries, tiles, long, groups = (stack.sorted() for stack in stacks)
    numbers = GpuTable(
        *(shape, pointers, pointers[GRADS].clone(), entries, tiles, long, groups, pieces, *classes)
    )
    device = args.weights[0].device
    on_device = {name: getattr(numbers, name).to(device) for name in _ON_DEVICE}
    return LaunchTable(numbers._replace(**on_device))


def refresh(table: LaunchTable, args: KernelArgs) -> LaunchTable | None:
    """Tell the kernels where the gradients of this step are; None where they no longer serve.

    Nothing is done where no address has changed; else one row of them is copied behind the work
    under way, from pinned memory that is not used again until then. Alignment is looked at by the
    kernels themselves.
    """
    numbers = GpuTable(*table.table)
    addresses = torch.tensor([grad.data_ptr() for grad in args.grads], dtype=torch.int64)
    if torch.equal(addresses, numbers.grads):
        return table
    if len(addresses) != len(numbers.grads) or not _are_like(args.grads, args.weights):
        return None
    if numbers.pointers.device.type == "cpu":
        numbers.pointers[GRADS].copy_(addresses)
    elif torch.cuda.is_current_stream_capturing():
        raise InputError(
            "A CUDA graph is being captured, but gradients are not where they were before; a "
            "replay would read freed memory. Call optimizer.zero_grad(set_to_none=False)."
        )
    else:
        numbers.pointers[GRADS].copy_(addresses.pin_memory(), non_blocking=True)
    return LaunchTable(numbers._replace(grads=addresses))


_ON_DEVICE = ("pointers", "entries", "tiles", "long", "groups", "pieces")
_LISTS = (
    *("weights", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "step_counts"),
    "gates",  # of entries
)


Made = tuple[list[Stack], list[Tensor], Tensor, bool]


def _stacks() -> list[Stack]:
    """Return stacks for entries, tiles, long rows and groups."""
    return [Stack(width) for width in (4, 8, 8, 6)]


def _entries(args: KernelArgs, formulas: Sequence[Formula], sizes: Sizes) -> Made:
    from regkit.ops.gpu.formula_kernel import kernel_of

    for formula in formulas:
        kernel_of(formula)
    stacks = _stacks()
    for place, (weight, row) in enumerate(zip(args.weights, args.param_row, strict=True)):
        tiling.of_entries(stacks[0], place, row, weight.numel(), sizes)
    none = torch.zeros(0, dtype=torch.int64)
    return stacks, [none, none, none], tiling.table_of([]), False


def _groups(args: KernelArgs, update: str, sizes: Sizes) -> Made | None:
    """Divide the group sets by what holds them: a tile, several, or none."""
    assert args.geometry is not None
    found = group_sets(args.geometry, args.param_row)
    pieces = [piece for group_set in found for piece in group_set]
    whole = all(len(b) == 1 and b[0].fills(args.weights[b[0].weight]) for b in found)
    if overlap(pieces, args.weights) or (update != "none" and not whole):
        return None
    if any(max(piece.length, piece.num_groups) > LONGEST for piece in pieces):
        return None
    entries, tiles, long, groups = stacks = _stacks()
    classes = [_Classes(), _Classes(), _Classes()]
    first = 0
    for number, group_set in enumerate(found):
        gate = args.gates[number].data_ptr() if args.gates else 0
        piece = group_set[0]
        if piece.num_groups * sum(part.length for part in group_set) == 0:
            first += len(group_set)
            continue
        alone = len(group_set) == 1 and piece.is_rows
        fits = [
            (rows, columns)
            for rows, columns in sizes.tiles
            if piece.length <= columns and piece.stride * rows <= LONGEST
        ]
        parts = [num for num in sizes.long if piece.length <= num * sizes.tile]
        if alone and fits:
            tiling.of_rows(tiles, piece, classes[0].place(fits[0]), fits[0][0], gate)
        elif alone and parts:
            tiling.of_rows(long, piece, classes[1].place((parts[0],)), 1, gate)
        else:
            kind = tiling.kind_of(group_set)
            num, length = sizes.kinds[kind]
            place = classes[2].place((num, length, kind // 2))
            tiling.of_groups(groups, group_set, place, num, first, gate)
            if update != "none":
                count = args.weights[piece.weight].numel()
                tiling.of_entries(entries, piece.weight, piece.param_row, count, sizes)
        first += len(group_set)
    differ = any(len({piece.param_row for piece in group_set}) > 1 for group_set in found)
    return stacks, [c.tensor() for c in classes], tiling.table_of(pieces), differ


class _Classes:
    """Shapes that kernels are to be compiled for."""

    def __init__(self) -> None:
        self._found: list[tuple[int, ...]] = []

    def place(self, one: tuple[int, ...]) -> int:
        if one not in self._found:
            self._found.append(one)
        return self._found.index(one)

    def tensor(self) -> Tensor:
        return torch.tensor(self._found, dtype=torch.int64)


def _used(args: KernelArgs, metric: str, update: str) -> dict[str, Sequence[Tensor]]:
    """Return the lists that a pass reads."""
    adaptive, adamw = metric == "adaptive", update == "adamw"
    return {
        "weights": args.weights,
        "grads": args.grads if update != "none" else (),
        "exp_avgs": args.exp_avgs if update != "none" else (),
        "exp_avg_sqs": args.exp_avg_sqs if adamw or (adaptive and not args.max_exp_avg_sqs) else (),
        "max_exp_avg_sqs": args.max_exp_avg_sqs if adaptive or adamw else (),
        "step_counts": args.step_counts if adaptive or adamw else (),
    }


def _is_here(args: KernelArgs) -> bool:
    """Say whether kernels can be compiled, or interpreted, where the weights are."""
    if importlib.util.find_spec("triton") is None:
        return False
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return args.weights[0].device.type == ("cpu" if interpreted else "cuda")


def _is_served(args: KernelArgs, metric: str, update: str) -> bool:
    used = _used(args, metric, update)
    needed = {
        "none": (),
        "sgd": ("grads",),
        "adamw": ("grads", "exp_avgs", "exp_avg_sqs", "step_counts"),
    }
    if metric not in METRICS or update not in UPDATES or not all(used[k] for k in needed[update]):
        return False
    if metric == "adaptive" and not (used["exp_avg_sqs"] or used["max_exp_avg_sqs"]):
        return False
    device = args.weights[0].device
    if not _are_like(args.gates if args.geometry is None else (), args.weights):
        return False
    for name, tensors in used.items():
        if len(tensors) not in (0, len(args.weights)):
            return False
        if any(t.device != device or t.dtype != tensors[0].dtype for t in tensors):
            return False
        if name == "step_counts":
            if any(t.numel() != 1 or t.dtype != torch.float32 for t in tensors):
                return False
        elif tensors and (tensors[0].dtype not in TYPES or not _are_like(tensors, args.weights)):
            return False
    return all(_is_dense(weight) for weight in args.weights)


def _is_dense(tensor: Tensor) -> bool:
    """Say whether the entries fill one block of memory and do not overlap."""
    if tensor.layout != torch.strided or tensor.is_neg():
        return False
    axes = sorted((st, n) for n, st in zip(tensor.shape, tensor.stride(), strict=True) if n != 1)
    expected = 1
    for stride, size in axes:
        if stride != expected:
            return False
        expected *= size
    return True


def _are_like(tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Say whether all have the strides of their weight; those of axes of size 1 do not matter."""
    return all(
        t.shape == w.shape
        and t.layout == torch.strided
        and all(
            a == b or n == 1
            for a, b, n in zip(t.stride(), w.stride(), w.shape, strict=True)
        )
        for t, w in zip(tensors, weights, strict=bool(tensors))
    )  # fmt: skip
