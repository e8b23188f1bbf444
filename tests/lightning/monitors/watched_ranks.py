"""Run by test_watch_pictures: two ranks that share the weights count as one process does."""

import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn, optim
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader

from regkit import RegularizerCallback
from regkit.lightning.monitors import density_map, survivors
from regkit.lightning.monitors.pictures import Pictures, first_filters
from regkit.penalties import L1
from regkit.structure.selectors import weights


class Net(pl.LightningModule):
    """A few layers, some of their weights zero; the three filters do not share out evenly."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv3d(2, 3, (3, 1, 2))
        self.gru = nn.GRU(3, 2, batch_first=True)
        self.head = nn.Linear(2, 1)
        for weight in weights(self).values():
            weight.data.normal_(generator=generator)
            weight.data[weight.data.abs() < 0.5] = 0

    def forward(self, clip: Tensor) -> Tensor:
        z = self.conv(clip).mean((3, 4)).transpose(1, 2)
        return self.head(self.gru(z)[0][:, -1])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), lr=0.1)


def everything(net: nn.Module) -> list[np.ndarray]:
    chosen = dict(weights(net))
    found = [np.array(list(density_map.shares(chosen).values()))]
    for layer in survivors.measure(net, chosen):
        found += [layer.inputs, layer.filters, layer.kernel]
    filters = first_filters(net, chosen)
    assert filters is not None
    return [*found, filters[0]]


def sharded(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    alone, net = Net(), Net()
    fully_shard(net.conv)
    fully_shard(net)
    for wanted, seen in zip(everything(alone), everything(net), strict=True):
        np.testing.assert_array_equal(wanted, seen)
    dist.destroy_process_group()


def data_parallel(folder: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        max_epochs=2,
        strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"),
        logger=TensorBoardLogger(str(folder), name="", version=""),
        callbacks=[RegularizerCallback([L1(1e-2)]), Pictures(folder)],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), DataLoader(torch.randn(4, 2, 4, 2, 3), batch_size=2))  # type: ignore[arg-type]


def main(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    start_processes(sharded, (str(folder / "store"),), 2, start_method="fork")
    data_parallel(folder)
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
