"""Widths that are measured: a planted staircase of latency, and the clock itself."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkit
from regkit.pruning import latency_search as widths
from regkit.pruning.latency import latency
from regkit.timing import Quartiles


class Stairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(autouse=True)
def _steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that are no multiple of 8 take four times as long, by a clock that never errs."""

    def clock(models: dict[str, Any], example: Any, budget_s: float) -> dict[str, Quartiles]:
        times = {n: 1.0 if m.first.out_features % 8 == 0 else 4.0 for n, m in models.items()}
        return {name: Quartiles(time, time, time) for name, time in times.items()}

    monkeypatch.setattr(widths, "latency", clock)


def with_live(count: int) -> Stairs:
    torch.manual_seed(0)
    model = Stairs().eval()
    with torch.no_grad():
        model.first.weight[count:] = 0
        model.first.bias[count:] = 0
    return model


@pytest.mark.parametrize(("live", "kept"), [(13, 16), (16, 16), (3, 8), (31, 32)])
def test_the_fastest_width_at_or_above_the_live_one_is_kept(live: int, kept: int):
    model, x = with_live(live), torch.randn(1, 4)
    small, _ = regkit.shrink(model, x, fastest=True, timed=False)
    assert small.first.out_features == kept
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
    assert regkit.shrink(model, x, timed=False)[0].first.out_features == live


def test_a_gain_that_is_noise_keeps_the_smaller(monkeypatch):
    monkeypatch.setattr(widths, "LEAST_GAIN", 0.9)
    assert regkit.shrink(with_live(13), torch.randn(1, 4), fastest=True)[0].first.out_features == 13


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


def test_the_clock_reads_seconds():
    models = {"short": Sleeper(0.002), "long": Sleeper(0.01)}
    found = latency(models, torch.zeros(1), budget_s=0.2)
    assert found["short"].median >= 0.002
    assert 0.01 <= found["long"].median < 2.0
    assert found["long"].low <= found["long"].median <= found["long"].high
