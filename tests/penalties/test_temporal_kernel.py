"""Temporal kernel: a convex solver on every number of taps, in a random metric."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from regkit.errors import InputError
from regkit.penalties import TemporalKernel

NORMS = ["squared", "absolute"]


def solve(v: np.ndarray, step: np.ndarray, lam: float, norm: str) -> np.ndarray:
    x = cp.Variable(len(v))
    change = cp.diff(x) if len(v) > 1 else x * 0
    charge = cp.sum_squares(change) / 2 if norm == "squared" else cp.norm1(change)
    distance = cp.sum_squares(cp.multiply(x - v, 1 / np.sqrt(2 * step)))
    problem = cp.Problem(cp.Minimize(distance + lam * charge))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    assert x.value is not None
    return x.value


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("taps", range(1, 8))
def test_prox_is_what_a_convex_solver_finds(taps: int, norm: str):
    rng = np.random.default_rng(taps)
    v = rng.normal(size=(12, taps))
    step = 10 ** rng.uniform(-1.5, 1, size=(12, taps))
    for row, lam in enumerate(np.logspace(-1.5, 1, 12)):
        prox = TemporalKernel(float(lam), norm=norm).prox(torch.tensor(v), torch.tensor(step))
        expected = solve(v[row], step[row], lam, norm)
        np.testing.assert_allclose(prox[row].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("taps", range(2, 12))
def test_fused_taps_meet_the_optimality_condition(taps: int):
    """The running sum of (v - x) / step is at most lam, lam where taps differ, 0 at the end."""
    lam = 0.8
    v = torch.randn(2000, taps, dtype=torch.float64)
    step = 10 ** (8 * torch.rand(2000, taps, dtype=torch.float64) - 5)
    x = TemporalKernel(lam, norm="absolute").prox(v, step)
    dual = ((v - x) / step).cumsum(1)
    rounding = 1e-14 * (v.abs().amax(1, keepdim=True) / step).cumsum(1)
    assert (dual.abs() <= lam + rounding)[:, :-1].all()
    assert (dual.abs() <= rounding)[:, -1].all()
    change = x.diff(dim=1)
    off = (dual[:, :-1] + lam * change.sign()).abs() * (change != 0)
    assert (off <= rounding[:, :-1]).all()
    assert 0.05 < (change == 0).double().mean() < 0.95


@pytest.mark.parametrize("taps", range(2, 8))
def test_smooth_taps_solve_the_linear_system(taps: int):
    lam = 0.8
    v = torch.randn(200, taps, dtype=torch.float64)
    step = 10 ** (6 * torch.rand(200, taps, dtype=torch.float64) - 3)
    difference = torch.eye(taps, dtype=torch.float64).diff(dim=0)
    system = torch.diag_embed(1 / step) + lam * difference.T @ difference
    expected = torch.linalg.solve(system, v / step)
    x = TemporalKernel(lam).prox(v, step)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("taps", range(1, 8))
def test_float32_is_close_in_any_metric(taps: int, norm: str):
    v = torch.randn(1000, taps)
    step = 10 ** (12 * torch.rand(1000, taps) - 6)
    penalty = TemporalKernel(0.8, norm=norm)
    exact = penalty.prox(v.double(), step.double())
    x = penalty.prox(v, step)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_tap_of_step_zero_stays_and_draws_the_others(norm: str):
    v = torch.randn(100, 5)
    step = torch.rand(100, 5) + 0.1
    step[:, [1, 4]] = 0
    x = TemporalKernel(0.3, norm=norm).prox(v, step)
    assert torch.equal(x[:, [1, 4]], v[:, [1, 4]])
    stiff = torch.where(step == 0, 1e-12, step.double())
    near = TemporalKernel(0.3, norm=norm).prox(v.double(), stiff)
    torch.testing.assert_close(x.double(), near, rtol=0, atol=1e-6)
    assert not torch.equal(x[:, [0, 2, 3]], v[:, [0, 2, 3]])


@pytest.mark.parametrize("norm", NORMS)
def test_strong_penalties_leave_the_weighted_mean(norm: str):
    v = torch.randn(50, 7, dtype=torch.float64)
    step = torch.rand(50, 7, dtype=torch.float64) + 0.1
    x = TemporalKernel(1e12, norm=norm).prox(v, step)
    mean = (v / step).sum(1, keepdim=True) / (1 / step).sum(1, keepdim=True)
    torch.testing.assert_close(x, mean.expand_as(x), rtol=0, atol=1e-9)
    if norm == "absolute":
        assert (x.diff(dim=1) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("step", [1e-30, 1.0, 1e30])
def test_extremes(norm: str, step: float):
    penalty = TemporalKernel(2.0, norm=norm)
    for size in (0.0, 1e-40, 1e-30, 1.0, 1e30):
        v = torch.tensor([[1.0, -1.0, 0.5], [1.0, 1.0, 1.0]]) * size
        for s in (step, torch.tensor(step), torch.full_like(v, step)):
            x = penalty.prox(v, s)
            assert x.isfinite().all()
            assert (x.abs() <= size * (1 + 1e-6)).all()
    for s in (0.0, torch.zeros(()), torch.zeros(1, 3)):
        assert torch.equal(penalty.prox(v, s), v)
    assert torch.equal(TemporalKernel(0.0, norm=norm).prox(v, step), v)
    bad = torch.tensor([[1.0, float("nan"), 2.0], [1.0, 2.0, 3.0]])
    assert penalty.prox(bad, step)[0, 1].isnan()
    assert penalty.prox(bad, step)[1].isfinite().all()
    for shape in ((0, 3), (4, 1), (4, 0)):
        assert penalty.prox(torch.ones(shape), step).shape == shape


def test_value_by_hand():
    rows = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, -2.0]])
    assert float(TemporalKernel(0.5).value(rows)) == 0.5 * (4 + 1 + 4) / 2
    assert float(TemporalKernel(0.5, norm="absolute").value(rows)) == 0.5 * (2 + 1 + 2)


def test_norm_is_checked():
    with pytest.raises(InputError, match="TemporalKernel got norm='huber'"):
        TemporalKernel(1.0, norm="huber")
