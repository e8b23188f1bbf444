"""Nets of other libraries: trained with the callback alone, shrunk, saved, and exported."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import regkit
from regkit.inference.export.formats import export_program
from regkit.penalties import GroupLasso

sys.path.insert(0, str(Path(__file__).parents[1] / "structure"))
from foreign_nets import CLASSES, made  # pyright: ignore[reportMissingImports]

CLIPS = 12


class Classifier(pl.LightningModule):
    """A user's module, which knows nothing of penalties."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        clips, labels = batch
        return functional.cross_entropy(self.net(clips), labels)

    def forward(self, clips: Tensor) -> Tensor:
        return self.net(clips)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader(shape: torch.Size) -> DataLoader[tuple[Tensor, ...]]:
    """Return clips as bright as their class says."""
    labels = torch.arange(CLIPS) % CLASSES
    clips = torch.randn(CLIPS, *shape[1:]) + labels.view(-1, *[1] * (len(shape) - 1))
    return DataLoader(TensorDataset(clips, labels), batch_size=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*treespec, LeafSpec")
@pytest.mark.parametrize(
    ("name", "groups", "share"),
    [
        ("videomae", "channel", 0.7),
        ("videomae", "head", 0.9),
        ("timm vit", "channel", 0.7),
        ("timm vit", "head", 0.9),
        ("timm resnet", "channel", 0.6),
    ],
)
def test_trained_by_the_callback_alone_shrunk_saved_exported(
    name: str, groups: str, share: float, tmp_path: Path
) -> None:
    net, example = made(name)
    module = Classifier(net.train())
    budget = regkit.Schedule(target_parameters=share, layerwise=True)
    penalty = GroupLasso(lam=1e-3, groups=groups)
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[regkit.RegularizerCallback(penalty, example=example, schedule=budget)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(example.shape))
    trained = module.net.eval()
    small, report = regkit.shrink(trained, example, timed=False)
    assert abs(report.after.parameters / report.before.parameters - share) < 0.05
    with torch.no_grad():
        wanted = trained(example)
    regkit.save_shrunk(small, tmp_path / "small.pt", trained)
    back = regkit.load_shrunk(made(name, seed=1)[0], tmp_path / "small.pt")
    exported = export_program(small, example, tmp_path / "small.pt2")
    with torch.no_grad():
        for run in (small, back, exported.run):
            torch.testing.assert_close(run(example), wanted, rtol=1e-4, atol=1e-5)
