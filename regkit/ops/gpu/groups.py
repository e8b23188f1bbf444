"""The kernel of `regkit::prox_groups` for groups of any geometry, in one weight or several.

A program goes over its groups again and again: what it read once comes from the L2 cache.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false
# Triton reads this: what its tuples, ranges and branches decided while compiling are, pyright
# cannot know.

import triton.language as tl

from regkit.ops.gpu.entries import addresses, is_closed, kept, recorded
from regkit.ops.gpu.formula_kernel import coefficients
from regkit.ops.gpu.group_layout import NUM_NUMBERS
from regkit.ops.gpu.jit import jit
from regkit.ops.gpu.optimizer import inverse_scale, rates
from regkit.ops.gpu.rows import thinned, unless_cheap, worth
from regkit.ops.gpu.secular import closer, factor, multiplier, shrunk, start
from regkit.ops.kernel_args import NUM_PARAMS, GroupAxis, Param

_COLUMNS = tl.constexpr(NUM_PARAMS)
_RATE = tl.constexpr(int(Param.RATE))
_NUMBERS = tl.constexpr(NUM_NUMBERS)
_WEIGHT = tl.constexpr(int(GroupAxis.WEIGHT))
_OFFSET = tl.constexpr(int(GroupAxis.OFFSET))
_STRIDE1 = tl.constexpr(int(GroupAxis.STRIDE1))
_COUNT2 = tl.constexpr(int(GroupAxis.COUNT2))
_STRIDE2 = tl.constexpr(int(GroupAxis.STRIDE2))
_SIZE1 = tl.constexpr(int(GroupAxis.SIZE1))
_STEP1 = tl.constexpr(int(GroupAxis.STEP1))
_SIZE2 = tl.constexpr(int(GroupAxis.SIZE2))
_STEP2 = tl.constexpr(int(GroupAxis.STEP2))
_SIZE3 = tl.constexpr(int(GroupAxis.SIZE3))
_STEP3 = tl.constexpr(int(GroupAxis.STEP3))
_PARAM_ROW = tl.constexpr(NUM_NUMBERS - 1)
_EPS = tl.constexpr(2.0**-23)
_TINY = tl.constexpr(2.0**-126)
_LARGEST = tl.constexpr(3.4028234663852886e38)
# Between these, squares neither overflow nor vanish, however many.
_LEAST = tl.constexpr(1e-12)
_MOST = tl.constexpr(1e12)


@jit
def _length(piece):
    """Return how many entries of a group this piece holds."""
    sizes = tl.load(piece + _SIZE1) * tl.load(piece + _SIZE2) * tl.load(piece + _SIZE3)
    return sizes.to(tl.int32)


@jit
def _bases(piece, group):
    """Return where groups begin."""
    count = tl.load(piece + _COUNT2).to(tl.int32)
    base = tl.load(piece + _OFFSET) + (group // count) * tl.load(piece + _STRIDE1)
    return base + (group % count) * tl.load(piece + _STRIDE2)


@jit
def _along(piece, entry):
    """Return where entries lie from the beginning of their group."""
    size3, size2 = tl.load(piece + _SIZE3).to(tl.int32), tl.load(piece + _SIZE2).to(tl.int32)
    rest = entry // size3
    inner = (entry % size3) * tl.load(piece + _STEP3) + (rest % size2) * tl.load(piece + _STEP2)
    return inner + (rest // size2) * tl.load(piece + _STEP1)


@jit
def _loaded(at, r, c, offsets, mask, root: tl.constexpr, keeps: tl.constexpr):
    """Return entries after soft threshold and ridge, and their steps; beyond the end both are 0.

    keeps: entries as they are.
    """
    x = tl.load(at[0] + offsets, mask, 0.0).to(tl.float32)
    step = r[0]
    if root == 1:
        step = r[0] * inverse_scale(tl.load(at[3] + offsets, mask, 0.0).to(tl.float32), r)
    if root == 2:
        step = r[0] * inverse_scale(tl.load(at[4] + offsets, mask, 0.0).to(tl.float32), r)
    if not keeps:
        x, step = thinned(x, step, c)
    return tl.where(mask, x, 0.0), tl.where(mask, step, 0.0)


@jit
def _sums(
    tables, own, group, entry, there, c, unit, scale, pass_: tl.constexpr,
    types: tl.constexpr, root: tl.constexpr, counted: tl.constexpr, axis: tl.constexpr,
    entries: tl.constexpr, keeps: tl.constexpr,
):  # fmt: skip
    """Go over all entries of the groups; return three sums (or, in "size", a maximum) for each.

    own: first piece and how many. entry, group: places along both axes of a tile; there: which
    groups there are.
    size: largest entry, sum of squares; scaled: z^2 with z in units; start: z^2 / (step scale +
    eps^2)^k; moments: (z / (1 + step scale))^2 / (1 + step scale)^k; k = 0, 1, 2. worth: as
    `regkit.ops.gpu.rows.worth`, at the price c[0].
    """
    pointers, pieces, params, num_weights = tables
    none = tl.zeros_like(entry + group).to(tl.float32)
    a, b, d = none, none, none
    place = 0
    while place < own[1]:
        piece = pieces + (own[0] + place) * _NUMBERS
        param = params + tl.load(piece + _PARAM_ROW) * _COLUMNS
        at = addresses(pointers, tl.load(piece + _WEIGHT), num_weights, types)
        r = rates(param, at[5], counted)
        base = _bases(piece, group)
        length = _length(piece)
        done = 0
        while done < length:
            mask = (done + entry < length) & there
            x, step = _loaded(at, r, c, base + _along(piece, done + entry), mask, root, keeps)
            if pass_ == "size":
                a = tl.maximum(a, tl.abs(x))
                b += x * x
            elif pass_ == "worth":
                a += worth(x, step, c[0])
            elif pass_ == "scaled":
                x = x * unit
                a += x * x
            elif pass_ == "start":
                x = x * unit
                over = 1.0 / (step * scale + _EPS * _EPS)
                a += x * x
                b += x * x * over
                d += x * x * over * over
            else:
                over = 1.0 / (step * scale + 1.0)
                x = x * unit * over
                a += x * x
                b += x * x * over
                d += x * x * over * over
            done += entries
        place += 1
    if pass_ == "size":  # noqa: SIM108  decided while compiling
        first = tl.max(a, axis, keep_dims=True)
    else:
        first = tl.sum(a, axis, keep_dims=True)
    return first, tl.sum(b, axis, keep_dims=True), tl.sum(d, axis, keep_dims=True)


@jit
def _write(
    tables, own, group, entry, there, c, mu, dead, share, broken, gate,
    types: tl.constexpr, root: tl.constexpr, counted: tl.constexpr, axis: tl.constexpr,
    entries: tl.constexpr, metric: tl.constexpr, gated: tl.constexpr, keeps: tl.constexpr,
):  # fmt: skip
    """Write all entries of the groups."""
    pointers, pieces, params, num_weights = tables
    closed = False
    alive = tl.zeros_like(entry + group)
    if gated:
        byte = tl.load(gate + group, there, 0)
        closed = is_closed(byte)
    place = 0
    while place < own[1]:
        piece = pieces + (own[0] + place) * _NUMBERS
        param = params + tl.load(piece + _PARAM_ROW) * _COLUMNS
        at = addresses(pointers, tl.load(piece + _WEIGHT), num_weights, types)
        r = rates(param, at[5], counted)
        base = _bases(piece, group)
        length = _length(piece)
        done = 0
        while done < length:
            mask = (done + entry < length) & there
            offsets = base + _along(piece, done + entry)
            x, step = _loaded(at, r, c, offsets, mask, root, keeps)
            if keeps:
                x = unless_cheap(x, step, c[0], dead)
            elif metric:
                x = tl.where(broken == broken, shrunk(x, step, mu, dead), broken)
            else:
                x = x * share
            if gated:
                x = kept(x, closed)
            written = x.to(at[0].dtype.element_ty)
            alive |= ((written != 0) & mask).to(tl.int32)
            tl.store(at[0] + offsets, written, mask)
            done += entries
        place += 1
    if gated:
        left = tl.max(alive, axis, keep_dims=True)
        tl.store(gate + group, recorded(byte, left == 0), there)


@jit
def _shrunk(
    tables, own, first, num, c, evaluations, gate,
    types: tl.constexpr, root: tl.constexpr, counted: tl.constexpr, metric: tl.constexpr,
    gated: tl.constexpr, groups: tl.constexpr, entries: tl.constexpr, across: tl.constexpr,
    keeps: tl.constexpr,
):  # fmt: skip
    """Shrink some groups, or keep or drop them."""
    if across:
        axis: tl.constexpr = 0
        lane = tl.arange(0, groups)[None, :]
        entry = tl.arange(0, entries)[:, None]
    else:
        axis: tl.constexpr = 1
        lane = tl.arange(0, groups)[:, None]
        entry = tl.arange(0, entries)[None, :]
    group, there = first + lane, lane < num
    ones = there.to(tl.float32)
    if keeps:
        first_pass: tl.constexpr = "worth"
    else:
        first_pass: tl.constexpr = "size"
    largest, squares, _ = _sums(
        tables, own, group, entry, there, c, 1.0, 0.0, first_pass,
        types, root, counted, axis, entries, keeps,
    )  # fmt: skip
    norm = tl.sqrt(squares)
    unit = 1.0 / tl.maximum(largest, _TINY)
    mu, dead, share, broken = 0.0 * ones, there, ones, ones
    if keeps:
        dead = largest < 1.0  # the sum of their worth
    elif metric:
        tau = tl.minimum(c[1] / tl.maximum(largest, _TINY), _LARGEST)
        norm, between, inverse = _sums(
            tables, own, group, entry, there, c, unit, tau, "start",
            types, root, counted, axis, entries, keeps,
        )  # fmt: skip
        broken = tl.sqrt(inverse)
        s, lower, upper = start(tl.sqrt(norm), between, broken)
        done = 0
        while done < evaluations:
            done += 1
            m0, m1, m2 = _sums(
                tables, own, group, entry, there, c, unit, multiplier(s, tau), "moments",
                types, root, counted, axis, entries, keeps,
            )  # fmt: skip
            s, lower, upper = closer(s, lower, upper, m0, m1, m2)
        mu, dead = multiplier(s, tau), broken <= 1.0 + 8 * _EPS
    else:
        extreme = (largest > 0.0) & ((largest < _LEAST) | (largest > _MOST))
        if tl.max(tl.max(extreme.to(tl.int32), 1), 0) > 0:
            norm, _, _ = _sums(
                tables, own, group, entry, there, c, unit, 0.0, "scaled",
                types, root, counted, axis, entries, keeps,
            )  # fmt: skip
            norm = tl.sqrt(norm) * tl.maximum(largest, _TINY)
        param = tables[2] + tl.load(tables[1] + own[0] * _NUMBERS + _PARAM_ROW) * _COLUMNS
        step = tl.load(param + _RATE)
        share = factor(norm, step / (1.0 + step * c[2]), c[1])
    _write(
        tables, own, group, entry, there, c, mu, dead, share, broken, gate,
        types, root, counted, axis, entries, metric, gated, keeps,
    )  # fmt: skip


@jit(
    do_not_specialize=["num_weights", "evaluations"],
    do_not_specialize_on_alignment=["pointers", "items", "pieces", "params", "skip"],
)
def prox_groups(
    pointers, items, pieces, params, skip, num_weights, evaluations,
    types: tl.constexpr, root: tl.constexpr, counted: tl.constexpr, metric: tl.constexpr,
    gated: tl.constexpr, groups: tl.constexpr, entries: tl.constexpr, across: tl.constexpr,
    classes: tl.constexpr, keeps: tl.constexpr,
):  # fmt: skip
    """Work on the groups of one item: (first piece, pieces, first group, groups, class, gate).

    gate: where the byte of the group set's first group is.
    metric: whether entries of a group may have different steps.
    keeps: groups are kept or put to zero whole (KEEP); else shrunk (SHRINK).
    """
    if skip is not None:  # noqa: SIM102  that is asked while compiling
        if tl.load(skip) != 0:
            return
    item = items + tl.program_id(0).to(tl.int64) * 6
    own = (tl.load(item), tl.load(item + 1).to(tl.int32))
    first, num = tl.load(item + 2).to(tl.int32), tl.load(item + 3).to(tl.int32)
    kind, gate = tl.load(item + 4), tl.load(item + 5).to(tl.pointer_type(tl.uint8))
    param = params + tl.load(pieces + own[0] * _NUMBERS + _PARAM_ROW) * _COLUMNS
    c = coefficients(param, 0)
    tables = (pointers, pieces, params, num_weights)
    for k in tl.static_range(classes):
        if kind == k:
            _shrunk(
                tables, own, first, num, c, evaluations, gate, types, root, counted, metric,
                gated, groups[k], entries[k], across[k], keeps,
            )  # fmt: skip
