"""Which nets, optimizers and penalties a device is tried with."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from regkit.benchmarks.step.candidates import penalty_types
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD
from regkit.penalties import GroupPenalty, WeightPenalty
from regkit.penalties.penalty import Penalty

LR = 1e-2
SGD_OPTIONS = {"lr": LR, "momentum": 0.9}
ADAMW_OPTIONS = {"lr": LR, "weight_decay": 0.0}
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "AdamW(fused)": partial(AdamW, fused=True, **ADAMW_OPTIONS),
    "AdamW(foreach)": partial(AdamW, foreach=True, **ADAMW_OPTIONS),
    "AdamW(capturable)": partial(AdamW, capturable=True, foreach=True, **ADAMW_OPTIONS),
    "SGD(foreach)": partial(SGD, foreach=True, **SGD_OPTIONS),
    "ProxAdamW": partial(ProxAdamW, **ADAMW_OPTIONS),
    "ProxSGD": partial(ProxSGD, **SGD_OPTIONS),
}
# What torch moves, with the prox behind it; and what one pass moves.
PAIRS = (("AdamW(fused)", "ProxAdamW"), ("SGD(foreach)", "ProxSGD"))
GROUP_KINDS = ("filter", "in_channel", "channel")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
LAM = 3e-3


class Shapes(nn.Module):
    """Weights of every class that the kernels tell apart: rows of 1 to 20,001 entries, odd ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 24, (3, 5, 5))
        self.spatial = nn.Conv3d(24, 40, (1, 3, 3))
        self.point = nn.Conv3d(40, 13, 1)
        self.deep = nn.Conv3d(256, 4, 3)  # rows of 6,912
        self.deepest = nn.Conv3d(512, 3, 3)  # of 13,824
        self.wide = nn.Linear(20_001, 2)
        self.head = nn.Linear(33, 7)
        self.scale = nn.Parameter(torch.ones(()))


class Chain(nn.Module):
    """A net with channels that can be cut, norms and a head."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        widths = [3, *(16 + 8 * k for k in range(depth))]
        layers: list[nn.Module] = []
        for before, width in pairwise(widths):
            layers += [nn.Conv3d(before, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, clip: Tensor) -> Tensor:
        """Return one score a class."""
        return self.head(self.body(clip))


EXAMPLE = torch.zeros(1, 3, 4, 8, 8)


@dataclass(frozen=True)
class Case:
    """One way to train: which penalties, by which optimizer."""

    name: str
    penalties: tuple[Penalty, ...]
    optimizer: str
    net: Callable[[], nn.Module] = Shapes

    def make_optimizer(self, net: nn.Module, **options: Any) -> Optimizer:
        """Make the optimizer of a net's weights."""
        return OPTIMIZERS[self.optimizer](net.parameters(), **options)


def penalties() -> Iterator[tuple[str, WeightPenalty]]:
    """Yield every penalty on weights, those of groups once for each kind of groups."""
    for name, kind in penalty_types().items():
        if issubclass(kind, GroupPenalty):
            for groups in GROUP_KINDS if name == "group_lasso" else GROUP_KINDS[:1]:
                yield f"{name} {groups}", kind(lam=LAM, groups=groups)
        else:
            yield name, kind(lam=LAM)


def cases(optimizers: Iterable[str]) -> Iterator[Case]:
    """Yield every penalty under each of these optimizers."""
    for name, penalty in penalties():
        net = Chain if getattr(penalty, "groups", "") == "channel" else Shapes
        for optimizer in optimizers:
            yield Case(f"{name}, {optimizer}", (penalty,), optimizer, net)
