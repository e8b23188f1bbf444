"""The compiled kernels on a GPU: the reference's values, no waiting, graphs, equal bits."""

from dataclasses import replace

import pytest
import torch
from sweeping import COEFFICIENTS, NAMES, Call, copied, laid, rule, trimmed, work_of
from torch import Tensor

from regkit.ops.gpu import launch  # noqa: F401  registers the bodies
from regkit.ops.gpu.launch_tables import refresh
from regkit.ops.kernel_args import Param
from regkit.ops.prox_pass import ProxPass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(130,), (1,), (), (0, 4), (16, 5, 3, 3, 3), (4096 * 3 + 5,), (8192,), (64, 64, 3, 3, 3)]
ROWS = [(70, 27), (40, 128), (9, 441), (33, 1024), (5, 1728), (6, 6912), (3, 13824), (2, 20001)]


def names(*chain: str) -> tuple[str, ...]:
    return tuple(NAMES.get(name, name) for name in chain)


def rules_for(*chain: str, **numbers: float) -> Tensor:
    rows = [rule(chain, **numbers), rule(chain, **{"RATE": 2.5, **numbers})]
    return torch.tensor(rows, dtype=torch.float32, device="cuda")


def rows_of(shapes: list[tuple[int, ...]]) -> Tensor:
    """Return the geometry of rows, each weight a bundle."""
    found = [[k, k, 0, 1, 0, n, m, m, 1, 1, 0, 1, 0] for k, (n, m) in enumerate(shapes)]
    return torch.tensor(found)


def compare(call: Call, rules: Tensor, loose: float = 1.0, **given: Tensor) -> None:
    other = replace(call, work=copied(call.work))
    again = replace(call, work=copied(call.work))
    tally, expected = call.by_kernel(rules, **given), other.by_reference(rules, **given)
    again.by_kernel(rules, **given)
    for name in ("weights", "firsts", "seconds", "maxes"):
        lists = (getattr(c.work, name) for c in (call, other, again))
        for got, want, second in zip(*lists, strict=True):
            tolerance = loose * TOLERANCE[got.dtype]
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            assert torch.equal(got, second)
    torch.testing.assert_close(tally, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("formula", [name for name in COEFFICIENTS if name != "shrink"])
def test_every_formula(formula: str, metric: str):
    for layout in ("plain", "odd", "last"):
        work = trimmed(work_of(SHAPES, layout, "cuda"), metric, "none")
        # Beside a jump an entry may fall to either side: a rounding decides.
        loose = 10.0
        compare(Call(work, names(formula), metric), rules_for(formula), loose)


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("update", ["plain", "sgd", "adamw", "amsgrad"])
def test_every_update(update: str, metric: str):
    for dtype, kept in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ):
        for layout in ("plain", "odd", "last"):
            work = trimmed(work_of(SHAPES, layout, "cuda", dtype, kept), metric, update)
            chain = ("decay", "ridge") if dtype == torch.float32 else ("decay",)
            scale = torch.tensor(1024.0, device="cuda")
            call = Call(work, names(*chain), metric, update)
            compare(call, rules_for(*chain, NESTEROV=1.0), 3.0, scale=scale)


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("update", ["none", "sgd", "adamw", "amsgrad"])
def test_rows(update: str, metric: str):
    for layout in ("plain", "odd"):
        work = trimmed(work_of(ROWS, layout, "cuda"), metric, update)
        work = replace(work, geometry=rows_of(ROWS))
        compare(Call(work, ("shrink",), metric, update), rules_for("shrink", RATE=0.4), 5.0)


@pytest.mark.parametrize("metric", ["flat", "root"])
@pytest.mark.parametrize("layout", ["plain", "last"])
def test_groups_across_and_of_several_pieces(layout: str, metric: str):
    work = trimmed(work_of([(40, 24, 3, 3, 3), (50, 40), (40,)], layout, "cuda"), metric, "none")
    weight = work.weights[0]
    (o, so), (i, si), *taps = zip(weight.shape, weight.stride(), strict=True)
    step = taps[-1][1]
    inputs = [0, 0, 0, 1, 0, i, si, o, so, 27, step, 1, 0]
    filters = [
        [0, 0, 0, 1, 0, o, so, i, si, 27, step, 1, 0],
        [0, 1, 0, 1, 0, 40, 1, 50, 40, 1, 0, 1, 0],
        [0, 2, 0, 1, 0, 40, 1, 1, 0, 1, 0, 1, 0],
    ]
    tap = [0, 0, 0, 1, 0, 27, step, o, so, i, si, 1, 0]
    for table in ([inputs], filters, [tap]):
        one = copied(replace(work, geometry=torch.tensor(table)))
        compare(Call(one, ("shrink",), metric), rules_for("shrink", RATE=0.3), 5.0)


def test_laws_hold_bit_for_bit():
    """What the interpreter cannot tell: reciprocals of 1 are 1, and zeros keep their sign."""
    odd = torch.tensor([0.0, -0.0, 1e-45, -3e-39, 1e-30, 0.3, -7.0, 1e30] * 600, device="cuda")
    second = torch.logspace(-9, 3, len(odd), device="cuda")
    for formula in COEFFICIENTS:
        for rate in (0.7, 0.0):
            if formula == "decay" or (formula == "box" and rate > 0):
                continue
            row = rule((formula,), RATE=rate)
            if rate > 0:
                row[Param.FIRST : Param.FIRST + 3] = 0.0, 0.0, 0.0
            rules = torch.tensor([row, row], device="cuda")
            for metric in ("flat", "root"):
                weights = [odd.clone(), laid(odd, "odd")]
                work = work_of([odd.shape] * 2, device="cuda")
                seconds = [second, laid(second, "odd")] if metric == "root" else []
                work = replace(trimmed(work, "flat", "none"), weights=weights, seconds=seconds)
                if formula == "shrink":
                    work = replace(work, geometry=rows_of([(8, 600)] * 2))
                Call(work, names(formula), metric).by_kernel(rules)
                for x in weights:
                    assert torch.equal(x.view(torch.int32), odd.view(torch.int32)), formula


@pytest.mark.parametrize("grouped", [False, True])
def test_nothing_waits_for_the_device(grouped: bool):
    call = sweep_call(grouped)
    rules, skip = rules_for(call.formulas[0]), torch.zeros((), device="cuda")
    table = call.table()
    call.by_kernel(rules, skip, skip + 1, table)
    sweep = ProxPass(call.work, call.formulas, call.metric, call.kind, table)
    moved = replace(call.work, grads=[g.clone() for g in call.work.grads])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sweep(rules, skip=skip, scale=skip + 1)
        renewed = refresh(table, moved)
        assert renewed is not None
        replace(sweep, work=moved, table=renewed)(rules, skip=skip)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("grouped", [False, True])
def test_a_graph_replays_with_other_rules(grouped: bool):
    """Captured once; strengths, rates and counts then change in place."""
    call = sweep_call(grouped)
    rules, table = rules_for(call.formulas[0]), call.table()
    start, plain = copied(call.work), replace(call, work=copied(call.work))
    call.by_kernel(rules, table=table)
    sweep = ProxPass(call.work, call.formulas, call.metric, call.kind, table)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sweep(rules)
    rules.copy_(rules_for(call.formulas[0], RATE=0.01, LR=0.5))
    for count in call.work.counts:
        count.add_(3)
    for name in ("weights", "firsts", "seconds"):
        for x, y in zip(getattr(call.work, name), getattr(start, name), strict=True):
            x.copy_(y)
    graph.replay()
    plain.by_reference(rules)
    for x, y in zip(call.work.weights, plain.work.weights, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-5)


def sweep_call(grouped: bool) -> Call:
    shapes = ROWS if grouped else SHAPES
    work = trimmed(work_of(shapes, device="cuda"), "root", "adamw")
    if grouped:
        return Call(replace(work, geometry=rows_of(ROWS)), ("shrink",), "root", "adamw")
    return Call(work, ("elastic",), "root", "adamw")


def test_bodies_are_those_of_the_ops():
    """Through torch's dispatcher, with a table and without."""
    call = sweep_call(False)
    other = copied(call.work)
    rules = rules_for("elastic")
    ProxPass(call.work, call.formulas, "root", "adamw", call.table())(rules)
    ProxPass(other, call.formulas, "root", "adamw")(rules)
    for x, y in zip(call.work.weights, other.weights, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
