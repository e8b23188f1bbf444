"""A frozen backbone that is trained from some epoch on."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_nets import LR, QUIET, trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from regkit import RegularizerCallback
from regkit.penalties import GroupLasso

pytestmark = QUIET


class Images(pl.LightningModule):
    """A backbone of two convolutions with norms, and a head; its loss has no gradient."""

    def __init__(self, deep: bool, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.whole = whole
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(*([nn.Linear(8, 8)] if deep else []), nn.Linear(8, 4))
        self.example_input_array = torch.randn(1, 3, 6, 6)
        self.lengths: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        conv, norm = self.backbone[3:5]
        beside = (conv.bias, norm.weight, norm.bias) if self.whole else ()
        groups = [conv.weight.flatten(1), *(p[:, None] for p in beside)]
        self.lengths.append(torch.cat(groups, 1).detach().norm(dim=1))
        return 0 * self(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return optim.SGD([p for p in self.parameters() if p.requires_grad], lr=LR)


@pytest.mark.filterwarnings("ignore:.*already exist within another group of this optimizer")
@pytest.mark.parametrize("deep", [True, False], ids=["some trained before", "none"])
@pytest.mark.parametrize("train_bn", [True, False], ids=["norms", "no norms"])
@pytest.mark.parametrize("groups", ["filter", "channel"])
def test_what_finetuning_unfreezes_is_penalised_from_then_on(
    groups: str, train_bn: bool, deep: bool
):
    """Without a gradient, a step shortens a group by lr * lam * sqrt(size), and nothing else."""
    module, num_batches, unfrozen_at = Images(deep, groups == "channel"), 4, 2
    data = DataLoader(TensorDataset(torch.randn(4 * num_batches, 3, 6, 6)), batch_size=4)
    regularize = RegularizerCallback(GroupLasso(0.01, groups=groups))
    wake = BackboneFinetuning(
        unfrozen_at, lambda_func=lambda epoch: 1.0, backbone_initial_lr=LR, initial_denom_lr=1.0,
        train_bn=train_bn,
    )  # fmt: skip
    before = module.backbone[3].weight.detach().clone()
    trainer(regularize, wake, max_epochs=unfrozen_at).fit(module, data)
    assert torch.equal(module.backbone[3].weight, before)
    trainer(regularize, wake, max_epochs=unfrozen_at + 2).fit(module, data)
    lengths = torch.stack(module.lengths[(unfrozen_at + unfrozen_at) * num_batches :])
    falls = lengths[:-1] - lengths[1:]
    size = 75 if module.whole else 72
    torch.testing.assert_close(falls, torch.full_like(falls, LR * 0.01 * size**0.5))
