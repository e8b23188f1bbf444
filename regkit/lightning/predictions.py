"""Predictions: what was predicted for each video, and which classes are taken for each other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Float32, Int, UInt8
from lightning_utilities.core.rank_zero import rank_zero_warn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import max_pool2d

from regkit.files import write_table
from regkit.lightning.loggers import show
from regkit.lightning.monitors.canvas import pixels, write_png

MOST_COUNTED = 20  # classes, up to which a cell has room for its count
MOST_NAMED = 120  # classes, up to which the names, at 7 points, still fit a screen
MOST_DRAWN = 1000  # classes, up to which each has a pixel of its own
LONGEST_NAME = 32  # letters; Something-Something's classes are sentences
INCHES_A_COUNT, INCHES_A_NAME, INCHES_UNNAMED = 0.45, 0.13, 9.0


@dataclass(frozen=True, eq=False)
class Row:
    """What was predicted for one video, or for a part of it."""

    path: str
    start_s: float
    end_s: float | None
    label: int
    probabilities: Float32[np.ndarray, " classes"]

    @property
    def place(self) -> tuple[str, float, float]:
        """Tell this video from others, in the order of the table."""
        return self.path, self.start_s, math.inf if self.end_s is None else self.end_s

    @property
    def predicted(self) -> int:
        """Return the class with the highest score."""
        return int(self.probabilities.argmax())


class Predictions(pl.Callback):
    """Write predictions.csv and confusion.png after a test, and show confusion matrices.

    The module's `validation_step` and `test_step` return `probabilities` (videos, classes), `label`
    and `path`, and perhaps `start_s` and `end_s`, as `VideoClassifier` does; its `classes` are
    their names. For another module nothing is written, with one warning.

    Several ranks write one table, each video once, in the order of the paths.

    folder: of the two files. A row of the table is a video: what it is, what it was taken for, the
        probability of that, and in the columns p(class) that of each class.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._rows: list[Row] = []
        self._pairs: list[Int[Tensor, "2 videos"]] = []
        self._usable = True

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        self._pairs = []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what was predicted, on its device: to read it now would be to wait for it."""
        if self._reads(outputs, pl_module):
            predicted = outputs["probabilities"].argmax(1)
            self._pairs.append(torch.stack([outputs["label"], predicted]))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a row for each video."""
        if self._reads(outputs, pl_module):
            self._rows += rows_of(outputs)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show which classes are taken for each other."""
        if trainer.sanity_checking:
            return
        pairs = [pair for pairs in _everywhere([p.cpu() for p in self._pairs]) for pair in pairs]
        if pairs and trainer.is_global_zero:
            label, predicted = torch.cat(pairs, dim=1)
            show(trainer, "val/confusion", _picture(label, predicted, _classes(pl_module)))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table, and show which classes are taken for each other."""
        everywhere = [row for rows in _everywhere(self._rows) for row in rows]
        self._rows = []
        if not trainer.is_global_zero or not self._usable:
            return
        rows = sorted({row.place: row for row in everywhere}.values(), key=lambda row: row.place)
        classes = _classes(pl_module)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_csv(self._folder / "predictions.csv", rows, classes)
        label = torch.tensor([row.label for row in rows], dtype=torch.int64)
        predicted = torch.tensor([row.predicted for row in rows], dtype=torch.int64)
        picture = _picture(label, predicted, classes)
        show(trainer, "test/confusion", picture)
        write_png(picture, self._folder / "confusion.png")

    def _reads(self, outputs: Any, pl_module: pl.LightningModule) -> bool:
        """Say whether a step returned what is needed; warn the first time that it did not."""
        needed = ("probabilities", "label", "path")
        fits = isinstance(outputs, Mapping) and all(key in outputs for key in needed)
        fits = fits and outputs["probabilities"].shape[1:] == (len(_classes(pl_module)),)
        if self._usable and not fits:
            name, given = type(pl_module).__name__, type(outputs).__name__
            given += f" of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
            rank_zero_warn(
                f"Predictions writes nothing: a step of {name} returned a {given}. Return a dict "
                "of probabilities (videos, classes), label and path from validation_step and "
                f"test_step, and name the classes in {name}.classes."
            )
            self._usable = False
        return self._usable


def rows_of(outputs: Mapping[str, Any]) -> Iterable[Row]:
    """Return a row for each video of what a step returned."""
    paths, probabilities = outputs["path"], outputs["probabilities"].float().cpu().numpy()
    starts = outputs.get("start_s", [0.0] * len(paths))
    ends = outputs.get("end_s", [None] * len(paths))
    labels = outputs["label"].tolist()
    return map(Row, map(str, paths), starts, ends, labels, probabilities)


def confusion(
    label: Int[Tensor, " videos"], predicted: Int[Tensor, " videos"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Count the videos of each class (row) by what they were taken for (column)."""
    places = torch.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return places.view(num_classes, num_classes)


def write_csv(path: Path, rows: Iterable[Row], classes: Sequence[str]) -> None:
    """Write the table of predictions."""
    columns = ["path", "start_s", "end_s", "label", "predicted", "correct", "score"]
    # A class may have the name of a column, such as "correct".
    table = [[*columns, *(f"p({name})" for name in classes)]]
    for row in rows:
        times = f"{row.start_s:g}", "" if row.end_s is None else f"{row.end_s:g}"
        names = classes[row.label], classes[row.predicted]
        correct = str(int(row.label == row.predicted))
        scores = [f"{p:.5g}" for p in row.probabilities]
        table.append([row.path, *times, *names, correct, scores[row.predicted], *scores])
    write_table(path, table)


def draw(counts: Int[Tensor, "classes classes"], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: the true classes down, what they were taken for across.

    A cell is the darker the larger its share of the row. Up to 20 classes it shows its count too,
    and up to 120 classes their names are beside it.
    """
    num_classes = len(classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    inches = num_classes * (INCHES_A_COUNT if num_classes <= MOST_COUNTED else INCHES_A_NAME)
    inches = max(3.0, inches) if num_classes <= MOST_NAMED else INCHES_UNNAMED
    # The object interface, not pyplot: no window system, no state shared with the user's figures.
    figure = Figure((inches + 3, inches + 2), layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The root of the share, so that rare confusions are seen among hundreds of classes.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    edges = (-0.5, num_classes - 0.5, num_classes - 0.5, -0.5)
    cells = _pooled(shares).numpy()
    image = axes.imshow(cells, cmap="Blues", norm=norm, interpolation="nearest", extent=edges)
    axes.set(xlabel="predicted", ylabel="true")
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label("share of the true class")
    if num_classes <= MOST_NAMED:
        names = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in classes]
        size = 9 if num_classes <= MOST_COUNTED else 7
        # parse_math: a dollar in a name is a dollar.
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=size, parse_math=False)
    if num_classes <= MOST_COUNTED:
        for row, column in counts.nonzero().tolist():
            color = "white" if shares[row, column] > 0.4 else "black"
            count = str(int(counts[row, column]))
            axes.text(column, row, count, ha="center", va="center", fontsize=8, color=color)
    return figure


def _pooled(shares: Float[Tensor, "classes classes"]) -> Float[Tensor, "cells cells"]:
    """Keep of cells that share a pixel the darkest, so that it is seen.

    The last ones are filled up, which at most stretches the picture by a pixel.
    """
    side = -(-len(shares) // MOST_DRAWN)
    if side == 1:
        return shares
    return max_pool2d(shares[None], side, ceil_mode=True)[0]


def _classes(module: pl.LightningModule) -> Sequence[str]:
    return getattr(module, "classes", ())


def _picture(
    label: Int[Tensor, " videos"], predicted: Int[Tensor, " videos"], classes: Sequence[str]
) -> UInt8[np.ndarray, "height width 3"]:
    return pixels(draw(confusion(label, predicted, len(classes)), classes))


def _everywhere(mine: list[Any]) -> list[list[Any]]:
    """Return the lists of all ranks; each has to ask."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    lists: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lists, mine)
    return lists
