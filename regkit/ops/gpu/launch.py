"""The passes on CUDA: at most four launches, nothing read on the host.

In Triton's interpreter (TRITON_INTERPRET=1) they run on the CPU.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from regkit.ops.formula import KEEP, Formula
from regkit.ops.gpu.launch_tables import GpuTable, prepare, refresh
from regkit.ops.kernel_args import KernelArgs, LaunchTable

__all__ = ["prepare", "refresh", "run"]

# Evaluations of the secular equation: see `regkit.ops.secular`. The compiler is not told, or it
# would write each of them out.
EVALUATIONS = 4
# Seconds until it is told that kernels are compiled: those of r3d_18 take half a minute, once.
PATIENCE_S = 3.0
_LAUNCHED: set[int] = set()
NUM_WARPS = {"entries": 4, "tiles": 8, "long": 16, "groups": 8}


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
    numbers = GpuTable(*table.table)
    # A small copy from the CPU does not wait.
    weight = args.weights[0]
    params = params.to(weight.device, torch.float32, non_blocking=True).contiguous()
    with _on(weight), _compilation_told(numbers.pointers.data_ptr()):
        if args.geometry is None:
            _entries(args, numbers, params, skip, scale, update, metric, formulas)
        else:
            keeps = tuple(formulas) == (KEEP,)
            _groups(args, numbers, params, skip, scale, update, metric, keeps)
    # Autograd is told what was written behind its back.
    states = (*args.exp_avgs, *args.exp_avg_sqs, *args.max_exp_avg_sqs) if update != "none" else ()
    torch.autograd.graph.increment_version((*args.weights, *states, *args.gates))


@contextmanager
def _compilation_told(table: int) -> Iterator[None]:
    """Log what takes long where a table, told by its address, is launched for the first time."""
    if table in _LAUNCHED:
        yield
        return
    message = "Compiling kernels for this GPU; they are kept for the next run."
    timer = threading.Timer(PATIENCE_S, logging.getLogger(__name__).warning, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    _LAUNCHED.add(table)


def _entries(
    args: KernelArgs,
    n: GpuTable,
    params: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    update: str,
    metric: str,
    formulas: Sequence[Formula],
) -> None:
    from regkit.ops.gpu import entries
    from regkit.ops.gpu.formula_kernel import kernel_of

    if not len(n.entries):
        return
    block, num_blocks, *_ = n.shape.tolist()
    first, second, *_ = (*map(kernel_of, formulas), None, None)
    entries.prox_entries[(len(n.entries),)](
        n.pointers, n.entries, params, skip, scale, len(args.weights),
        *_traits(args, update, metric), first, second, bool(args.gates) and args.geometry is None,
        block, num_blocks,
        **_options("entries"),
    )  # fmt: skip


def _groups(
    args: KernelArgs,
    n: GpuTable,
    params: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    update: str,
    metric: str,
    keeps: bool,
) -> None:
    from regkit.ops.gpu import groups, rows

    _, _, tile, differ = n.shape.tolist()
    traits = _traits(args, update, metric)
    vector = 16 // min(some[0].itemsize for some in _lists(args) if some)
    common = (params, skip, scale, len(args.weights), EVALUATIONS, *traits)
    if len(n.tiles):
        classes = n.tile_classes.tolist()
        rows.prox_tiles[(len(n.tiles),)](
            n.pointers, n.tiles, *common, bool(args.gates),
            tuple(c[0] for c in classes), tuple(c[1] for c in classes), len(classes), vector, keeps,
            **_options("tiles"),
        )  # fmt: skip
    if len(n.long):
        classes = n.long_classes.tolist()
        rows.prox_long[(len(n.long),)](
            n.pointers, n.long, *common, bool(args.gates),
            tile, tuple(c[0] for c in classes), len(classes), vector, keeps, **_options("long"),
        )  # fmt: skip
    # The update of weights whose groups neither kernel holds; their prox follows.
    _entries(args, n, params, skip, scale, update, metric, ())
    if len(n.groups):
        classes = n.group_classes.tolist()
        groups.prox_groups[(len(n.groups),)](
            n.pointers, n.groups, n.pieces, params, skip, len(args.weights), EVALUATIONS,
            traits[0], *traits[3:], bool(differ), bool(args.gates),
            *(tuple(c[k] for c in classes) for k in range(3)), len(classes), keeps,
            **_options("groups"),
        )  # fmt: skip


def _lists(args: KernelArgs) -> tuple[Sequence[Tensor], ...]:
    """Return the lists that kernels are compiled for the types of, in the order of the table."""
    return args.weights, args.grads, args.exp_avgs, args.exp_avg_sqs, args.max_exp_avg_sqs


def _traits(args: KernelArgs, update: str, metric: str) -> tuple[Any, ...]:
    """Return types, update, number of states, state under the root, and whether steps count."""
    import triton.language as tl

    names = {
        torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16
    }  # fmt: skip
    maxima = bool(args.max_exp_avg_sqs)
    types = tuple(names[(some or args.weights)[0].dtype] for some in _lists(args))
    states = {"none": 0, "sgd": int(bool(args.exp_avgs)), "adamw": 2 + maxima}[update]
    root = 0 if metric == "scalar" else 1 + maxima
    return types, update, states, root, bool(args.step_counts) and (root > 0 or update == "adamw")


def _options(kernel: str) -> dict[str, Any]:
    from regkit.ops.gpu.jit import OPTIONS

    return {"num_warps": NUM_WARPS[kernel], **OPTIONS}


def _on(weight: Tensor) -> AbstractContextManager[Any]:
    """Make the device of a weight the current one."""
    return torch.cuda.device(weight.device) if weight.is_cuda else nullcontext()
