"""Runs that fall behind are stopped: the rule by brute force, the callback in a Trainer."""

import json
import statistics
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from regkit.errors import InputError
from regkit.lightning.stop_dominated import PROGRESS, Progress, StopDominated, is_behind


def by_definition(own, others, least: int) -> bool:
    """Decide from {epoch: (accuracy, density)} tables."""
    if not own:
        return False
    last = max(own)
    averages = []
    for other in others:
        if last in other and other[last][1] <= own[last][1]:
            until = [accuracy for epoch, (accuracy, _) in other.items() if epoch <= last]
            averages.append(sum(until) / len(until))
    best = max(accuracy for accuracy, _ in own.values())
    return len(averages) >= least and best < statistics.median(averages)


def as_progress(table) -> Progress:
    progress = Progress()
    for epoch in sorted(table):
        progress.add(epoch, *table[epoch])
    return progress


@pytest.mark.parametrize("least", [1, 3, 5])
def test_rule_is_its_definition(least: int):
    rng = np.random.default_rng(least)
    verdicts = []
    for _ in range(400):
        tables = [
            {
                epoch: (float(rng.integers(0, 6)) / 8, float(rng.integers(0, 4)) / 4)
                for epoch in range(rng.integers(0, 6))
                if rng.random() < 0.9
            }
            for _ in range(rng.integers(1, 16))
        ]
        own, *others = tables
        verdict = is_behind(as_progress(own), [as_progress(t) for t in others], least)
        assert verdict == by_definition(own, others, least)
        verdicts.append(verdict)
    assert 10 < sum(verdicts) < 390


def test_progress_comes_back_and_can_be_cut(tmp_path: Path):
    progress = Progress()
    assert Progress.read(tmp_path) == progress
    for epoch in (0, 2, 4):
        progress.add(epoch, epoch / 10, 0.5)
    progress.write(tmp_path)
    assert Progress.read(tmp_path) == progress
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS]
    progress.cut(2)
    assert (progress.epochs, progress.val_accuracy, progress.density) == ([0], [0.0], [0.5])
    progress.add(0, 0.7, 0.1)
    assert progress == Progress([0], [0.7], [0.1])


class Scored(pl.LightningModule):
    """Reaches a given accuracy after each epoch."""

    def __init__(self, accuracies: list[float]):
        super().__init__()
        self.accuracies = accuracies
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return (self.weight * 0).sum()

    def validation_step(self, batch, index):
        self.log("val/acc", self.accuracies[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return DataLoader(torch.zeros(1, 1))

    def val_dataloader(self):
        return DataLoader(torch.zeros(1, 1))


def fit(
    folder: Path, accuracies: list[float], density: float = 0.5, ckpt=None, epochs=None, **more
):
    folder.mkdir(exist_ok=True)
    stop = StopDominated(folder, lambda: density, **more)
    last = pl.callbacks.ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=len(accuracies),
        callbacks=[stop, last],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(Scored(accuracies), ckpt_path=ckpt)
    return stop, json.loads((folder / PROGRESS).read_text())


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five siblings at accuracy 0.5, sparse, that have gone four epochs."""
    for number in range(5):
        folder = tmp_path / f"run {number}"
        folder.mkdir()
        Progress([0, 1, 2, 3], [0.5] * 4, [0.1] * 4).write(folder)
    return tmp_path


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|LeafSpec|logging interval|exists and is not empty)"
)


@pytest.mark.parametrize(
    ("accuracies", "more", "epochs"),
    [
        ([0.4] * 4, {"warm_up_epochs": 0}, 1),
        ([0.4] * 4, {"warm_up_epochs": 2}, 3),
        ([0.4] * 4, {"warm_up_epochs": 0, "least": 6}, 4),
        ([0.4] * 4, {"warm_up_epochs": 0, "density": 0.05}, 4),
        ([0.5] * 4, {"warm_up_epochs": 0}, 4),
        ([0.6, 0.1, 0.1, 0.1], {"warm_up_epochs": 0}, 4),
        ([0.4, 0.6, 0.4, 0.4], {"warm_up_epochs": 1}, 4),
    ],
)
def test_a_run_is_stopped_when_it_is_behind(sweep: Path, accuracies, more, epochs):
    stop, progress = fit(sweep / "own", accuracies, **more)
    assert progress["epochs"] == list(range(epochs))
    assert progress["val_accuracy"] == pytest.approx(accuracies[:epochs])
    assert stop.pruned == (epochs < 4)


def test_its_own_file_is_no_sibling(sweep: Path):
    Progress([0, 1], [0.9] * 2, [0.1] * 2).write(sweep / "run 0")
    stop, progress = fit(sweep / "run 0", [0.4] * 2, warm_up_epochs=0)
    assert not stop.pruned  # four others are less than five
    assert progress["val_accuracy"] == pytest.approx([0.4] * 2)


def test_a_resumed_run_keeps_its_progress(sweep: Path):
    own = sweep / "own"
    fit(own, [0.6, 0.2], warm_up_epochs=0)
    stop, progress = fit(own, [9, 9, 0.3, 0.1], warm_up_epochs=0, ckpt=own / "last.ckpt")
    assert not stop.pruned  # 0.6 was its best
    assert progress["val_accuracy"] == pytest.approx([0.6, 0.2, 0.3, 0.1])
    _, progress = fit(own, [0.7], warm_up_epochs=0)
    assert progress["val_accuracy"] == pytest.approx([0.7])


def test_a_pruned_run_stays_so(sweep: Path):
    own = sweep / "own"
    fit(own, [0.4] * 4, warm_up_epochs=1)
    for sibling in sweep.glob("run *"):
        (sibling / PROGRESS).unlink()
    stop, progress = fit(own, [0.4] * 4, warm_up_epochs=1, ckpt=own / "last.ckpt")
    assert stop.pruned
    assert progress["epochs"] == [0, 1]


def test_options_are_checked(tmp_path: Path):
    with pytest.raises(InputError, match="least=0"):
        StopDominated(tmp_path, lambda: 1.0, least=0)
    with pytest.raises(InputError, match="warm_up_epochs=-1"):
        StopDominated(tmp_path, lambda: 1.0, warm_up_epochs=-1)
