"""Strength over time: the courses by hand, the density that is met, and debiasing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from regkit import InputError, Regularizer, density
from regkit.penalties import L1, L2, ElasticNet, GroupLasso
from regkit.strength import ALL, Strength


def strength(num_steps: int = 100, **options: Any) -> Strength:
    return Strength(num_steps=num_steps, density=lambda: 1.0, **options)


@pytest.mark.parametrize(
    ("ramp", "quarter", "half"),
    [("linear", 0.25, 0.5), ("cosine", (1 - math.cos(math.pi / 4)) / 2, 0.5),
     ("cubic", 1 - 0.75**3, 0.875)],
)  # fmt: skip
def test_ramps_by_hand(ramp: str, quarter: float, half: float):
    course = strength(ramp=ramp, ramp_until=0.8)
    assert course(1) == 0.0
    assert course(21) == pytest.approx(quarter)
    assert course(41) == pytest.approx(half)
    assert course(81) == course(100) == 1.0
    assert all(course(t) <= course(t + 1) for t in range(1, 100))  # type: ignore[operator]


def test_penalties_are_off_once_the_support_is_frozen():
    course = strength(freeze_support=0.8)
    assert [course(t) for t in (1, 80)] == [1.0, 1.0]
    assert [course(t) for t in (81, 100)] == [None, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ramp": "square"}, "ramp='square' was given; it is one of linear, cosine, cubic"),
        ({"ramp_until": 1.5}, "a share of training"),
        ({"target_density": 0.0}, "between 0 and 1"),
        ({"freeze_support": -0.1}, "0 to 1"),
        ({"ramp": "cubic", "target_density": 0.3}, "Leave ramp out"),
        ({"layerwise": True}, "without target_density"),
        ({"ramp": "cubic", "freeze_support": 0.2}, "Make ramp_until smaller"),
    ],
)
def test_options_are_checked_at_the_door(options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        Regularizer(nn.Linear(2, 2), L1(0.1), num_steps=10, **options)


def test_the_length_of_training_has_to_be_known():
    model = nn.Linear(2, 2)
    reg = Regularizer(model, L1(0.1), ramp="linear")
    with pytest.raises(InputError, match="num_steps; a ramp, a target density"):
        reg.attach(optim.SGD(model.parameters(), lr=0.1))


def test_the_step_follows_the_ramp():
    """With no gradient, each step of SGD shrinks by lr * lam * factor."""
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data.fill_(1.0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    reg = Regularizer(model, L1(0.5), num_steps=10, ramp="linear", ramp_until=0.5).attach(optimizer)
    expected = 1.0
    for step in range(10):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        expected -= 0.1 * 0.5 * min(step / 5, 1.0)
        torch.testing.assert_close(model.weight.detach(), torch.full_like(model.weight, expected))
        assert reg.lams() == {"l1": pytest.approx(0.5 * min(step / 5, 1.0))}
    assert float(reg.value()) == pytest.approx(0.5 * 6 * expected)


def problem() -> tuple[Tensor, Tensor]:
    x = torch.randn(200, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = torch.linspace(-1, 1, 60, dtype=torch.float64) ** 3
    return x, (x @ truth)[:, None] + 0.1


def fit(make: Any, steps: int = 400, **options: Any) -> tuple[nn.Linear, Regularizer]:
    x, y = problem()
    model = nn.Linear(60, 1).double()
    optimizer = make(model.parameters())
    reg = Regularizer(model, L1(1e-3), num_steps=steps, **options).attach(optimizer)
    for _ in range(steps):
        take(model, optimizer, x, y)
    return model, reg


def take(model: nn.Module, optimizer: optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - y).square().mean().div(2).backward()
    optimizer.step()


MAKERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.0),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("target", [0.2, 0.5])
@pytest.mark.parametrize("freeze", [None, 0.8])
def test_the_target_density_is_met(name: str, target: float, freeze: float | None):
    model, reg = fit(MAKERS[name], target_density=target, freeze_support=freeze)
    assert density(model).total == pytest.approx(target, abs=0.01)
    assert not math.isclose(reg.strength.state_dict()["log_factor"], 0.0)  # type: ignore[union-attr]


def test_freezing_removes_the_bias_and_keeps_the_zeros():
    """Oracle: least squares on the support that was found."""
    model, _ = fit(MAKERS["sgd"], steps=3000, target_density=0.3, freeze_support=0.5)
    x, y = problem()
    support = model.weight.detach()[0] != 0
    assert int(support.sum()) == 18
    columns = torch.cat([x[:, support], torch.ones(200, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(columns, y).solution[:, 0]
    torch.testing.assert_close(model.weight.detach()[0, support], best[:-1], rtol=1e-6, atol=1e-8)


def test_a_run_continues_bit_for_bit():
    x, y = problem()
    options = {"num_steps": 200, "target_density": 0.4, "freeze_support": 0.9}

    def fresh() -> tuple[nn.Linear, optim.Optimizer, Regularizer]:
        torch.manual_seed(5)
        model = nn.Linear(60, 1).double()
        optimizer = MAKERS["sgd"](model.parameters())
        return model, optimizer, Regularizer(model, L1(1e-3), **options).attach(optimizer)

    whole, whole_optimizer, _ = fresh()
    for _ in range(200):
        take(whole, whole_optimizer, x, y)
    for stop in (60, 166, 186, 195):
        model, optimizer, reg = fresh()
        for _ in range(stop):
            take(model, optimizer, x, y)
        saved = (model.state_dict(), optimizer.state_dict(), reg.state_dict())
        model, optimizer, reg = fresh()
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        reg.load_state_dict(saved[2])
        for _ in range(stop, 200):
            take(model, optimizer, x, y)
        assert torch.equal(model.weight, whole.weight)


@pytest.mark.parametrize("penalty", [L2(1e-3), L1(0.0), ElasticNet(1.0, l1_ratio=0.0)])
def test_a_penalty_without_zeros_cannot_aim_at_a_density(penalty: Any):
    with pytest.raises(InputError, match="no penalty here makes more zeros when it is stronger"):
        Regularizer(nn.Linear(2, 2), penalty, num_steps=40, target_density=0.4)


class Unlike(nn.Module):
    """Two layers side by side, whose gradients differ by a factor of ten."""

    def __init__(self) -> None:
        super().__init__()
        self.loud = nn.Linear(60, 1, bias=False)
        self.quiet = nn.Linear(60, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.loud(x) + 0.1 * self.quiet(x.flip(1))


UNLIKE = {
    "entries": lambda: L1(1e-3),
    "groups": lambda: GroupLasso(1e-3, groups="input"),
}


def fit_unlike(kind: str, steps: int, stop: int | None = None, **options: Any):
    x, y = problem()
    torch.manual_seed(0)
    model = Unlike().double()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    reg = Regularizer(model, UNLIKE[kind](), num_steps=steps, **options).attach(optimizer)
    for _ in range(stop or steps):
        take(model, optimizer, x, y)
    return model, optimizer, reg


@pytest.mark.parametrize("kind", UNLIKE)
def test_layerwise_brings_every_layer_to_the_target(kind: str):
    alone, _, _ = fit_unlike(kind, 400, target_density=0.4)
    uneven = density(alone).layers
    assert uneven["loud.weight"] - uneven["quiet.weight"] > 0.3
    model, _, reg = fit_unlike(kind, 400, target_density=0.4, layerwise=True)
    assert density(model).total == pytest.approx(0.4, abs=0.01)
    for share in density(model).layers.values():
        assert share == 0.4
    loud, quiet = (next(iter(reg.terms.values())).factors[f"{n}.weight"] for n in ("loud", "quiet"))
    assert loud > 2 * quiet
    # F is what it says, layer by layer: both penalties charge 1e-3 |w| for groups of one.
    lengths = [p.detach().abs().sum() for p in (model.loud.weight, model.quiet.weight)]
    wanted = 1e-3 * (reg.factor() or 0.0) * (loud * lengths[0] + quiet * lengths[1])
    torch.testing.assert_close(reg.value(), wanted)


@pytest.mark.parametrize("kind", UNLIKE)
@pytest.mark.parametrize(
    ("stop", "until", "steps"),
    [(70, 80, 200), (190, 200, 200), (70, 80, 1200)],
    ids=["searching", "closing", "between two looks"],
)
def test_a_layerwise_run_continues_bit_for_bit(kind: str, stop: int, until: int, steps: int):
    options: dict[str, Any] = {"target_density": 0.4, "layerwise": True}
    whole, _, _ = fit_unlike(kind, steps, until, **options)
    half, optimizer, reg = fit_unlike(kind, steps, stop, **options)
    saved = (half.state_dict(), optimizer.state_dict(), reg.state_dict())
    model = Unlike().double()
    again = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    fresh = Regularizer(model, UNLIKE[kind](), num_steps=steps, **options).attach(again)
    model.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    fresh.load_state_dict(saved[2])
    x, y = problem()
    for _ in range(stop, until):
        take(model, again, x, y)
    assert torch.equal(model.loud.weight, whole.loud.weight)
    assert torch.equal(model.quiet.weight, whole.quiet.weight)


class Planted:
    """Layers whose shares are given."""

    def __init__(self, **shares: float) -> None:
        self.now = shares
        self.factors: dict[str, float] = {}

    def shares(self) -> dict[str, float]:
        return self.now

    def weigh(self, factors: dict[str, float]) -> None:
        self.factors = factors


def test_no_step_takes_a_layer_below_the_target():
    """Channels that have died stay dead; each layer near the target is held by itself."""
    layers = Planted(near=0.55, far=0.9)
    options: dict[str, Any] = {"target_density": 0.5, "layerwise": True, "layers": layers}
    one = Strength(num_steps=100, density=lambda: 0.7, **options)
    assert one.bounds(1) is None
    one(1)
    assert one.bounds(1) == {"near": (0.5, 1.0)}
    assert layers.factors["near"] < 1 < layers.factors["far"]
    layers.now = {"near": 0.55, "far": 0.6}
    one(96)  # the closing: from where each is, halfway down to the target
    bounds = one.bounds(96)
    assert bounds == {
        name: (pytest.approx(wanted),) * 2 for name, wanted in (("near", 0.5), ("far", 0.5))
    }
    bounds = one.bounds(93)
    assert bounds == {
        name: (pytest.approx(wanted),) * 2 for name, wanted in (("near", 0.52), ("far", 0.54))
    }


def test_training_goes_on_from_the_strengths_that_were_found():
    one = Strength(target_density=0.2, num_steps=1000, density=lambda: 0.6)
    one.found({ALL: 3.0})
    assert one(1) == pytest.approx(3.0)
    layers = Planted(a=0.6, b=0.6)
    options: dict[str, Any] = {"target_density": 0.5, "layerwise": True, "layers": layers}
    each = Strength(num_steps=100, density=lambda: 0.6, **options)
    each(1)
    each.found({"a": 3.0, "b": 0.5})
    assert each.factors() == pytest.approx({"a": 3.0, "b": 0.5})


def test_the_closing_course_is_saved_with_where_it_began():
    one = Strength(target_density=0.2, num_steps=100, density=lambda: 0.6)
    assert one(91) is not None
    other = Strength(target_density=0.2, num_steps=100, density=lambda: 0.4)
    other.load_state_dict(one.state_dict())
    assert other(92) is not None
    assert one.bounds(92) == other.bounds(92) == {ALL: pytest.approx((0.44, 0.44))}
    assert one.bounds(100) == {ALL: pytest.approx((0.2, 0.2))}
