"""Stop runs of a sweep that others leave behind."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import lightning.pytorch as pl

from regkit.errors import InputError
from regkit.files import write_text

PROGRESS = "progress.json"  # in the folder of a run


@dataclass
class Progress:
    """What a run has reached: one entry a validated epoch."""

    epochs: list[int] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)

    def add(self, epoch: int, val_accuracy: float, density: float) -> None:
        """Note an epoch; what was known of it and of later ones, before a restart, goes."""
        self.cut(epoch)
        self.epochs.append(epoch)
        self.val_accuracy.append(val_accuracy)
        self.density.append(density)

    def cut(self, epoch: int) -> None:
        """Forget this epoch and all later ones."""
        kept = sum(known < epoch for known in self.epochs)
        for entries in (self.epochs, self.val_accuracy, self.density):
            del entries[kept:]

    def write(self, folder: Path) -> None:
        """Write the file in one move, so that nobody reads half of it."""
        write_text(folder / PROGRESS, json.dumps(vars(self)))

    @classmethod
    def read(cls, folder: Path) -> "Progress":
        """Read what a run has written; nothing when it has not."""
        path = folder / PROGRESS
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


def is_behind(own: Progress, others: Sequence[Progress], least: int) -> bool:
    """Say whether a run is worse than half of those that are at least as sparse.

    Compared with the runs that have validated the epoch which this run validated last, and had
    then no greater density:

    max(own accuracy)  <  median over runs of mean(accuracy up to that epoch)

    least: how many such runs there must be.
    Source: Golovin et al., Google Vizier (2017), section 3.2.2; density as a second aim is ours.
    """
    if not own.epochs:
        return False
    epoch, density = own.epochs[-1], own.density[-1]
    rivals = []
    for other in others:
        if epoch in other.epochs:
            place = other.epochs.index(epoch)
            if other.density[place] <= density:
                rivals.append(fmean(other.val_accuracy[: place + 1]))
    return len(rivals) >= least and max(own.val_accuracy) < median(rivals)


class StopDominated(pl.Callback):
    """Stop a run of a sweep when its sparser siblings are more accurate, by `is_behind`.

    After each validation the run leaves its progress in its folder and reads that of the folders
    beside it, whoever has started them; a run that failed or was stopped still counts. Nothing else
    is shared, so any launcher and any machine with the same file system will do.

    folder: of this run.
    density: share of non-zero weights of the model at hand.
    least: how many runs at least as sparse must have come as far.
    warm_up_epochs: how many epochs every run gets.

    Raises: InputError when an option is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        density: Callable[[], float],
        least: int = 5,
        warm_up_epochs: int = 5,
    ) -> None:
        if least < 1:
            raise InputError(f"StopDominated got least={least}; give 1 or more runs.")
        if warm_up_epochs < 0:
            raise InputError(f"StopDominated got warm_up_epochs={warm_up_epochs}; give 0 or more.")
        self._folder = Path(folder).absolute()
        self._density = density
        self._least = least
        self._warm_up_epochs = warm_up_epochs
        self._progress = Progress()
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        """Keep the verdict: a run that was killed after it is not trained on."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the verdict of a checkpoint."""
        self.pruned = state_dict["pruned"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where the checkpoint was; of a new run, forget what lies in its folder."""
        if trainer.is_global_zero:
            self._progress = Progress.read(self._folder)
            self._progress.cut(trainer.current_epoch)
        trainer.should_stop = trainer.should_stop or self.pruned

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how far this run is, and stop it when it is behind."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        density = self._density()  # on every rank: the sum over shards needs all
        behind = False
        if trainer.is_global_zero:
            accuracy = float(trainer.callback_metrics["val/acc"])
            self._progress.add(trainer.current_epoch, accuracy, density)
            self._progress.write(self._folder)
            behind = is_behind(self._progress, self._siblings(), self._least)
        behind = trainer.strategy.reduce_boolean_decision(behind, all=False)
        if behind and trainer.current_epoch >= self._warm_up_epochs:
            self.pruned = True
            trainer.should_stop = True

    def _siblings(self) -> list[Progress]:
        folders = sorted(path.parent for path in self._folder.parent.glob(f"*/{PROGRESS}"))
        return [Progress.read(folder) for folder in folders if folder != self._folder]
