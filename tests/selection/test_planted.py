"""Cross-validation finds planted supports, as scikit-learn's solvers and folds do."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet as SkElasticNet
from sklearn.linear_model import ElasticNetCV, LassoCV, MultiTaskLasso, MultiTaskLassoCV
from sklearn.model_selection import KFold
from torch import Tensor, nn

from regkit import Regularizer
from regkit.optim.fused_optimizers import ProxSGD
from regkit.penalties import L1, ElasticNet, GroupLasso, WeightPenalty
from regkit.regularizer.bound_penalty import bind
from regkit.selection.choose import choose
from regkit.selection.critical import critical
from regkit.selection.grid import log_grid
from regkit.selection.layers import head_bound
from regkit.selection.path import cross_validate, path

# Full-batch steps at each strength, from the weights of the one before.
NUM_STEPS = 60
Make = Callable[[float], WeightPenalty]


@dataclass
class Planted:
    """Linear problems: few of the inputs matter, the rest is noise."""

    x: Tensor
    y: Tensor
    support: Tensor

    @classmethod
    def draw(cls, seed: int, n: int, p: int, true: int, tasks: int = 1) -> "Planted":
        rng = np.random.default_rng(seed)
        x, w = rng.normal(size=(n, p)), np.zeros((p, tasks))
        places = rng.choice(p, true, replace=False)
        w[places] = rng.choice([-1, 1], (true, tasks)) * rng.uniform(0.4, 1.2, (true, tasks))
        y = x @ w + rng.normal(size=(n, tasks)) + 2
        return cls(torch.tensor(x), torch.tensor(y), torch.tensor((w != 0).any(1)))

    @property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(KFold(5, shuffle=True, random_state=0).split(self.x))

    def fit(self, make: Make) -> Callable:
        """Return accelerated proximal steps at a strength, on some rows, from earlier weights.

        The weights are (inputs, tasks); a constant is fitted by centring.
        """
        known: dict[int, tuple[Tensor, Tensor, float]] = {}

        def fit(lam: float, rows: np.ndarray, weights: Tensor | None) -> Tensor:
            if id(rows) not in known:
                x = self.x[rows] - self.x[rows].mean(0)
                gram = x.T @ x / len(x)
                step = 1 / float(torch.linalg.matrix_norm(gram, 2))
                known[id(rows)] = gram, x.T @ self.y[rows] / len(x), step
            gram, target, step = known[id(rows)]
            penalty = make(lam)
            w = torch.zeros_like(target) if weights is None else weights
            before = w
            for k in range(NUM_STEPS):
                ahead = w + k / (k + 3) * (w - before)
                before, w = w, penalty.prox(ahead - step * (gram @ ahead - target), step)
            return w

        return fit

    def error(self, weights: Tensor, rows: np.ndarray) -> float:
        train = np.setdiff1d(np.arange(len(self.x)), rows)
        constant = self.y[train].mean(0) - self.x[train].mean(0) @ weights
        return float((self.x[rows] @ weights + constant - self.y[rows]).square().mean())

    def found(self, model: nn.Linear) -> tuple[float, float]:
        """Return precision and recall of the inputs that are left."""
        left = (model.weight != 0).any(0)
        hits = float((left & self.support).sum())
        return hits / max(float(left.sum()), 1), hits / float(self.support.sum())


def squares(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).square().sum(1).mean() / 2


def one_se(mse: np.ndarray) -> int:
    """Return the place of the choice in errors (strongest first, folds), by the definition."""
    best = int(mse.mean(1).argmin())
    limit = mse[best].mean() + mse[best].std(ddof=1) / math.sqrt(mse.shape[1])
    return int(np.flatnonzero(mse.mean(1) <= limit)[0])


def refit(planted: Planted, make: Make, lams: Sequence[float]) -> nn.Linear:
    """Fit on all data along the path, by an optimizer that a Regularizer is attached to."""
    x, y = planted.x, planted.y
    model = nn.Linear(x.shape[1], y.shape[1]).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(y.mean(0))
    lr = 1 / (float(torch.linalg.matrix_norm(x, 2)) ** 2 / len(x) + 1)

    def fit(lam: float, last: None) -> None:
        optimizer = ProxSGD(model.parameters(), lr=lr, momentum=0.5)
        Regularizer(model, make(lam)).attach(optimizer)
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            squares(model(x), y).backward()
            optimizer.step()

    list(path(lams, fit))
    return model


@pytest.mark.parametrize("seed", range(3))
def test_lasso_chooses_and_finds_as_sklearn_does(seed: int):
    planted = Planted.draw(seed, n=120 + 20 * seed, p=50, true=5 + seed)
    model = nn.Linear(50, 1).double()
    top = head_bound(model, bind(model, "l1", L1(1.0)), [(planted.x, planted.y)], squares)
    assert top.lam is not None
    grid = log_grid(top.lam, 0.02, 12)
    errors = cross_validate(planted.folds, grid, planted.fit(L1), planted.error)
    choice = choose(errors, grid)

    x, y = planted.x.numpy(), planted.y.numpy()[:, 0]
    theirs = LassoCV(alphas=grid, cv=planted.folds, tol=1e-8).fit(x, y)
    np.testing.assert_allclose(errors.T, theirs.mse_path_, rtol=2e-3)
    place = one_se(theirs.mse_path_)
    assert abs(choice.chosen - place) <= 1
    assert grid[choice.best] == pytest.approx(theirs.alpha_)

    fitted = refit(planted, L1, grid[: choice.chosen + 1])
    reference = SkElasticNet(alpha=grid[place], l1_ratio=1.0, tol=1e-10).fit(x, y)
    left = torch.tensor(reference.coef_ != 0)
    hits = float((left & planted.support).sum())
    assert planted.found(fitted) == (hits / float(left.sum()), hits / float(planted.support.sum()))
    assert planted.found(fitted)[1] == 1.0


@pytest.mark.parametrize("seed", range(2))
def test_the_mix_of_the_elastic_net_is_chosen_as_sklearn_does(seed: int):
    planted = Planted.draw(10 + seed, n=100, p=50, true=6)
    ratios, tables, lams = [0.2, 0.6, 1.0], [], log_grid(0.8, 0.03, 8)
    x, y = planted.x.numpy(), planted.y.numpy()[:, 0]
    theirs = ElasticNetCV(l1_ratio=ratios, alphas=lams, cv=planted.folds, tol=1e-8).fit(x, y)
    for ratio in ratios:
        fit = planted.fit(lambda lam, ratio=ratio: ElasticNet(lam, l1_ratio=ratio))
        tables.append(cross_validate(planted.folds, lams, fit, planted.error))
    np.testing.assert_allclose(np.stack(tables).transpose(0, 2, 1), theirs.mse_path_, rtol=5e-3)
    choice = choose(np.concatenate(tables, axis=1), lams * 3, rule="min")
    assert ratios[choice.chosen // 8] == pytest.approx(theirs.l1_ratio_)
    assert lams[choice.chosen % 8] == pytest.approx(theirs.alpha_)


@pytest.mark.parametrize("seed", range(2))
def test_planted_groups_are_recovered_as_by_sklearns_multi_task_lasso(seed: int):
    planted = Planted.draw(20 + seed, n=100, p=30, true=6, tasks=4)
    x, y = planted.x.numpy(), planted.y.numpy()

    def make(lam: float) -> GroupLasso:
        return GroupLasso(lam, groups="in_channel")

    model = nn.Linear(30, 4).double()
    centred = planted.y - planted.y.mean(0)
    gradient = -centred.T @ planted.x / len(x)
    top = critical(bind(model, "group_lasso", make(1.0)), {model.weight: gradient})
    lams = log_grid(top, 0.02, 10)
    errors = cross_validate(planted.folds, lams, planted.fit(make), planted.error)
    choice = choose(errors, lams)
    # They charge ||w_g||, regkit sqrt(4) ||w_g||.
    alphas = [2 * lam for lam in lams]
    theirs = MultiTaskLassoCV(alphas=alphas, cv=planted.folds, tol=1e-8).fit(x, y)
    np.testing.assert_allclose(errors.T, theirs.mse_path_, rtol=2e-3)
    assert abs(choice.chosen - one_se(theirs.mse_path_)) <= 1
    reference = MultiTaskLasso(alpha=alphas[choice.chosen], tol=1e-10).fit(x, y)
    left = torch.tensor((reference.coef_ != 0).any(0))
    fitted = refit(planted, make, lams[: choice.chosen + 1])
    assert torch.equal((fitted.weight != 0).any(0), left)
    assert planted.found(fitted)[1] == 1.0


def test_a_path_starts_each_fit_from_the_one_before():
    seen = list(path([3, 2, 1], lambda lam, last: (last or 0) + lam, start=10))
    assert seen == [(3, 13), (2, 15), (1, 16)]


def test_folds_do_not_see_each_other():
    errors = cross_validate(
        [("a", "b"), ("c", "d")],
        [1.0, 0.1],
        lambda lam, train, last: (last or "") + train,
        lambda fitted, held: float(f"{ord(fitted[0]) - 97}.{len(fitted)}{ord(held) - 97}"),
    )
    assert errors.tolist() == [[0.11, 0.21], [2.13, 2.23]]
