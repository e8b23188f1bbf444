"""Training with group penalties ends at the minimiser of the stated objective.

Oracles: scikit-learn's multi-task lasso and elastic net, in which a group is what one input sends
to all outputs; cvxpy for the rest.
"""

from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from sklearn.linear_model import MultiTaskElasticNet, MultiTaskLasso
from torch import Tensor, nn, optim

from regkit import Regularizer
from regkit.penalties import (
    L1,
    Box,
    GroupElasticNet,
    GroupLasso,
    Nuclear,
    SparseGroupLasso,
    WeightPenalty,
)

pytestmark = pytest.mark.slow

NUM_SAMPLES, NUM_INPUTS, NUM_OUTPUTS = 100, 20, 3
LAM = 0.15

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.0),
}


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(NUM_SAMPLES, NUM_INPUTS)) + 0.4 * rng.normal(size=(NUM_SAMPLES, 1))
    x *= np.exp(rng.uniform(-0.6, 0.6, size=NUM_INPUTS))
    truth = np.zeros((NUM_INPUTS, NUM_OUTPUTS))
    truth[:7] = rng.normal(size=(7, NUM_OUTPUTS))
    return x, x @ truth + 0.3 * rng.normal(size=(NUM_SAMPLES, NUM_OUTPUTS))


def train(penalties: Any, make: Any, num_steps: int = 1200) -> np.ndarray:
    x, y = map(torch.from_numpy, problem())
    model = nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=False).double()
    optimizer = make(model.parameters())
    scheduler = optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1.0 if t < 800 else 0.98 ** (t - 800)
    )
    Regularizer(model, penalties).attach(optimizer)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (model(x) - y).square().sum().div(2 * NUM_SAMPLES).backward()
        optimizer.step()
        scheduler.step()
    return model.weight.detach().numpy()


def loss(w: np.ndarray) -> float:
    x, y = problem()
    return float(((x @ w.T - y) ** 2).sum() / (2 * NUM_SAMPLES))


def solve(value: Any, constraints: Any = lambda w: []) -> np.ndarray:
    """Minimise loss + value(w) by an interior-point solver, w being (outputs, inputs)."""
    x, y = problem()
    w = cvxpy.Variable((NUM_OUTPUTS, NUM_INPUTS))
    fit = cvxpy.sum_squares(x @ w.T - y) / (2 * NUM_SAMPLES)
    cvxpy.Problem(cvxpy.Minimize(fit + value(w)), constraints(w)).solve(
        solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9
    )
    assert w.value is not None
    return w.value


def assert_optimal(w: np.ndarray, best: np.ndarray, value: Any) -> None:
    ours, theirs = loss(w) + value(w), loss(best) + value(best)
    assert ours - theirs <= 1e-6 * theirs


def columns(w: np.ndarray) -> float:
    return float(np.linalg.norm(w, axis=0).sum())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ratio", [1.0, 0.6])
def test_columns_equal_the_multi_task_lasso_of_scikit_learn(name: str, ratio: float):
    x, y = problem()
    root = NUM_OUTPUTS**0.5
    if ratio == 1.0:
        oracle = MultiTaskLasso(LAM * root, fit_intercept=False, tol=1e-12, max_iter=100_000)
        penalty: WeightPenalty = GroupLasso(LAM, groups="in_channel")
        strength, ridge = LAM * root, 0.0
    else:
        # alpha * l1_ratio = lam * ratio * sqrt(n), alpha * (1 - l1_ratio) = lam * (1 - ratio)
        strength, ridge = LAM * ratio * root, LAM * (1 - ratio)
        oracle = MultiTaskElasticNet(
            strength + ridge, l1_ratio=strength / (strength + ridge), fit_intercept=False,
            tol=1e-12, max_iter=100_000,
        )  # fmt: skip
        penalty = GroupElasticNet(LAM, l1_ratio=ratio, groups="in_channel")
    best = oracle.fit(x, y).coef_
    w = train(penalty, OPTIMIZERS[name])
    assert 0 < (best != 0).any(0).sum() < NUM_INPUTS
    assert_optimal(w, best, lambda v: strength * columns(v) + ridge / 2 * (v**2).sum())
    assert ((w != 0).any(0) == (best != 0).any(0)).all()


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize("how", ["one penalty", "two that compose"])
def test_sparse_groups_equal_a_conic_solver(name: str, how: str):
    one, group = 0.4 * LAM, 0.6 * LAM
    penalties: Any = SparseGroupLasso(LAM, l1_ratio=0.4, groups="in_channel")
    if how == "two that compose":
        penalties = [GroupLasso(group, groups="in_channel"), L1(one)]
    root = NUM_OUTPUTS**0.5
    best = solve(
        lambda w: one * cvxpy.sum(cvxpy.abs(w)) + group * root * cvxpy.sum(cvxpy.norm(w, 2, axis=0))
    )
    w = train(penalties, OPTIMIZERS[name])
    assert_optimal(w, best, lambda v: one * np.abs(v).sum() + group * root * columns(v))
    assert ((w != 0) == (np.abs(best) > 1e-6)).all()
    assert 0 < (w == 0).sum() < w.size


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_non_negative_group_lasso_equals_a_conic_solver(name: str):
    root = NUM_OUTPUTS**0.5
    best = solve(lambda w: LAM * root * cvxpy.sum(cvxpy.norm(w, 2, axis=0)), lambda w: [w >= 0])
    w = train(
        [GroupLasso(LAM, groups="in_channel"), Box(1.0, low=0.0, high=None)], OPTIMIZERS[name]
    )
    assert w.min() == 0.0
    assert_optimal(w, best.clip(0), lambda v: LAM * root * columns(v))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_low_rank_equals_a_conic_solver(name: str):
    lam = 4.0
    best = solve(lambda w: lam * cvxpy.normNuc(w))
    w = train(Nuclear(lam), OPTIMIZERS[name])
    rank = int((np.linalg.svd(best, compute_uv=False) > 1e-6).sum())
    assert 0 < rank < NUM_OUTPUTS
    assert np.linalg.matrix_rank(w, tol=1e-10) == rank
    assert_optimal(w, best, lambda v: lam * np.linalg.svd(v, compute_uv=False).sum())


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_all_is_zero_just_above_the_largest_strength_and_not_below(name: str):
    x, y = problem()
    slopes = np.linalg.norm(x.T @ y / NUM_SAMPLES, axis=1) / NUM_OUTPUTS**0.5
    largest = float(slopes.max())
    assert (train(GroupLasso(1.001 * largest, groups="in_channel"), OPTIMIZERS[name]) == 0).all()
    below = train(GroupLasso(0.99 * largest, groups="in_channel"), OPTIMIZERS[name])
    assert ((below != 0).any(0) == (slopes >= largest)).all()


def test_the_tensor_shapes_of_the_oracle_agree():
    """Guard the oracle itself: the solver's optimum without penalty is least squares."""
    x, y = problem()
    best = np.linalg.lstsq(x, y, rcond=None)[0].T
    found = solve(lambda w: 0.0)
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-5)
    assert isinstance(torch.from_numpy(found), Tensor)
