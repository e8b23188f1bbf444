"""The compiled kernels on a GPU: the reference's values, no waiting, graphs, equal bits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from prox_calls import (
    COEFFICIENTS,
    PENALTIES,
    WRITTEN,
    Call,
    args_of,
    copied,
    kernels_of,
    laid,
    param,
    trimmed,
)
from torch import Tensor

from regkit.ops.kernel_args import Param
from regkit.ops.prox_pass import ProxPass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(130,), (1,), (), (0, 4), (16, 5, 3, 3, 3), (4096 * 3 + 5,), (8192,), (64, 64, 3, 3, 3)]
ROWS = [(70, 27), (40, 128), (9, 441), (33, 1024), (5, 1728), (6, 6912), (3, 13824), (2, 20001)]


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """Raise where the host waits for the GPU; that the mode is new, which torch says, is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def params_for(*chain: str, **numbers: float) -> Tensor:
    rows = [param(chain, **numbers), param(chain, **{"RATE": 2.5, **numbers})]
    return torch.tensor(rows, dtype=torch.float32, device="cuda")


def rows_of(shapes: list[tuple[int, ...]]) -> Tensor:
    """Return the geometry of rows, each weight a group_set."""
    found = [[k, k, 0, 1, 0, n, m, m, 1, 1, 0, 1, 0] for k, (n, m) in enumerate(shapes)]
    return torch.tensor(found)


def compare(call: Call, params: Tensor, loose: float = 1.0, **given: Tensor) -> None:
    other = replace(call, args=copied(call.args))
    again = replace(call, args=copied(call.args))
    call.by_kernel(params, **given)
    other.by_reference(params, **given)
    again.by_kernel(params, **given)
    for name in WRITTEN:
        lists = (getattr(c.args, name) for c in (call, other, again))
        for got, want, second in zip(*lists, strict=True):
            tolerance = loose * TOLERANCE[got.dtype]
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            assert torch.equal(got, second)


@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("formula", PENALTIES)
def test_every_formula(formula: str, metric: str):
    for layout in ("plain", "odd", "last"):
        args = trimmed(args_of(SHAPES, layout, "cuda"), metric, "none")
        # Beside a jump an entry may fall to either side: a rounding decides.
        loose = 10.0
        compare(Call(args, kernels_of(formula), metric), params_for(formula), loose)


@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("update", ["plain", "sgd", "adamw", "amsgrad"])
def test_every_update(update: str, metric: str):
    for dtype, kept in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ):
        for layout in ("plain", "odd", "last"):
            args = trimmed(args_of(SHAPES, layout, "cuda", dtype, kept), metric, update)
            chain = ("weight_decay", "l2") if dtype == torch.float32 else ("weight_decay",)
            scale = torch.tensor(1024.0, device="cuda")
            call = Call(args, kernels_of(*chain), metric, update)
            compare(call, params_for(*chain, NESTEROV=1.0), 3.0, scale=scale)


@pytest.mark.parametrize("name", ["shrink", "keep"])
@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("update", ["none", "sgd", "adamw", "amsgrad"])
def test_rows(update: str, metric: str, name: str):
    for layout in ("plain", "odd"):
        args = trimmed(args_of(ROWS, layout, "cuda"), metric, update)
        args = replace(args, geometry=rows_of(ROWS))
        compare(Call(args, kernels_of(name), metric, update), params_for(name, RATE=0.4), 5.0)


@pytest.mark.parametrize("name", ["shrink", "keep"])
@pytest.mark.parametrize("metric", ["scalar", "adaptive"])
@pytest.mark.parametrize("layout", ["plain", "last"])
def test_groups_across_and_of_several_pieces(layout: str, metric: str, name: str):
    args = trimmed(args_of([(40, 24, 3, 3, 3), (50, 40), (40,)], layout, "cuda"), metric, "none")
    weight = args.weights[0]
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
        one = copied(replace(args, geometry=torch.tensor(table)))
        compare(Call(one, kernels_of(name), metric), params_for(name, RATE=0.3), 5.0)


def test_laws_hold_bit_for_bit():
    """What the interpreter cannot tell: reciprocals of 1 are 1, and zeros keep their sign."""
    odd = torch.tensor([0.0, -0.0, 1e-45, -3e-39, 1e-30, 0.3, -7.0, 1e30] * 600, device="cuda")
    second = torch.logspace(-9, 3, len(odd), device="cuda")
    for formula in COEFFICIENTS:
        for rate in (0.7, 0.0):
            row = param((formula,), RATE=rate, LR=rate)
            if rate > 0:
                row[Param.FIRST : Param.FIRST + 3] = 0.0, 0.0, 0.0
            params = torch.tensor([row, row], device="cuda")
            for metric in ("scalar", "adaptive"):
                weights = [odd.clone(), laid(odd, "odd")]
                args = args_of([odd.shape] * 2, device="cuda")
                seconds = [second, laid(second, "odd")] if metric == "adaptive" else []
                args = replace(
                    trimmed(args, "scalar", "none"), weights=weights, exp_avg_sqs=seconds
                )
                if formula in ("shrink", "keep"):
                    args = replace(args, geometry=rows_of([(8, 600)] * 2))
                Call(args, kernels_of(formula), metric).by_kernel(params)
                for x in weights:
                    assert torch.equal(x.view(torch.int32), odd.view(torch.int32)), formula


@pytest.mark.parametrize("grouped", [False, True])
def test_nothing_waits_for_the_device(grouped: bool):
    call = drawn_call(grouped)
    params, skip = params_for("shrink" if grouped else "l1"), torch.zeros((), device="cuda")
    once = call.prepared()
    once(params, skip=skip, scale=skip + 1)
    moved = [g.clone() for g in call.args.grads]
    torch.cuda.synchronize()
    with waits_are_errors():
        once(params, skip=skip, scale=skip + 1)
        renewed = once.refresh(moved)
        assert renewed is not None
        renewed(params, skip=skip)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_graph_replays_with_other_params(grouped: bool):
    """Captured once; strengths, rates and counts then change in place."""
    call = drawn_call(grouped)
    name = "shrink" if grouped else "l1"
    params, once = params_for(name), call.prepared()
    start, plain = copied(call.args), replace(call, args=copied(call.args))
    once(params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once(params)
    params.copy_(params_for(name, RATE=0.01, LR=0.5))
    for count in call.args.step_counts:
        count.add_(3)
    for kept in WRITTEN:
        for x, y in zip(getattr(call.args, kept), getattr(start, kept), strict=True):
            x.copy_(y)
    graph.replay()
    plain.by_reference(params)
    for x, y in zip(call.args.weights, plain.args.weights, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-5)


def drawn_call(grouped: bool) -> Call:
    shapes = ROWS if grouped else SHAPES
    args = trimmed(args_of(shapes, device="cuda"), "adaptive", "adamw")
    if grouped:
        return Call(
            replace(args, geometry=rows_of(ROWS)), kernels_of("shrink"), "adaptive", "adamw"
        )
    return Call(args, kernels_of("l1"), "adaptive", "adamw")


def test_bodies_are_those_of_the_ops():
    """Through torch's dispatcher, with a table and without."""
    call = drawn_call(False)
    other = copied(call.args)
    params = params_for("l1")
    call.prepared()(params)
    ProxPass(other, call.formulas, "adaptive", "adamw")(params)
    for x, y in zip(call.args.weights, other.weights, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
