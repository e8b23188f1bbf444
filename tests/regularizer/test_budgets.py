"""Budgets: asked, and reached on nets that are really cut."""

import copy
import pickle
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkit import InputError, Regularizer, Schedule, shrink
from regkit.penalties import L1, GroupL0, GroupLasso
from regkit.pruning import width_cost
from regkit.pruning.counts import num_flops, num_parameters
from regkit.regularizer import budgets
from regkit.timing import Quartiles

STEPS = 40
X = torch.randn(8, 3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(),
        nn.Conv3d(16, 24, 3, padding=1), nn.BatchNorm3d(24), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()


def trained(
    penalty: Any, stop: int = STEPS, model: nn.Module | None = None, lr: float = 1e-2, **kw: Any
) -> tuple[nn.Module, Regularizer]:
    model = net() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = Schedule(**kw, num_steps=STEPS)
    reg = Regularizer(model, penalty, example=X[:1], schedule=schedule).attach(optimizer)
    run(model, optimizer, stop)
    return model, reg


def run(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    for _ in range(num_steps):
        step(model, optimizer)


def lasso(groups: str = "channel") -> GroupLasso:
    return GroupLasso(1e-3, groups=groups)


def left(model: nn.Module, kind: str, multiple_of: int = 1) -> float:
    small, _ = shrink(model, X[:1], timed=False, multiple_of=multiple_of)
    if kind == "flops":
        return num_flops(small, X[:1]) / num_flops(model, X[:1])
    return num_parameters(small) / num_parameters(model)


@pytest.mark.parametrize(
    ("kind", "penalty", "options"),
    [
        ("flops", lasso(), {}),
        ("flops", GroupL0(1e-4, groups="channel"), {"layerwise": True}),
        ("flops", lasso(), {"by_cost": False}),
        ("parameters", GroupL0(1e-4, groups="channel"), {}),
        ("parameters", lasso("channel_inputs"), {}),
    ],
)
def test_a_budget_is_met_to_within_a_channel(kind: str, penalty: Any, options: dict[str, Any]):
    model, reg = trained(penalty, **{f"target_{kind}": 0.3}, **options)
    (result,) = reg.target_results()
    assert result.reached == left(model, kind)
    # One channel of 16 of the first layer costs so much, where as many of the second stay.
    assert 0.01 < result.slack < 1 / 16
    assert result.reached == pytest.approx(0.3, abs=result.slack)
    assert result.is_met
    assert result.reason == ""


def test_absolute_numbers_and_shares_ask_for_the_same():
    whole = num_flops(net(), X[:1])
    _, share = trained(lasso(), target_flops=0.4)
    _, number = trained(lasso(), target_flops=0.4 * whole)
    (one,), (other,) = share.target_results(), number.target_results()
    assert one.target == pytest.approx(other.target)
    assert one.reached == other.reached
    assert str(other).startswith(f"target_flops: asked {0.4 * whole:.4g} FLOPs (0.4), reached ")


def test_even_is_even_and_the_budget_is_met_before_debiasing():
    model, _ = trained(lasso(), target_flops=0.3, layerwise=True, debias=0.8)
    _, report = shrink(model, X[:1], timed=False)
    shares = [alive / whole for alive, whole in report.channels.values()]
    assert max(shares) - min(shares) <= 1 / 16
    assert report.after.flops / report.before.flops == pytest.approx(0.3, abs=1 / 16)


def test_widths_are_multiples_and_cost_what_they_may():
    model, reg = trained(lasso(), target_flops=0.4, multiple_of=4)
    (result,) = reg.target_results()
    assert result.reached == left(model, "flops", multiple_of=4)
    assert result.is_met
    small, report = shrink(model, X[:1], timed=False, multiple_of=4)
    assert {n % 4 for n, _ in report.channels.values()} == {0}
    with torch.no_grad():
        torch.testing.assert_close(small(X), model.eval()(X))


def test_one_channel_of_each_set_stays():
    """A layer whose channels are all far weaker than those of the other would go first, whole."""
    model = net()
    with torch.no_grad():
        for p in model[3].parameters():
            p.mul_(1e-3)
        model[4].weight.fill_(1e-3)
    level = GroupL0(1e-3, groups="channel")
    model, reg = trained(level, model=model, lr=1e-6, target_flops=0.1, by_cost=False)
    (result,) = reg.target_results()
    assert result.is_met
    alive = [int(m.weight.flatten(1).any(1).sum()) for m in (model[0], model[3])]
    assert min(alive) >= 1


def test_a_layer_is_charged_by_what_its_weights_cost():
    """A weight of a convolution costs two FLOPs a position; a channel also what reads it."""
    schedule = Schedule(target_flops=0.3, num_steps=STEPS)
    reg = Regularizer(net(), lasso(), example=X[:1], schedule=schedule)
    first, second = (part.penalty.lam for part in reg.bound["group_lasso"].parts)
    positions = 2 * 6 * 6
    own, read = 3 * 27 * positions, 24 * 27 * positions
    each = (own + read) / (3 * 27 + 3), (16 * 27 * positions + 3) / (16 * 27 + 3)
    assert first / second == pytest.approx(each[0] / each[1])
    counts = 16 * (3 * 27 + 3), 24 * (16 * 27 + 3)
    assert (first * counts[0] + second * counts[1]) / sum(counts) == pytest.approx(1e-3)


def refused(penalty: Any, said: str, model: nn.Module | None = None, **options: Any) -> None:
    schedule = Schedule(**options, num_steps=STEPS)
    with pytest.raises(InputError, match=said):
        Regularizer(model or net(), penalty, example=X[:1], schedule=schedule)


@pytest.mark.parametrize("penalty", [L1(1e-3), lasso("filter"), lasso("in_channel")])
def test_groups_that_cannot_be_cut_out_are_refused(penalty: Any):
    who = type(penalty).__name__
    said = f'{who} got target_flops=0.3, and what it makes zero .* Give .*groups="channel"'
    refused(penalty, said, target_flops=0.3)


def test_what_is_out_of_reach_is_refused():
    said = "target_flops=0.001 is 0.001 of the whole net .* leaves between 0.0.* and 1"
    refused(lasso(), said, target_flops=0.001)
    refused(lasso(), "target_parameters=1e\\+09 is .* of the whole net", target_parameters=1e9)
    only = GroupLasso(1e-3, groups="channel", params="0")
    refused(only, r"leaves between 0\.0626 and 1 .* penalise more", target_flops=0.05)


def test_an_example_is_asked_for_before_training():
    penalty = GroupLasso(1e-3, groups="hidden_unit")
    rnn = nn.GRU(3, 5)
    with pytest.raises(InputError, match="was given, and no example to run the model on"):
        Regularizer(rnn, penalty, schedule=Schedule(target_flops=0.5, num_steps=STEPS))


class Reads(nn.Module):
    """A recurrent layer and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.rnn, self.head = nn.GRU(6, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(2).mT[:, :4]))
        return self.head(self.rnn(x)[0][:, -1])


def test_hidden_units_have_budgets_too():
    torch.manual_seed(0)
    model, reg = trained(lasso("hidden_unit"), model=Reads(), target_parameters=0.5)
    (result,) = reg.target_results()
    assert result.is_met
    assert result.reached == left(model, "parameters")


def test_an_early_end_is_said_and_can_be_finished():
    for options in ({}, {"layerwise": True}):
        model, reg = trained(lasso(), stop=STEPS // 4, target_flops=0.3, **options)
        (result,) = reg.target_results()
        assert not result.is_met
        assert "training ended at 25% of its length" in result.reason
        assert reg.meet_target() == pytest.approx(0.3, abs=1 / 16)
        assert left(model, "flops") == pytest.approx(0.3, abs=1 / 16)


def test_copies_and_resumed_trainings_go_on_alike():
    model, reg = trained(lasso(), target_flops=0.3)
    (result,) = reg.target_results()
    half, half_reg = trained(lasso(), stop=STEPS // 2, target_flops=0.3)
    optimizer = half_reg._steps[0].optimizer
    saved = copy.deepcopy((half, half_reg.state_dict(), optimizer.state_dict()))
    other = saved[0]
    schedule = Schedule(target_flops=0.3, num_steps=STEPS)
    again = torch.optim.AdamW(other.parameters(), lr=1e-2)
    again.load_state_dict(saved[2])
    resumed = Regularizer(other, lasso(), example=X[:1], schedule=schedule)
    resumed.load_state_dict(saved[1])
    resumed.attach(again)
    for _ in range(STEPS // 2):
        step(other, again)
    assert resumed.target_results() == [result]
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    twin = pickle.loads(pickle.dumps(reg))
    assert twin.meet_target() == pytest.approx(result.reached)


def test_a_latency_is_met_by_the_table_and_measured_on_the_cut_net(
    monkeypatch: pytest.MonkeyPatch,
):
    """By a clock that never errs: a constant, and what FLOPs take."""

    def clock(models: Mapping[str, Any], example: Any, budget_s: float = 4.0) -> Any:
        times = {name: 1e-3 + 1e-9 * num_flops(m, example) for name, m in models.items()}
        return {name: Quartiles(time, time, time) for name, time in times.items()}

    monkeypatch.setattr(width_cost, "latency", clock)
    monkeypatch.setattr(budgets, "latency", clock)
    model, reg = trained(lasso(), target_latency=0.6)
    (result,) = reg.target_results()
    small, _ = shrink(model, X[:1], timed=False)
    whole = clock({"": model}, X[:1])[""].median
    assert result.reached == pytest.approx(clock({"": small}, X[:1])[""].median / whole)
    assert result.reached == pytest.approx(0.6, abs=1 / 16)
    assert str(result).startswith(f"target_latency: asked {600 * whole:.4g} ms (0.6)")
    _, other = trained(lasso(), target_latency=600 * whole if 600 * whole > 1 else 1.01)
    assert other.target_results()[0].target == pytest.approx(max(0.6, 1.01e-3 / whole))


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("attached", [False, True])
def test_a_resumed_training_keeps_the_latencies_that_were_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attached: bool, layerwise: bool
):
    """To the bit, by a clock that never measures the same twice."""
    drawn = random.Random(0)

    def clock(models: Mapping[str, Any], example: Any, budget_s: float = 4.0) -> Any:
        times = {n: (1 + drawn.random()) * num_flops(m, example) for n, m in models.items()}
        return {name: Quartiles(time, time, time) for name, time in times.items()}

    monkeypatch.setattr(width_cost, "latency", clock)
    monkeypatch.setattr(budgets, "latency", clock)
    asked = {"target_latency": 0.6, "layerwise": layerwise}
    model, reg = trained(lasso(), stop=STEPS // 2, **asked)
    optimizer = reg._steps[0].optimizer
    torch.save((model.state_dict(), reg.state_dict(), optimizer.state_dict()), tmp_path / "half")
    run(model, optimizer, STEPS // 2)
    held = torch.load(tmp_path / "half", weights_only=True)
    other = net()
    other.load_state_dict(held[0])
    again = torch.optim.AdamW(other.parameters(), lr=1e-2)
    again.load_state_dict(held[2])
    resumed = Regularizer(
        other, lasso(), example=X[:1], schedule=Schedule(**asked, num_steps=STEPS)
    )
    assert resumed.state_dict()["cost"] != held[1]["cost"]
    if attached:
        resumed.attach(again)
    resumed.load_state_dict(held[1])
    if not attached:
        resumed.attach(again)
    assert resumed.state_dict()["cost"] == held[1]["cost"]
    run(other, again, STEPS // 2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_budget_of_another_net_is_refused():
    _, reg = trained(lasso(), stop=2, target_flops=0.3)
    state = reg.state_dict()
    state["cost"] = {**state["cost"], "channels": (16, 25)}
    with pytest.raises(InputError, match="a budget of 41 channels in 2 sets, and this net has 40"):
        reg.load_state_dict(state)


def test_what_goes_along_with_dead_channels_is_counted(monkeypatch: pytest.MonkeyPatch):
    """The result is of the net that is cut, not of what the penalty knows of."""
    model, reg = trained(lasso(), target_flops=0.3)
    with torch.no_grad():
        model[8].weight[:, :23] = 0
    (result,) = reg.target_results()
    assert not result.is_met
    assert result.reached == left(model, "flops")
    assert "went with them" in result.reason


def test_nothing_is_warned_of_where_a_budget_is_met():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(lasso(), target_flops=0.3)


def test_frozen_channels_are_not_counted_on():
    frozen = net()
    frozen[0].requires_grad_(False)
    refused(lasso(), r"leaves between .* \(1 of 2 sets .* frozen\)", frozen, target_flops=0.05)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = Schedule(target_flops=0.05, num_steps=STEPS)
    Regularizer(model, lasso(), example=X[:1], schedule=schedule).attach(optimizer)
    model[0].requires_grad_(False)  # behind its back
    with pytest.warns(UserWarning, match=r"target_flops: asked .* FLOPs .*0\.05.*no strength"):
        run(model, optimizer, STEPS)
