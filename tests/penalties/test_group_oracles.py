"""Convex group penalties against a convex solver, in random metrics."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import cvxpy as cp
import numpy as np
import pyproximal
import pytest
import torch

from regkit.penalties import GroupElasticNet, GroupLasso, SparseGroupLasso
from regkit.penalties.penalty import GroupPenalty

LAM, SHARE = 0.3, 0.4


def lengths(x: cp.Variable) -> Any:
    groups, size = x.shape
    return cp.sum([sqrt(size) * cp.norm2(x[g]) for g in range(groups)])


EXPRESSIONS: list[tuple[GroupPenalty, Callable[[cp.Variable], Any]]] = [
    (GroupLasso(LAM), lambda x: LAM * lengths(x)),
    (
        SparseGroupLasso(LAM, l1_ratio=SHARE),
        lambda x: LAM * (SHARE * cp.sum(cp.abs(x)) + (1 - SHARE) * lengths(x)),
    ),
    (
        GroupElasticNet(LAM, l1_ratio=SHARE),
        lambda x: LAM * (SHARE * lengths(x) + (1 - SHARE) / 2 * cp.sum_squares(x)),
    ),
]


@pytest.mark.parametrize(
    ("penalty", "expression"), EXPRESSIONS, ids=[type(p).__name__ for p, _ in EXPRESSIONS]
)
@pytest.mark.parametrize("seed", range(3))
def test_convex_solver_agrees_in_a_random_metric(
    penalty: GroupPenalty, expression: Callable[[cp.Variable], Any], seed: int
):
    draw = np.random.default_rng(seed)
    v, step = draw.normal(size=(6, 5)), 10 ** draw.uniform(-1, 1, size=(6, 5))
    v[:3] *= 0.1
    x = cp.Variable(v.shape)
    fit = cp.sum(cp.multiply(1 / (2 * step), cp.square(x - v)))
    cp.Problem(cp.Minimize(fit + expression(x))).solve(solver=cp.CLARABEL)
    found = penalty.prox(torch.tensor(v), torch.tensor(step)).numpy()
    np.testing.assert_allclose(found, x.value, rtol=1e-3, atol=3e-4)
    assert float(penalty.value(torch.tensor(v))) == pytest.approx(expression(cp.Constant(v)).value)
    own = np.sum((found - v) ** 2 / (2 * step)) + expression(cp.Constant(found)).value
    assert own <= (fit + expression(x)).value + 1e-9
    zero = np.abs(x.value).max(1) < 3e-4
    assert (found[zero] == 0).all()
    assert 0 < zero.sum() < len(v)


def test_pyproximal_agrees_for_one_step():
    draw = np.random.default_rng(0)
    v = draw.normal(size=(8, 4))
    # L21 sums the lengths of columns of an (entries, groups) array.
    oracle = pyproximal.L21(ndim=4, sigma=LAM * 2.0).prox(v.T.ravel(), 1.7).reshape(4, 8).T
    np.testing.assert_allclose(
        GroupLasso(LAM).prox(torch.tensor(v), 1.7).numpy(), oracle, atol=1e-9
    )
