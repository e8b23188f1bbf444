"""Zeros that hold: when one wakes, what is counted, and that nothing of it is lost."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from regkit import Regularizer, Schedule
from regkit.ops.gate import Gate
from regkit.optim.gradient_averages import HORIZON, SAMPLE_INTERVAL
from regkit.optim.support import gates_open_at
from regkit.optim.support_report import (
    FLIP_INTERVAL,
    FLIP_SAMPLES,
    OVERLAP_SAMPLES,
    SupportReport,
    flips_counted_at,
    supports_compared_at,
)
from regkit.penalties import (
    L1,
    MCP,
    ElasticNet,
    GroupElasticNet,
    GroupL0,
    GroupLasso,
    SparseGroupLasso,
    WeightPenalty,
)

LAM = 0.1
MAKERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.01),
    "momentum": lambda p: optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
}


def fresh(
    make: Callable[[Any], optim.Optimizer], penalty: WeightPenalty, **options: Any
) -> tuple[nn.Linear, optim.Optimizer, Regularizer]:
    """Return a layer of zeros under a penalty."""
    model = nn.Linear(8, 6, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = make(model.parameters())
    reg = Regularizer(model, penalty, schedule=Schedule(**options)).attach(optimizer)
    return model, optimizer, reg


def walk(model: nn.Linear, optimizer: optim.Optimizer, gradient: Tensor, num_steps: int) -> int:
    """Step along one gradient; return after how many steps something woke, -1 for never."""
    for step in range(num_steps):
        model.weight.grad = gradient.clone()
        optimizer.step()
        if model.weight.any():
            return step
    return -1


def noisy(strength: float, noise: float, num_steps: int, seed: int = 0) -> Any:
    """Yield gradients of this mean and deviation, the same for all entries."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        yield strength + noise * torch.randn(6, 8, generator=draw)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("penalty", [L1(LAM), GroupLasso(LAM)], ids=["l1", "groups"])
def test_a_zero_wakes_when_its_gradient_leaves_the_subdifferential(
    name: str, penalty: WeightPenalty
):
    """|g| of an entry, ||g|| of a group over sqrt(8): a little below the strength, and above."""
    model, optimizer, _ = fresh(MAKERS[name], penalty)
    assert walk(model, optimizer, torch.full((6, 8), 0.99 * LAM), 100) == -1
    model, optimizer, _ = fresh(MAKERS[name], penalty)
    woke = walk(model, optimizer, torch.full((6, 8), 1.01 * LAM), 100)
    assert 0 <= woke <= 3 * SAMPLE_INTERVAL
    assert model.weight.all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("penalty", [L1(LAM), GroupLasso(LAM)], ids=["l1", "groups"])
def test_noise_wakes_no_zero(name: str, penalty: WeightPenalty):
    """Gradients of mean lam / 2 that deviate by more than lam: the plain step wakes many."""
    # Momentum averages away three quarters of it, and a group is not long by chance.
    noise = LAM * (4 if isinstance(penalty, L1) else 1.5 if name in ("sgd", "rmsprop") else 5)
    woken = {}
    for holds in (True, False):
        model, optimizer, reg = fresh(MAKERS[name], penalty, holds_zeros=holds)
        seen = torch.zeros_like(model.weight)
        for gradient in noisy(0.5 * LAM, noise, 600):
            model.weight.grad = gradient
            optimizer.step()
            seen += model.weight.detach() != 0
        woken[holds] = float(seen.mean()) / 600
        report = reg.support_report()
        assert report is not None
        assert report.is_settled or not holds
    assert woken[True] < 0.03
    assert woken[False] > 0.2


@pytest.mark.parametrize("name", MAKERS)
def test_a_zero_wakes_through_the_noise_when_it_should(name: str):
    """Mean 2 lam under a deviation of 4 lam: clear after (4 * 2 / 1)^2 steps or some more."""
    model, optimizer, _ = fresh(MAKERS[name], L1(LAM))
    for gradient in noisy(2 * LAM, 4 * LAM, 800):
        model.weight.grad = gradient
        optimizer.step()
    assert (model.weight != 0).float().mean() > 0.95


def test_the_average_is_that_of_the_gradients():
    """Oracle: weights proportional to k, the mean and its variance, by hand."""
    model, optimizer, reg = fresh(MAKERS["sgd"], L1(LAM))
    gradients = list(noisy(0.3, 1.0, 200))
    for gradient in gradients:
        model.weight.grad = gradient
        optimizer.step()
    (average,) = reg._steps[0].averages.by_parameter.values()
    weights = torch.arange(1, 201, dtype=torch.float64)
    weights /= weights.sum()
    mean = (torch.stack(gradients).double() * weights[:, None, None]).sum(0)
    torch.testing.assert_close(average.values.double(), mean, rtol=1e-5, atol=1e-6)
    assert average.count == 200
    assert average.concentration == pytest.approx(float(weights.square().sum()))
    # Of 28 samples of 48 entries.
    assert float(average.variance) == pytest.approx(1.0, rel=0.15)


def test_the_average_forgets_what_is_older_than_its_horizon():
    model, optimizer, reg = fresh(MAKERS["sgd"], L1(1e3))
    for step in range(4 * HORIZON):
        model.weight.grad = torch.full((6, 8), 1.0 if step < HORIZON else 0.0)
        optimizer.step()
    (average,) = reg._steps[0].averages.by_parameter.values()
    assert 0 < float(average.values.max()) < 0.06


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_what_the_optimizer_averages_is_corrected(name: str):
    model, optimizer, reg = fresh(MAKERS[name], L1(10.0))
    walk(model, optimizer, torch.full((6, 8), 0.7), SAMPLE_INTERVAL)
    (average,) = reg._steps[0].averages.by_parameter.values()
    torch.testing.assert_close(average.values, torch.full((6, 8), 0.7))
    assert average.count == 1


SLOPED: list[WeightPenalty] = [
    L1(0.3),
    ElasticNet(0.3, l1_ratio=0.4),
    GroupLasso(0.3),
    GroupElasticNet(0.3, l1_ratio=0.4),
    SparseGroupLasso(0.3, l1_ratio=0.4),
]


@pytest.mark.parametrize("penalty", SLOPED, ids=lambda p: type(p).__name__)
def test_the_slope_at_zero_is_where_the_prox_begins(penalty: WeightPenalty):
    """Oracle: the prox itself, from zero along each gradient, in steps over six magnitudes."""
    draw = torch.Generator().manual_seed(0)
    size = 1 if penalty.layout == "entries" else 5
    gradient = torch.randn(2000, size, generator=draw)
    gradient *= 10 ** (2 * torch.rand(2000, 1, generator=draw) - 1.5)
    slope = penalty.slope_at_zero(gradient.shape[1])
    assert slope is not None
    lengths = (gradient.abs() - slope[0]).clamp_min(0).norm(dim=1)
    step = 10 ** (6 * torch.rand(gradient.shape, generator=draw) - 3)
    wakes = (penalty.prox(-gradient * step, step) != 0).any(1)
    sure = (lengths - slope[1]).abs() > 1e-5
    assert torch.equal(wakes[sure], (lengths > slope[1])[sure])
    assert 200 < int(wakes.sum()) < 1800


def test_what_depends_on_the_step_has_no_slope():
    assert MCP(0.3).slope_at_zero(1) is None
    assert GroupL0(0.3).slope_at_zero(4) is None


def test_single_zeros_hold_in_groups_that_live():
    """Sparse groups: the first entry of each group lives, noise would wake the others."""
    settled = {}
    for holds in (True, False):
        penalty = SparseGroupLasso(LAM, l1_ratio=0.9)
        model, optimizer, reg = fresh(MAKERS["momentum"], penalty, holds_zeros=holds)
        for gradient in noisy(0.0, 4 * LAM, 600):
            gradient[:, 0] += model.weight.detach()[:, 0] - 1.0
            model.weight.grad = gradient
            optimizer.step()
        assert (model.weight[:, 0] > 0.5).all()
        report = reg.support_report()
        assert report is not None
        settled[holds] = report.flips
    assert settled[True] < 0.005
    assert settled[False] > 0.03


@pytest.mark.parametrize("penalty", [L1(0.02), GroupLasso(0.02), GroupL0(0.1)], ids=str)
@pytest.mark.parametrize("name", ["momentum", "adamw", "rmsprop"])
def test_kernels_and_torch_hold_the_same_zeros(
    name: str, penalty: WeightPenalty, monkeypatch: pytest.MonkeyPatch
):
    found = []
    for native in ("1", "0"):
        monkeypatch.setenv("REGKIT_NATIVE", native)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        optimizer = MAKERS[name](model.parameters())
        reg = Regularizer(model, penalty).attach(optimizer)
        train(model, optimizer, 120)
        found.append((model, reg))
    (one, reg), (other, plain) = found
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        assert torch.equal(p == 0, q == 0)
    assert any((p == 0).any() for p in one.parameters())
    assert reg.support_report() == plain.support_report()


def train(model: nn.Module, optimizer: optim.Optimizer, num_steps: int, start: int = 0) -> None:
    for step in range(start, start + num_steps):
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(16, 20, generator=draw)
        optimizer.zero_grad()
        loss = (model(x)[:, 0] - x[:, :3].sum(1)).square().mean()
        loss.backward()
        optimizer.step()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


@pytest.mark.parametrize("penalty", [L1(0.02), GroupLasso(0.02)], ids=["l1", "groups"])
@pytest.mark.parametrize("name", ["momentum", "adamw", "rmsprop"])
def test_a_run_continues_bit_for_bit(name: str, penalty: WeightPenalty):
    def begin() -> tuple[nn.Module, optim.Optimizer, Regularizer]:
        model = net()
        optimizer = MAKERS[name](model.parameters())
        return model, optimizer, Regularizer(model, penalty).attach(optimizer)

    whole, whole_optimizer, whole_reg = begin()
    train(whole, whole_optimizer, 110)
    for stop in (35, 60):
        model, optimizer, reg = begin()
        train(model, optimizer, stop)
        states = copy.deepcopy([one.state_dict() for one in (model, optimizer, reg)])
        model, optimizer, reg = begin()
        for one, state in zip((model, optimizer, reg), states, strict=True):
            one.load_state_dict(state)
        train(model, optimizer, 110 - stop, stop)
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.equal(p, q)
        assert reg.support_report() == whole_reg.support_report()


@pytest.mark.parametrize("penalty", [L1(LAM), GroupLasso(LAM)], ids=["l1", "groups"])
def test_weights_that_others_write_are_seen(penalty: WeightPenalty):
    """A zero that somebody sets to a number is no zero that wakes."""
    model, optimizer, _ = fresh(MAKERS["sgd"], penalty)
    walk(model, optimizer, torch.zeros(6, 8), 30)
    with torch.no_grad():
        model.weight[0].fill_(0.5)
    walk(model, optimizer, torch.zeros(6, 8), 1)
    assert (model.weight[0] > 0.4).all()
    assert not model.weight[1:].any()
    state = {"weight": torch.full((6, 8), 0.7)}
    model.load_state_dict(state)
    walk(model, optimizer, torch.zeros(6, 8), 1)
    assert (model.weight > 0.6).all()
    model.weight.data = torch.full((6, 8), 0.9)
    walk(model, optimizer, torch.zeros(6, 8), 1)
    assert (model.weight > 0.8).all()


def test_settled_zeros_stay_and_say_that_they_should_wake():
    options: dict[str, Any] = {"settle": 0.5, "num_steps": 100}
    model, optimizer, reg = fresh(MAKERS["sgd"], L1(LAM), **options)
    assert walk(model, optimizer, torch.full((6, 8), 0.5 * LAM), 60) == -1
    assert walk(model, optimizer, torch.full((6, 8), 50 * LAM), 40) == -1
    (gates,) = reg._steps[0].support.entries.values()
    assert ((gates & int(Gate.OPEN)) == 0).all()
    report = reg.support_report()
    assert report is not None
    assert report.flips == 0
    assert report.should_wake > 0.2


def test_nothing_wakes_in_the_last_step():
    """Gates open after ten steps, unless training ends there."""
    for num_steps, woke in ((SAMPLE_INTERVAL, -1), (SAMPLE_INTERVAL + 1, SAMPLE_INTERVAL - 1)):
        model, optimizer, _ = fresh(MAKERS["sgd"], L1(LAM), num_steps=num_steps)
        assert walk(model, optimizer, torch.full((6, 8), 2 * LAM), num_steps) == woke


def test_flips_and_overlap_by_hand():
    model, optimizer, reg = fresh(MAKERS["sgd"], L1(LAM), holds_zeros=False)
    before = torch.zeros(6, 8, dtype=torch.bool)
    tenth = before
    flips, both, either = [], [], []
    draw = torch.Generator().manual_seed(0)
    for step in range(1, 201):
        model.weight.grad = 3 * LAM * torch.randn(6, 8, generator=draw)
        optimizer.step()
        alive = model.weight.detach() != 0
        if flips_counted_at(step):
            weight = 1 if gates_open_at(step) else FLIP_INTERVAL
            flips.append((weight, (alive ^ before).float().mean()))
        if supports_compared_at(step):
            both.append((alive & tenth).sum())
            either.append((alive | tenth).sum())
        if supports_compared_at(step + SAMPLE_INTERVAL):
            tenth = alive
        before = alive
    report = reg.support_report()
    assert isinstance(report, SupportReport)
    weights, shares = zip(*flips[-FLIP_SAMPLES:], strict=True)
    weighted = sum(w * share for w, share in zip(weights, shares, strict=True))
    assert report.flips == pytest.approx(float(weighted) / sum(weights))
    assert report.jaccard == pytest.approx(
        float(sum(both[-OVERLAP_SAMPLES:]) / sum(either[-OVERLAP_SAMPLES:]))
    )
    assert not report.is_settled


def test_what_an_optimizer_is_given_later_is_held_and_what_others_hold_is_not_counted():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5))
    optimizer = optim.SGD(model[0].parameters(), lr=0.01)
    reg = Regularizer(model, L1(LAM)).attach(optimizer)
    train(model, optimizer, 2)
    (step,) = reg._steps
    assert set(step.support.entries) == {model[0].weight}
    optimizer.add_param_group({"params": list(model[1].parameters())})
    train(model, optimizer, 2)
    assert set(step.support.entries) == {model[0].weight, model[1].weight}
