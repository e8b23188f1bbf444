"""Rounds and the figures that are made of them, with clocks that say what they are told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from regkit.benchmarks.harness import ratios
from regkit.benchmarks.step import candidates
from regkit.benchmarks.step.candidates import FOREACH, FUSED, HOOK, PROX, Contestant
from regkit.benchmarks.step.report import Rate, line
from regkit.benchmarks.step.rounds import Rounds, contest, row_of
from regkit.penalties import Box
from regkit.timing import Quartiles, take_turns

CPU = torch.device("cpu")


def test_turns_rotate_and_reverse():
    everyone = [Contestant(name, nn.Identity(), int, 0) for name in "abc"]
    order: list[str] = []
    found = take_turns(everyone, 4, lambda c, _: order.append(c.name) or len(order))
    assert "".join(order) == "abc" + "acb" + "cab" + "cba"
    assert found == {"a": [1, 4, 8, 12], "b": [2, 6, 9, 11], "c": [3, 5, 7, 10]}


def test_a_ratio_is_taken_within_a_round():
    """The machine slows down from round to round; the contestant is always twice as slow."""
    own = [{"wall": 2.0}, {"wall": 20.0}, {"wall": 100.0}]
    other = [{"wall": 1.0}, {"wall": 10.0}, {"wall": 50.0}]
    assert ratios(own, other) == {"wall": Quartiles(2.0, 2.0, 2.0)}
    assert ratios(own, other[::-1])["wall"].median == 2.0
    assert ratios(own, other[::-1])["wall"].high == 51.0


def test_quartiles():
    assert Quartiles.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Quartiles(2.0, 3.0, 4.0)


def samples(on_gpu: bool) -> dict[str, list[dict[str, float]]]:
    def sample(ms: float) -> dict[str, float]:
        return {"gpu": ms, "host": 3 * ms, "wall": 4 * ms} if on_gpu else {"wall": ms}

    return {
        FUSED: [sample(1.0), sample(2.0)],
        FOREACH: [sample(2.0), sample(4.0)],
        HOOK: [sample(4.0), sample(4.0)],
    }


def test_a_row_is_the_arithmetic_of_its_clocks():
    hook = Contestant(HOOK, nn.Identity(), int, 8_000_000)
    row = row_of("l1", hook, samples(False), [39.0, 40.0, 50.0], Rate(10.0, "mul_"), CPU)
    assert row.ms == {"wall": Quartiles(4.0, 4.0, 4.0)}
    assert row.to_fused == {"wall": Quartiles(2.5, 3.0, 3.5)}
    assert row.to_foreach == {"wall": Quartiles(1.25, 1.5, 1.75)}
    assert (row.fused_ms, row.foreach_ms) == (1.5, 3.0)
    assert row.gb_s == pytest.approx(2.0)  # 8 MB in 4 ms
    assert row.of_rate == pytest.approx(0.2)
    assert (row.training_ms, row.share) == (40.0, 0.1)
    assert (row.launches, row.syncs) == (None, None)
    assert " ".join(line(row).split()) == ("l1, hook 4.00 3.00 [2.50-3.50] 1.50 2.0 20% - - 10.0%")


def test_a_row_of_a_gpu_has_its_clocks_and_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("regkit.benchmarks.step.rounds.count_launches", lambda step: 7)
    monkeypatch.setattr("regkit.benchmarks.step.rounds.count_syncs", lambda step: 3)
    hook = Contestant(HOOK, nn.Identity(), int, 8_000_000)
    row = row_of("l1", hook, samples(True), [], Rate(10.0, "copy"), torch.device("cuda"))
    assert [of.median for of in row.ms.values()] == [4.0, 12.0, 16.0]
    assert row.to_fused["gpu"].median == row.to_fused["wall"].median == 3.0
    assert row.gb_s == pytest.approx(2.0)
    assert (
        " ".join(line(row).split())
        == "l1, hook 4.00 12.00 16.00 3.00 [2.50-3.50] 3.00 1.50 2.0 20% 7 3 -"
    )


def test_warmup_counts_for_nothing(monkeypatch: pytest.MonkeyPatch):
    """The first step of each is told to take a thousand times as long."""
    seen: dict[int, int] = {}

    def clock(step: Callable[[], Any], device: torch.device) -> dict[str, float]:
        step()
        seen[id(step)] = seen.get(id(step), 0) + 1
        return {"wall": 1000.0 if seen[id(step)] == 1 else 1.0}

    def whole(training: Callable[[], Any], step: Callable[[], Any], device: torch.device) -> float:
        training()
        return 5.0

    monkeypatch.setattr("regkit.benchmarks.step.rounds.time_step", clock)
    monkeypatch.setattr("regkit.benchmarks.step.rounds.time_training", whole)
    net = candidates.make_net("synthetic", 1e4)
    heats = contest(
        net, torch.randn(2, 3, 4, 16, 16), {"box": Box(1.0)}, Rounds(3, 1, 2), Rate(1.0, ""), 1e-6
    )
    first, second = heats
    assert [row.ms["wall"].high for row in first] == [1.0] * 4
    assert [(row.penalty, row.contestant) for row in second] == [("box", HOOK), ("box", PROX)]
    assert {(row.training_ms, row.share) for row in (*first, *second)} == {(5.0, 0.2)}
    assert all(p.grad is None for p in net.parameters())
