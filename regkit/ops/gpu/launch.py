"""The bodies of the sweeps on CUDA: at most four launches, nothing read on the host.

Without triton, or a table, the reference does the work.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from regkit.ops.gpu.launch_tables import Numbers
from regkit.ops.kernel_args import LIBRARY
from regkit.ops.reference import reference_entries, reference_groups

# Evaluations of the secular equation: see `regkit.ops.secular`. The compiler is not told, or it
# would write each of them out.
EVALUATIONS = 4
NUM_WARPS = {"entries": 4, "tiles": 8, "long": 16, "groups": 8}


def sweep_entries(
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
    """Be the body of `regkit::sweep_entries` on CUDA."""
    if numbers is None:
        reference_entries(
            weights, grads, firsts, seconds, maxes, counts, which, rules,
            None, skip, scale, tally, update, metric, formulas,
        )  # fmt: skip
        return
    lists = (weights, grads, firsts, seconds, maxes, counts)
    with _on(weights[0]):
        _entries(lists, _rules(rules, weights), Numbers(*numbers), skip, scale, tally,
                 update, metric, formulas)  # fmt: skip
    _written(lists, update)


def sweep_groups(
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
    """Be the body of `regkit::sweep_groups` on CUDA."""
    if numbers is None:
        reference_groups(
            weights, grads, firsts, seconds, maxes, counts, which, rules, geometry,
            None, skip, scale, tally, update, metric, formulas,
        )  # fmt: skip
        return
    from regkit.ops.gpu import groups, rows

    lists = (weights, grads, firsts, seconds, maxes, counts)
    n = Numbers(*numbers)
    table = _rules(rules, weights)
    _, _, tile, differ = n.shape.tolist()
    traits = _traits(lists, update, metric)
    vector = 16 // min(some[0].itemsize for some in lists[:5] if some)
    common = (table, skip, scale, tally, len(weights))
    with _on(weights[0]):
        if len(n.tiles):
            classes = n.tile_classes.tolist()
            rows.sweep_tiles[(len(n.tiles),)](
                n.pointers, n.tiles, *common, 0, EVALUATIONS, *traits,
                tuple(c[0] for c in classes), tuple(c[1] for c in classes), len(classes), vector,
                **_options("tiles"),
            )  # fmt: skip
        if len(n.long):
            classes = n.long_classes.tolist()
            rows.sweep_long[(len(n.long),)](
                n.pointers, n.long, *common, len(n.tiles), EVALUATIONS, *traits,
                tile, tuple(c[0] for c in classes), len(classes), vector, **_options("long"),
            )  # fmt: skip
        if len(n.entries):
            _entries(lists, table, n, skip, scale, None, update, metric, [])
        if len(n.groups):
            classes = n.group_classes.tolist()
            first = len(n.tiles) + len(n.long)
            groups.sweep_groups[(len(n.groups),)](
                n.pointers, n.groups, n.pieces, table, skip, tally, len(weights), first,
                EVALUATIONS,
                traits[0], *traits[3:], bool(differ),
                *(tuple(c[k] for c in classes) for k in range(3)), len(classes),
                **_options("groups"),
            )  # fmt: skip
    _written(lists, update)


Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def _entries(
    lists: Lists,
    rules: Tensor,
    n: Numbers,
    skip: Tensor | None,
    scale: Tensor | None,
    tally: Tensor | None,
    update: str,
    metric: str,
    formulas: list[str],
) -> None:
    from regkit.ops.gpu import entries

    if not len(n.entries):
        return
    block, num_blocks, *_ = n.shape.tolist()
    first, second, *_ = (*formulas, "", "")
    entries.sweep_entries[(len(n.entries),)](
        n.pointers, n.entries, rules, skip, scale, tally, len(lists[0]),
        *_traits(lists, update, metric), first, second, block, num_blocks,
        **_options("entries"),
    )  # fmt: skip


def _rules(rules: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the rules as the kernels read them; a small copy from the CPU does not wait."""
    return rules.to(weights[0].device, torch.float32, non_blocking=True).contiguous()


def _traits(lists: Lists, update: str, metric: str) -> tuple[Any, ...]:
    """Return types, update, number of states, state under the root, and whether steps count."""
    import triton.language as tl

    names = {
        torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16
    }  # fmt: skip
    weights, _, firsts, _, maxes, counts = lists
    types = tuple(names[(some or weights)[0].dtype] for some in lists[:5])
    states = {"none": 0, "sgd": int(bool(firsts)), "adamw": 2 + bool(maxes)}[update]
    root = 0 if metric == "flat" else 1 + bool(maxes)
    return types, update, states, root, bool(counts) and (root > 0 or update == "adamw")


def _options(kernel: str) -> dict[str, Any]:
    from regkit.ops.gpu.jit import OPTIONS

    return {"num_warps": NUM_WARPS[kernel], **OPTIONS}


def _on(weight: Tensor) -> AbstractContextManager[Any]:
    """Make the device of a weight the current one."""
    return torch.cuda.device(weight.device) if weight.is_cuda else nullcontext()


def _written(lists: Lists, update: str) -> None:
    """Tell autograd what was written behind its back."""
    weights, _, firsts, seconds, maxes, _ = lists
    states = (*firsts, *seconds, *maxes) if update != "none" else ()
    torch.autograd.graph.increment_version((*weights, *states))


LIBRARY.impl("sweep_entries", sweep_entries, "CUDA")
LIBRARY.impl("sweep_groups", sweep_groups, "CUDA")
