"""Run by test_predictions: two ranks test together, and one of them finds nothing to read."""

import csv
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from regkit.lightning.predictions import Predictions
from regkit.lightning.video_classifier import VideoClassifier

CLASSES = [f"class {index}" for index in range(6)]
NUM_VIDEOS = 9


class Told(nn.Module):
    """A net whose logits stand in the clip: (clips, classes, 1, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, clip: Tensor) -> Tensor:
        return clip.flatten(1) * self.factor


def videos() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(NUM_VIDEOS, len(CLASSES), 1, 1, 1, generator=generator)
    label = torch.randint(len(CLASSES), (NUM_VIDEOS,), generator=generator)
    places = torch.randperm(NUM_VIDEOS, generator=generator).tolist()
    return [
        {"clip": logits[i], "label": int(label[i]), "path": f"video {place}.mp4"}
        for i, place in enumerate(places)
    ]


def collate(samples: list[dict[str, Any]], nothing: bool) -> dict[str, Any]:
    samples = samples[:0] if nothing else samples
    return {
        "clip": torch.stack([s["clip"] for s in samples])
        if samples
        else torch.empty(0, 6, 1, 1, 1),
        "label": torch.tensor([s["label"] for s in samples], dtype=torch.int64),
        "path": [s["path"] for s in samples],
    }


class Videos(pl.LightningDataModule):
    """Lightning shares them out, and repeats one so that two ranks have equally many.

    In validation the second rank can read no file.
    """

    def val_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        nothing = self.trainer.global_rank == 1
        return self._loader(nothing)

    def test_dataloader(self) -> DataLoader:
        return self._loader(nothing=False)

    def _loader(self, nothing: bool) -> DataLoader:
        return DataLoader(videos(), batch_size=2, collate_fn=partial(collate, nothing=nothing))  # type: ignore[arg-type]: a list is a dataset


def main(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    model = VideoClassifier(Told(), CLASSES, partial(optim.SGD, lr=0.1))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"),
        logger=TensorBoardLogger(str(folder), name="", version=""),
        callbacks=[Predictions(folder)],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    (seen,) = trainer.validate(model, datamodule=Videos(), verbose=False)
    assert {"val/loss", "val/acc", "val/acc_top5"} <= seen.keys(), seen
    trainer.test(model, datamodule=Videos(), verbose=False)
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {video["path"]: video for video in videos()}
    assert [row["path"] for row in rows] == sorted(wanted), rows
    for row in rows:
        video = wanted[row["path"]]
        probabilities = video["clip"].flatten().softmax(0)
        assert row["label"] == CLASSES[video["label"]]
        assert row["predicted"] == CLASSES[int(probabilities.argmax())]
        assert abs(float(row["p(class 3)"]) - float(probabilities[3])) < 1e-5
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
