"""Run by test_callback: activation and weight penalties on a net compiled in place."""

import torch
from torch import Tensor, nn, optim

from regkit import Regularizer
from regkit.penalties import L1, TemporalSmoothness


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.head = nn.Linear(3, 1)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.encoder(clip).mean(1))


def trained(compile_what: str) -> Net:
    net = Net()
    reg = Regularizer(net, [L1(0.01), TemporalSmoothness(0.7, of="encoder")])
    reg.attach(optimizer := optim.AdamW(net.parameters(), lr=0.05))
    if compile_what:
        net.get_submodule(compile_what.removeprefix(".")).compile(backend="eager")
    clips = torch.randn(4, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    for clip in clips:
        optimizer.zero_grad()
        (net(clip).square().mean() + reg.activation_loss()).backward()
        optimizer.step()
    return net


plain = trained("")
for compiled in (trained("encoder"), trained(".")):
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q)
print("equal")
