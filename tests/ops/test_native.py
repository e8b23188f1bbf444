"""The C kernels against the bodies in torch, in double precision, and against bisection."""

import ctypes
import itertools
import logging
import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regkit.ops.formulas import FORMULAS, NUM_COEFFICIENTS
from regkit.ops.kernel_args import NUM_PARAMS, GroupAxis, KernelArgs, Param
from regkit.ops.native import build
from regkit.ops.native import launch as native
from regkit.ops.prox_pass import ProxPass
from regkit.ops.reference import reference_entries

pytestmark = pytest.mark.skipif(build.kernels() is None, reason="no C compiler with OpenMP here")

ENTRIES = [name for name, formula in FORMULAS.items() if not formula.grouped]
METRICS = ("flat", "root")
# s0, s1, s2, c0, c1
COEFFICIENTS = {
    "elastic": (0.7, 0.3, 0.0, 0.0, 0.0),
    "decay": (0.0, 0.0, 0.0, 0.2, 0.0),
    "mcp": (0.7, 0.0, 0.0, 2.5, 0.0),
    "scad": (0.7, 0.0, 0.0, 3.7, 0.0),
    "hard": (0.7, 0.0, 0.0, 0.0, 0.0),
    "half": (0.7, 0.0, 0.0, 0.0, 0.0),
    "log_sum": (0.7, 0.0, 0.0, 0.4, 0.0),
    "box": (0.0, 0.0, 0.0, -0.3, 0.8),
}
NONE = (0.0,) * NUM_COEFFICIENTS


def rule(rate: float, *chain: Sequence[float], eps: float = 1e-8, beta2: float = 0.99) -> Tensor:
    row = torch.zeros(NUM_PARAMS, dtype=torch.float64)
    row[Param.RATE], row[Param.LR], row[Param.EPS] = rate, 0.1, eps
    row[Param.LOG_BETA2] = math.log(beta2)
    for k, c in enumerate(chain):
        begin = Param.FIRST + k * NUM_COEFFICIENTS
        row[begin : begin + NUM_COEFFICIENTS] = torch.tensor(c, dtype=torch.float64)
    return row


def work_on(
    *weights: Tensor, which: Sequence[int] = (), geometry: Tensor | None = None
) -> KernelArgs:
    """Give every weight second moments over many scales, and counts."""
    seconds = [torch.empty_like(w).copy_(10 ** (4 * torch.rand(w.shape) - 4)) for w in weights]
    counts = [torch.tensor(3.0 + place) for place in range(len(weights))]
    rows = list(which or [0] * len(weights))
    return KernelArgs(list(weights), rows, seconds, counts, geometry=geometry)


def swept(
    work: KernelArgs, rules: Tensor, formulas: Sequence[str], metric: str, **given: Tensor
) -> None:
    """ProxPass by the kernel."""
    table = native.tabulate(work, formulas, metric)
    assert table is not None
    ProxPass(work, tuple(formulas), metric, table=table)(rules, **given)


def referred(work: KernelArgs, rules: Tensor, formulas: Sequence[str], metric: str) -> list[Tensor]:
    """Return what the reference makes of the weights in double precision."""
    weights, seconds, maxes = (
        [t.double() for t in tensors] for tensors in (work.weights, work.seconds, work.maxes)
    )
    reference_entries(
        *(weights, [], [], seconds, maxes, list(work.counts), list(work.which), rules),
        *(None, None, None, None, "none", metric, list(formulas)),
    )
    return weights


def check_entries(work: KernelArgs, rules: Tensor, formulas: Sequence[str], metric: str) -> None:
    """Every prox rises in its weight: so the exact ones of a little more and less enclose it."""
    bounds = []
    for factor in (1 - 4e-6, 1 + 4e-6):
        near = KernelArgs([w.double() * factor for w in work.weights], work.which, work.seconds)
        near = KernelArgs(near.weights, near.which, near.seconds, work.counts, work.maxes)
        bounds.append(referred(near, rules, formulas, metric))
    before = [w.clone() for w in work.weights]
    swept(work, rules, formulas, metric)
    for x, v, one, other in zip(work.weights, before, *bounds, strict=True):
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
    rules = rule(rate, COEFFICIENTS[name], eps=0.5)[None]
    check_entries(work_on(v), rules, [name], metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_on_a_grid(name: str, metric: str):
    """Steps on each side of where a concave penalty jumps, weights on each side of the jump."""
    for rate in (0.03, 1.0, 2.4, 2.6, 3.3, 4.5, 20.0):
        rules = rule(rate, COEFFICIENTS[name], eps=0.99)[None]
        check_entries(work_on(torch.linspace(-20, 20, 4001)), rules, [name], metric)


@pytest.mark.parametrize("pair", list(itertools.product(ENTRIES, repeat=2)), ids="-".join)
def test_chains_of_two(pair: tuple[str, str]):
    v = torch.randn(3000) * 10 ** (3 * torch.rand(3000) - 2)
    rules = rule(0.02, *(COEFFICIENTS[name] for name in pair))[None]
    for metric in METRICS:
        check_entries(work_on(v.clone()), rules, pair, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ENTRIES)
def test_tally_of_entries(name: str, metric: str):
    weights = [torch.randn(n) for n in (1, 70000, 1500)]
    rules = torch.stack([rule(0.02, COEFFICIENTS[name]), rule(0.01, COEFFICIENTS[name])])
    work = work_on(*weights, which=(1, 0, 1))
    table = native.tabulate(work, [name], metric)
    assert table is not None
    tally = torch.full((len(table.owners), 3), torch.nan)
    ProxPass(work, (name,), metric, table=table)(rules, tally=tally)
    found = torch.zeros(3, 3).double().index_add_(0, table.owners, tally.double())
    for row, w in zip(found, work.weights, strict=True):
        value = FORMULAS[name].value(w.double(), COEFFICIENTS[name]).sum()
        expected = torch.stack([(w != 0).sum().double(), torch.zeros(()).double(), value])
        torch.testing.assert_close(row, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ENTRIES)
def test_memory_formats_and_odd_addresses(name: str):
    v = torch.randn(6, 5, 3, 3, 3)
    plain, last = v.clone(), v.clone().contiguous(memory_format=torch.channels_last_3d)
    odd = torch.empty(v.numel() + 3)[3:].view(v.shape).copy_(v)
    rules = rule(0.02, COEFFICIENTS[name])[None]
    second = torch.rand_like(v)
    for weight in (plain, last, odd):
        state = torch.empty_like(weight).copy_(second)
        swept(KernelArgs([weight], [0], [state], [torch.tensor(2.0)]), rules, [name], "root")
    assert torch.equal(plain, last)
    assert torch.equal(plain, odd)
    assert not torch.equal(plain, v)


def test_rules_counts_and_maxima_belong_to_their_weight():
    weights = [torch.randn(4), torch.randn(()), torch.randn(0), torch.randn(70000)]
    work = work_on(*weights, which=(0, 1, 0, 1))
    maxes = [2 * s for s in work.seconds]
    rules = torch.stack([rule(0.02, COEFFICIENTS["elastic"]), rule(0.2, (0.1, 0.0, 0, 0, 0))])
    check_entries(work, rules, ["elastic"], "root")
    amsgrad = KernelArgs(work.weights, work.which, work.seconds, work.counts, maxes)
    check_entries(amsgrad, rules, ["elastic"], "root")


def test_without_counts_nothing_is_corrected():
    work = work_on(torch.randn(100))
    work = KernelArgs(work.weights, work.which, work.seconds)
    check_entries(work, rule(0.02, COEFFICIENTS["elastic"])[None], ["elastic"], "root")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", [*ENTRIES, "shrink"])
def test_nothing_to_do_changes_no_bit(name: str, metric: str):
    """Not even where the second moment and eps are 0, and the step is infinite."""
    v = torch.randn(40, 50) * 10 ** (60 * torch.rand(40, 50) - 30)
    v[3] = 0
    quiet = {"decay": NONE, "box": (0.0, 0.0, 0.0, -math.inf, math.inf)}.get(name)
    idle = (0.0, 0.0, 0.0, *COEFFICIENTS.get(name, NONE)[3:])
    calm = quiet if quiet is not None else idle
    strong = COEFFICIENTS.get(name, (0.1, 0.5, 0.2, 0.0, 0.0))
    for rate, c in ((1.0, calm), (0.0, strong)):
        if name == "decay" and rate == 0:
            continue  # its step is the learning rate
        weight = v.clone()
        geometry = rows_of(0, 0, 40, 50) if name == "shrink" else None
        work = work_on(weight, geometry=geometry)
        work.seconds[0][:7] = 0
        swept(work, rule(rate, c, eps=0.0)[None], [name], metric)
        assert torch.equal(weight, v)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ENTRIES)
def test_no_number_stays_none(name: str, metric: str):
    v = torch.randn(37)
    v[5], v[36], v[7], v[8] = torch.nan, torch.nan, torch.inf, -torch.inf
    work = work_on(v)
    swept(work, rule(0.02, COEFFICIENTS[name])[None], [name], metric)
    assert v.isnan().nonzero().flatten().tolist() == [5, 36]
    assert name == "box" or v[7:9].isinf().all()
    if metric == "root" and name not in ("decay", "box"):
        broken = work_on(torch.randn(37))
        broken.seconds[0][4] = torch.nan
        swept(broken, rule(0.02, COEFFICIENTS[name])[None], [name], metric)
        assert broken.weights[0].isnan().nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("name", ["elastic", "mcp", "scad", "hard", "half", "log_sum"])
def test_an_infinite_step_kills(name: str):
    work = work_on(torch.cat([torch.randn(20), torch.zeros(3)]))
    work.seconds[0].zero_()
    swept(work, rule(0.1, COEFFICIENTS[name], eps=0.0)[None], [name], "root")
    x = work.weights[0]
    assert (x == 0).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_skip_writes_nothing(grouped: bool):
    weight = torch.randn(20, 5)
    work = work_on(weight, geometry=rows_of(0, 0, 20, 5) if grouped else None)
    name = "shrink" if grouped else "elastic"
    rules = rule(0.1, (0.3, 0.3, 0, 0, 0))[None]
    before, version = weight.clone(), weight._version
    tally = torch.full((1, 3), 7.0)
    swept(work, rules, [name], "root", skip=torch.ones(1), tally=tally)
    assert torch.equal(weight, before)
    assert (tally == 7).all()
    assert weight._version == version
    swept(work, rules, [name], "root", skip=torch.zeros(()), tally=tally)
    assert not torch.equal(weight, before)
    assert (tally != 7).any()
    assert weight._version > version


# Groups.


def geometry(*pieces: Sequence[int]) -> Tensor:
    return torch.tensor(pieces, dtype=torch.int64)


def rows_of(bundle: int, weight: int, groups: int, size: int) -> Tensor:
    return geometry((bundle, weight, 0, 1, 0, groups, size, 1, 0, 1, 0, size, 1))


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


def steps_of(work: KernelArgs, place: int, rules: Tensor, metric: str) -> Tensor:
    r = rules[work.which[place]]
    if metric == "flat":
        return torch.full_like(work.weights[place], float(r[Param.RATE]), dtype=torch.float64)
    second = (work.maxes or work.seconds)[place].double()
    correction = 1 - math.exp(float(work.counts[place]) * float(r[Param.LOG_BETA2]))
    return r[Param.RATE] / ((second / correction).sqrt() + r[Param.EPS])


def check_groups(work: KernelArgs, rules: Tensor, metric: str) -> None:
    """Compare weights and tally with bisection, bundle by bundle."""
    assert work.geometry is not None
    rows, exact = {}, {}
    bundles = work.geometry[:, GroupAxis.BUNDLE].unique().tolist()
    for b in bundles:
        pieces = work.geometry[work.geometry[:, GroupAxis.BUNDLE] == b].tolist()
        places = [p[GroupAxis.WEIGHT] for p in pieces]
        v = torch.cat([seen(work.weights[w], p) for w, p in zip(places, pieces, strict=True)], 1)
        steps = [
            seen(steps_of(work, w, rules, metric), p) for w, p in zip(places, pieces, strict=True)
        ]
        c = rules[work.which[places[0]], Param.FIRST : Param.FIRST + 3].tolist()
        rows[b], exact[b] = v, by_bisection(v, torch.cat(steps, 1), *c)
    table = native.tabulate(work, ["shrink"], metric)
    assert table is not None
    tally = torch.full((len(table.owners), 3), torch.nan)
    ProxPass(work, ("shrink",), metric, table=table)(rules, tally=tally)
    sums = torch.zeros(max(bundles) + 1, 3).double()
    sums.index_add_(0, table.owners, tally.double())
    for b in bundles:
        row = sums[b]
        pieces = work.geometry[work.geometry[:, GroupAxis.BUNDLE] == b].tolist()
        x = torch.cat([seen(work.weights[p[GroupAxis.WEIGHT]], p) for p in pieces], 1).double()
        error = (x - exact[b]).norm(dim=1)
        assert (error <= 1e-5 * rows[b].double().norm(dim=1)).all()
        s0, s1, s2 = rules[
            work.which[pieces[0][GroupAxis.WEIGHT]], Param.FIRST : Param.FIRST + 3
        ].tolist()
        length = x.norm(dim=1)
        value = s0 * x.abs().sum() + s1 * length.sum() + s2 / 2 * length.square().sum()
        live = torch.stack([(x != 0).sum(), (x != 0).any(1).sum()]).double()
        torch.testing.assert_close(row[:2], live, rtol=0, atol=0)
        torch.testing.assert_close(row[2], value, rtol=1e-5, atol=1e-30)


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
        work = work_on(torch.randn(shape), geometry=geometry(piece))
        untouched = work.weights[0].clone()
        seen_mask = torch.zeros(work.weights[0].numel(), dtype=torch.bool)
        seen_mask[seen(torch.arange(seen_mask.numel()), piece).flatten()] = True
        check_groups(work, rule(rate, STRENGTHS[kind])[None], metric)
        outside = ~seen_mask.view(shape)
        assert torch.equal(work.weights[0][outside], untouched[outside])


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
    work = KernelArgs([weight], [0], [second], geometry=rows_of(0, 0, groups, size))
    rules = rule(1.0, (0.0, tau, 0.0, 0.0, 0.0), eps=0.0)[None]
    exact = by_bisection(weight, 1 / second.double().sqrt(), 0.0, tau, 0.0)
    norm = weight.double().norm(dim=1)
    swept(work, rules, ["shrink"], "root")
    assert ((weight.double() - exact).norm(dim=1) <= 1e-5 * norm).all()
    if 10**alive_by > 1e-5:
        assert (weight != 0).any(1).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_groups_die_at_the_boundary(size: int, metric: str):
    """A group that is alive by less than rounding is put to zero, not to a speck."""
    for _ in range(40):
        v = torch.randn(1, size)
        work = work_on(v, geometry=rows_of(0, 0, 1, size))
        step = steps_of(work, 0, rule(0.1)[None], metric)
        tau = float((v.double() / step).norm()) * (1 - 2e-7)
        swept(work, rule(0.1, (0.0, tau, 0.0, 0.0, 0.0))[None], ["shrink"], metric)
        assert (v == 0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("longer", [3, 400])
def test_bundles_of_several_pieces(metric: str, longer: int):
    """A convolution's filters, its norm and a slice of another weight; a second bundle beside."""
    shapes = [(20, longer), (20,), (30, 20), (6, 100), (20,)]
    weights = [torch.randn(shape) for shape in shapes]
    table = geometry(
        (4, 0, 0, 1, 0, 20, longer, 1, 0, 1, 0, longer, 1),
        (4, 1, 0, 1, 0, 20, 1, 1, 0, 1, 0, 1, 1),
        (4, 2, 0, 1, 0, 20, 1, 1, 0, 1, 0, 30, 20),
        (4, 4, 0, 1, 0, 20, 1, 1, 0, 1, 0, 1, 1),
        (7, 3, 0, 1, 0, 6, 100, 1, 0, 1, 0, 100, 1),
    )
    rules = torch.stack([rule(0.02, STRENGTHS["all"]), rule(0.004, NONE, eps=0.1, beta2=0.9)])
    work = work_on(*weights, which=(0, 1, 0, 0, 1), geometry=table)
    check_groups(work, rules, metric)
    maxes = [3 * s for s in work.seconds]
    amsgrad = KernelArgs(work.weights, work.which, work.seconds, work.counts, maxes, geometry=table)
    check_groups(amsgrad, rules, metric)


def test_an_entry_of_step_zero_stays_beside_others():
    """A piece whose rate is 0 still keeps its group alive."""
    weights = [torch.randn(20, 5), torch.randn(20)]
    weights[1][:3] = 0
    before = [w.clone() for w in weights]
    table = geometry(
        (0, 0, 0, 1, 0, 20, 5, 1, 0, 1, 0, 5, 1), (0, 1, 0, 1, 0, 20, 1, 1, 0, 1, 0, 1, 1)
    )
    work = work_on(*weights, which=(0, 1), geometry=table)
    swept(work, torch.stack([rule(1e6, (0, 1e3, 0, 0, 0)), rule(0, NONE)]), ["shrink"], "root")
    assert torch.equal(weights[1], before[1])
    assert (weights[0][:3] == 0).all()
    assert (weights[0][3:].abs() < 1e-3 * before[0][3:].abs()).all()
    assert (weights[0][3:] != 0).all()


@pytest.mark.parametrize("size", [5, 100])
@pytest.mark.parametrize("metric", METRICS)
def test_groups_with_no_numbers_and_without_entries(size: int, metric: str):
    v = torch.randn(40, size)
    v[2, 1], v[9, 4], v[12], v[20] = torch.nan, torch.inf, 0.0, 0.0
    work = work_on(
        v,
        torch.randn(0, 4),
        geometry=geometry(
            (0, 0, 0, 1, 0, 40, size, 1, 0, 1, 0, size, 1),
            (1, 1, 0, 1, 0, 0, 4, 1, 0, 1, 0, 4, 1),
        ),
    )
    if metric == "root":
        work.seconds[0][30, 2] = torch.nan
        work.seconds[0][20] = 0
    swept(work, rule(0.01, STRENGTHS["lasso"], eps=0.0)[None], ["shrink"], metric)
    lost = {2, 9, 30} if metric == "root" else {2, 9}
    for group, row in enumerate(v):
        assert row.isnan().all() if group in lost else row.isfinite().all()
    assert (v[12] == 0).all()
    assert (v[20] == 0).all()


def test_a_group_that_an_infinite_step_thins():
    """Entries of step infinity go, the others of the group live on."""
    v = torch.randn(4, 80)
    work = work_on(v, geometry=rows_of(0, 0, 4, 80))
    work.seconds[0][:, ::2] = 0
    swept(work, rule(0.001, STRENGTHS["lasso"], eps=0.0)[None], ["shrink"], "root")
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
        work = KernelArgs([weight], [0], [second], [torch.tensor(2.0)], geometry=table)
        swept(work, rule(0.01, STRENGTHS["all"])[None], ["shrink"], "root")
        found.append(weight)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
    assert not torch.equal(found[0], v)


def big_work(grouped: bool) -> KernelArgs:
    torch.manual_seed(1)
    shapes = [(64, 700), (300, 27), (900, 300), (5,)]
    weights = [torch.randn(shape) for shape in shapes]
    table = geometry(
        (0, 0, 0, 1, 0, 64, 700, 1, 0, 1, 0, 700, 1),
        (1, 1, 0, 1, 0, 300, 27, 1, 0, 1, 0, 27, 1),
        (2, 2, 0, 1, 0, 300, 1, 1, 0, 1, 0, 900, 300),
    )
    return work_on(*weights, geometry=table if grouped else None)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_bits_do_not_depend_on_the_number_of_threads(grouped: bool):
    name = "shrink" if grouped else "log_sum"
    rules = rule(0.01, STRENGTHS["all"] if grouped else COEFFICIENTS[name])[None]
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 2):
        work = big_work(grouped)
        table = native.tabulate(work, [name], "root")
        assert table is not None
        tally = torch.empty(len(table.owners), 3)
        try:
            torch.set_num_threads(threads)
            ProxPass(work, (name,), "root", table=table)(rules, tally=tally)
        finally:
            torch.set_num_threads(before)
        found.append([*work.weights, tally])
    assert not torch.equal(found[0][0], big_work(grouped).weights[0])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


# What is not served.


def test_other_weights_go_another_way(monkeypatch: pytest.MonkeyPatch):
    plain = work_on(torch.randn(6, 4))
    assert native.tabulate(plain, ["elastic"], "root") is not None
    assert native.tabulate(plain, ["elastic"], "root", "adamw") is None
    assert native.tabulate(plain, ["shrink"], "root") is None
    assert native.tabulate(plain, ["elastic", "n_m"], "root") is None
    assert native.tabulate(KernelArgs(plain.weights, [0]), ["elastic"], "root") is None
    assert native.tabulate(KernelArgs(plain.weights, [0]), ["elastic"], "flat") is not None
    twice = KernelArgs([*plain.weights, *plain.weights], [0, 0])
    assert native.tabulate(twice, ["elastic"], "flat") is None
    other = KernelArgs(plain.weights, [0], [torch.rand(4, 6).t()])
    assert native.tabulate(other, ["elastic"], "root") is None
    for weight in (torch.randn(6, 8)[:, ::2], torch.randn(6).double(), torch.randn(6).bfloat16()):
        assert native.tabulate(KernelArgs([weight], [0]), ["elastic"], "flat") is None
    grouped = KernelArgs(plain.weights, [0], geometry=rows_of(0, 0, 6, 4))
    assert native.tabulate(grouped, ["elastic"], "flat") is None
    monkeypatch.setenv("REGKIT_NATIVE", "0")
    assert native.tabulate(plain, ["elastic"], "root") is None


def test_groups_that_share_entries_go_another_way():
    weight = torch.randn(6, 4)
    upper, lower = (0, 0, 0, 1, 0, 3, 4, 1, 0, 1, 0, 4, 1), (1, 1, 12, 1, 0, 3, 4, 1, 0, 1, 0, 4, 1)
    columns = (1, 1, 0, 1, 0, 4, 1, 1, 0, 1, 0, 6, 4)
    apart = KernelArgs([weight, weight], [0, 0], geometry=geometry(upper, lower))
    assert native.tabulate(apart, ["shrink"], "flat") is not None
    crossed = KernelArgs([weight, weight], [0, 0], geometry=geometry(upper, columns))
    assert native.tabulate(crossed, ["shrink"], "flat") is None


def test_without_a_table_the_reference_runs():
    weight = torch.randn(6, 4)
    rules = rule(0.1, COEFFICIENTS["elastic"])[None]
    work = KernelArgs([weight], [0])
    (expected,) = referred(work, rules, ["elastic"], "flat")
    ProxPass(work, ("elastic",), "flat")(rules)
    torch.testing.assert_close(weight, expected.float())
    assert (weight == 0).any()
    grouped = work_on(weight.double(), geometry=rows_of(0, 0, 6, 4))
    exact = by_bisection(
        grouped.weights[0], steps_of(grouped, 0, rules, "root"), *COEFFICIENTS["elastic"][:3]
    )
    rules = rule(0.1, (0.7, 0.3, 0.0, 0.0, 0.0))[None]
    ProxPass(grouped, ("shrink",), "root")(rules)
    torch.testing.assert_close(grouped.weights[0], exact)


# The library.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], ctypes.CDLL | None]:
    """Build as at first use, in a cache of its own and without optimising."""
    monkeypatch.setattr(build, "FLAGS", tuple(f for f in build.FLAGS if f != "-O3"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return build.kernels.__wrapped__


def test_the_library_is_built_once(quick: Callable[[], ctypes.CDLL | None], tmp_path: Path):
    assert quick() is not None
    (path,) = (tmp_path / "regkit").iterdir()
    written = path.stat()
    assert quick() is not None
    assert [path] == list((tmp_path / "regkit").iterdir())
    assert path.stat().st_mtime_ns == written.st_mtime_ns


def test_a_broken_file_in_the_cache_is_replaced(
    quick: Callable[[], ctypes.CDLL | None], tmp_path: Path
):
    folder = tmp_path / "regkit"
    folder.mkdir()
    path = folder / f"{build._fingerprint(shutil.which('cc') or '')}.so"
    path.write_bytes(b"half a library")
    assert quick() is not None
    assert ctypes.CDLL(str(path)).regkit_formula(b"decay") == 1


def test_a_folder_that_cannot_be_written(
    quick: Callable[[], ctypes.CDLL | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library = quick()
    assert library is not None
    assert library.regkit_formula(b"box") >= 0
    assert library.regkit_formula(b"shrink") == -1


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
    assert "swept by torch" in record.getMessage()
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert native.tabulate(work_on(torch.randn(3)), ["elastic"], "root") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_does_not_hang():
    weight, before = torch.ones(300000), torch.get_num_threads()
    work, rules = KernelArgs([weight], [0]), rule(0.25, (1.0, 0.0, 0.0, 0.0, 0.0))[None]
    sweep = ProxPass(work, ("elastic",), "flat", table=native.tabulate(work, ["elastic"], "flat"))
    try:
        torch.set_num_threads(2)
        sweep(rules)
        child = forked(sweep, rules)
        status = waited(child, seconds=20)
        sweep(rules)
    finally:
        torch.set_num_threads(before)
    assert status == 0
    assert (weight == 0.5).all()


def forked(sweep: ProxPass, rules: Tensor) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of any fork beside other threads
        child = os.fork()
    if child == 0:
        try:
            sweep(rules)
            # A few entries: torch itself, with more than one thread, would wait for ever here.
            os._exit(0 if sweep.work.weights[0][-3:].tolist() == [0.5] * 3 else 1)
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
