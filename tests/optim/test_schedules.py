"""Training under a schedule: the ramp by hand, the density that is met, and debiasing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from regkit import InputError, Regularizer, Schedule, density
from regkit.optim.density_control import GLOBAL
from regkit.penalties import L1, L2, ElasticNet, GroupLasso


def test_the_length_of_training_has_to_be_known():
    model = nn.Linear(2, 2)
    reg = Regularizer(model, L1(0.1), schedule=Schedule(ramp="linear"))
    with pytest.raises(InputError, match="depends on how far training is, and nobody says it"):
        reg.attach(optim.SGD(model.parameters(), lr=0.1))


def test_the_step_follows_the_ramp():
    """With no gradient, each step of SGD shrinks by lr * lam * factor."""
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data.fill_(1.0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(ramp="linear", ramp_until=0.5, num_steps=10)
    reg = Regularizer(model, L1(0.5), schedule=schedule).attach(optimizer)
    expected = 1.0
    for step in range(10):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        expected -= 0.1 * 0.5 * min(step / 5, 1.0)
        torch.testing.assert_close(model.weight.detach(), torch.full_like(model.weight, expected))
        assert reg.current_lams() == {"l1": pytest.approx(0.5 * min(step / 5, 1.0))}
    assert float(reg.value()) == pytest.approx(0.5 * 6 * expected)


def problem() -> tuple[Tensor, Tensor]:
    x = torch.randn(200, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = torch.linspace(-1, 1, 60, dtype=torch.float64) ** 3
    return x, (x @ truth)[:, None] + 0.1


def fit(make: Any, steps: int = 400, **options: Any) -> tuple[nn.Linear, Regularizer]:
    x, y = problem()
    model = nn.Linear(60, 1).double()
    optimizer = make(model.parameters())
    schedule = Schedule(num_steps=steps, **options)
    reg = Regularizer(model, L1(1e-3), schedule=schedule).attach(optimizer)
    for _ in range(steps):
        take(model, optimizer, x, y)
    return model, reg


def take(model: nn.Module, optimizer: optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - y).square().mean().div(2).backward()
    optimizer.step()


def test_the_strength_that_acted_is_kept_when_the_penalty_is_off():
    """What a search has found leaves, by itself, the density that was asked for."""
    dense, reg = fit(lambda p: optim.SGD(p, lr=0.1))
    sparse, searched = fit(lambda p: optim.SGD(p, lr=0.1), target_density=0.2, debias=0.8)
    assert searched.current_lams() == {"l1": 0.0}
    found = searched.acted_lams()["l1"]
    assert found > 10 * reg.acted_lams()["l1"] == 10 * 1e-3
    x, y = problem()
    again = nn.Linear(60, 1).double()
    optimizer = optim.SGD(again.parameters(), lr=0.1)
    Regularizer(again, L1(found)).attach(optimizer)
    for _ in range(400):
        take(again, optimizer, x, y)
    alive = [int((net.weight != 0).sum()) for net in (dense, sparse, again)]
    assert alive[1] == 12
    assert abs(alive[2] - 12) <= 4 < alive[0] - 12


def test_a_strength_that_was_not_changed_is_told_to_the_bit():
    _, reg = fit(lambda p: optim.SGD(p, lr=0.1), steps=5)
    assert reg.acted_lams() == reg.current_lams() == {"l1": 1e-3}
    assert Regularizer(nn.Linear(2, 2), L1(0.3)).acted_lams() == {"l1": 0.3}


def test_strengths_of_layers_are_told_as_their_mean_by_size():
    """A layer of 8 weights at twice the strength, one of 2 at the strength itself."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 1, bias=False))
    schedule = Schedule(target_density=0.5, layerwise=True, num_steps=4)
    reg = Regularizer(model, L1(0.1), schedule=schedule)
    saved = reg.attach(optim.SGD(model.parameters(), 0.1)).state_dict()
    layers = {"l1/0.weight": 2.0, "l1/1.weight": 1.0}
    saved["steps"][0]["acted"] = {"common": 1.0, "layers": layers}
    reg.detach()
    reg.load_state_dict(saved)
    assert reg.acted_lams()["l1"] == pytest.approx(0.1 * (8 * 2 + 2 * 1) / 10)


MAKERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.0),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("target", [0.2, 0.5])
@pytest.mark.parametrize("freeze", [None, 0.8])
def test_the_target_density_is_met(name: str, target: float, freeze: float | None):
    model, reg = fit(MAKERS[name], target_density=target, debias=freeze)
    assert density(model).total == pytest.approx(target, abs=0.01)
    (step,) = reg.state_dict()["steps"]
    log_factor, _ = step["control"]["feedbacks"][GLOBAL]
    assert log_factor != pytest.approx(0.0)


def test_freezing_removes_the_bias_and_keeps_the_zeros():
    """Oracle: least squares on the support that was found."""
    model, _ = fit(MAKERS["sgd"], steps=3000, target_density=0.3, debias=0.5)
    x, y = problem()
    support = model.weight.detach()[0] != 0
    assert int(support.sum()) == 18
    columns = torch.cat([x[:, support], torch.ones(200, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(columns, y).solution[:, 0]
    torch.testing.assert_close(model.weight.detach()[0, support], best[:-1], rtol=1e-6, atol=1e-8)


def test_a_run_continues_bit_for_bit():
    x, y = problem()
    options = {"num_steps": 200, "target_density": 0.4, "debias": 0.9}

    def fresh() -> tuple[nn.Linear, optim.Optimizer, Regularizer]:
        torch.manual_seed(5)
        model = nn.Linear(60, 1).double()
        optimizer = MAKERS["sgd"](model.parameters())
        reg = Regularizer(model, L1(1e-3), schedule=Schedule(**options))
        return model, optimizer, reg.attach(optimizer)

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
        Regularizer(nn.Linear(2, 2), penalty, schedule=Schedule(target_density=0.4))


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
    "groups": lambda: GroupLasso(1e-3, groups="in_channel"),
}


def fit_unlike(kind: str, steps: int, stop: int | None = None, **options: Any):
    x, y = problem()
    torch.manual_seed(0)
    model = Unlike().double()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = Schedule(num_steps=steps, **options)
    reg = Regularizer(model, UNLIKE[kind](), schedule=schedule).attach(optimizer)
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
    (name,) = reg.bound
    loud, quiet = (reg.current_layer_lams()[f"{name}/{n}.weight"] for n in ("loud", "quiet"))
    assert loud > 2 * quiet
    # F is what it says, layer by layer: both penalties charge lam |w| for groups of one.
    lengths = [p.detach().abs().sum() for p in (model.loud.weight, model.quiet.weight)]
    wanted = loud * lengths[0] + quiet * lengths[1]
    torch.testing.assert_close(reg.value(), wanted)


def test_a_layer_whose_gradient_comes_late_comes_down_to_the_target():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    optimizer = optim.SGD(model.parameters(), 0.05)
    options: dict[str, Any] = {"target_density": 0.4, "layerwise": True, "num_steps": 100}
    reg = Regularizer(model, L1(0.01), schedule=Schedule(**options)).attach(optimizer)
    for step in range(100):
        optimizer.zero_grad()
        x = torch.randn(8, 20)
        ((model if step > 3 else model[0])(x) - x).square().mean().backward()
        optimizer.step()
    assert list(reg.layer_density().values()) == pytest.approx([0.4, 0.4], abs=0.02)


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
    schedule = Schedule(num_steps=steps, **options)
    fresh = Regularizer(model, UNLIKE[kind](), schedule=schedule).attach(again)
    model.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    fresh.load_state_dict(saved[2])
    x, y = problem()
    for _ in range(stop, until):
        take(model, again, x, y)
    assert torch.equal(model.loud.weight, whole.loud.weight)
    assert torch.equal(model.quiet.weight, whole.quiet.weight)


@pytest.mark.parametrize(
    "options",
    [
        {"ramp": "cosine"},
        {"settle": 0.3, "debias": 0.6},
        {"target_density": 0.4, "debias": 0.8},
        {"target_density": 0.4, "layerwise": True},
    ],
)
def test_progress_that_is_said_is_as_good_as_a_number_of_steps(options: dict[str, Any]):
    num_steps = 50
    counted, _, _ = fit_unlike("entries", num_steps, **options)
    x, y = problem()
    torch.manual_seed(0)
    model = Unlike().double()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    reg = Regularizer(model, UNLIKE["entries"](), schedule=Schedule(**options))
    reg.set_progress(0.0)
    reg.attach(optimizer)
    for step in range(num_steps):
        reg.set_progress((step + 1) / num_steps)
        take(model, optimizer, x, y)
    assert torch.equal(model.loud.weight, counted.loud.weight)
    assert torch.equal(model.quiet.weight, counted.quiet.weight)


def test_what_has_settled_stays_zero_under_the_penalty():
    """A gradient that would bring all weights back moves those that are not zero, and by lam."""
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data.copy_(torch.tensor([[1.0, 0.0, -1.0, 0.0]]))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(settle=0.5, num_steps=4)
    reg = Regularizer(model, L1(0.5), schedule=schedule).attach(optimizer)
    seen = []
    for slope in (0.0, 0.0, -2.0, -2.0):
        model.weight.grad = torch.full_like(model.weight, slope)
        optimizer.step()
        seen.append(model.weight.detach()[0].tolist())
    assert seen[1] == pytest.approx([0.9, 0.0, -0.9, 0.0])
    assert seen[3] == pytest.approx([1.2, 0.0, -0.4, 0.0])
    assert reg.current_lams() == {"l1": 0.5}


def test_a_target_that_no_strength_meets_is_told_at_the_last_step():
    """Of two groups one is as near as it comes; and it is not below the target."""
    model = nn.Linear(5, 2, bias=False)
    model.weight.data.copy_(torch.tensor([[0.2], [2.0]]).expand(2, 5))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(target_density=0.45, num_steps=40)
    reg = Regularizer(model, GroupLasso(0.1), schedule=schedule).attach(optimizer)
    for _ in range(39):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    model.weight.grad = torch.zeros_like(model.weight)
    with pytest.warns(UserWarning, match="density=0.45 was asked for, and 0.5 of .* no strength"):
        optimizer.step()
    (result,) = reg.target_results()
    assert not result.is_met
    assert result.reached == 0.5
    assert (model.weight[1] != 0).all()


def test_a_training_that_ends_early_can_meet_its_target_after_all():
    """What L1 would zero first is the smallest; nothing else is touched."""
    model, _, reg = fit_unlike("entries", 100, stop=10, target_density=0.3)
    (result,) = reg.target_results()
    assert "training ended at 10% of its length" in result.reason
    before = torch.cat([p.detach()[0] for p in model.parameters()])
    assert reg.meet_target() == pytest.approx(0.3)
    after = torch.cat([p.detach()[0] for p in model.parameters()])
    kept = before.abs() >= before.abs().topk(36).values[-1]
    assert torch.equal(after, before * kept)
    with pytest.raises(InputError, match="no target"):
        Regularizer(model, L1(0.1)).meet_target()
