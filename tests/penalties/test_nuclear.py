"""Nuclear norm: NumPy's SVD, a convex solver, and pyproximal."""

import cvxpy as cp
import numpy as np
import pyproximal
import pytest
import torch

from regkit.errors import InputError
from regkit.penalties import Nuclear

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 7), (7, 1), (1, 1), (16, 200)]


def by_svd(v: np.ndarray, threshold: float) -> np.ndarray:
    u, s, vt = np.linalg.svd(v, full_matrices=False)
    return (u * np.maximum(s - threshold, 0)) @ vt


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.1])
def test_prox_shrinks_singular_values(shape: tuple[int, int], share: float):
    v = torch.randn(shape, dtype=torch.float64)
    threshold = share * float(np.linalg.norm(v.numpy(), 2))
    x = Nuclear(0.5).prox(v, 2 * threshold)
    np.testing.assert_allclose(x.numpy(), by_svd(v.numpy(), threshold), atol=1e-11)
    if share > 1:
        assert torch.equal(x, torch.zeros_like(v))
    for s in (2 * threshold, torch.tensor(2 * threshold)):
        near = Nuclear(0.5).prox(v.float(), s)
        assert near.dtype == torch.float32
        np.testing.assert_allclose(near.numpy(), by_svd(v.numpy(), threshold), atol=1e-5)


def test_a_convex_solver_agrees():
    v = np.random.default_rng(0).normal(size=(4, 6))
    x = cp.Variable(v.shape)
    cp.Problem(cp.Minimize(cp.sum_squares(x - v) / (2 * 0.7) + 0.9 * cp.normNuc(x))).solve(
        solver=cp.CLARABEL
    )
    ours = Nuclear(0.9).prox(torch.tensor(v), 0.7)
    np.testing.assert_allclose(ours.numpy(), x.value, atol=1e-4)


def test_pyproximal_agrees():
    v = np.random.default_rng(0).normal(size=(6, 9))
    oracle = pyproximal.Nuclear(v.shape, sigma=0.9)
    ours = Nuclear(0.9).prox(torch.tensor(v), 0.7)
    np.testing.assert_allclose(ours.numpy().ravel(), oracle.prox(v.ravel(), 0.7), atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_value_is_the_sum_of_singular_values(shape: tuple[int, int]):
    v = torch.randn(shape, dtype=torch.float64)
    expected = 0.7 * np.linalg.svd(v.numpy(), compute_uv=False).sum()
    assert float(Nuclear(0.7).value(v)) == pytest.approx(expected, rel=1e-9)
    assert float(Nuclear(0.7).value(v.float())) == pytest.approx(expected, rel=1e-5)


def test_the_rank_falls():
    v = torch.randn(20, 60)
    values = np.linalg.svd(v.numpy(), compute_uv=False)
    x = Nuclear(1.0).prox(v, float(values[4] + values[5]) / 2)
    left = np.linalg.svd(x.numpy(), compute_uv=False)
    assert (left > 1e-5 * left[0]).sum() == 5
    assert int(torch.linalg.matrix_rank(x)) == 5


def test_float32_is_right_where_singular_values_span_its_range():
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    w, _ = np.linalg.qr(rng.normal(size=(200, 30)))
    v = torch.tensor((u * np.logspace(0, -7, 30)) @ w.T, dtype=torch.float32)
    for threshold in (0.1, 1e-3, 1e-5):
        x = Nuclear(1.0).prox(v, threshold)
        error = np.linalg.norm(x.numpy() - by_svd(v.double().numpy(), threshold), 2)
        assert error <= 5e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(dtype: torch.dtype):
    penalty = Nuclear(2.0)
    for shape in ((3, 5), (5, 3), (0, 4), (4, 0)):
        zeros = torch.zeros(shape, dtype=dtype)
        for step in (0.0, 1.0, 1e30, torch.tensor(1e30, dtype=dtype)):
            assert torch.equal(penalty.prox(zeros, step), zeros)
        assert float(penalty.value(zeros)) == 0.0
    v = torch.randn(3, 5, dtype=dtype)
    for step in (0.0, torch.tensor(0.0, dtype=dtype)):
        assert torch.equal(penalty.prox(v, step), v)
    assert torch.equal(Nuclear(0.0).prox(v, 1e30), v)
    for size in (1e-40, 1e-30, 1e30, *((1e-200, 1e200) if dtype == torch.float64 else ())):
        expected = by_svd((v * size).double().numpy(), 0.6 * size)
        x = penalty.prox(v * size, 0.3 * size).double().numpy() / size
        np.testing.assert_allclose(x, expected / size, atol=1e-3 if size == 1e-40 else 1e-5)
    v[1, 2] = float("nan")
    assert penalty.prox(v, 0.1).isnan().all()
    assert penalty.value(v).isnan()
    v[1, 2] = float("inf")
    assert not penalty.prox(v, 0.1).isfinite().any()


def test_every_is_checked():
    assert Nuclear(1.0, every=10).every == 10
    for every in (0, -1, True):
        with pytest.raises(InputError, match="every is a whole number >= 1"):
            Nuclear(1.0, every=every)


def test_a_step_for_every_entry_is_our_mistake():
    with pytest.raises(AssertionError, match="one step"):
        Nuclear(1.0).prox(torch.ones(2, 3), torch.ones(2, 3))
