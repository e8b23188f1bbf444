"""The C kernels against the bodies in torch, in double precision, and against bisection."""

import ctypes
import hashlib
import itertools
import logging
import math
import os
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prox_calls import SHAPES, Call, args_of, gated, kernels_of, trimmed
from prox_calls import param as adamw_param
from torch import Tensor

from regkit.ops.formula import FOLD, KEEP, NUM_COEFFICIENTS, SHRINK, formula, maximum
from regkit.ops.kernel_args import NUM_PARAMS, GroupAxis, KernelArgs, Param
from regkit.ops.native import build
from regkit.ops.native import launch as native
from regkit.ops.native.formula_source import source_of
from regkit.ops.prox_pass import ProxPass, prepare
from regkit.penalties import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Box,
    ElasticNet,
    LHalf,
    LogSum,
    WeightDecay,
    WeightPenalty,
)

pytestmark = pytest.mark.skipif(
    build.kernels(torch.float32) is None, reason="no C compiler with OpenMP here"
)

PENALTIES: dict[str, WeightPenalty] = {
    "l1": L1(0.7),
    "l2": L2(0.3),
    "elastic_net": ElasticNet(1.0, l1_ratio=0.7),
    "weight_decay": WeightDecay(0.2),
    "mcp": MCP(0.7, gamma=2.5),
    "scad": SCAD(0.7),
    "l0": L0(0.7),
    "l_half": LHalf(0.7),
    "log_sum": LogSum(0.7, eps=0.4),
    "box": Box(1.0, low=-0.3, high=0.8),
}
FORMULAS = {
    "shrink": SHRINK,
    "keep": KEEP,
    "fold": FOLD,
    **{name: p.kernel for name, p in PENALTIES.items() if p.kernel is not None},
}
ENTRIES = list(PENALTIES)
METRICS = ("scalar", "adaptive")
COEFFICIENTS = {name: p.coefficients(1) for name, p in PENALTIES.items()}
NONE = (0.0,) * NUM_COEFFICIENTS


def param(rate: float, *chain: Sequence[float], eps: float = 1e-8, beta2: float = 0.99) -> Tensor:
    row = torch.zeros(NUM_PARAMS, dtype=torch.float64)
    row[Param.RATE], row[Param.LR], row[Param.EPS] = rate, 0.1, eps
    row[Param.LOG_BETA2] = math.log(beta2)
    for k, c in enumerate(chain):
        begin = Param.FIRST + k * NUM_COEFFICIENTS
        row[begin : begin + len(c)] = torch.tensor(c, dtype=torch.float64)
    return row


def args_on(
    *weights: Tensor, param_row: Sequence[int] = (), geometry: Tensor | None = None
) -> KernelArgs:
    """Give every weight second moments over many scales, and counts."""
    seconds = [torch.empty_like(w).copy_(10 ** (4 * torch.rand(w.shape) - 4)) for w in weights]
    counts = [torch.tensor(3.0 + place) for place in range(len(weights))]
    rows = list(param_row or [0] * len(weights))
    return KernelArgs(list(weights), rows, seconds, counts, geometry=geometry)


def prepared(args: KernelArgs, names: Sequence[str], metric: str) -> ProxPass:
    once = prepare(args, [FORMULAS[name] for name in names], metric)
    assert once is not None
    return once


def by_kernel(
    args: KernelArgs, params: Tensor, names: Sequence[str], metric: str, **given: Tensor
) -> None:
    prepared(args, names, metric)(params, **given)


def by_reference(
    args: KernelArgs, params: Tensor, names: Sequence[str], metric: str
) -> list[Tensor]:
    """Return what the reference makes of the weights in double precision."""
    lists = ("weights", "exp_avg_sqs", "max_exp_avg_sqs")
    double = {name: [t.double() for t in getattr(args, name)] for name in lists}
    exact = replace(args, **double)
    ProxPass(exact, tuple(FORMULAS[name] for name in names), metric)(params)
    return list(exact.weights)


def check_entries(args: KernelArgs, params: Tensor, formulas: Sequence[str], metric: str) -> None:
    """Every prox rises in its weight: so the exact ones of a little more and less enclose it."""
    bounds = []
    for factor in (1 - 4e-6, 1 + 4e-6):
        near = replace(args, weights=[w.double() * factor for w in args.weights])
        bounds.append(by_reference(near, params, formulas, metric))
    before = [w.clone() for w in args.weights]
    by_kernel(args, params, formulas, metric)
    for x, v, one, other in zip(args.weights, before, *bounds, strict=True):
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        slack = 1e-6 * v.abs() + 1e-37
        assert ((low - slack <= x) & (x <= high + slack)).all()
        assert (x[v == 0] == 0).all() or "box" in formulas


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ENTRIES)
@given(
    ratios=st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=40),
    scale=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3]),
    rate=st.sampled_from([0.0, 1e-4, 0.03, 1.0, 2.4, 2.6, 20.0]),
)
@settings(max_examples=20)
def test_entries_in_units_of_the_threshold(
    name: str, metric: str, ratios: list[float], scale: float, rate: float
):
    v = torch.tensor(ratios) * scale
    params = param(rate, COEFFICIENTS[name], eps=0.5)[None]
    check_entries(args_on(v), params, [name], metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_on_a_grid(name: str, metric: str):
    """Steps on each side of where a concave penalty jumps, weights on each side of the jump."""
    for rate in (0.03, 1.0, 2.4, 2.6, 3.3, 4.5, 20.0):
        params = param(rate, COEFFICIENTS[name], eps=0.99)[None]
        check_entries(args_on(torch.linspace(-20, 20, 4001)), params, [name], metric)


@pytest.mark.parametrize("pair", list(itertools.product(ENTRIES, repeat=2)), ids="-".join)
def test_chains_of_two(pair: tuple[str, str]):
    v = torch.randn(3000) * 10 ** (3 * torch.rand(3000) - 2)
    params = param(0.02, *(COEFFICIENTS[name] for name in pair))[None]
    for metric in METRICS:
        check_entries(args_on(v.clone()), params, pair, metric)


@pytest.mark.parametrize("name", ENTRIES)
def test_memory_formats_and_odd_addresses(name: str):
    v = torch.randn(6, 5, 3, 3, 3)
    plain, last = v.clone(), v.clone().contiguous(memory_format=torch.channels_last_3d)
    odd = torch.empty(v.numel() + 3)[3:].view(v.shape).copy_(v)
    params = param(0.02, COEFFICIENTS[name])[None]
    second = torch.rand_like(v)
    for weight in (plain, last, odd):
        state = torch.empty_like(weight).copy_(second)
        by_kernel(
            KernelArgs([weight], [0], [state], [torch.tensor(2.0)]), params, [name], "adaptive"
        )
    assert torch.equal(plain, last)
    assert torch.equal(plain, odd)
    assert not torch.equal(plain, v)


def test_params_counts_and_maxima_belong_to_their_weight():
    weights = [torch.randn(4), torch.randn(()), torch.randn(0), torch.randn(70000)]
    args = args_on(*weights, param_row=(0, 1, 0, 1))
    maxes = [2 * s for s in args.exp_avg_sqs]
    params = torch.stack([param(0.02, COEFFICIENTS["elastic_net"]), param(0.2, (0.1, 0.9, 0.1))])
    check_entries(args, params, ["elastic_net"], "adaptive")
    amsgrad = replace(args, max_exp_avg_sqs=maxes)
    check_entries(amsgrad, params, ["elastic_net"], "adaptive")


def test_without_counts_nothing_is_corrected():
    args = args_on(torch.randn(100))
    args = replace(args, step_counts=())
    check_entries(args, param(0.02, COEFFICIENTS["elastic_net"])[None], ["elastic_net"], "adaptive")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", [*ENTRIES, "shrink"])
def test_nothing_to_do_changes_no_bit(name: str, metric: str):
    """Not even where the second moment and eps are 0, and the step is infinite."""
    v = torch.randn(40, 50) * 10 ** (60 * torch.rand(40, 50) - 30)
    v[3] = 0
    strong = COEFFICIENTS.get(name, (0.1, 0.5, 0.2))
    calm = NONE if name == "shrink" else (0.0, *strong[1:])
    for rate, c in ((1.0, calm), (0.0, strong)):
        # The step of a decoupled formula is the learning rate.
        row = param(rate, c, eps=0.0)
        row[Param.LR] = rate
        weight = v.clone()
        geometry = rows_of(0, 0, 40, 50) if name == "shrink" else None
        args = args_on(weight, geometry=geometry)
        args.exp_avg_sqs[0][:7] = 0
        by_kernel(args, row[None], [name], metric)
        assert torch.equal(weight, v)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ENTRIES)
def test_no_number_stays_none(name: str, metric: str):
    v = torch.randn(37)
    v[5], v[36], v[7], v[8] = torch.nan, torch.nan, torch.inf, -torch.inf
    args = args_on(v)
    by_kernel(args, param(0.02, COEFFICIENTS[name])[None], [name], metric)
    assert v.isnan().nonzero().flatten().tolist() == [5, 36]
    assert name == "box" or v[7:9].isinf().all()
    if metric == "adaptive" and name not in ("weight_decay", "box"):
        broken = args_on(torch.randn(37))
        broken.exp_avg_sqs[0][4] = torch.nan
        by_kernel(broken, param(0.02, COEFFICIENTS[name])[None], [name], metric)
        assert broken.weights[0].isnan().nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("name", ["l1", "elastic_net", "mcp", "scad", "l0", "l_half", "log_sum"])
def test_an_infinite_step_kills(name: str):
    args = args_on(torch.cat([torch.randn(20), torch.zeros(3)]))
    args.exp_avg_sqs[0].zero_()
    by_kernel(args, param(0.1, COEFFICIENTS[name], eps=0.0)[None], [name], "adaptive")
    x = args.weights[0]
    assert (x == 0).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_skip_writes_nothing(grouped: bool):
    weight = torch.randn(20, 5)
    args = args_on(weight, geometry=rows_of(0, 0, 20, 5) if grouped else None)
    name = "shrink" if grouped else "elastic_net"
    params = param(0.1, (0.3, 0.3, 0))[None]
    before, version = weight.clone(), weight._version
    by_kernel(args, params, [name], "adaptive", skip=torch.ones(1))
    assert torch.equal(weight, before)
    assert weight._version == version
    by_kernel(args, params, [name], "adaptive", skip=torch.zeros(()))
    assert not torch.equal(weight, before)
    assert weight._version > version


# Groups.


def geometry(*pieces: Sequence[int]) -> Tensor:
    return torch.tensor(pieces, dtype=torch.int64)


def rows_of(group_set: int, weight: int, groups: int, size: int) -> Tensor:
    return geometry((group_set, weight, 0, 1, 0, groups, size, 1, 0, 1, 0, size, 1))


def seen(tensor: Tensor, piece: Sequence[int]) -> Tensor:
    """Return the groups of a piece as rows, by the definition of its columns."""
    p = list(map(int, piece))
    flat = tensor.as_strided((tensor.numel(),), (1,))
    groups = [
        a * p[GroupAxis.STRIDE1] + b * p[GroupAxis.STRIDE2]
        for a in range(p[GroupAxis.COUNT1])
        for b in range(p[GroupAxis.COUNT2])
    ]
    inner = [
        i * p[GroupAxis.STEP1] + j * p[GroupAxis.STEP2] + k * p[GroupAxis.STEP3]
        for i in range(p[GroupAxis.SIZE1])
        for j in range(p[GroupAxis.SIZE2])
        for k in range(p[GroupAxis.SIZE3])
    ]
    return flat[torch.tensor(groups)[:, None] + torch.tensor(inner) + p[GroupAxis.OFFSET]]


def by_bisection(v: Tensor, step: Tensor, s0: float, s1: float, s2: float) -> Tensor:
    """Soft threshold, ridge, then ||x|| = s, x_i = z_i s / (s + s1 step_i), by 90 halvings."""
    v, step = v.double(), step.double()
    z = v.sign() * (v.abs() - step * s0).clamp_min(0) / (1 + step * s2)
    step = step / (1 + step * s2)
    low, high = torch.zeros(len(z), 1, dtype=z.dtype), z.norm(dim=1, keepdim=True)
    for _ in range(90):
        s = (low + high) / 2
        shorter = (z / (s + s1 * step)).norm(dim=1, keepdim=True) > 1
        low, high = torch.where(shorter, s, low), torch.where(shorter, high, s)
    alive = (z / step).norm(dim=1, keepdim=True) > s1
    return torch.where(alive, z * high / (high + s1 * step), 0.0)


def steps_of(args: KernelArgs, place: int, params: Tensor, metric: str) -> Tensor:
    r = params[args.param_row[place]]
    if metric == "scalar":
        return torch.full_like(args.weights[place], float(r[Param.RATE]), dtype=torch.float64)
    second = (args.max_exp_avg_sqs or args.exp_avg_sqs)[place].double()
    correction = 1 - math.exp(float(args.step_counts[place]) * float(r[Param.LOG_BETA2]))
    return r[Param.RATE] / ((second / correction).sqrt() + r[Param.EPS])


def check_groups(args: KernelArgs, params: Tensor, metric: str) -> None:
    """Compare weights with bisection, group set by group_set."""
    assert args.geometry is not None
    rows, exact = {}, {}
    group_sets = args.geometry[:, GroupAxis.BUNDLE].unique().tolist()
    for b in group_sets:
        pieces = args.geometry[args.geometry[:, GroupAxis.BUNDLE] == b].tolist()
        places = [p[GroupAxis.WEIGHT] for p in pieces]
        v = torch.cat([seen(args.weights[w], p) for w, p in zip(places, pieces, strict=True)], 1)
        steps = [
            seen(steps_of(args, w, params, metric), p) for w, p in zip(places, pieces, strict=True)
        ]
        c = params[args.param_row[places[0]], Param.FIRST : Param.FIRST + 3].tolist()
        rows[b], exact[b] = v, by_bisection(v, torch.cat(steps, 1), *c)
    by_kernel(args, params, ["shrink"], metric)
    for b in group_sets:
        pieces = args.geometry[args.geometry[:, GroupAxis.BUNDLE] == b].tolist()
        x = torch.cat([seen(args.weights[p[GroupAxis.WEIGHT]], p) for p in pieces], 1).double()
        error = (x - exact[b]).norm(dim=1)
        assert (error <= 1e-5 * rows[b].double().norm(dim=1)).all()


# (weight's shape, piece): rows, inputs, kernels, taps, neighbours with one or more axes apart.
PLACES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one entry": ((1, 1), (0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1)),
    "scalars": ((50, 1), (0, 0, 0, 1, 0, 50, 1, 1, 0, 1, 0, 1, 1)),
    "short rows": ((37, 63), (0, 0, 0, 1, 0, 37, 63, 1, 0, 1, 0, 63, 1)),
    "rows of 64": ((16, 64), (0, 0, 0, 1, 0, 16, 64, 1, 0, 1, 0, 64, 1)),
    "rows of 65": ((5, 65), (0, 0, 0, 1, 0, 5, 65, 1, 0, 1, 0, 65, 1)),
    "long rows": ((3, 5000), (0, 0, 0, 1, 0, 3, 5000, 1, 0, 1, 0, 5000, 1)),
    "one row": ((1, 20001), (0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 20001, 1)),
    "inputs": ((8, 6, 27), (0, 0, 0, 1, 0, 6, 27, 1, 0, 8, 162, 27, 1)),
    "kernels": ((8, 6, 27), (0, 0, 0, 8, 162, 6, 27, 1, 0, 1, 0, 27, 1)),
    "taps": ((8, 6, 3, 3, 3), (0, 0, 0, 1, 0, 3, 9, 1, 0, 48, 27, 9, 1)),
    "columns": ((100, 45), (0, 0, 0, 1, 0, 45, 1, 1, 0, 1, 0, 100, 45)),
    "blocks of columns": ((10, 9, 30), (0, 0, 0, 10, 270, 15, 2, 1, 0, 9, 30, 2, 1)),
    "two axes of columns": ((4, 100, 20), (0, 0, 0, 4, 2000, 20, 1, 1, 0, 1, 0, 100, 20)),
    "three axes": ((7, 5, 6, 4), (0, 0, 1, 1, 0, 2, 2, 7, 120, 5, 24, 6, 4)),
    "a part": ((9, 40), (0, 0, 80, 1, 0, 4, 40, 1, 0, 1, 0, 40, 1)),
}
STRENGTHS = {
    "lasso": (0.0, 0.6, 0.0, 0.0, 0.0),
    "sparse": (0.2, 0.4, 0.0, 0.0, 0.0),
    "ridge": (0.0, 0.5, 0.7, 0.0, 0.0),
    "all": (0.1, 0.5, 0.7, 0.0, 0.0),
    "no length": (0.1, 0.0, 0.7, 0.0, 0.0),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", STRENGTHS)
@pytest.mark.parametrize("place", PLACES)
def test_groups_wherever_they_lie(place: str, kind: str, metric: str):
    shape, piece = PLACES[place]
    for rate in (1e-4, 0.01, 0.1):
        args = args_on(torch.randn(shape), geometry=geometry(piece))
        untouched = args.weights[0].clone()
        seen_mask = torch.zeros(args.weights[0].numel(), dtype=torch.bool)
        seen_mask[seen(torch.arange(seen_mask.numel()), piece).flatten()] = True
        check_groups(args, param(rate, STRENGTHS[kind])[None], metric)
        outside = ~seen_mask.view(shape)
        assert torch.equal(args.weights[0][outside], untouched[outside])


@pytest.mark.parametrize("size", [1, 2, 3, 16, 100, 700])
@pytest.mark.parametrize("layout", ["log-uniform", "one apart", "two clusters"])
@given(
    spread=st.floats(0, 8),
    alive_by=st.one_of(st.floats(-6, 0), st.floats(0, 5)),
    scale=st.sampled_from([1e-30, 1e-12, 1.0, 1e12, 1e30]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12)
def test_groups_over_all_metrics_and_scales(
    size: int, layout: str, spread: float, alive_by: float, scale: float, seed: int
):
    """Rows alive by a factor 1 + 10^alive_by, in steps that differ by 10^spread."""
    draw = torch.Generator().manual_seed(seed)
    groups = 20
    power = torch.rand(groups, size, generator=draw, dtype=torch.float64)
    if layout != "log-uniform":
        power = (power < 0.5).double()
    if layout == "one apart":
        power[:, 1:] = 0
    step = 10 ** (spread * (power - 0.5))
    z = torch.randn(groups, size, generator=draw, dtype=torch.float64)
    if seed % 2:
        z *= step
    # The step is 1 / sqrt(second): what float32 makes of the second moment is what counts.
    z /= (z / step).norm(dim=1, keepdim=True)
    weight = (z * scale).float()
    second = (1 / step**2).float()
    tau = scale / (1 + 10**alive_by)
    args = KernelArgs([weight], [0], [second], geometry=rows_of(0, 0, groups, size))
    params = param(1.0, (0.0, tau, 0.0, 0.0, 0.0), eps=0.0)[None]
    exact = by_bisection(weight, 1 / second.double().sqrt(), 0.0, tau, 0.0)
    norm = weight.double().norm(dim=1)
    by_kernel(args, params, ["shrink"], "adaptive")
    assert ((weight.double() - exact).norm(dim=1) <= 1e-5 * norm).all()
    if 10**alive_by > 1e-5:
        assert (weight != 0).any(1).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_groups_die_at_the_boundary(size: int, metric: str):
    """A group that is alive by less than rounding is put to zero, not to a speck."""
    for _ in range(40):
        v = torch.randn(1, size)
        args = args_on(v, geometry=rows_of(0, 0, 1, size))
        step = steps_of(args, 0, param(0.1)[None], metric)
        tau = float((v.double() / step).norm()) * (1 - 2e-7)
        by_kernel(args, param(0.1, (0.0, tau, 0.0, 0.0, 0.0))[None], ["shrink"], metric)
        assert (v == 0).all()


def check_gates(args: KernelArgs, params: Tensor, names: Sequence[str]) -> None:
    """Closed units stay zero, all others are as without gates, and what is zero is noted."""
    args = gated(args)
    plain = replace(args, weights=[w.clone() for w in args.weights], gates=())
    before = [gate.clone() for gate in args.gates]
    by_kernel(plain, params, names, "adaptive")
    by_kernel(args, params, names, "adaptive")
    for number, (old, new) in enumerate(zip(before, args.gates, strict=True)):
        got, want = (units(a, number) for a in (args, plain))
        closed = (old & 1 == 1) & (old & 10 == 0)
        closed = closed if args.geometry is None else closed[:, None]
        want = want.masked_fill(closed & ~want.isnan(), 0.0)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        is_zero = got == 0 if args.geometry is None else (got == 0).all(1)
        assert torch.equal(new, torch.where(is_zero, old | 1, old & 12))
        assert closed.any()


def units(args: KernelArgs, number: int) -> Tensor:
    """Return the entries of a weight, or the groups of a group set as rows."""
    if args.geometry is None:
        return args.weights[number]
    group_sets = args.geometry[:, GroupAxis.BUNDLE]
    pieces = args.geometry[group_sets == group_sets.unique()[number]].tolist()
    rows = [seen(args.weights[p[GroupAxis.WEIGHT]].flatten(), p).flatten(1) for p in pieces]
    return torch.cat(rows, 1)


def test_gates_of_entries():
    weights = [torch.randn(shape) for shape in ((70000,), (6, 5, 3, 3, 3), (40,))]
    weights[1] = weights[1].contiguous(memory_format=torch.channels_last_3d)
    check_gates(args_on(*weights), param(0.01, COEFFICIENTS["l1"])[None], ["l1"])
    check_gates(
        args_on(torch.tensor([math.nan, 1.0] * 20)), param(0.01, COEFFICIENTS["l1"])[None], ["l1"]
    )


@pytest.mark.parametrize("place", PLACES)
def test_gates_of_groups(place: str):
    shape, piece = PLACES[place]
    for rate in (1e-4, 0.03):
        args = args_on(torch.randn(shape), geometry=geometry(piece))
        check_gates(args, param(rate, STRENGTHS["all"])[None], ["shrink"])


@pytest.mark.parametrize("longer", [3, 400])
def test_gates_of_bundles(longer: int):
    weights = [torch.randn(shape) for shape in ((20, longer), (20,), (6, 100))]
    table = geometry(
        (4, 0, 0, 1, 0, 20, longer, 1, 0, 1, 0, longer, 1),
        (4, 1, 0, 1, 0, 20, 1, 1, 0, 1, 0, 1, 1),
        (7, 2, 0, 1, 0, 6, 100, 1, 0, 1, 0, 100, 1),
    )
    args = args_on(*weights, geometry=table)
    check_gates(args, param(0.02, STRENGTHS["all"])[None], ["shrink"])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("longer", [3, 400])
def test_bundles_of_several_pieces(metric: str, longer: int):
    """A convolution's filters, its norm and a slice of another weight; another set beside."""
    shapes = [(20, longer), (20,), (30, 20), (6, 100), (20,)]
    weights = [torch.randn(shape) for shape in shapes]
    table = geometry(
        (4, 0, 0, 1, 0, 20, longer, 1, 0, 1, 0, longer, 1),
        (4, 1, 0, 1, 0, 20, 1, 1, 0, 1, 0, 1, 1),
        (4, 2, 0, 1, 0, 20, 1, 1, 0, 1, 0, 30, 20),
        (4, 4, 0, 1, 0, 20, 1, 1, 0, 1, 0, 1, 1),
        (7, 3, 0, 1, 0, 6, 100, 1, 0, 1, 0, 100, 1),
    )
    params = torch.stack([param(0.02, STRENGTHS["all"]), param(0.004, NONE, eps=0.1, beta2=0.9)])
    args = args_on(*weights, param_row=(0, 1, 0, 0, 1), geometry=table)
    check_groups(args, params, metric)
    amsgrad = replace(args, max_exp_avg_sqs=[3 * s for s in args.exp_avg_sqs])
    check_groups(amsgrad, params, metric)


def test_an_entry_of_step_zero_stays_beside_others():
    """A piece whose rate is 0 still keeps its group alive."""
    weights = [torch.randn(20, 5), torch.randn(20)]
    weights[1][:3] = 0
    before = [w.clone() for w in weights]
    table = geometry(
        (0, 0, 0, 1, 0, 20, 5, 1, 0, 1, 0, 5, 1), (0, 1, 0, 1, 0, 20, 1, 1, 0, 1, 0, 1, 1)
    )
    args = args_on(*weights, param_row=(0, 1), geometry=table)
    by_kernel(
        args, torch.stack([param(1e6, (0, 1e3, 0, 0, 0)), param(0, NONE)]), ["shrink"], "adaptive"
    )
    assert torch.equal(weights[1], before[1])
    assert (weights[0][:3] == 0).all()
    assert (weights[0][3:].abs() < 1e-3 * before[0][3:].abs()).all()
    assert (weights[0][3:] != 0).all()


@pytest.mark.parametrize("size", [5, 100])
@pytest.mark.parametrize("metric", METRICS)
def test_groups_with_no_numbers_and_without_entries(size: int, metric: str):
    v = torch.randn(40, size)
    v[2, 1], v[9, 4], v[12], v[20] = torch.nan, torch.inf, 0.0, 0.0
    args = args_on(
        v,
        torch.randn(0, 4),
        geometry=geometry(
            (0, 0, 0, 1, 0, 40, size, 1, 0, 1, 0, size, 1),
            (1, 1, 0, 1, 0, 0, 4, 1, 0, 1, 0, 4, 1),
        ),
    )
    if metric == "adaptive":
        args.exp_avg_sqs[0][30, 2] = torch.nan
        args.exp_avg_sqs[0][20] = 0
    by_kernel(args, param(0.01, STRENGTHS["lasso"], eps=0.0)[None], ["shrink"], metric)
    lost = {2, 9, 30} if metric == "adaptive" else {2, 9}
    for group, row in enumerate(v):
        assert row.isnan().all() if group in lost else row.isfinite().all()
    assert (v[12] == 0).all()
    assert (v[20] == 0).all()


def test_a_group_that_an_infinite_step_thins():
    """Entries of step infinity go, the others of the group live on."""
    v = torch.randn(4, 80)
    args = args_on(v, geometry=rows_of(0, 0, 4, 80))
    args.exp_avg_sqs[0][:, ::2] = 0
    by_kernel(args, param(0.001, STRENGTHS["lasso"], eps=0.0)[None], ["shrink"], "adaptive")
    assert (v[:, ::2] == 0).all()
    assert (v[:, 1::2] != 0).all()


def test_groups_in_channels_last_are_the_same_groups():
    v = torch.randn(32, 24, 3, 3, 3)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        weight = v.clone(memory_format=memory_format)
        o, i, t, h, w = weight.stride()
        inner = (27, 1) if memory_format is torch.contiguous_format else (27, 24)
        assert (t, h, w) == tuple(k * inner[1] for k in (9, 3, 1))
        table = geometry((0, 0, 0, 1, 0, 24, i, 1, 0, 32, o, *inner))
        second = torch.empty_like(weight).copy_(torch.linspace(0, 1, v.numel()).view(v.shape))
        args = KernelArgs([weight], [0], [second], [torch.tensor(2.0)], geometry=table)
        by_kernel(args, param(0.01, STRENGTHS["all"])[None], ["shrink"], "adaptive")
        found.append(weight)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
    assert not torch.equal(found[0], v)


def big_args(grouped: bool) -> KernelArgs:
    torch.manual_seed(1)
    shapes = [(64, 700), (300, 27), (900, 300), (5,)]
    weights = [torch.randn(shape) for shape in shapes]
    table = geometry(
        (0, 0, 0, 1, 0, 64, 700, 1, 0, 1, 0, 700, 1),
        (1, 1, 0, 1, 0, 300, 27, 1, 0, 1, 0, 27, 1),
        (2, 2, 0, 1, 0, 300, 1, 1, 0, 1, 0, 900, 300),
    )
    return args_on(*weights, geometry=table if grouped else None)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_bits_do_not_depend_on_the_number_of_threads(grouped: bool):
    name = "shrink" if grouped else "log_sum"
    params = param(0.01, STRENGTHS["all"] if grouped else COEFFICIENTS[name])[None]
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 2):
        args = big_args(grouped)
        once = prepared(args, [name], "adaptive")
        try:
            torch.set_num_threads(threads)
            once(params)
        finally:
            torch.set_num_threads(before)
        found.append(args.weights)
    assert not torch.equal(found[0][0], big_args(grouped).weights[0])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


# Updates, other types, other penalties of groups.


UPDATED = ("weights", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "gates")


def updating(update: str, dtype: torch.dtype, geometry: Tensor | None) -> tuple[Call, KernelArgs]:
    """Return a pass with gates over weights of all layouts, and the same in double precision."""
    shapes = SHAPES if geometry is None else [(24, 6, 3, 3, 3), (40, 20), (30, 700)]
    args = args_of(shapes, "last", "cpu", dtype, dtype)
    metric = "scalar" if update in ("plain", "sgd") else "adaptive"
    args = gated(trimmed(replace(args, geometry=geometry), metric, update))
    exact = {
        name: [(t.double() if t.is_floating_point() else t).clone() for t in getattr(args, name)]
        for name in (*UPDATED, "grads")
    }
    formulas = kernels_of("l1") if geometry is None else (SHRINK,)
    return Call(args, formulas, metric, update), replace(args, **exact)


ROWS_AND_COLUMNS = torch.tensor(
    [
        (0, 0, 0, 1, 0, 24, 162, 1, 0, 1, 0, 162, 1),
        (1, 1, 0, 1, 0, 20, 1, 1, 0, 1, 0, 40, 20),
        (2, 2, 0, 1, 0, 30, 700, 1, 0, 1, 0, 700, 1),
    ]
)


@pytest.mark.parametrize("dtype", build.TYPES, ids=str)
@pytest.mark.parametrize("where", ["entries", "groups"])
@pytest.mark.parametrize("update", ["plain", "sgd", "adamw", "amsgrad", "none"])
def test_update_and_prox_in_one_pass(update: str, where: str, dtype: torch.dtype):
    chain = ("l1",) if where == "entries" else ("shrink",)
    for nesterov in (0.0, 1.0) if update == "sgd" else (0.0,):
        call, exact = updating(update, dtype, ROWS_AND_COLUMNS if where == "groups" else None)
        rows = [adamw_param(chain, NESTEROV=nesterov), adamw_param(chain, RATE=0.1, DECAY=0.0)]
        params = torch.tensor(rows, dtype=torch.float64)
        scale = torch.tensor(4.0) if update != "none" else None
        renewed = call.prepared().refresh(call.args.grads)
        assert renewed is not None
        renewed(params, None, scale)
        ProxPass(exact, call.formulas, call.metric, call.kind)(params, None, scale)
        slack = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype]
        for name in UPDATED[:-1]:
            for got, want in zip(getattr(call.args, name), getattr(exact, name), strict=True):
                torch.testing.assert_close(got.double(), want, rtol=slack, atol=slack)
        if dtype == torch.float64:
            assert all(map(torch.equal, call.args.gates, exact.gates))
        assert any((w == 0).any() for w in call.args.weights)
        assert any((w != 0).any() for w in call.args.weights)


@pytest.mark.parametrize("update", ["sgd", "adamw"])
def test_an_update_without_penalties_is_torchs(update: str):
    call, _ = updating(update, torch.float32, None)
    args = replace(call.args, gates=(), param_row=[0] * len(call.args.weights))
    row = adamw_param(RATE=0.1, DECAY=0.0, EPS=1e-8, REST2=0.01 if update == "adamw" else 1.0)
    weights = [torch.nn.Parameter(w.clone()) for w in args.weights]
    plain = {"lr": 0.1, "fused": True}
    if update == "adamw":
        optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.0, **plain)
    else:
        optimizer = torch.optim.SGD(weights, momentum=0.9, **plain)
    lists = {"exp_avg": args.exp_avgs, "exp_avg_sq": args.exp_avg_sqs}
    for k, p in enumerate(weights):
        p.grad = args.grads[k].clone()
        if update == "adamw":
            optimizer.state[p] = {name: some[k].clone() for name, some in lists.items()}
            optimizer.state[p]["step"] = args.step_counts[k] - 1
        else:
            optimizer.state[p]["momentum_buffer"] = args.exp_avgs[k].clone()
    optimizer.step()
    once = prepare(args, [], call.metric, update)
    assert once is not None
    once(torch.tensor([row], dtype=torch.float64))
    for got, want in zip(args.weights, weights, strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", build.TYPES, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_groups_in_every_type(place: str, dtype: torch.dtype):
    shape, piece = PLACES[place]
    args = gated(args_on(torch.randn(shape), geometry=geometry(piece)))
    args = replace(
        args,
        weights=[w.to(dtype) for w in args.weights],
        exp_avg_sqs=[s.to(dtype) for s in args.exp_avg_sqs],
    )
    exact = replace(
        args,
        weights=[w.double().clone() for w in args.weights],
        exp_avg_sqs=[s.double() for s in args.exp_avg_sqs],
        gates=[g.clone() for g in args.gates],
    )
    params = param(0.03, STRENGTHS["all"])[None]
    by_kernel(args, params, ["shrink"], "adaptive")
    ProxPass(exact, (SHRINK,), "adaptive")(params)
    slack = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(args.weights[0].double(), exact.weights[0], rtol=slack, atol=slack)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("place", PLACES)
def test_group_l0_wherever_it_lies(place: str, metric: str):
    shape, piece = PLACES[place]
    for price in (0.0, 1e-3, 0.3, 10.0, 1e4):
        args = args_on(torch.randn(shape), geometry=geometry(piece))
        size = seen(args.weights[0], piece).shape[1]
        params = param(0.1, (price * size,))[None]
        (expected,) = by_reference(args, params, ["keep"], metric)
        before = args.weights[0].clone()
        by_kernel(args, params, ["keep"], metric)
        assert torch.equal(args.weights[0], expected.float())
        assert price > 0 or torch.equal(args.weights[0], before)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("place", PLACES)
def test_group_mcp_wherever_it_lies(place: str, metric: str):
    """Of two candidates whose objectives agree to rounding, either may be chosen."""
    shape, piece = PLACES[place]
    for slope, gamma in ((0.0, 3.0), (0.1, 3.0), (1.0, 1.5), (3.0, 3.0), (0.5, 0.01)):
        args = args_on(torch.randn(shape), geometry=geometry(piece))
        size = seen(args.weights[0], piece).shape[1]
        params = param(0.1, (slope * size**0.5, gamma), eps=0.1)[None]
        (expected,) = by_reference(args, params, ["fold"], metric)
        before = args.weights[0].clone()
        by_kernel(args, params, ["fold"], metric)
        torch.testing.assert_close(args.weights[0], expected.float(), rtol=2e-5, atol=2e-5)
        assert torch.equal(args.weights[0] == 0, expected == 0)
        assert slope > 0 or torch.equal(args.weights[0], before)


def test_group_l0_of_no_numbers_and_without_steps():
    v = torch.randn(8, 70)
    v[1, 3], v[2, 4], v[3] = torch.nan, torch.inf, 0.0
    args = args_on(v, geometry=rows_of(0, 0, 8, 70))
    args.exp_avg_sqs[0][5, ::2], args.exp_avg_sqs[0][6] = 0.0, torch.inf
    (expected,) = by_reference(args, param(0.1, (50.0,), eps=0.0)[None], ["keep"], "adaptive")
    by_kernel(args, param(0.1, (50.0,), eps=0.0)[None], ["keep"], "adaptive")
    torch.testing.assert_close(v, expected.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_group_l0_at_every_scale(scale: float):
    v = torch.randn(20, 100) * scale
    args = KernelArgs([v], [0], geometry=rows_of(0, 0, 20, 100))
    price = 100 * scale**2
    params = param(0.5, (price,))[None]
    (expected,) = by_reference(args, params, ["keep"], "scalar")
    by_kernel(args, params, ["keep"], "scalar")
    assert torch.equal(v, expected.float())
    assert (v == 0).any()
    assert (v != 0).any()


# What is not served.


def test_other_weights_go_another_way(monkeypatch: pytest.MonkeyPatch):
    plain = args_on(torch.randn(6, 4))
    assert native.prepare(plain, [L1.kernel], "adaptive") is not None
    assert native.prepare(plain, [L1.kernel], "adaptive", "adamw") is None  # without gradients
    assert native.prepare(plain, [SHRINK], "adaptive") is None
    assert native.prepare(plain, [L1.kernel, SHRINK], "adaptive") is None
    assert native.prepare(KernelArgs(plain.weights, [0]), [L1.kernel], "adaptive") is None
    assert native.prepare(KernelArgs(plain.weights, [0]), [L1.kernel], "scalar") is not None
    twice = KernelArgs([*plain.weights, *plain.weights], [0, 0])
    assert native.prepare(twice, [L1.kernel], "scalar") is None
    other = KernelArgs(plain.weights, [0], [torch.rand(4, 6).t()])
    assert native.prepare(other, [L1.kernel], "adaptive") is None
    mixed = KernelArgs(plain.weights, [0], [torch.rand(6, 4).double()])
    assert native.prepare(mixed, [L1.kernel], "adaptive") is None
    for weight in (torch.randn(6, 8)[:, ::2], torch.randn(6).half()):
        assert native.prepare(KernelArgs([weight], [0]), [L1.kernel], "scalar") is None
    grouped = KernelArgs(plain.weights, [0], geometry=rows_of(0, 0, 6, 4))
    assert native.prepare(grouped, [L1.kernel], "scalar") is None
    monkeypatch.setenv("REGKIT_NATIVE", "0")
    assert native.prepare(plain, [L1.kernel], "adaptive") is None


def test_groups_that_share_entries_go_another_way():
    weight = torch.randn(6, 4)
    upper, lower = (0, 0, 0, 1, 0, 3, 4, 1, 0, 1, 0, 4, 1), (1, 1, 12, 1, 0, 3, 4, 1, 0, 1, 0, 4, 1)
    columns = (1, 1, 0, 1, 0, 4, 1, 1, 0, 1, 0, 6, 4)
    apart = KernelArgs([weight, weight], [0, 0], geometry=geometry(upper, lower))
    assert native.prepare(apart, [SHRINK], "scalar") is not None
    crossed = KernelArgs([weight, weight], [0, 0], geometry=geometry(upper, columns))
    assert native.prepare(crossed, [SHRINK], "scalar") is None


def test_without_a_table_the_reference_runs():
    weight = torch.randn(6, 4)
    params = param(0.1, COEFFICIENTS["elastic_net"])[None]
    args = KernelArgs([weight], [0])
    (expected,) = by_reference(args, params, ["elastic_net"], "scalar")
    ProxPass(args, (FORMULAS["elastic_net"],), "scalar")(params)
    torch.testing.assert_close(weight, expected.float())
    assert (weight == 0).any()
    grouped = args_on(weight.double(), geometry=rows_of(0, 0, 6, 4))
    exact = by_bisection(
        grouped.weights[0], steps_of(grouped, 0, params, "adaptive"), 0.7, 0.3, 0.0
    )
    params = param(0.1, (0.7, 0.3, 0.0, 0.0, 0.0))[None]
    ProxPass(grouped, (SHRINK,), "adaptive")(params)
    torch.testing.assert_close(grouped.weights[0], exact)


# The library.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], ctypes.CDLL | None]:
    """Build as at first use, in a cache of its own and without optimising."""
    monkeypatch.setattr(build, "FLAGS", tuple(f for f in build.FLAGS if f != "-O3"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return partial(build.kernels.__wrapped__, torch.float32)


def test_the_library_is_built_once(quick: Callable[[], ctypes.CDLL | None], tmp_path: Path):
    assert quick() is not None
    (path,) = (tmp_path / "regkit").iterdir()
    written = path.stat()
    assert quick() is not None
    assert [path] == list((tmp_path / "regkit").iterdir())
    assert path.stat().st_mtime_ns == written.st_mtime_ns


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_in_the_cache_is_never_loaded(
    damage: str, quick: Callable[[], ctypes.CDLL | None], tmp_path: Path
):
    """It may be mapped, and kill the process where its pages are missing."""
    quick()
    (path,) = (tmp_path / "regkit").iterdir()
    sound = path.read_bytes()
    path.unlink()  # the process has it mapped
    path.write_bytes(DAMAGES[damage](sound))
    library = quick()
    assert library is not None
    assert str(tmp_path) not in library._name
    (renewed,) = (tmp_path / "regkit").iterdir()
    assert renewed.stem.endswith(hashlib.sha256(renewed.read_bytes()).hexdigest()[:32])


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
def test_a_file_of_somebody_else_is_not_loaded(
    quick: Callable[[], ctypes.CDLL | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quick()
    (path,) = (tmp_path / "regkit").iterdir()
    assert str(tmp_path) in str(quick()._name)  # type: ignore[union-attr]
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert str(tmp_path) not in str(quick()._name)  # type: ignore[union-attr]


def test_the_library_of_another_cpu_is_not_loaded(
    quick: Callable[[], ctypes.CDLL | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A home that several machines share: what -march=native stands for is part of the name."""
    quick()
    (mine,) = (tmp_path / "regkit").iterdir()
    target = build._target(shutil.which(os.environ.get("CC") or "cc") or "")
    monkeypatch.setattr(build, "_target", lambda _: target.replace("__SSE2__", "__SSE9__"))
    library = quick()
    assert library is not None
    assert mine.name not in library._name
    assert len(list((tmp_path / "regkit").iterdir())) == 2


def test_a_folder_that_cannot_be_written(
    quick: Callable[[], ctypes.CDLL | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert quick() is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_a_line_in_the_log(
    quick: Callable[[], ctypes.CDLL | None],
    compiler: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO, logger="regkit.ops.native.launch"):
        assert quick() is None
    (record,) = caplog.records
    assert "taken by torch" in record.getMessage()
    monkeypatch.setattr(native, "kernels", lambda _: None)
    assert native.prepare(args_on(torch.randn(3)), [L1.kernel], "adaptive") is None


@pytest.mark.parametrize("name", ENTRIES)
def test_formulas_are_vectorised(name: str, tmp_path: Path):
    """A select that becomes a branch would leave the loop scalar: several times slower."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or ""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    if "Free Software Foundation" not in version.stdout:
        pytest.skip("only GCC is asked here")
    source = tmp_path / "formula.c"
    source.write_text(source_of(FORMULAS[name]))
    flags = (*build.FLAGS, *build.FORMULA_FLAGS, "-fopt-info-vec", "-c", "-o", "/dev/null")
    done = subprocess.run([compiler, *flags, source], capture_output=True, text=True, check=True)
    assert "loop vectorized" in done.stderr


def test_a_formula_is_a_library_of_its_own(
    quick: Callable[[], ctypes.CDLL | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another one builds nothing again; without a compiler for it torch takes the prox."""

    @formula
    def grown(v, step, lam):
        return v * (1 + step * lam)

    assert quick() is not None
    (passes,) = (tmp_path / "regkit").iterdir()
    written = passes.stat().st_mtime_ns
    args, params = args_on(torch.tensor([1.0, -2.0, math.nan])), param(0.5, (3.0,))[None]
    once = prepare(args, [grown], "scalar")
    assert once is not None
    once(params)
    torch.testing.assert_close(args.weights[0], torch.tensor([2.5, -5.0, math.nan]), equal_nan=True)
    assert passes.stat().st_mtime_ns == written
    (other,) = set((tmp_path / "regkit").iterdir()) - {passes}
    assert other.name.startswith("grown-")

    @formula
    def uncompiled(v, step, lam):
        return maximum(v, step * lam)

    monkeypatch.setenv("CC", "false")
    assert native.prepare(args, [uncompiled], "scalar") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_does_not_hang():
    weight, before = torch.ones(300000), torch.get_num_threads()
    args, params = KernelArgs([weight], [0]), param(0.25, (1.0,))[None]
    once = prepared(args, ["l1"], "scalar")
    try:
        torch.set_num_threads(2)
        once(params)
        child = forked(once, params)
        status = waited(child, seconds=20)
        once(params)
    finally:
        torch.set_num_threads(before)
    assert status == 0
    assert (weight == 0.5).all()


def forked(once: ProxPass, params: Tensor) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of any fork beside other threads
        child = os.fork()
    if child == 0:
        try:
            once(params)
            # A few entries: torch itself, with more than one thread, would wait for ever here.
            os._exit(0 if once.args.weights[0][-3:].tolist() == [0.5] * 3 else 1)
        finally:
            os._exit(2)
    return child


def waited(child: int, seconds: float) -> int | None:
    """Return what a process ends with; kill one that does not end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
