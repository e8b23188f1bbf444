"""Concave penalties: brute force by the definition, and skglm and pyproximal where they are right.

The definitions below are the papers' own, case by case, and share no code with the package.
"""

from collections.abc import Callable

import numpy as np
import pyproximal
import pytest
import skglm.penalties
import torch
from numpy.typing import NDArray
from torch import Tensor

from regkit.errors import InputError
from regkit.penalties import L0, L1, MCP, SCAD, LHalf, LogSum, WeightPenalty

Array = NDArray[np.float64]
LAM, GAMMA, A, EPS = 0.7, 2.5, 3.7, 0.4
GRID = 4001


def mcp(x: Array) -> Array:
    inner = LAM * np.abs(x) - x**2 / (2 * GAMMA)
    return np.where(np.abs(x) <= GAMMA * LAM, inner, GAMMA * LAM**2 / 2)


def scad(x: Array) -> Array:
    x = np.abs(x)
    bend = (2 * A * LAM * x - x**2 - LAM**2) / (2 * (A - 1))
    outer = np.where(x <= A * LAM, bend, LAM**2 * (A + 1) / 2)
    return np.where(x <= LAM, LAM * x, outer)


def l0(x: Array) -> Array:
    return LAM * (x != 0)


def log_sum(x: Array) -> Array:
    return LAM * EPS * np.log1p(np.abs(x) / EPS)


def l_half(x: Array) -> Array:
    return LAM * np.sqrt(np.abs(x))


# Each with its definition and a length in units of which its kinks lie.
CASES: list[tuple[WeightPenalty, Callable[[Array], Array], float]] = [
    (MCP(LAM, gamma=GAMMA), mcp, GAMMA),
    (SCAD(LAM, a=A), scad, A - 1),
    (L0(LAM), l0, 1.0),
    (LogSum(LAM, eps=EPS), log_sum, EPS / LAM),
    (LHalf(LAM), l_half, 1.0),
]
IDS = [type(penalty).__name__ for penalty, _, _ in CASES]
PENALTIES = [penalty for penalty, _, _ in CASES]


def steps(unit: float) -> Array:
    """Return steps from a thousandth to ten thousand times where the prox starts to jump."""
    near = [1 - 1e-3, 1 - 1e-9, 1.0, 1 + 1e-9, 1 + 1e-3, 1.5, 1.7, 2.0]
    return unit * np.concatenate([np.logspace(-3, 4, 22), near, [(A + 1) / (A - 1)]])


def inputs(step: float) -> Array:
    """Return numbers on and around every kink and jump that any of the penalties has."""
    kinks = np.array(
        [
            step * LAM,
            LAM * np.sqrt(step * GAMMA),
            GAMMA * LAM,
            LAM,
            (1 + step) * LAM,
            A * LAM,
            LAM * (A + 1 + step) / 2,
            LAM * np.sqrt(step * (A + 1)),
            np.sqrt(2 * step * LAM),
            2 * np.sqrt(step * LAM * EPS) - EPS,
            EPS,
            1.5 * (step * LAM) ** (2 / 3),
        ]
    )
    around = np.outer(kinks, [0.3, 0.9, 1 - 1e-9, 1.0, 1 + 1e-9, 1.1, 3.0]).ravel()
    rng = np.random.default_rng(0)
    drawn = np.abs(rng.normal(size=16)) * kinks.max()
    both = np.concatenate([[0.0], around, drawn])
    return both * rng.choice([-1, 1], size=both.shape)


def least(psi: Callable[[Array], Array], v: Array, step: float) -> Array:
    """Return the least objective, (x - v)^2/2 + step psi(x), by a grid that is refined thrice.

    The minimiser lies between 0 and v, whatever the penalty. Zero is tried by itself.
    """
    low, high = np.minimum(v, 0), np.maximum(v, 0)
    best = v**2 / 2 + step * psi(np.zeros_like(v))
    for _ in range(3):
        x = low + (high - low) * np.linspace(0, 1, GRID)[:, None]
        cost = (x - v) ** 2 / 2 + step * psi(x)
        place = cost.argmin(0)
        best = np.minimum(best, cost.min(0))
        low, high = (
            np.take_along_axis(x, np.clip(place + shift, 0, GRID - 1)[None], 0)[0]
            for shift in (-1, 1)
        )
    return best


@pytest.mark.parametrize(("penalty", "psi", "unit"), CASES, ids=IDS)
def test_prox_is_the_global_minimiser(
    penalty: WeightPenalty, psi: Callable[[Array], Array], unit: float
):
    for step in steps(unit):
        v = inputs(step)
        x = penalty.prox(torch.tensor(v), float(step)).numpy()
        cost = (x - v) ** 2 / 2 + step * psi(x)
        excess = cost - least(psi, v, step)
        worst = np.argmax(excess / (v**2 + 1e-300))
        assert (excess <= 1e-13 * v**2).all(), (step, v[worst], x[worst], excess[worst])


@pytest.mark.parametrize(("penalty", "psi", "unit"), CASES, ids=IDS)
def test_value_is_the_definition(
    penalty: WeightPenalty, psi: Callable[[Array], Array], unit: float
):
    for x in inputs(unit):
        assert float(penalty.value(torch.tensor(x))) == pytest.approx(float(psi(x)), rel=1e-12)
    x = inputs(unit)
    assert float(penalty.value(torch.tensor(x))) == pytest.approx(psi(x).sum(), rel=1e-12)


@pytest.mark.parametrize(("penalty", "psi", "unit"), CASES, ids=IDS)
def test_every_entry_has_its_own_step(
    penalty: WeightPenalty, psi: Callable[[Array], Array], unit: float
):
    """One call with a step for each entry is one call for each entry."""
    step = torch.tensor(steps(unit))[:, None]
    v = torch.tensor(inputs(unit)).expand(len(step), -1)
    rows = [penalty.prox(row, float(s)) for row, s in zip(v, step, strict=True)]
    together = penalty.prox(v, step.expand_as(v))
    assert torch.equal(together, torch.stack(rows))
    assert torch.equal(together, penalty.prox(v, step))


@pytest.mark.parametrize(("penalty", "psi", "unit"), CASES, ids=IDS)
def test_float32_is_as_good_as_it_can_be(
    penalty: WeightPenalty, psi: Callable[[Array], Array], unit: float
):
    for step in steps(unit):
        v = torch.tensor(inputs(step)).float()
        x = penalty.prox(v, float(step))
        assert x.dtype == torch.float32
        v, x = v.double().numpy(), x.double().numpy()
        excess = (x - v) ** 2 / 2 + step * psi(x) - least(psi, v, step)
        assert (excess <= 1e-6 * v**2).all()


def prox_1d(oracle: skglm.penalties.base.BasePenalty, v: Array, step: float) -> Array:
    return np.array([oracle.prox_1d(float(number), step, 0) for number in v])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("penalty", "oracle", "most"),
    [
        (MCP(LAM, gamma=GAMMA), skglm.penalties.MCPenalty(LAM, GAMMA), 0.99 * GAMMA),
        (SCAD(LAM, a=A), skglm.penalties.SCAD(LAM, A), 0.99 * (A - 1)),
        (LogSum(LAM, eps=EPS), skglm.penalties.LogSumPenalty(LAM * EPS, EPS), 50.0),
        (LHalf(LAM), skglm.penalties.L0_5(LAM), np.inf),
    ],
    ids=lambda p: type(p).__name__,
)
def test_skglm_agrees(
    penalty: WeightPenalty, oracle: skglm.penalties.base.BasePenalty, most: float
):
    """Up to the step `most`: beyond it skglm 0.5 misses the minimum (log-sum at step 100)."""
    for step in steps(1.0)[steps(1.0) < most]:
        v = inputs(step)
        x = penalty.prox(torch.tensor(v), float(step)).numpy()
        reference = prox_1d(oracle, v, float(step))
        # On a jump itself both ends are minimisers.
        jumps = np.abs(x - reference) > 1e-9 * np.abs(v)
        costs = [
            (y - v) ** 2 / 2 + step * np.array([oracle.value(np.array([z])) for z in y])
            for y in (x, reference)
        ]
        assert (~jumps | (np.abs(costs[0] - costs[1]) <= 1e-8 * v**2)).all()
        assert jumps.mean() < 0.1


def test_pyproximal_agrees_on_log_sum():
    for step in steps(EPS / LAM):
        v = np.random.default_rng(1).normal(size=50) * max(step * LAM, EPS)
        # Its log(1 + gamma |x|) is divided by log(1 + gamma).
        oracle = pyproximal.Log(sigma=LAM * EPS * np.log(1 + 1 / EPS), gamma=1 / EPS)
        x = LogSum(LAM, eps=EPS).prox(torch.tensor(v), float(step)).numpy()
        np.testing.assert_allclose(x, oracle.prox(v, step), rtol=1e-8, atol=1e-8 * v.max())


@pytest.mark.parametrize("penalty", PENALTIES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.0, 1e-30, 1e-3, 1.0, GAMMA, A - 1, A + 1, 1e4, 1e30])
def test_extremes(penalty: WeightPenalty, dtype: torch.dtype, step: float):
    sizes = [0.0, 1e-40, 1e-30, 1e-3, LAM, 1.0, 1e10, 1e30, torch.finfo(dtype).max]
    v = torch.tensor([*sizes, *(-size for size in sizes)], dtype=dtype)
    for s in (step, torch.tensor(step, dtype=dtype), torch.full_like(v, step)):
        x = penalty.prox(v, s)
        assert x.dtype == dtype
        assert x.isfinite().all()
        assert (x.abs() <= v.abs() * (1 + 1e-6)).all()
        assert (x * v >= 0).all()
        assert float(x[0]) == 0.0
        if step == 0:
            assert torch.equal(x, v)
    bad = torch.tensor([float("nan"), 1.0], dtype=dtype)
    assert penalty.prox(bad, step)[0].isnan()
    assert not penalty.prox(bad, step)[1].isnan()


@pytest.mark.parametrize("penalty", PENALTIES, ids=IDS)
def test_entries_of_step_zero_stay_bit_for_bit(penalty: WeightPenalty):
    v = torch.randn(1000) * 10 ** (6 * torch.rand(1000) - 4)
    step = torch.rand(1000) * 10
    step[::2] = 0
    x = penalty.prox(v, step)
    assert torch.equal(x[::2], v[::2])
    assert not torch.equal(x[1::2], v[1::2])
    off = type(penalty)(0.0)
    assert torch.equal(off.prox(v, step), v)
    assert torch.equal(off.prox(v, 1e30), v)
    assert float(off.value(v)) == 0.0


def test_the_limits_are_l1_and_l0():
    v = torch.linspace(-3, 3, 101, dtype=torch.float64)
    l1 = L1(LAM).prox(v, 0.5)
    for near in (MCP(LAM, gamma=1e9), SCAD(LAM, a=1e9), LogSum(LAM, eps=1e9)):
        torch.testing.assert_close(near.prox(v, 0.5), l1, rtol=0, atol=1e-8)
        assert float(near.value(v)) == pytest.approx(float(L1(LAM).value(v)), rel=1e-6)
    # MCP of small gamma charges gamma lam^2 / 2 for every non-zero.
    flat = MCP(LAM * 1e3, gamma=2e-6 / LAM)
    assert torch.equal(flat.prox(v, 0.5), L0(LAM).prox(v, 0.5))


def test_options_are_checked():
    with pytest.raises(InputError, match=r"MCP got gamma=0.0; gamma is a number >="):
        MCP(1.0, gamma=0.0)
    with pytest.raises(InputError, match=r"SCAD got a=1.5; a is a number >= 2"):
        SCAD(1.0, a=1.5)
    with pytest.raises(InputError, match=r"LogSum got eps=0.0; eps is a number >="):
        LogSum(1.0, eps=0.0)


def test_large_weights_do_not_shrink():
    v = torch.tensor([10.0, -10.0, 0.01])
    for penalty in (MCP(LAM, gamma=GAMMA), SCAD(LAM, a=A), L0(LAM)):
        assert penalty.prox(v, 1.0).tolist() == [10.0, -10.0, 0.0]
    assert gap(LogSum(LAM, eps=EPS), v) < gap(L1(LAM), v) / 10


def gap(penalty: WeightPenalty, v: Tensor) -> float:
    return float((penalty.prox(v, 1.0) - v)[0].abs())
