"""A small module on clips, which writes the temporal term by hand where it is to be compared."""

from typing import Any

import lightning.pytorch as pl
import torch
from client_nets import trainer
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader


def smoothness(frames: Tensor) -> Tensor:
    frames = frames.float()
    return (frames[:, 1:] - frames[:, :-1]).square().mean()


class Clips(pl.LightningModule):
    """A user's module on clips. `extra` writes the temporal term by hand: the reference."""

    def __init__(self, extra: float = 0.0, manual: bool = False, wrapped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder, self.head = nn.Linear(4, 3), nn.Linear(3, 1)
        self.automatic_optimization = not manual
        self.extra, self.wrapped = extra, wrapped
        self.seen: list[tuple[float, float]] = []

    def objective(self, batch: Tensor) -> Tensor:
        frames = self.encoder(batch)
        loss = self.head(frames.mean(1)).square().mean()
        self.plain = loss.item()
        return loss + self.extra * smoothness(frames)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.objective(batch)
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.seen.append((self.plain, loss.item()))
            optimizer.step()
            return None
        return {"loss": loss, "other": 1} if self.wrapped else loss

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        if self.automatic_optimization:
            self.seen.append((self.plain, float(self.trainer.callback_metrics["loss"])))

    def configure_optimizers(self) -> Any:
        return optim.SGD(self.parameters(), lr=0.05)


def clips() -> DataLoader:
    drawn = torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(drawn, batch_size=2)  # type: ignore[arg-type]


def fitted(module: Any, *callbacks: pl.Callback, **options: Any) -> Any:
    trainer(*callbacks, **{"max_epochs": 2, **options}).fit(module, clips())
    return module
