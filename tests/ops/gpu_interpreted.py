"""The kernels in Triton's interpreter, on a CPU: `test_gpu.py` runs this where it can be."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sweeping import COEFFICIENTS, NAMES, Call, copied, rule, trimmed, work_of
from test_secular import LAYOUTS, by_bisection, hard_rows
from torch import Tensor

from regkit.ops.formulas import FORMULAS
from regkit.ops.gpu.launch_tables import refresh, tabulate
from regkit.ops.gpu.tiling import Sizes
from regkit.ops.kernel_args import GroupAxis, KernelArgs, Param

SMALL = Sizes(
    block=64,
    num_blocks=2,
    tiles=((8, 16), (2, 32)),
    tile=32,
    long=(2, 3),
    kinds=((1, 32), (8, 16), (8, 16), (8, 16)),
)
UPDATES = ("none", "plain", "sgd", "adamw", "amsgrad")
# What float32 arithmetic in another order differs by; half precision also by its rounding, which
# the interpreter does towards zero.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def quiet():
    """Let the interpreter's numpy overflow as the device does."""
    with np.errstate(all="ignore"):
        yield


def compare(call: Call, rules: Tensor, **given: Tensor) -> None:
    """Hold kernels against the reference: weights, states, tallies, and versions."""
    other = replace(call, work=copied(call.work))
    versions = [w._version for w in call.work.weights]
    tally, expected = call.by_kernel(rules, **given), other.by_reference(rules, **given)
    for name in ("weights", "firsts", "seconds", "maxes"):
        for got, want in zip(getattr(call.work, name), getattr(other.work, name), strict=True):
            tolerance = TOLERANCE[got.dtype]
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            if name == "weights" and got.dtype == torch.float32:
                assert torch.equal(got == 0, want == 0)
    torch.testing.assert_close(tally, expected, rtol=2e-5, atol=2e-4)
    assert all(w._version > v for w, v in zip(call.work.weights, versions, strict=True))


def rules_for(*chain: str, **numbers: float) -> Tensor:
    """Return two rules, the second of other strength and rate."""
    first, second = rule(chain, **numbers), rule(chain, **{"RATE": 2.5, **numbers})
    return torch.tensor([first, second], dtype=torch.float64)


def names(*chain: str) -> tuple[str, ...]:
    return tuple(NAMES.get(name, name) for name in chain)


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("formula", [name for name in COEFFICIENTS if name != "shrink"])
def test_every_formula(formula: str, metric: str):
    layout = {"flat": "plain", "root": "odd"}[metric]
    work = trimmed(work_of(layout=layout), metric, "none")
    compare(Call(work, names(formula), metric, sizes=SMALL), rules_for(formula))


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("update", UPDATES[1:])
def test_every_update(update: str, metric: str):
    work = trimmed(work_of(layout="last"), metric, update)
    chain = ("decay", "elastic") if metric == "flat" else ("ridge", "box")
    rules = rules_for(*chain, NESTEROV=float(metric == "root"), REST2=0.3 * (update == "sgd") + 0.2)
    scale = torch.tensor(4.0 if update == "adamw" else 0.3)
    compare(Call(work, names(*chain), metric, update, SMALL), rules, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype):
    for kept, update in ((torch.float32, "amsgrad"), (dtype, "sgd")):
        work = trimmed(work_of(dtype=dtype, kept=kept), "root", update)
        # Only decay and ridge: without a kink, rounding moves nothing far.
        compare(Call(work, ("decay",), "root", update, SMALL), rules_for("decay"))


def test_no_formula_and_no_first_moment():
    work = trimmed(work_of(), "flat", "adamw")
    compare(Call(work, (), "flat", "adamw", SMALL), rules_for(REST1=1.0, LOG_BETA1=-math.inf))


@pytest.mark.parametrize("grouped", [False, True])
def test_found_inf_writes_nothing(grouped: bool):
    work = trimmed(work_of([(130,), (4, 5)]), "root", "adamw")
    if grouped:
        work = replace(
            work, geometry=geometry((0, 0, [(1, 1)], [(130, 1)]), (1, 1, [(4, 5)], [(5, 1)]))
        )
    call = Call(work, ("shrink",) if grouped else ("elastic",), "root", "adamw", SMALL)
    before = copied(work)
    assert call.by_kernel(rules_for("elastic"), skip=torch.ones(1)).isnan().any()
    for name in ("weights", "firsts", "seconds"):
        for got, want in zip(getattr(work, name), getattr(before, name), strict=True):
            assert torch.equal(got, want)
    assert not call.by_kernel(rules_for("elastic"), skip=torch.zeros(())).isnan().any()


def test_laws_hold_bit_for_bit():
    """No strength, or no step: nothing changes; zeros stay; NaN stays NaN.

    But for the sign of zero, which numpy's maximum does not look at.
    """
    odd = torch.tensor([0.0, -0.0, 1e-45, -3e-39, 1e-30, 0.3, -7.0, 1e30, torch.inf, torch.nan])
    for formula in COEFFICIENTS:
        if formula in ("shrink", "decay"):
            continue
        for rate, strength in ((0.7, 0.0), (0.0, 1.0)):
            if formula == "box" and rate > 0:
                continue
            row = rule((formula,), RATE=rate)
            row[Param.FIRST] *= strength
            row[Param.FIRST + 1] *= strength
            for metric in ("flat", "root"):
                x, second = odd[:-1].clone(), torch.logspace(-9, 3, 9)
                work = KernelArgs([x], [0], [second] if metric == "root" else [])
                Call(work, names(formula), metric, sizes=SMALL).by_kernel(torch.tensor([row]))
                # The reference's log-sum makes infinity NaN as well.
                kept = slice(0, 8) if formula == "log_sum" else slice(0, 9)
                assert torch.equal(x[kept], odd[:-1][kept])
        x = odd[[0, 1, 9]].clone()
        row = rule((formula,), RATE=1e30 if formula != "ridge" else 1.0)
        Call(KernelArgs([x], [0]), names(formula), sizes=SMALL).by_kernel(torch.tensor([row]))
        assert (x[:2] == 0).all()
        assert x[2].isnan()


def test_bias_corrections_keep_their_digits():
    """1 - beta^count to 1e-6 of itself, where float32 powers would lose half the digits."""
    for log_beta in (math.log(0.999), -1e-6, math.log(0.5), -math.inf):
        for count in (1.0, 2.0, 17.0, 500.0, 1e6):
            x, second = torch.ones(1), torch.ones(1)
            work = KernelArgs([x], [0], [second], [torch.tensor(count)])
            row = rule(("ridge",), RATE=1.0, EPS=0.0, LOG_BETA2=log_beta)
            row[Param.FIRST : Param.FIRST + 2] = 0.0, 1.0
            Call(work, ("elastic",), "root", sizes=SMALL).by_kernel(torch.tensor([row]))
            step = math.sqrt(-math.expm1(count * log_beta))
            assert float(x) == pytest.approx(1 / (1 + step), rel=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_fifty_steps_are_those_of_torch_and_a_prox(kind: str):
    """torch.optim in float64, then the formula in the metric: no code of ours moves the weights."""
    target = torch.randn(70)
    lasso = (0.02, 0.0, 0.0, 0.0, 0.0)
    exact = target.double().zero_().requires_grad_()
    if kind == "adamw":
        optimizer = torch.optim.AdamW([exact], lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    else:
        optimizer = torch.optim.SGD([exact], lr=0.01, momentum=0.9, weight_decay=0.1, dampening=0.3)
    x, first, second = torch.zeros(70), torch.zeros(70), torch.zeros(70)
    count = torch.zeros(())
    row = rule(RATE=0.01, LR=0.01, EPS=1e-8, DECAY=0.1)
    if kind == "sgd":
        row[Param.RATE], row[Param.REST2] = 0.07, 0.7
    row[Param.FIRST : Param.FIRST + 5] = lasso
    for k in range(50):
        exact.grad = exact.detach() - target.double()
        optimizer.step()
        step: float | Tensor = 0.07
        if kind == "adamw":
            scale = optimizer.state[exact]["exp_avg_sq"].sqrt() / math.sqrt(1 - 0.99 ** (k + 1))
            step = 0.01 / (scale + 1e-8)
        exact.data = FORMULAS["elastic"].prox(exact.data, step, lasso)
        count += 1
        lists = {"firsts": [first], "grads": [x - target]}
        if kind == "adamw":
            lists |= {"seconds": [second], "counts": [count]}
        elif k == 0:
            # At its first step torch takes the gradient itself.
            row[Param.REST2] = 1.0
        metric = "root" if kind == "adamw" else "flat"
        call = Call(KernelArgs([x], [0], **lists), ("elastic",), metric, kind, SMALL)
        call.by_kernel(torch.tensor([row]))
        row[Param.REST2] = 0.7 if kind == "sgd" else row[Param.REST2]
    torch.testing.assert_close(x, exact.detach().float(), rtol=1e-4, atol=1e-6)
    assert 0 < int((x != 0).sum()) < 70


def test_addresses_of_gradients_are_renewed():
    work = trimmed(work_of([(130,), (5,)], layout="odd"), "flat", "plain")
    call = Call(work, ("elastic",), "flat", "plain", SMALL)
    table = call.table()
    assert refresh(table, work) is table
    moved = replace(work, grads=[g.clone().neg() for g in work.grads])
    renewed = refresh(table, moved)
    assert renewed is not None
    other = replace(call, work=copied(moved))
    replace(call, work=moved).by_kernel(rules_for("elastic"), table=renewed)
    other.by_reference(rules_for("elastic"))
    torch.testing.assert_close(moved.weights[0], other.work.weights[0])
    assert refresh(table, replace(work, grads=[g[::1].flip(0)[:3] for g in work.grads])) is None


def geometry(*pieces: tuple[int, int, list[tuple[int, int]], list[tuple[int, int]]]) -> Tensor:
    """Return a table of pieces: bundle, weight, axes over groups, axes within; offset 0."""
    rows = []
    for bundle, weight, leads, inner in pieces:
        leads = [(1, 0)] * (2 - len(leads)) + leads
        inner = inner + [(1, 0)] * (3 - len(inner))
        rows.append([bundle, weight, 0, *(n for axis in leads + inner for n in axis)])
    return torch.tensor(rows)


def groups_of_a_conv(layout: str) -> list[tuple[KernelArgs, Tensor]]:
    """Return filters, input groups, taps, kernels of a (6, 5, 3, 2, 2), each with its rows."""
    found = []
    for kind in ("filter", "input", "tap", "kernel"):
        work = trimmed(work_of([(6, 5, 3, 2, 2)], layout), "root", "none")
        weight = work.weights[0]
        axes = list(zip(weight.shape, weight.stride(), strict=True))
        taps = sorted(axes[2:], key=lambda axis: -axis[1])
        merged = [(12, taps[-1][1])]
        leads, inner = {
            "filter": ([axes[0]], [axes[1], *merged]),
            "input": ([axes[1]], [axes[0], *merged]),
            "tap": (merged, axes[:2]),
            "kernel": (axes[:2], merged),
        }[kind]
        found.append((work, geometry((0, 0, leads, inner))))
    return found


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("layout", ["plain", "last", "odd"])
def test_groups_of_any_axes(layout: str, metric: str):
    for work, table in groups_of_a_conv(layout):
        work = replace(trimmed(work, metric, "none"), geometry=table)
        rules = rules_for("shrink", RATE=1.2 if metric == "flat" else 0.3)
        compare(Call(work, ("shrink",), metric, sizes=SMALL), rules)


@pytest.mark.parametrize("metric", ["flat", "root"])
def test_bundles_of_several_pieces_with_rates_of_their_own(metric: str):
    """Rows of one weight with columns of another, and a bias; two rules, so steps that differ."""
    work = trimmed(work_of([(4, 6), (10, 4), (4,), (4, 70)]), metric, "none")
    table = geometry(
        (0, 0, [(4, 6)], [(6, 1)]),
        (0, 1, [(4, 1)], [(10, 4)]),
        (0, 2, [(4, 1)], []),
        (1, 3, [], [(280, 1)]),
    )
    work = replace(work, geometry=table)
    rules = rules_for("shrink", RATE=0.4)
    rules[1, Param.RATE] = 0.9
    compare(Call(work, ("shrink",), metric, sizes=SMALL), rules)


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("update", ["plain", "sgd", "adamw", "amsgrad"])
def test_rows_updated_in_one_go(update: str, metric: str):
    """In a tile, in several, and too long for both; lengths that vectors divide or do not."""
    shapes = [(9, 16), (3, 27), (1, 63), (2, 96), (1, 160)]
    work = trimmed(work_of(shapes, "odd" if metric == "flat" else "plain"), metric, update)
    rows = [(k, k, [(n, m)], [(m, 1)]) for k, (n, m) in enumerate(shapes)]
    call = Call(replace(work, geometry=geometry(*rows)), ("shrink",), metric, update, SMALL)
    numbers = call.table().numbers
    assert all(len(n) > 0 for n in numbers[3:7])
    compare(call, rules_for("shrink", RATE=0.8), scale=torch.tensor(2.0))


@pytest.mark.parametrize("spread", [1e2, 1e8])
@pytest.mark.parametrize("way", ["tile", "long", "groups"])
def test_metric_prox_is_the_root(way: str, spread: float):
    """Bisection in double precision: ||error|| <= 1e-5 ||z||."""
    lengths = {"tile": (2, 3, 5, 16), "long": (24,), "groups": (16,)}[way]
    sizes = {
        "tile": replace(SMALL, tiles=((1024, 16),)),
        "long": replace(SMALL, tiles=(), tile=8, long=(3,)),
        "groups": replace(SMALL, tiles=(), long=(), kinds=((256, 16),) * 4),
    }[way]
    num = {"tile": 200, "long": 2, "groups": 80}[way]
    for layout, size in itertools.product(LAYOUTS, lengths):
        rows = list(hard_rows(size, spread, layout, groups=num))
        z, step = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        x, second = z.float(), step.pow(-2).float()
        z, step = x.double(), second.double().rsqrt()
        table = geometry((0, 0, [(len(x), size)], [(size, 1)]))
        work = KernelArgs([x], [0], [second], geometry=table)
        row = rule(RATE=1.0, EPS=0.0)
        row[Param.FIRST + 1] = 1.0
        Call(work, ("shrink",), "root", sizes=sizes).by_kernel(torch.tensor([row]))
        error = (x.double() - by_bisection(z, step, 1.0)).norm(dim=1)
        assert (error <= 1e-5 * z.norm(dim=1)).all()


@pytest.mark.parametrize("way", ["tile", "long", "groups"])
@pytest.mark.parametrize("metric", ["flat", "root"])
def test_rows_die_live_and_break_as_they_should(way: str, metric: str):
    sizes = {
        "tile": SMALL,
        "long": replace(SMALL, tiles=(), tile=4, long=(2,)),
        "groups": replace(SMALL, tiles=(), long=(), kinds=((8, 16),) * 4),
    }[way]
    base = torch.randn(8).abs() + 0.1

    def shrunk(rows: Tensor, tau: float, rate: float = 1.0, second: float = 1.0) -> Tensor:
        x = rows.clone()
        table = geometry((0, 0, [(len(x), 8)], [(8, 1)]))
        kept = torch.full_like(x, second) * torch.linspace(1, 2, 8)
        work = KernelArgs([x], [0], [kept] if metric == "root" else [], geometry=table)
        row = rule(RATE=rate, EPS=0.0)
        row[Param.FIRST + 1] = tau
        Call(work, ("shrink",), metric, sizes=sizes).by_kernel(torch.tensor([row]))
        return x

    step = 1 / torch.linspace(1, 2, 8).sqrt() if metric == "root" else torch.ones(8)
    edge = float((base.double() / step).norm())
    rows = torch.stack([base, base * 0.5, base * 0])
    assert (shrunk(rows, edge)[:] == 0).all()
    assert (shrunk(rows, edge * (1 - 1e-4))[0] != 0).all()
    for scale in (1e-36, 1e-20, 1e20, 1e36):
        expected = shrunk(rows, 0.7)
        torch.testing.assert_close(shrunk(rows * scale, 0.7 * scale) / scale, expected)
    tiny = torch.stack([base * 1e-44, base * 1e-40])
    for changed in (shrunk(tiny, 0.0), shrunk(tiny, 3.0, rate=0.0)):
        assert torch.equal(changed.view(torch.int32), tiny.view(torch.int32))
    assert (shrunk(tiny, 1.0) == 0).all()
    for bad in (torch.nan, torch.inf):
        broken = torch.stack([base, base])
        broken[0, 3] = bad
        found = shrunk(broken, 0.1)
        assert found[0].isnan().all()
        assert found[1].isfinite().all()


def test_what_is_not_served_is_refused():
    work = trimmed(work_of([(6, 5), (4, 4)]), "flat", "none")
    whole = geometry((0, 0, [(6, 5)], [(5, 1)]))
    columns = geometry((0, 0, [(5, 1)], [(6, 5)]))
    twice = torch.cat([whole, columns + torch.tensor([[1] + [0] * 12])])
    half = [work.weights[0], work.weights[1].half()]
    strided = [torch.randn(6, 10)[:, ::2], work.weights[1]]
    adamw = trimmed(work_of([(6, 5), (4, 4)]), "flat", "adamw")
    assert tabulate(work, ("elastic",), "flat", "none", SMALL) is not None
    refused = [
        (work, ("shrink",), "flat", "none"),
        (work, ("elastic",) * 3, "flat", "none"),
        (work, ("elastic",), "root", "none"),
        (work, ("elastic",), "flat", "sgd"),
        (replace(work, weights=half), ("elastic",), "flat", "none"),
        (replace(work, weights=strided), ("elastic",), "flat", "none"),
        (replace(work, weights=[w.double() for w in work.weights]), ("elastic",), "flat", "none"),
        (replace(adamw, counts=[]), ("elastic",), "flat", "adamw"),
        (replace(adamw, firsts=[f.t() for f in adamw.firsts]), ("elastic",), "flat", "adamw"),
        (replace(work, geometry=whole), ("elastic",), "flat", "none"),
        (replace(work, geometry=twice), ("shrink",), "flat", "none"),
        (replace(adamw, geometry=columns), ("shrink",), "flat", "adamw"),
    ]
    for args in refused:
        assert tabulate(*args, SMALL) is None, args[1:]


def test_long_weights_are_numbered_in_64_bits():
    """Starts beyond 2^31, without the memory: no kernel runs."""
    from regkit.ops.gpu.tiling import Stack, of_entries

    stack = Stack(4)
    of_entries(stack, 0, 0, 2**31 + 5, Sizes(block=2**28, num_blocks=4))
    items, _ = stack.sorted()
    assert items[:, 2].tolist() == [0, 2**30, 2**31]
    assert items[:, 3].tolist() == [2**30, 2**30, 5]
    assert GroupAxis.OFFSET == 2
