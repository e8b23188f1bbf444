"""Say whether training waits for its data."""

import time
import warnings
from typing import Any

import lightning.pytorch as pl

_MUCH = 0.3  # share of the training time from which a cache is worth its disk space


class DataWaitMonitor(pl.Callback):
    """Log speed/data_share: the share of the training time in which the loop waits for a batch.

    Host time, as speed/prox_share: where a GPU works on meanwhile, less is lost than it says. For
    loaders that count how long they were waited for (`waited_s`), as regkit's do. The first epoch,
    in which workers start and fill their memory, counts only where there is no second, and then
    without its first batch.

    cached: whether videos are read from a cache; if not, one is advised where it would pay.
    """

    def __init__(self, cached: bool = False) -> None:
        self._cached = cached
        self._loader: Any = None
        self._started = False
        self._num_epochs = 0  # begun in this fit
        self._start_s = 0.0  # of the step
        self._waited_first_s = 0.0
        self._steps_s = 0.0
        self._logged = (0.0, 0.0)

    @property
    def data_share(self) -> float | None:
        """Return the share so far; None before the first step has ended, and of other loaders."""
        return self._share((0.0, 0.0))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the loader that counts."""
        loader = trainer.train_dataloader
        self._loader = loader if hasattr(loader, "waited_s") else None
        self._started, self._num_epochs = False, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the first epoch."""
        self._num_epochs += 1
        if self._loader is not None and self._num_epochs == 2:
            self._waited_first_s, self._steps_s = self._loader.waited_s, 0.0
            self._logged = (0.0, 0.0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        if self._loader is not None and not self._started:
            self._started, self._waited_first_s = True, self._loader.waited_s
        self._start_s = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop the clock, and log at the trainer's interval."""
        self._steps_s += time.perf_counter() - self._start_s
        interval = getattr(trainer, "log_every_n_steps")  # noqa: B009  # added by a connector
        if self._loader is not None and interval and (trainer.global_step + 1) % interval == 0:
            share = self._share(self._logged)
            self._logged = (self._waited_s(), self._steps_s)
            if share is not None:
                pl_module.log("speed/data_share", share)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advise a cache after the second epoch, by what that one has waited."""
        share = self.data_share
        second = self._num_epochs == 2
        if second and not self._cached and share is not None and share > _MUCH:
            warnings.warn(
                f"Training waits for its data {share:.0%} of the time. data.cache=auto makes "
                "copies that are fast to read; more data.num_workers may help too.",
                stacklevel=2,
            )

    def _waited_s(self) -> float:
        return self._loader.waited_s - self._waited_first_s

    def _share(self, since: tuple[float, float]) -> float | None:
        if self._loader is None or self._steps_s <= since[1]:
            return None
        waited, steps = self._waited_s() - since[0], self._steps_s - since[1]
        return waited / (waited + steps)
