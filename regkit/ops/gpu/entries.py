"""The kernel of `regkit::prox_entries`: update and prox of 4096 entries a program, in one pass."""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false
# Triton reads this: what its tuples, ranges and branches decided while compiling are, pyright
# cannot know.

import triton.language as tl

from regkit.ops.gate import Gate
from regkit.ops.gpu.formula_kernel import coefficients
from regkit.ops.gpu.jit import jit
from regkit.ops.gpu.optimizer import inverse_scale, moved, rates
from regkit.ops.kernel_args import NUM_PARAMS

_COLUMNS = tl.constexpr(NUM_PARAMS)
_ZERO = tl.constexpr(int(Gate.ZERO))
_OPEN = tl.constexpr(int(Gate.OPEN))
_SEEN = tl.constexpr(int(Gate.SEEN))
_FREE = tl.constexpr(int(Gate.FREE))


@jit
def addresses(pointers, place, num_weights, types: tl.constexpr):
    """Load where weight, gradient, first, second and most of one weight begin, count and gate."""
    at = pointers + place
    weight = tl.load(at).to(tl.pointer_type(types[0]))
    grad = tl.load(at + num_weights).to(tl.pointer_type(types[1]))
    first = tl.load(at + 2 * num_weights).to(tl.pointer_type(types[2]))
    second = tl.load(at + 3 * num_weights).to(tl.pointer_type(types[3]))
    most = tl.load(at + 4 * num_weights).to(tl.pointer_type(types[4]))
    count, gate = tl.load(at + 5 * num_weights), tl.load(at + 6 * num_weights)
    return weight, grad, first, second, most, count, gate.to(tl.pointer_type(tl.uint8))


@jit
def are_aligned(p):
    """Tell whether vectors of 16 bytes can be loaded from all of these; those not used are 0."""
    both = p[0].to(tl.int64) | p[1].to(tl.int64) | p[2].to(tl.int64)
    return ((both | p[3].to(tl.int64) | p[4].to(tl.int64)) & 15) == 0


@jit
def past(p, start, aligned: tl.constexpr):
    """Return pointers `start` entries on; the compiler is told where they are aligned."""
    weight, grad, first = p[0] + start, p[1] + start, p[2] + start
    second, most = p[3] + start, p[4] + start
    if aligned:
        weight, grad = tl.multiple_of(weight, 16), tl.multiple_of(grad, 16)
        first, second = tl.multiple_of(first, 16), tl.multiple_of(second, 16)
        most = tl.multiple_of(most, 16)
    return weight, grad, first, second, most


@jit
def is_closed(gate):
    """Say which units have to stay zero."""
    return (gate & (_ZERO | _OPEN | _FREE)) == _ZERO


@jit
def recorded(gate, is_zero):
    """Return the bytes after a step that leaves these units at zero."""
    return tl.where(is_zero, gate | _ZERO, gate & (_SEEN | _FREE)).to(tl.uint8)


@jit
def kept(x, closed):
    """Return values with what has to stay zero put back; NaN is not hidden."""
    return tl.where(closed & (x == x), 0.0, x)


@jit
def updated(  # noqa: C901  all but the loads is decided while compiling
    p,
    offsets,
    mask,
    r,
    unscale,
    update: tl.constexpr,
    states: tl.constexpr,
    root: tl.constexpr,
):
    """Load entries, update them and store what the optimizer keeps; return them and their step.

    mask: None where all are there.
    root: which one the metric reads: 0 for none, 1 for second, 2 for most.
    """
    if mask is None:
        other: tl.constexpr = None
    else:
        other: tl.constexpr = 0.0
    x = tl.load(p[0] + offsets, mask, other).to(tl.float32)
    g, first, second, most = x, x, x, x
    if update != "none":
        g = tl.load(p[1] + offsets, mask, other).to(tl.float32) * unscale
        if states > 0:
            first = tl.load(p[2] + offsets, mask, other).to(tl.float32)
    if (update == "adamw") or (root == 1):
        second = tl.load(p[3] + offsets, mask, other).to(tl.float32)
    if (states > 2) or (root == 2):
        most = tl.load(p[4] + offsets, mask, other).to(tl.float32)
    x, first, second, most = moved(x, g, first, second, most, r, update, states)
    if states > 0:
        tl.store(p[2] + offsets, first.to(p[2].dtype.element_ty), mask)
    if states > 1:
        tl.store(p[3] + offsets, second.to(p[3].dtype.element_ty), mask)
    if states > 2:
        tl.store(p[4] + offsets, most.to(p[4].dtype.element_ty), mask)
    step = r[0]
    if root == 1:
        step = r[0] * inverse_scale(second, r)
    if root == 2:
        step = r[0] * inverse_scale(most, r)
    return x, step


@jit
def _write(
    p,
    gate,
    offsets,
    mask,
    r,
    c,
    d,
    unscale,
    update: tl.constexpr,
    states: tl.constexpr,
    root: tl.constexpr,
    formula1: tl.constexpr,
    formula2: tl.constexpr,
    gated: tl.constexpr,
):
    """Write entries after update and prox."""
    x, step = updated(p, offsets, mask, r, unscale, update, states, root)
    if formula1 is not None:
        x = formula1(x, step, r[1], c)
    if formula2 is not None:
        x = formula2(x, step, r[1], d)
    if gated:
        other: tl.constexpr = None if mask is None else 0
        byte = tl.load(gate + offsets, mask, other)
        x = kept(x, is_closed(byte))
        x = x.to(p[0].dtype.element_ty)
        tl.store(gate + offsets, recorded(byte, x == 0), mask)
    tl.store(p[0] + offsets, x.to(p[0].dtype.element_ty), mask)


@jit(
    do_not_specialize=["num_weights"],
    do_not_specialize_on_alignment=["pointers", "items", "params", "skip", "scale"],
)
def prox_entries(
    pointers,
    items,
    params,
    skip,
    scale,
    num_weights,
    types: tl.constexpr,
    update: tl.constexpr,
    states: tl.constexpr,
    root: tl.constexpr,
    counted: tl.constexpr,
    formula1: tl.constexpr,
    formula2: tl.constexpr,
    gated: tl.constexpr,
    block: tl.constexpr,
    num_blocks: tl.constexpr,
):
    """Work on the entries of one item: (weight, row of params, start, count).

    formula1, formula2: functions made by `kernel_of`, or None.
    """
    if skip is not None:  # noqa: SIM102  that is asked while compiling
        if tl.load(skip) != 0:
            return
    item = items + tl.program_id(0).to(tl.int64) * 4
    param = params + tl.load(item + 1) * _COLUMNS
    start = tl.load(item + 2)
    count = tl.load(item + 3).to(tl.int32)
    at = addresses(pointers, tl.load(item), num_weights, types)
    r = rates(param, at[5], counted)
    c, d = coefficients(param, 0), coefficients(param, 1)
    unscale = 1.0
    if scale is not None:
        unscale = 1.0 / tl.load(scale).to(tl.float32)
    lane = tl.arange(0, block)
    if (count == block * num_blocks) & are_aligned(at):
        p = past(at, start, True)
        for k in range(num_blocks):
            _write(
                p, at[6] + start, k * block + lane, None, r, c, d, unscale,
                update, states, root, formula1, formula2, gated,
            )  # fmt: skip
    else:
        p = past(at, start, False)
        done = 0
        while done < count:
            _write(
                p, at[6] + start, done + lane, done + lane < count, r, c, d, unscale,
                update, states, root, formula1, formula2, gated,
            )  # fmt: skip
            done += block
