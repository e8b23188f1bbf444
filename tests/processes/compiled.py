"""Run by test_processes: activation and weight penalties on a compiled net."""

import copy

import torch
from torch import Tensor, nn, optim

from regkit import Regularizer
from regkit.penalties import L1, TemporalSmoothness
from regkit.regularizer.activations import FrameCollector


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.head = nn.Linear(3, 1)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.encoder(clip).mean(1))


CLIPS = torch.randn(4, 2, 5, 4, generator=torch.Generator().manual_seed(1))


def in_place(net: Net, what: str) -> None:
    net.get_submodule(what).compile(backend="eager")


def wrapped(net: Net, what: str) -> None:
    assert what
    net.set_submodule(what, torch.compile(net.get_submodule(what), backend="eager"))


def passed(net: Net) -> None:
    net(CLIPS[0]).mean().backward()


def trained(net: Net, module: str = "encoder") -> list[Tensor]:
    reg = Regularizer(net, [L1(0.01), TemporalSmoothness(0.7, module=module)])
    reg.attach(optimizer := optim.AdamW(net.parameters(), lr=0.05))
    for clip in CLIPS:
        optimizer.zero_grad()
        (net(clip).square().mean() + reg.activation_loss()).backward()
        optimizer.step()
    reg.detach()
    return list(net.parameters())


def check_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for p, q in zip(found, wanted, strict=True):
        torch.testing.assert_close(p, q)


def check_two_on_one_module() -> None:
    """Each hears the passes while it is there, and the compiled code of before is used after."""
    torch.compiler.reset()
    in_place(net := Net(), "")
    passed(net)
    one, other = FrameCollector(net.encoder), FrameCollector(net.encoder)
    passed(net)
    one.remove()
    passed(net)
    other.remove()
    passed(net)
    assert (one.num_calls, other.num_calls) == (1, 2)
    assert not vars(net.encoder).keys() - vars(Net().encoder).keys() - {"_compiled_call_impl"}


def both(net: Net, what: str) -> None:
    wrapped(net, what)
    in_place(net, "")


WAYS = [(in_place, "encoder"), (in_place, ""), (wrapped, "encoder"), (both, "encoder")]
plain = {of: trained(Net(), of) for of in ("encoder", "encoder.0")}
for of, wanted in plain.items():
    for compiled, what in WAYS:
        torch.compiler.reset()
        compiled(net := Net(), what)
        check_same(trained(copy.deepcopy(net), of), wanted)
        # Code that was compiled for a pass without the penalty is not taken for one with it,
        late = copy.deepcopy(net)
        torch.compiler.reset()
        passed(late)
        late.zero_grad()
        check_same(trained(late, of), wanted)
        # be it the pass of another net.
        torch.compiler.reset()
        passed(copy.deepcopy(net))
        check_same(trained(net, of), wanted)
check_two_on_one_module()
print("equal")
