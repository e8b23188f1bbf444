"""Small modules of people who know nothing of regkit, and their data.

The input of idle weights is always zero, so SGD moves them by lr * strength at each step of their
optimizer and by nothing else.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

QUIET = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*Please add the following callbacks",
)

NUM_EPOCHS, NUM_BATCHES, EVERY = 5, 12, 4
TOTAL = NUM_EPOCHS * NUM_BATCHES
LR, LAM, IDLE = 0.1, 0.02, 5.0


def drawn() -> TensorDataset:
    """Make inputs, of which the first is always zero, and the outputs of a sparse teacher."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_BATCHES * 4, 20, generator=generator)
    x[:, 0] = 0.0
    teacher = torch.randn(20, 20, generator=generator) * (
        torch.rand(20, 20, generator=generator) < 0.2
    )
    return TensorDataset(x, x @ teacher + 0.3 * torch.randn(len(x), 20, generator=generator))


def loader() -> DataLoader:
    return DataLoader(drawn(), batch_size=4)


def error(net: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return mse_loss(net(batch[0]), batch[1]) * 4


def idle_weights(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[:, 0] = IDLE


def body() -> nn.Sequential:
    """Return two layers of at least 400 weights."""
    net = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 20))
    idle_weights(net[0])
    return net


class Client(pl.LightningModule):
    """A user's module under automatic optimization; it knows nothing of regkit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(20, 24), nn.ReLU())
        self.head = nn.Linear(24, 20)
        idle_weights(self.backbone[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        return error(self, batch)

    def configure_optimizers(self) -> Any:
        return optim.SGD([p for p in self.parameters() if p.requires_grad], lr=LR)

    def trained(self) -> list[list[Any]]:
        """Return the weights that each optimizer trains; idle ones stand in the first."""
        return [[self.backbone[0].weight, self.head.weight]]


class Pair(pl.LightningModule):
    """Two nets with an optimizer each, as a GAN has them; one steps at every 4th batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = body(), body()
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        often, seldom = optimizers
        self.toggle_optimizer(often)
        often.zero_grad()
        self.manual_backward(error(self.one, batch))
        often.step()
        self.untoggle_optimizer(often)
        self.toggle_optimizer(seldom)
        self.manual_backward(error(self.two, batch) / EVERY)
        if (batch_idx + 1) % EVERY == 0:
            seldom.step()
            seldom.zero_grad()
        self.untoggle_optimizer(seldom)

    def configure_optimizers(self) -> Any:
        return [optim.SGD(net.parameters(), lr=LR) for net in (self.one, self.two)]

    def trained(self) -> list[list[Any]]:
        return [[net[0].weight, net[2].weight] for net in (self.one, self.two)]


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**{**defaults, **options})


def said(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return our own warnings; Lightning has some, too."""
    texts = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return [t for t in texts if "target_density" in t or "Training ended" in t or "regkit" in t]


def density_of(held: Sequence[Tensor]) -> float:
    return sum(int((p != 0).sum()) for p in held) / sum(p.numel() for p in held)
