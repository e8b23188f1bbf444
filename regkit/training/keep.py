"""What a training leaves on the disk while it runs, so that it goes on equal to the bit.

A checkpoint says by itself where it stands (`Place`): Lightning, which would guess it from its own
counters, is given counters that leave nothing to guess. That of the last epoch holds what the run's
summary says of training too, so there is nothing to be done between the two.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from regkit.data.clips import ClipLoader
from regkit.errors import InputError
from regkit.files import replacing
from regkit.training import stop
from regkit.training.checkpoints import WholeFiles

PLACE = "place"  # the key in a checkpoint


@dataclass(frozen=True)
class Place:
    """How far a training is.

    epochs: that are over, their validation too.
    batches: of the next one that are done.
    all_batches: of all epochs.
    validates: whether a validation comes before the next batch.
    """

    epochs: int
    batches: int
    all_batches: int
    validates: bool = False

    def loops(self, of: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of Lightning's fit loop at this place.

        of: its state as it is, in the middle of a hook.
        """
        begun = self.epochs + bool(self.batches)
        epochs = {"ready": begun, "started": begun, "processed": self.epochs}
        batches, before = (
            dict.fromkeys(("ready", "started", "processed", "completed"), count)
            for count in (self.batches, self.all_batches)
        )
        validation = dict.fromkeys(("ready", "started"), int(self.validates))
        validation |= {"processed": 0, "completed": 0}
        own = of["epoch_loop.state_dict"]
        ends = self.validates and of["epoch_loop.batch_progress"]["is_last_batch"]
        # The batch at hand is counted when its validation is over.
        counted = own["_batches_that_stepped"] + (self.batches > 0 and not self.validates)
        return {
            **of,
            "state_dict": self._loaders(of["state_dict"], ends),
            "epoch_progress": dict.fromkeys(
                ("total", "current"), epochs | {"completed": self.epochs}
            ),
            "epoch_loop.state_dict": {**own, "_batches_that_stepped": counted},
            "epoch_loop.batch_progress": {
                "total": before,
                "current": batches,
                "is_last_batch": ends,
            },
            "epoch_loop.val_loop.batch_progress": {
                **of["epoch_loop.val_loop.batch_progress"],
                "total": validation,
                "current": dict.fromkeys(validation, 0),
            },
        }

    def _loaders(self, state: Mapping[str, Any], ends: bool) -> dict[str, Any]:
        """Return the state of the loaders; regkit's own begins with the next batch.

        ends: whether that is of the next epoch.
        """
        here = {"epoch": self.epochs + ends, "batches_done": 0 if ends else self.batches}
        loaders = state.get("combined_loader", [])
        return {
            **state,
            "combined_loader": [here if s.keys() == here.keys() else s for s in loaders],
        }


class KeepCheckpoints(Checkpoint):
    """Write a checkpoint after each epoch and every few steps, and when the run is told to end.

    folder: of the checkpoints.
    name: of the last one, without its ending.
    conclude: sums up what training came to, from the last measures; what it returns is kept in the
        last checkpoint.
    monitor: measure whose largest value marks the checkpoint `best`.
    every_n_steps: within epochs too.

    Attributes:
        measures: the latest, by name.
        results: of `conclude`; None until training is over.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        conclude: Callable[["KeepCheckpoints", Place], dict[str, Any]],
        monitor: str | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        self._last = folder / f"{name}.ckpt"
        self._best = folder / "best.ckpt"
        self._conclude = conclude
        self._monitor = monitor
        self._every_n_steps = every_n_steps
        self._place: Place | None = None
        self._best_score: float | None = None
        self._seconds = 0.0  # before this fit
        self._began = time.perf_counter()
        self._stopped = False
        self.measures: dict[str, float] = {}
        self.results: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Return how long training has taken, before a stop too."""
        return self._seconds + time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        """Return what the next process needs to know."""
        return {
            "best_score": self._best_score,
            "seconds": self.seconds,
            "stopped": self._stopped,
            "measures": self.measures,
            "results": self.results,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._best_score, self._seconds = state_dict["best_score"], state_dict["seconds"]
        self._stopped, self.results = state_dict["stopped"], state_dict["results"]
        self.measures = dict(state_dict["measures"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write whole files."""
        trainer.strategy.checkpoint_io = WholeFiles()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the place; refuse one that training is not to get to."""
        self._place = Place(**checkpoint[PLACE]) if PLACE in checkpoint else None
        most = -1 if trainer.max_epochs is None else trainer.max_epochs
        if self._place is not None and 0 <= most < self._place.epochs:
            raise _is_longer(trainer, self._place.epochs)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say where the checkpoint stands; what others save stays Lightning's."""
        if self._place is not None:
            checkpoint[PLACE] = asdict(self._place)
            checkpoint["loops"]["fit_loop"] = self._place.loops(checkpoint["loops"]["fit_loop"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where training had been stopped before its end."""
        self._began = time.perf_counter()
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the next epoch as any other, or go on within one."""
        if self._place is not None and not self._place.batches:
            trainer.fit_loop.epoch_loop.restarting = False
        self._place, self.results = None, None
        stop.wait()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a checkpoint if it is time, and end if that was asked for."""
        every, steps = self._every_n_steps, trainer.global_step
        asked = _is_asked_to_stop(trainer, steps)
        stepped = trainer.fit_loop._should_accumulate() is False
        if not stepped or not (asked or (every is not None and steps % every == 0)):
            return
        validates = _validates(trainer, batch_idx)
        if _ends_epoch(trainer, validates):
            return  # the checkpoint of the epoch comes next
        self._save_within(trainer, validates)
        if asked:
            self._end(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End if that was asked for; the validation is done again."""
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fits and _is_asked_to_stop(trainer, batch_idx):
            if not trainer.fit_loop._should_accumulate():
                self._save_within(trainer, validates=True)
            self._end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint of this epoch; of the last one, sum up first."""
        measured = trainer.callback_metrics.items()
        self.measures |= {name: float(value) for name, value in measured}
        loop = trainer.fit_loop
        place = Place(_epochs(trainer), 0, loop.epoch_loop.total_batch_idx + 1)
        self._stopped = trainer.should_stop and loop._can_stop_early
        if self._stopped or _is_at_end(trainer, place):
            self.results = self._conclude(self, place)
        paths = [self._last]
        score = self.measures.get(self._monitor or "")
        if score is not None and (self._best_score is None or score > self._best_score):
            self._best_score = score
            paths = [self._best, self._last]  # the last one speaks of the best one
        self._save(trainer, place, paths)
        if _is_asked_to_stop(trainer):
            self._end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let a signal end the run at once from here on."""
        stop.wait_no_more()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let a signal end the run at once from here on, and name the file of a lost worker.

        Schedulers signal all processes of a job: torch's workers end at once, and the run with
        them, from its last checkpoint; a fault of another kind comes again when it goes on.
        """
        stop.waits = False
        if stop.requested is not None and isinstance(exception, Exception):
            raise stop.Stopped(stop.requested) from exception
        every = (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders)
        for loader in every:
            loss = loader.loss_of(exception) if isinstance(loader, ClipLoader) else None
            if loss is not None:
                raise loss from exception

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a training that was to be longer, and is now said to be over."""
        if self.results is None:
            raise _is_longer(trainer, trainer.current_epoch)

    def _save_within(self, trainer: pl.Trainer, validates: bool) -> None:
        loop = trainer.fit_loop
        place = Place(
            _epochs(trainer), loop.batch_idx + 1, loop.epoch_loop.total_batch_idx + 1, validates
        )
        self._save(trainer, place, [self._last])

    def _save(self, trainer: pl.Trainer, place: Place, paths: list[Path]) -> None:
        self._place = place
        trainer.save_checkpoint(paths[0])
        for path in paths[1:]:
            if paths[0].is_dir():  # of several ranks
                trainer.save_checkpoint(path)
            elif trainer.is_global_zero:
                with replacing(path) as draft:
                    shutil.copyfile(paths[0], draft)
        self._place = None
        trainer.strategy.barrier("checkpoint")

    def _end(self, trainer: pl.Trainer) -> None:
        stop.waits = False
        raise stop.Stopped(stop.requested or stop.SIGNALS[0])


def _is_longer(trainer: pl.Trainer, epochs: int) -> InputError:
    return InputError(
        f"trainer.max_epochs={trainer.max_epochs} was given, and this run has trained for {epochs} "
        "already, for more to come. Give more, or another folder."
    )


def _epochs(trainer: pl.Trainer) -> int:
    """Return how many are over, in the hook that ends one."""
    current: Any = trainer.fit_loop.epoch_progress.current
    return current.processed


def _is_asked_to_stop(trainer: pl.Trainer, count: int = 0) -> bool:
    """Say whether any rank got a signal.

    With several that is a collective, for which the host waits: only at every few steps.

    count: of steps, the same on all ranks.
    """
    asked = stop.requested is not None
    if trainer.world_size == 1:
        return asked
    if count % max(getattr(trainer, "log_every_n_steps", 1), 1):
        return False
    return trainer.strategy.reduce_boolean_decision(asked, all=False)


def _ends_epoch(trainer: pl.Trainer, validates: bool) -> bool:
    """Say whether nothing could go on after this batch but the end of its epoch."""
    loop = trainer.fit_loop
    stops = trainer.should_stop and loop._can_stop_early
    last = loop.epoch_loop.batch_progress.is_last_batch and not validates
    return last or stops or 0 <= trainer.max_steps <= trainer.global_step


def _validates(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Say whether a validation follows a batch."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    due = every is None or (trainer.current_epoch + 1) % every == 0
    if not (trainer.enable_validation and due):
        return False
    if interval is None:  # by the clock
        return False
    if math.isinf(interval):
        return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    count = trainer.fit_loop.epoch_loop.total_batch_idx if every is None else batch_idx
    return (count + 1) % interval == 0


def _is_at_end(trainer: pl.Trainer, place: Place) -> bool:
    """Say whether Lightning trains no further, but for a stop that somebody asked for."""
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    return 0 <= epochs <= place.epochs or 0 <= trainer.max_steps <= trainer.global_step
