"""The kernels of `regkit::prox_groups` for rows of memory: each is read and written once.

A program holds several short rows in one tile of registers, or one long row in several.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false
# Triton reads this: what its tuples, ranges and branches decided while compiling are, pyright
# cannot know.

import triton.language as tl

from regkit.ops.gpu.arithmetic import soft
from regkit.ops.gpu.entries import addresses, are_aligned, is_closed, kept, past, recorded, updated
from regkit.ops.gpu.formula_kernel import coefficients
from regkit.ops.gpu.jit import jit
from regkit.ops.gpu.optimizer import rates
from regkit.ops.gpu.secular import closer, factor, multiplier, shrunk, start
from regkit.ops.kernel_args import NUM_PARAMS

_COLUMNS = tl.constexpr(NUM_PARAMS)
_EPS = tl.constexpr(2.0**-23)
_TINY = tl.constexpr(2.0**-126)
_LARGEST = tl.constexpr(3.4028234663852886e38)


@jit
def thinned(x, step, c):
    """Soften, then shrink as a ridge does; return what is left, and its step."""
    divisor = 1.0 + step * c[2]
    return soft(x, step * c[0]) / divisor, step / divisor


@jit
def _threshold(step, price):
    """Return the size at which an entry, alone, is worth its price."""
    return tl.sqrt(step * (2.0 * price))


@jit
def worth(x, step, price):
    """Return the squares that add up to 1 where a group is as dear to lose as to keep."""
    ratio = x / tl.maximum(_threshold(step, price), _TINY)
    return ratio * ratio


@jit
def unless_cheap(x, step, price, cheap):
    """Put entries of cheap groups to zero; those that do not move stay, and so does NaN."""
    return tl.where(_threshold(step, price) > 0.0, tl.where(cheap, 0.0, x), x)


@jit
def _shrunk_tile(x, step, tau, evaluations, root: tl.constexpr):
    """Shrink the rows of a tile; beyond a row's end, x and step are 0."""
    largest = tl.maximum(tl.max(tl.abs(x), 1), _TINY)
    z = x * (1.0 / largest)[:, None]
    r = z * z
    norm = tl.sqrt(tl.sum(r, 1))
    if root == 0:
        x = x * factor(norm * largest, step, tau)[:, None]
    else:
        tau = tl.minimum(tau / largest, _LARGEST)
        over = 1.0 / (step * tau[:, None] + _EPS * _EPS)
        r = r * over
        between = tl.sum(r, 1)
        inverse = tl.sqrt(tl.sum(r * over, 1))
        s, lower, upper = start(norm, between, inverse)
        done = 0
        while done < evaluations:
            done += 1
            over = 1.0 / (step * multiplier(s, tau)[:, None] + 1.0)
            r = z * over
            r = r * r
            m0 = tl.sum(r, 1)
            r = r * over
            m1 = tl.sum(r, 1)
            s, lower, upper = closer(s, lower, upper, m0, m1, tl.sum(r * over, 1))
        dead = inverse <= 1.0 + 8 * _EPS
        x = shrunk(x, step, multiplier(s, tau)[:, None], dead[:, None])
        x = tl.where((inverse == inverse)[:, None], x, inverse[:, None])
    return x


@jit
def _tile(
    at, r, c, unscale, evaluations, start_, num_rows, length, stride, gate,
    update: tl.constexpr, states: tl.constexpr, root: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, aligned: tl.constexpr, gated: tl.constexpr,
    keeps: tl.constexpr,
):  # fmt: skip
    """Write a tile of rows after update and prox."""
    row = tl.arange(0, rows)[:, None]
    column = tl.arange(0, columns)[None, :]
    mask = (row < num_rows) & (column < length)
    offsets = row * stride + column
    p = past(at, start_, aligned)
    x, step = updated(p, offsets, mask, r, unscale, update, states, root)
    if root > 0:
        step = tl.where(mask, step, 0.0)
    x = tl.where(mask, x, 0.0)
    if keeps:
        x = unless_cheap(x, step, c[0], (tl.sum(worth(x, step, c[0]), 1) < 1.0)[:, None])
    else:
        x, step = thinned(x, step, c)
        x = _shrunk_tile(x, step, c[1], evaluations, root)
    if gated:
        place = tl.arange(0, rows)
        byte = tl.load(gate + place, place < num_rows, 0)
        x = kept(x, is_closed(byte)[:, None])
        x = x.to(p[0].dtype.element_ty)
        alive = tl.max((x != 0).to(tl.int32), 1)
        tl.store(gate + place, recorded(byte, alive == 0), place < num_rows)
    tl.store(p[0] + offsets, x.to(p[0].dtype.element_ty), mask)


@jit
def _long(  # noqa: C901  all branches are decided while compiling
    at, r, c, unscale, evaluations, start_, length, gate,
    update: tl.constexpr, states: tl.constexpr, root: tl.constexpr,
    tile: tl.constexpr, num: tl.constexpr, aligned: tl.constexpr, gated: tl.constexpr,
    keeps: tl.constexpr,
):  # fmt: skip
    """Write one row, held as `num` tiles, after update and prox."""
    p = past(at, start_, aligned)
    lane = tl.arange(0, tile)
    xs = ()
    steps = ()
    largest = tl.zeros((tile,), tl.float32)
    for k in tl.static_range(num):
        offsets = k * tile + lane
        mask = offsets < length
        x, step = updated(p, offsets, mask, r, unscale, update, states, root)
        if root > 0:
            step = tl.where(mask, step, 0.0)
        x = tl.where(mask, x, 0.0)
        if keeps:  # `largest` is their worth
            largest += worth(x, step, c[0])
        else:
            x, step = thinned(x, step, c)
            largest = tl.maximum(largest, tl.abs(x))
        xs = xs + (x,)  # noqa: RUF005  the compiler knows no stars
        steps = steps + (step,)  # noqa: RUF005
    if keeps:
        cheap = tl.sum(largest, 0) < 1.0
    elif root == 0:
        largest = tl.maximum(tl.max(largest, 0), _TINY)
        share = _factor_of_tiles(xs, steps[0], largest, c[1], tile, num)
    else:
        largest = tl.maximum(tl.max(largest, 0), _TINY)
        mu, dead, broken = _multiplier_of_tiles(xs, steps, largest, c[1], evaluations, tile, num)
    closed = False
    alive = tl.zeros((tile,), tl.int32)
    if gated:
        byte = tl.load(gate)
        closed = is_closed(byte)
    for k in tl.static_range(num):
        offsets = k * tile + lane
        mask = offsets < length
        if keeps:
            x = unless_cheap(xs[k], steps[k], c[0], cheap)
        elif root == 0:
            x = xs[k] * share
        else:
            x = tl.where(broken == broken, shrunk(xs[k], steps[k], mu, dead), broken)
        if gated:
            x = kept(x, closed).to(p[0].dtype.element_ty)
            alive |= ((x != 0) & mask).to(tl.int32)
        tl.store(p[0] + offsets, x.to(p[0].dtype.element_ty), mask)
    if gated:
        tl.store(gate, recorded(byte, tl.max(alive, 0) == 0))


@jit
def _factor_of_tiles(xs, step, largest, tau, tile: tl.constexpr, num: tl.constexpr):
    a = tl.zeros((tile,), tl.float32)
    for k in tl.static_range(num):
        z = xs[k] * (1.0 / largest)
        a += z * z
    return factor(tl.sqrt(tl.sum(a, 0)) * largest, step, tau)


@jit
def _multiplier_of_tiles(
    xs, steps, largest, tau, evaluations, tile: tl.constexpr, num: tl.constexpr
):
    """Return mu of the row, whether it dies, and a number that is NaN where one of it is."""
    unit = 1.0 / largest
    tau = tl.minimum(tau / largest, _LARGEST)
    a = tl.zeros((tile,), tl.float32)
    b = tl.zeros((tile,), tl.float32)
    d = tl.zeros((tile,), tl.float32)
    for k in tl.static_range(num):
        over = 1.0 / (steps[k] * tau + _EPS * _EPS)
        r = xs[k] * unit
        r = r * r
        a += r
        b += r * over
        d += r * over * over
    inverse = tl.sqrt(tl.sum(d, 0))
    s, lower, upper = start(tl.sqrt(tl.sum(a, 0)), tl.sum(b, 0), inverse)
    done = 0
    while done < evaluations:
        done += 1
        mu = multiplier(s, tau)
        a = tl.zeros((tile,), tl.float32)
        b = tl.zeros((tile,), tl.float32)
        d = tl.zeros((tile,), tl.float32)
        for k in tl.static_range(num):
            over = 1.0 / (steps[k] * mu + 1.0)
            # In this order, or z of all tiles would be kept beside x, for which there is no room.
            r = xs[k] * over * unit
            r = r * r
            a += r
            b += r * over
            d += r * over * over
        s, lower, upper = closer(s, lower, upper, tl.sum(a, 0), tl.sum(b, 0), tl.sum(d, 0))
    return multiplier(s, tau), inverse <= 1.0 + 8 * _EPS, inverse


@jit(
    do_not_specialize=["num_weights", "evaluations"],
    do_not_specialize_on_alignment=["pointers", "items", "params", "skip", "scale"],
)
def prox_tiles(
    pointers, items, params, skip, scale, num_weights, evaluations,
    types: tl.constexpr, update: tl.constexpr, states: tl.constexpr, root: tl.constexpr,
    counted: tl.constexpr, gated: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    classes: tl.constexpr, vector: tl.constexpr, keeps: tl.constexpr,
):  # fmt: skip
    """Work on the rows of one item, a row of `GpuTable.tiles`.

    keeps: rows are kept or put to zero whole (KEEP); else shrunk (SHRINK).
    """
    if skip is not None:  # noqa: SIM102  that is asked while compiling
        if tl.load(skip) != 0:
            return
    item = items + tl.program_id(0).to(tl.int64) * 8
    param = params + tl.load(item + 1) * _COLUMNS
    kind, start_, num = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4).to(tl.int32)
    length, stride = tl.load(item + 5).to(tl.int32), tl.load(item + 6).to(tl.int32)
    gate = tl.load(item + 7).to(tl.pointer_type(tl.uint8))
    at = addresses(pointers, tl.load(item), num_weights, types)
    r = rates(param, at[5], counted)
    c = coefficients(param, 0)
    unscale = 1.0
    if scale is not None:
        unscale = 1.0 / tl.load(scale).to(tl.float32)
    whole = (length % vector == 0) & (stride % vector == 0) & (start_ % vector == 0)
    # The compiler sees that these are multiples.
    even, apart = length // vector * vector, stride // vector * vector
    for k in tl.static_range(classes):
        if kind == k:
            if whole & are_aligned(at):
                _tile(
                    at, r, c, unscale, evaluations, start_, num, even, apart, gate,
                    update, states, root, rows[k], columns[k], True, gated, keeps,
                )  # fmt: skip
            else:
                _tile(
                    at, r, c, unscale, evaluations, start_, num, length, stride, gate,
                    update, states, root, rows[k], columns[k], False, gated, keeps,
                )  # fmt: skip


@jit(
    do_not_specialize=["num_weights", "evaluations"],
    do_not_specialize_on_alignment=["pointers", "items", "params", "skip", "scale"],
)
def prox_long(
    pointers, items, params, skip, scale, num_weights, evaluations,
    types: tl.constexpr, update: tl.constexpr, states: tl.constexpr, root: tl.constexpr,
    counted: tl.constexpr, gated: tl.constexpr, tile: tl.constexpr, nums: tl.constexpr,
    classes: tl.constexpr, vector: tl.constexpr, keeps: tl.constexpr,
):  # fmt: skip
    """Work on the one row of an item, written as those of `prox_tiles`."""
    if skip is not None:  # noqa: SIM102  that is asked while compiling
        if tl.load(skip) != 0:
            return
    item = items + tl.program_id(0).to(tl.int64) * 8
    param = params + tl.load(item + 1) * _COLUMNS
    kind, start_, length = tl.load(item + 2), tl.load(item + 3), tl.load(item + 5).to(tl.int32)
    gate = tl.load(item + 7).to(tl.pointer_type(tl.uint8))
    at = addresses(pointers, tl.load(item), num_weights, types)
    r = rates(param, at[5], counted)
    c = coefficients(param, 0)
    unscale = 1.0
    if scale is not None:
        unscale = 1.0 / tl.load(scale).to(tl.float32)
    whole = (length % vector == 0) & (start_ % vector == 0)
    for k in tl.static_range(classes):
        if kind == k:
            if whole & are_aligned(at):
                _long(
                    at, r, c, unscale, evaluations, start_, length // vector * vector, gate,
                    update, states, root, tile, nums[k], True, gated, keeps,
                )  # fmt: skip
            else:
                _long(
                    at, r, c, unscale, evaluations, start_, length, gate,
                    update, states, root, tile, nums[k], False, gated, keeps,
                )  # fmt: skip
