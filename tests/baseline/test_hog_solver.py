"""The path against scikit-learn's solver, closed forms and the optimality conditions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from regkit.baseline import solver
from regkit.baseline.choice import Scale, Standardised, choose_by_folds, choose_by_validation
from regkit.baseline.features import Row
from regkit.baseline.solver import Fitted, fit, lam_max
from regkit.data.video import Video, folds_by_group
from regkit.errors import InputError
from regkit.selection.path import path


def problem(seed: int, n: int = 90, p: int = 150, classes: int = 4) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) @ rng.normal(size=(6, p)) + rng.normal(size=(n, p))  # correlated
    weight = np.zeros((classes, p))
    weight[:, :5] = rng.normal(size=(classes, 5))
    y = (x @ weight.T + 2 * rng.gumbel(size=(n, classes))).argmax(1)
    x = (x - x.mean(0)) / x.std(0)
    return torch.tensor(x), torch.tensor(y)


def along(x: Tensor, y: Tensor, lams: list[float]) -> list[Fitted]:
    return [f for _, f in path(lams, lambda lam, start: fit(lam, x, y, 4, start))]


def objective(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, lam: float):
    scores = x @ weight.T + bias
    chosen = scores[np.arange(len(y)), y]
    return np.mean(np.logaddexp.reduce(scores, axis=1) - chosen) + lam * np.abs(weight).sum()


@pytest.mark.parametrize("seed", range(2))
def test_minimum_and_support_are_those_of_sklearn(seed: int):
    x, y = problem(seed)
    top = lam_max(x, y, 4)
    lams = [share * top for share in (0.8, 0.5, 0.3, 0.15)]
    for lam, ours in zip(lams, along(x, y, lams), strict=True):
        theirs = LogisticRegression(
            l1_ratio=1.0, C=1 / (len(y) * lam), solver="saga", tol=1e-7, max_iter=50_000
        ).fit(x.numpy(), y.numpy())
        best = objective(x.numpy(), y.numpy(), theirs.coef_, theirs.intercept_, lam)
        found = objective(x.numpy(), y.numpy(), ours.weight.numpy(), ours.bias.numpy(), lam)
        assert found <= best * (1 + 1e-4)
        assert found >= best * (1 - 1e-4)
        np.testing.assert_array_equal(ours.weight.numpy() != 0, theirs.coef_ != 0)


def test_optimality_conditions_hold_on_all_features():
    x, y = problem(3)
    top = lam_max(x, y, 4)
    lams = [top * 0.8**k for k in range(1, 12)]
    for lam, fitted in zip(lams, along(x, y, lams), strict=True):
        weight = fitted.weight.clone().requires_grad_()
        bias = fitted.bias.clone().requires_grad_()
        torch.nn.functional.cross_entropy(x @ weight.T + bias, y).backward()
        alive = fitted.weight != 0
        slopes, constant = weight.grad, bias.grad
        assert slopes is not None
        assert constant is not None
        assert float((slopes[alive] + lam * fitted.weight[alive].sign()).abs().max()) < 1e-3 * lam
        assert float(slopes[~alive].abs().max()) < lam * (1 + 1e-3)
        assert float(constant.abs().max()) < 1e-3 * lam
        missed = (slopes + lam * fitted.weight.sign())[alive].abs().max() / lam
        assert fitted.residual >= float(missed) - 1e-12
        assert fitted.residual < 1e-3


def test_lam_max_is_where_the_first_weight_comes():
    x, y = problem(1)
    shares = y.bincount() / len(y)
    wrong = shares - torch.nn.functional.one_hot(y)
    top = float((wrong.T.double() @ x / len(y)).abs().max())
    assert lam_max(x, y, 4) == pytest.approx(top, rel=1e-5)
    above, below = along(x, y, [1.01 * top, 0.97 * top])
    assert not above.live.any()
    assert above.residual == 0
    np.testing.assert_allclose(above.bias.softmax(0), shares, rtol=1e-6)
    assert below.live.any()


def test_a_warm_start_ends_where_a_cold_one_does():
    x, y = problem(2)
    lam = 0.3 * lam_max(x, y, 4)
    warm = along(x, y, [4 * lam, 2 * lam, 0.2 * lam, lam])[-1]  # what came in goes out again
    (cold,) = along(x, y, [lam])
    np.testing.assert_array_equal(warm.live, cold.live)
    np.testing.assert_allclose(warm.weight, cold.weight, atol=2e-3)


def test_momentum_that_points_uphill_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    """Kept, it takes three times the steps."""
    monkeypatch.setattr(solver, "MOST_STEPS", 800)
    x, y = problem(0)
    fit(0.1 * lam_max(x, y, 4), x, y, 4, None)


def test_features_may_be_small(monkeypatch: pytest.MonkeyPatch):
    """The constant bends more than they do, and bounds the step."""
    monkeypatch.setattr(solver, "MOST_STEPS", 5000)
    x, y = problem(0)
    x = 0.1 * x
    fitted = fit(0.3 * lam_max(x, y, 4), x, y, 4, None)
    assert fitted.live.any()
    assert fitted.residual < 1e-3


def test_a_class_without_videos_is_unlikely_and_no_more():
    x, y = problem(0)
    fitted = fit(1.01 * lam_max(x, y, 4), x, y, 5, None)
    assert fitted.bias.isfinite().all()
    assert float(fitted.probabilities(x)[:, 4].max()) < 0.01


def test_features_that_say_nothing_are_refused():
    with pytest.raises(InputError, match="no feature that differs"):
        lam_max(torch.zeros(8, 3, dtype=torch.float64), torch.arange(8) % 2, 2)


def test_a_fit_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solver, "MOST_STEPS", 3)
    x, y = problem(0)
    with pytest.raises(InputError, match="--lam-min-ratio"):
        fit(1e-3, x, y, 4, None)


def rows_of(x: Tensor, y: Tensor, num_groups: int) -> list[Row]:
    values = (3 * x + 1).float().numpy()
    return [
        Row(
            Video(f"{k}.mp4", int(y[k]), f"g{k % num_groups}"),
            values[k : k + 1],
            1.0,
            1.0,
            0.1,
            0.1,
        )
        for k in range(len(y))
    ]


def test_a_constant_feature_stays_zero():
    x, y = problem(0)
    x[:, 7] = 0.1  # 1.3 is no float32: its mean is not quite it
    rows = rows_of(x, y, 6)
    found = Scale.of(rows[:60])(rows)
    assert (found.x[:, 7] == 0).all()
    assert found.y.tolist() == y.tolist()
    np.testing.assert_allclose(found.x[:60, :7].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(found.x[:60, :7].std(0, correction=0), 1)


def test_folds_hold_out_whole_groups_and_learn_nothing_of_them():
    x, y = problem(0, p=40)
    rows = rows_of(x, y, num_groups=5)  # of 18, so that one fold is smaller
    lams, loss = [0.1, 0.05], 0.0
    found = choose_by_folds(rows, 3, 0, lams, 4)
    values = np.concatenate([row.values for row in rows]).astype(float)
    names = np.array([row.video.group for row in rows])
    folds = folds_by_group([row.video for row in rows], 3, 0, "the test")
    for fold, accuracy in zip(folds, found.val_accuracy[:, 1], strict=True):
        outer = np.isin(names, [video.group for video in fold])
        assert outer.sum() in (18, 36)
        scaled = (values - values[~outer].mean(0)) / values[~outer].std(0)
        theirs = LogisticRegression(
            l1_ratio=1.0, C=1 / ((~outer).sum() * 0.05), solver="saga", tol=1e-6, max_iter=5000
        ).fit(scaled[~outer], y.numpy()[~outer])
        assert accuracy == pytest.approx(theirs.score(scaled[outer], y.numpy()[outer]))
        chances = theirs.predict_proba(scaled[outer])
        loss -= float(np.log(chances[np.arange(outer.sum()), y.numpy()[outer]]).sum())
    assert found.choice.means[1] == pytest.approx(loss / len(y), rel=1e-3)
    assert found.choice.rule == "one_se"
    assert found.num_live == [int(fitted.live.sum()) for fitted in found.fits]


def test_validation_takes_the_least_loss():
    x, y = problem(0)
    ours, held = Standardised(x[:60], y[:60]), Standardised(x[60:], y[60:])
    lams = [lam_max(ours.x, ours.y, 4) * 0.7**k for k in range(8)]
    found = choose_by_validation(ours, held, lams, 4)
    losses = [
        -np.log(f.probabilities(held.x).numpy()[np.arange(30), held.y.numpy()]).mean()
        for f in found.fits
    ]
    assert found.choice.chosen == int(np.argmin(losses))


def test_a_fold_with_all_of_a_class_is_refused():
    x, y = problem(0)
    rows = rows_of(x, y, 6)
    rows = [row for row in rows if row.video.label != 2 or row.video.group == "g1"]
    with pytest.raises(InputError, match="all videos of a class"):
        choose_by_folds(rows, 3, 0, [0.1], 4)
