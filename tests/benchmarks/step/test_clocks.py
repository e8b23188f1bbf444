"""What can be told without a clock: which kernel counts as the rate, what is counted how."""

import pytest
import torch

from regkit.benchmarks.step import candidates, rounds
from regkit.benchmarks.step.rounds import Training, measure_rate, num_launches, num_syncs

CPU = torch.device("cpu")


def test_the_rate_is_the_best_kernels(monkeypatch: pytest.MonkeyPatch):
    """Told that each takes 1 ms, the one that moves most bytes wins: 28 bytes an entry."""
    monkeypatch.setattr(rounds, "time_step", lambda step, device: {"wall": 1.0})
    rate = measure_rate(10**5, CPU)
    assert rate.gb_s == pytest.approx(2.8)
    assert rate.what == "AdamW(fused=True) on one array"
    assert measure_rate(10, CPU).gb_s == pytest.approx(28 * 2**16 / 1e6)


def test_the_rate_is_the_best_round_but_the_first(monkeypatch: pytest.MonkeyPatch):
    times = iter([1e-6, 2.0, 0.5, *[1.0] * 9, *[100.0] * 12])
    monkeypatch.setattr(rounds, "time_step", lambda step, device: {"wall": next(times)})
    rate = measure_rate(10**5, CPU)
    assert rate.gb_s == pytest.approx(8 * 10**5 / 0.5 / 1e6)
    assert rate.what == "mul_ in place on one array"


def test_the_rate_is_a_real_one():
    rate = measure_rate(10**5, CPU)
    assert 0.01 < rate.gb_s < 10_000
    assert "one array" in rate.what


def test_launches_are_counted_by_the_names_of_the_calls():
    calls = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"]
    calls += ["cudaLaunchCooperativeKernel", "cudaGraphLaunch"]
    others = ["aten::mul_", "cudaDeviceSynchronize", "cudaMemcpyAsync", "Optimizer.step#AdamW.step"]
    assert num_launches([*calls, *others]) == len(calls)


def test_waits_are_counted_by_the_warning():
    waits = "called a synchronizing CUDA operation (Triggered internally at ...)"
    assert num_syncs([waits, "something else is deprecated", waits]) == 2


def test_a_training_step_moves_only_the_gradients_of_its_own_net():
    net = candidates.make_net("synthetic", 1e4)
    before = [p.detach().clone() for p in net.parameters()]
    Training(net, torch.randn(2, 3, 4, 16, 16))()
    assert all(map(torch.equal, net.parameters(), before))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
