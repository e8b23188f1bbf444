"""Run by test_processes: training with the Triton kernels, interpreted on the CPU, as without."""

import os

os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from regkit import Regularizer
from regkit.ops.gpu import launch as triton_backend
from regkit.ops.prox_pass import BACKENDS
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD
from regkit.penalties import L1, MCP, GroupLasso, SparseGroupLasso, WeightDecay


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(2, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.conv(clip).relu().mean((2, 3, 4)))


def train(penalties: Any, make: Callable[[Any], Optimizer], num_steps: int, kernels: bool) -> Net:
    BACKENDS.clear()
    if kernels:
        BACKENDS["cpu"] = triton_backend
    net = Net()
    optimizer = make(net.parameters())
    reg = Regularizer(net, penalties, example=torch.zeros(1, 2, 3, 5, 5)).attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        optimizer.zero_grad()
        clip = torch.randn(2, 2, 3, 5, 5, generator=generator)
        (net(clip) - 1).square().mean().backward()
        optimizer.step()
    if kernels:
        (step,) = reg._steps
        # Where gates are weighed an update is not fused; the plan before it is.
        plans = [plan for plan, _ in step.plans.kept.newest()]
        assert all(plan.launches and not plan.chains and not plan.parts.local for plan in plans)
        updated = {len(plan.updated) for plan in plans}
        assert (len(list(net.parameters())) in updated) == ("Prox" in str(optimizer))
    return net


def main() -> None:
    cases: list[tuple[Any, Callable[[Any], Optimizer], int]] = [
        (L1(0.002), lambda p: ProxAdamW(p, lr=0.01, eps=0.01, amsgrad=True, weight_decay=0.1), 200),
        (L1(0.002), lambda p: optim.AdamW(p, lr=0.01, eps=0.01), 200),
        ([WeightDecay(0.1), MCP(0.01)], lambda p: ProxSGD(p, lr=0.1, momentum=0.9), 30),
        ([L1(0.001), GroupLasso(0.002)], lambda p: optim.AdamW(p, lr=0.01, fused=True), 20),
        (GroupLasso(0.002), lambda p: ProxSGD(p, lr=0.1, momentum=0.9, nesterov=True), 20),
        (SparseGroupLasso(0.01, groups="in_channel"), lambda p: ProxAdamW(p, lr=0.01), 8),
        (GroupLasso(0.01, groups="channel"), lambda p: ProxAdamW(p, lr=0.01), 4),
    ]
    for penalties, make, num_steps in cases:
        plain = train(penalties, make, num_steps, kernels=False)
        fused = train(penalties, make, num_steps, kernels=True)
        for p, q in zip(plain.parameters(), fused.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        zeros = [sum(int((p == 0).sum()) for p in net.parameters()) for net in (plain, fused)]
        print(penalties, *zeros, flush=True)
    print("equal")


if __name__ == "__main__":
    main()
