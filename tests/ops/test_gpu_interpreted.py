"""The kernels in Triton's interpreter, on a CPU, in a process of their own: see conftest.py."""

import itertools
import math
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prox_calls import (
    PENALTIES,
    WRITTEN,
    Call,
    args_of,
    copied,
    gated,
    kernels_of,
    param,
    trimmed,
)
from test_formula import own_penalty, proxed
from test_secular import LAYOUTS, by_bisection, hard_rows
from torch import Tensor

from regkit.ops.formula import Formula, formula
from regkit.ops.gpu import launch as gpu
from regkit.ops.gpu.launch_tables import prepare, refresh
from regkit.ops.gpu.tiling import Sizes
from regkit.ops.kernel_args import GroupAxis, KernelArgs, Param
from regkit.ops.prox_pass import BACKENDS
from regkit.ops.threshold import soft_threshold

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.usefixtures("interpreter")

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


def compare(call: Call, params: Tensor, **given: Tensor) -> None:
    """Hold kernels against the reference: weights, states, and versions."""
    other = replace(call, args=copied(call.args))
    versions = [w._version for w in call.args.weights]
    call.by_kernel(params, **given)
    other.by_reference(params, **given)
    for name in WRITTEN:
        for got, want in zip(getattr(call.args, name), getattr(other.args, name), strict=True):
            tolerance = TOLERANCE.get(got.dtype, 0)
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            if name == "weights" and got.dtype == torch.float32:
                assert torch.equal(got == 0, want == 0)
    assert all(w._version > v for w, v in zip(call.args.weights, versions, strict=True))


def params_for(*chain: str, **numbers: float) -> Tensor:
    """Return two params, the second of other strength and rate."""
    first, second = param(chain, **numbers), param(chain, **{"RATE": 2.5, **numbers})
    return torch.tensor([first, second], dtype=torch.float64)


@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("formula", PENALTIES)
def test_every_formula(formula: str, metric: str):
    layout = {"scalar": "plain", "adaptive": "odd"}[metric]
    args = trimmed(args_of(layout=layout), metric, "none")
    compare(Call(args, kernels_of(formula), metric, sizes=SMALL), params_for(formula))


@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("update", UPDATES[1:])
def test_every_update(update: str, metric: str):
    args = trimmed(args_of(layout="last"), metric, update)
    chain = ("weight_decay", "l1") if metric == "scalar" else ("l2", "box")
    params = params_for(
        *chain, NESTEROV=float(metric == "adaptive"), REST2=0.3 * (update == "sgd") + 0.2
    )
    scale = torch.tensor(4.0 if update == "adamw" else 0.3)
    compare(Call(args, kernels_of(*chain), metric, update, SMALL), params, scale=scale)


@pytest.mark.parametrize("update", UPDATES)
def test_gates_of_entries(update: str):
    args = gated(trimmed(args_of(layout="last"), "adaptive", update))
    compare(Call(args, kernels_of("l1"), "adaptive", update, SMALL), params_for("l1"))
    left = torch.cat([w[g & 11 == 1] for w, g in zip(args.weights, args.gates, strict=True)])
    assert len(left) > 20
    assert not left.any()


@pytest.mark.parametrize("name", ["shrink", "keep"])
@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("update", ["none", "adamw"])
def test_gates_of_groups(update: str, metric: str, name: str):
    """In a tile, in several, too long for both, across memory, and in two weights."""
    shapes = [(9, 16), (3, 27), (1, 63), (2, 96), (1, 160), (9, 4), (30, 9)]
    rows = [(k, k, [(n, m)], [(m, 1)]) for k, (n, m) in enumerate(shapes[:6])]
    if update == "none":  # with an update only rows of whole weights are served
        rows[5] = (5, 5, [(9, 4)], [(4, 1)])
        rows.append((5, 6, [(9, 1)], [(30, 9)]))
        rows.append((6, 0, [(16, 1)], [(9, 16)]))
        shapes.append((9, 16))
        rows[-1] = (6, 7, [(16, 1)], [(9, 16)])
    args = trimmed(args_of(shapes), metric, update)
    args = gated(replace(args, geometry=geometry(*rows)))
    call = Call(args, kernels_of(name), metric, update, SMALL)
    compare(call, params_for(name, RATE=0.3))
    zero = torch.cat(args.gates) & 1 == 1
    assert zero.any()
    assert not zero.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype):
    for kept, update in ((torch.float32, "amsgrad"), (dtype, "sgd")):
        args = trimmed(args_of(dtype=dtype, kept=kept), "adaptive", update)
        # Only decay and ridge: without a kink, rounding moves nothing far.
        compare(
            Call(args, kernels_of("weight_decay"), "adaptive", update, SMALL),
            params_for("weight_decay"),
        )


def test_no_formula_and_no_first_moment():
    args = trimmed(args_of(), "scalar", "adamw")
    compare(Call(args, (), "scalar", "adamw", SMALL), params_for(REST1=1.0, LOG_BETA1=-math.inf))


@pytest.mark.parametrize("grouped", [False, True])
def test_found_inf_writes_nothing(grouped: bool):
    args = trimmed(args_of([(130,), (4, 5)]), "adaptive", "adamw")
    if grouped:
        args = replace(
            args, geometry=geometry((0, 0, [(1, 1)], [(130, 1)]), (1, 1, [(4, 5)], [(5, 1)]))
        )
    name = "shrink" if grouped else "l1"
    call = Call(args, kernels_of(name), "adaptive", "adamw", SMALL)
    before = copied(args)
    call.by_kernel(params_for(name), skip=torch.ones(1))
    for kept in WRITTEN:
        for got, want in zip(getattr(args, kept), getattr(before, kept), strict=True):
            assert torch.equal(got, want)
    call.by_kernel(params_for(name), skip=torch.zeros(()))
    assert not torch.equal(args.weights[0], before.weights[0])


def test_laws_hold_bit_for_bit():
    """No strength, or no step: nothing changes; zeros stay; NaN stays NaN.

    But for the sign of zero, which numpy's maximum does not look at.
    """
    odd = torch.tensor([0.0, -0.0, 1e-45, -3e-39, 1e-30, 0.3, -7.0, 1e30, torch.inf, torch.nan])
    for name, penalty in PENALTIES.items():
        formula = kernels_of(name)
        for rate, strength in ((0.7, 0.0), (math.inf, 0.0), (0.0, 1.0)):
            row = param((name,), RATE=rate, LR=rate)
            row[Param.FIRST] *= strength
            for metric in ("scalar", "adaptive"):
                x, second = odd[:-1].clone(), torch.logspace(-9, 3, 9)
                args = KernelArgs([x], [0], [second] if metric == "adaptive" else [])
                Call(args, formula, metric, sizes=SMALL).by_kernel(torch.tensor([row]))
                assert torch.equal(x, odd[:-1]), name
        x = odd[[0, 1, 9]].clone()
        row = param((name,), RATE=1e30 if penalty.sparsifies else 1.0)
        Call(KernelArgs([x], [0]), formula, sizes=SMALL).by_kernel(torch.tensor([row]))
        assert (x[:2] == 0).all()
        assert x[2].isnan()


def test_bias_corrections_keep_their_digits():
    """1 - beta^count to 1e-6 of itself, where float32 powers would lose half the digits."""
    for log_beta in (math.log(0.999), -1e-6, math.log(0.5), -math.inf):
        for count in (1.0, 2.0, 17.0, 500.0, 1e6):
            x, second = torch.ones(1), torch.ones(1)
            args = KernelArgs([x], [0], [second], [torch.tensor(count)])
            row = param(RATE=1.0, EPS=0.0, LOG_BETA2=log_beta)
            row[Param.FIRST] = 1.0
            Call(args, kernels_of("l2"), "adaptive", sizes=SMALL).by_kernel(torch.tensor([row]))
            step = math.sqrt(-math.expm1(count * log_beta))
            assert float(x) == pytest.approx(1 / (1 + step), rel=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_fifty_steps_are_those_of_torch_and_a_prox(kind: str):
    """torch.optim in float64, then the prox in the metric: no kernel of ours moves the weights."""
    target = torch.randn(70)
    exact = target.double().zero_().requires_grad_()
    if kind == "adamw":
        optimizer = torch.optim.AdamW([exact], lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    else:
        optimizer = torch.optim.SGD([exact], lr=0.01, momentum=0.9, weight_decay=0.1, dampening=0.3)
    x, first, second = torch.zeros(70), torch.zeros(70), torch.zeros(70)
    count = torch.zeros(())
    row = param(RATE=0.01, LR=0.01, EPS=1e-8, DECAY=0.1)
    if kind == "sgd":
        row[Param.RATE], row[Param.REST2] = 0.07, 0.7
    row[Param.FIRST] = 0.02
    for k in range(50):
        exact.grad = exact.detach() - target.double()
        optimizer.step()
        step: float | Tensor = 0.07
        if kind == "adamw":
            scale = optimizer.state[exact]["exp_avg_sq"].sqrt() / math.sqrt(1 - 0.99 ** (k + 1))
            step = 0.01 / (scale + 1e-8)
        exact.data = soft_threshold(exact.data, step * 0.02)
        count += 1
        lists = {"exp_avgs": [first], "grads": [x - target]}
        if kind == "adamw":
            lists |= {"exp_avg_sqs": [second], "step_counts": [count]}
        elif k == 0:
            # At its first step torch takes the gradient itself.
            row[Param.REST2] = 1.0
        metric = "adaptive" if kind == "adamw" else "scalar"
        call = Call(KernelArgs([x], [0], **lists), kernels_of("l1"), metric, kind, SMALL)
        call.by_kernel(torch.tensor([row]))
        row[Param.REST2] = 0.7 if kind == "sgd" else row[Param.REST2]
    torch.testing.assert_close(x, exact.detach().float(), rtol=1e-4, atol=1e-6)
    assert 0 < int((x != 0).sum()) < 70


def test_addresses_of_gradients_are_renewed():
    args = trimmed(args_of([(130,), (5,)], layout="odd"), "scalar", "plain")
    call = Call(args, kernels_of("l1"), "scalar", "plain", SMALL)
    table = call.table()
    assert refresh(table, args) is table
    moved = replace(args, grads=[g.clone().neg() for g in args.grads])
    renewed = refresh(table, moved)
    assert renewed is not None
    other = replace(call, args=copied(moved))
    replace(call, args=moved).by_kernel(params_for("l1"), table=renewed)
    other.by_reference(params_for("l1"))
    torch.testing.assert_close(moved.weights[0], other.args.weights[0])
    assert refresh(table, replace(args, grads=[g[::1].flip(0)[:3] for g in args.grads])) is None


def geometry(*pieces: tuple[int, int, list[tuple[int, int]], list[tuple[int, int]]]) -> Tensor:
    """Return a table of pieces: group set, weight, axes over groups, axes within; offset 0."""
    rows = []
    for group_set, weight, leads, inner in pieces:
        leads = [(1, 0)] * (2 - len(leads)) + leads
        inner = inner + [(1, 0)] * (3 - len(inner))
        rows.append([group_set, weight, 0, *(n for axis in leads + inner for n in axis)])
    return torch.tensor(rows)


def groups_of_a_conv(layout: str) -> list[tuple[KernelArgs, Tensor]]:
    """Return filters, input groups, taps, kernels of a (6, 5, 3, 2, 2), each with its rows."""
    found = []
    for kind in ("filter", "input", "tap", "kernel"):
        args = trimmed(args_of([(6, 5, 3, 2, 2)], layout), "adaptive", "none")
        weight = args.weights[0]
        axes = list(zip(weight.shape, weight.stride(), strict=True))
        taps = sorted(axes[2:], key=lambda axis: -axis[1])
        merged = [(12, taps[-1][1])]
        leads, inner = {
            "filter": ([axes[0]], [axes[1], *merged]),
            "input": ([axes[1]], [axes[0], *merged]),
            "tap": (merged, axes[:2]),
            "kernel": (axes[:2], merged),
        }[kind]
        found.append((args, geometry((0, 0, leads, inner))))
    return found


@pytest.mark.parametrize("name", ["shrink", "keep"])
@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("layout", ["plain", "last", "odd"])
def test_groups_of_any_axes(layout: str, metric: str, name: str):
    for args, table in groups_of_a_conv(layout):
        args = replace(trimmed(args, metric, "none"), geometry=table)
        params = params_for(name, RATE=1.2 if metric == "scalar" else 0.3)
        compare(Call(args, kernels_of(name), metric, sizes=SMALL), params)


@pytest.mark.parametrize("name", ["shrink", "keep"])
@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
def test_bundles_of_several_pieces_with_rates_of_their_own(metric: str, name: str):
    """Rows of one weight with columns of another, and a bias; two params, so steps that differ."""
    args = trimmed(args_of([(4, 6), (10, 4), (4,), (4, 70)]), metric, "none")
    table = geometry(
        (0, 0, [(4, 6)], [(6, 1)]),
        (0, 1, [(4, 1)], [(10, 4)]),
        (0, 2, [(4, 1)], []),
        (1, 3, [], [(280, 1)]),
    )
    args = replace(args, geometry=table)
    params = params_for(name, RATE=0.4)
    params[1, Param.RATE] = 0.9
    compare(Call(args, kernels_of(name), metric, sizes=SMALL), params)


@pytest.mark.parametrize("name", ["shrink", "keep"])
@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("update", ["plain", "sgd", "adamw", "amsgrad"])
def test_rows_updated_in_one_go(update: str, metric: str, name: str):
    """In a tile, in several, and too long for both; lengths that vectors divide or do not."""
    shapes = [(9, 16), (3, 27), (1, 63), (2, 96), (1, 160)]
    args = trimmed(args_of(shapes, "odd" if metric == "scalar" else "plain"), metric, update)
    rows = [(k, k, [(n, m)], [(m, 1)]) for k, (n, m) in enumerate(shapes)]
    call = Call(replace(args, geometry=geometry(*rows)), kernels_of(name), metric, update, SMALL)
    numbers = call.table().table
    assert all(len(n) > 0 for n in numbers[3:7])
    rate = 0.8 if name == "shrink" else 2.0
    compare(call, params_for(name, RATE=rate), scale=torch.tensor(2.0))
    if name == "keep":  # some rows go, others stay
        alive = [bool(row.any()) for weight in args.weights for row in weight]
        assert set(alive) == {False, True}


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
        args = KernelArgs([x], [0], [second], geometry=table)
        row = param(RATE=1.0, EPS=0.0)
        row[Param.FIRST + 1] = 1.0
        Call(args, kernels_of("shrink"), "adaptive", sizes=sizes).by_kernel(torch.tensor([row]))
        error = (x.double() - by_bisection(z, step, 1.0)).norm(dim=1)
        assert (error <= 1e-5 * z.norm(dim=1)).all()


@pytest.mark.parametrize("way", ["tile", "long", "groups"])
@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
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
        args = KernelArgs([x], [0], [kept] if metric == "adaptive" else [], geometry=table)
        row = param(RATE=rate, EPS=0.0)
        row[Param.FIRST + 1] = tau
        Call(args, kernels_of("shrink"), metric, sizes=sizes).by_kernel(torch.tensor([row]))
        return x

    step = 1 / torch.linspace(1, 2, 8).sqrt() if metric == "adaptive" else torch.ones(8)
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
    args = trimmed(args_of([(6, 5), (4, 4)]), "scalar", "none")
    whole = geometry((0, 0, [(6, 5)], [(5, 1)]))
    columns = geometry((0, 0, [(5, 1)], [(6, 5)]))
    twice = torch.cat([whole, columns + torch.tensor([[1] + [0] * 12])])
    half = [args.weights[0], args.weights[1].half()]
    strided = [torch.randn(6, 10)[:, ::2], args.weights[1]]
    adamw = trimmed(args_of([(6, 5), (4, 4)]), "scalar", "adamw")
    assert prepare(args, kernels_of("l1"), "scalar", "none", SMALL) is not None
    refused = [
        (args, kernels_of("shrink"), "scalar", "none"),
        (args, kernels_of("l1") * 3, "scalar", "none"),
        (args, kernels_of("l1"), "adaptive", "none"),
        (args, kernels_of("l1"), "scalar", "sgd"),
        (replace(args, weights=half), kernels_of("l1"), "scalar", "none"),
        (replace(args, weights=strided), kernels_of("l1"), "scalar", "none"),
        (
            replace(args, weights=[w.double() for w in args.weights]),
            kernels_of("l1"),
            "scalar",
            "none",
        ),
        (replace(adamw, step_counts=[]), kernels_of("l1"), "scalar", "adamw"),
        (
            replace(adamw, exp_avgs=[f.t() for f in adamw.exp_avgs]),
            kernels_of("l1"),
            "scalar",
            "adamw",
        ),
        (replace(args, geometry=whole), kernels_of("l1"), "scalar", "none"),
        (replace(args, geometry=twice), kernels_of("shrink"), "scalar", "none"),
        (replace(adamw, geometry=columns), kernels_of("shrink"), "scalar", "adamw"),
    ]
    for given in refused:
        assert prepare(*given, SMALL) is None, given[1:]


def test_long_weights_are_numbered_in_64_bits():
    """Starts beyond 2^31, without the memory: no kernel runs."""
    from regkit.ops.gpu.tiling import Stack, of_entries

    stack = Stack(4)
    of_entries(stack, 0, 0, 2**31 + 5, Sizes(block=2**28, num_blocks=4))
    items = stack.sorted()
    assert items[:, 2].tolist() == [0, 2**30, 2**31]
    assert items[:, 3].tolist() == [2**30, 2**30, 5]
    assert GroupAxis.OFFSET == 2


def test_a_penalty_of_a_user_has_a_kernel_in_triton(tmp_path: Path):
    """Through the one door, which in this process leads to the interpreter on a CPU too."""
    weight, second = torch.cat([torch.randn(300), torch.zeros(5)]), torch.rand(305)
    found, expected = proxed(own_penalty(tmp_path), weight, second)
    assert BACKENDS["cpu"] is gpu
    torch.testing.assert_close(found, expected.float(), rtol=2e-6, atol=1e-7)


def test_formulas_of_one_name_are_told_apart():
    """Triton keeps what it has compiled by name: the name holds a hash of the text."""
    from regkit.ops.gpu.formula_kernel import kernel_of

    def made(factor: float) -> Formula:
        source = formula(_scaled)
        source.source = types.FunctionType(_scaled.__code__, {"FACTOR": factor})
        return source

    first, second = kernel_of(made(2.0)), kernel_of(made(3.0))
    assert first.__name__ != second.__name__
    assert kernel_of(made(2.0)).__name__ == first.__name__


FACTOR = 1.0


def _scaled(v, step, lam):
    return v * FACTOR
