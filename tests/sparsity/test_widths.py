"""Widths that are measured: a planted staircase of latency, and the clock itself."""

import time

import pytest
import torch
from torch import Tensor, nn

import regkit
from regkit.sparsity import widths
from regkit.sparsity.latency import latency


class Stairs(nn.Module):
    """Takes four times as long for widths that are no multiple of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        width = self.first.out_features
        time.sleep(0.001 if width % 8 == 0 else 0.004)
        return self.second(torch.relu(self.first(x)))


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
    small = regkit.shrink(model, x, fastest=True)
    assert small.first.out_features == kept
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
    assert regkit.shrink(model, x, timed=False).first.out_features == live


def test_a_gain_that_is_noise_keeps_the_smaller(monkeypatch):
    monkeypatch.setattr(widths, "LEAST_GAIN", 0.9)
    assert regkit.shrink(with_live(13), torch.randn(1, 4), fastest=True).first.out_features == 13


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
    assert 0.002 <= found["short"].median < 0.01 <= found["long"].median
    assert found["long"].low <= found["long"].median <= found["long"].high
