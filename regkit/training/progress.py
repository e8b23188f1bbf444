"""How a run shows where it is: a line an epoch, and on a terminal one bar."""

import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.video_classifier import VideoClassifier
from regkit.pruning.density import density

log = logging.getLogger(__name__)

REFRESH_S = 1.0  # of the bar


def tell(line: str, printed: bool = True) -> None:
    """Write a line to the run's log, and print it if wished."""
    if printed:
        print(line, flush=True)
    log.info(line)


def is_first() -> bool:
    """Say whether this process is the one, of all ranks, that speaks and writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def keep_lines_off_the_screen() -> None:
    """Let what is told go to log files alone: who tells it has printed it, or shows a bar."""
    for handler in logging.getLogger().handlers:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.addFilter(lambda record: record.name != __name__)


def shows_bar(trainer: Mapping[str, Any]) -> bool:
    """Say whether there is a bar: not where the options forbid it, nor where no terminal is.

    trainer: options of the trainer.
    """
    return bool(trainer.get("enable_progress_bar", True)) and sys.stderr.isatty()


def progress(regularize: RegularizerCallback, bar: bool, stage: str = "") -> list[pl.Callback]:
    """Make what shows where a training is.

    bar: on stderr; lines are then printed only where stdout is no terminal.
    stage: what the epochs are of, if not of the run itself.
    """
    lines = EpochLines(regularize, not (bar and sys.stdout.isatty()), stage)
    return [lines, RunBar(lines)] if bar else [lines]


class EpochLines(pl.Callback):
    """Tell each epoch in a line: its loss, validation, density, flips a step, and seconds.

    regularize: knows the density.
    printed: whether the line is printed too.
    stage: what the epochs are of; "" for the run itself.

    Attributes:
        numbers: of the last epoch, by name; those that are known.
        settled: whether the zeros are; None where nobody can tell.
    """

    def __init__(self, regularize: RegularizerCallback, printed: bool, stage: str = "") -> None:
        self._regularize = regularize
        self._printed = printed
        self._stage = stage
        self._began = 0.0
        self._validated = False
        self.numbers: dict[str, float] = {}
        self.settled: bool | None = None

    def name(self, trainer: pl.Trainer) -> str:
        """Name the epoch: epoch 3/40."""
        epochs = trainer.max_epochs or -1
        name = f"epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")
        return f"{self._stage} {name}".lstrip()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a run that goes on within an epoch does not start that."""
        self._began, self._validated = time.perf_counter(), False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began, self._validated = time.perf_counter(), False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the accuracy is of this epoch."""
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure (a collective), and tell it."""
        regularizer = self._regularize.regularizer
        assert regularizer is not None
        assert isinstance(pl_module, VideoClassifier)
        measured, support = trainer.callback_metrics, regularizer.support_report()
        self.settled = None if support is None else support.is_settled
        known = {
            "loss": pl_module.train_means()["loss"],
            "val accuracy": measured.get("val/acc") if self._validated else None,
            "density": density(regularizer.counted_parameters()).total,
            "flips": None if support is None else support.flips,
        }
        self.numbers = {key: float(value) for key, value in known.items() if value is not None}
        if trainer.is_global_zero:
            words = [self.name(trainer), *_words(self.numbers)]
            tell("  ".join([*words, f"{time.perf_counter() - self._began:.1f} s"]), self._printed)


class RunBar(ProgressBar):
    """Show one bar on stderr for a whole training, and nothing for validations and tests."""

    def __init__(self, lines: EpochLines) -> None:
        super().__init__()
        self._lines = lines
        self._disabled = False
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Show nothing from here on."""
        self._disabled = True

    def enable(self) -> None:
        """Show the bar when a training starts."""
        self._disabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put up the bar, as far as the training has come."""
        self._bar = tqdm(
            total=_num_batches(trainer),
            initial=trainer.fit_loop.epoch_loop.total_batch_idx + 1,
            unit="batch",
            file=sys.stderr,
            disable=self._disabled,
            dynamic_ncols=True,
            mininterval=REFRESH_S,
            desc=self._lines.name(trainer),
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the epoch."""
        assert self._bar is not None
        self._bar.set_description(self._lines.name(trainer), refresh=False)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar; the loss is read, which waits for a GPU, only when it has been drawn."""
        assert self._bar is not None
        if self._bar.update():
            self._show(dict(self._lines.numbers) | _loss(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the epoch came to."""
        self._show(self._lines.numbers)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        assert self._bar is not None
        self._bar.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, numbers: Mapping[str, float]) -> None:
        assert self._bar is not None
        settled = {None: [], True: ["settled"], False: ["not settled"]}[self._lines.settled]
        self._bar.set_postfix_str("  ".join([*_words(numbers), *settled]), refresh=False)


def _words(numbers: Mapping[str, float]) -> list[str]:
    shares = {"flips": ".2%"}
    return [f"{key} {value:{shares.get(key, '.3f')}}" for key, value in numbers.items()]


def _loss(trainer: pl.Trainer) -> dict[str, float]:
    """Return the loss of the last batch, if the module shows it."""
    found = trainer.progress_bar_metrics.get("loss")
    return {} if found is None else {"loss": float(found)}  # pyright: ignore[reportArgumentType]  # of one number


def _num_batches(trainer: pl.Trainer) -> int | None:
    """Return the number of batches of a training; None where time ends it, or nothing."""
    ends = [
        trainer.num_training_batches * (trainer.max_epochs or -1),
        trainer.max_steps * trainer.accumulate_grad_batches,
    ]
    known = [int(end) for end in ends if 0 < end < math.inf]
    return min(known, default=None)
