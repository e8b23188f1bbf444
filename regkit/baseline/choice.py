"""The path of strengths, and which of them is taken: by validation videos or cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from regkit.baseline.features import Row
from regkit.baseline.solver import Fitted, fit
from regkit.data.video import folds_by_group
from regkit.errors import InputError
from regkit.selection.choose import Choice, choose
from regkit.selection.path import cross_validate, path


@dataclass(frozen=True, eq=False)
class Standardised:
    """Features of videos on a common scale, and their labels."""

    x: Float64[Tensor, "videos features"]
    y: Int64[Tensor, " videos"]


@dataclass(frozen=True, eq=False)
class Scale:
    """Bring features to mean 0 and deviation 1; one that never varies stays 0."""

    mean: Float64[np.ndarray, " features"]
    deviation: Float64[np.ndarray, " features"]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Scale":
        """Measure the first clip of each video."""
        x = _stacked(rows)
        deviation = x.std(0)
        # What rounding leaves of a constant is no deviation.
        constant = deviation <= 1e-6 * np.abs(x).max(0)
        return cls(x.mean(0), np.where(constant, np.inf, deviation))

    def __call__(self, rows: Sequence[Row]) -> Standardised:
        """Return features and labels."""
        labels = torch.tensor([row.video.label for row in rows], dtype=torch.int64)
        x = torch.from_numpy((_stacked(rows) - self.mean) / self.deviation)
        return Standardised(x, labels)


@dataclass(frozen=True, eq=False)
class Path:
    """What was fitted at each strength on all training videos, and what was chosen.

    train_accuracy: of what was fitted.
    val_accuracy: on held out videos, by fold, then by strength; a single fold is the validation
        split.
    """

    lams: Sequence[float]
    fits: Sequence[Fitted]
    train_accuracy: Sequence[float]
    val_accuracy: Float64[np.ndarray, "folds lams"]
    choice: Choice

    @property
    def num_live(self) -> list[int]:
        """Count the features in use at each strength."""
        return [int(fitted.live.sum()) for fitted in self.fits]


def choose_by_validation(
    train: Standardised, val: Standardised, lams: Sequence[float], num_classes: int
) -> Path:
    """Take the strength whose cross-entropy on the validation videos is least."""
    fits = _path(train, lams, num_classes)
    losses = np.array([[loss(fitted, val) for fitted in fits]])
    right = np.array([[accuracy(fitted, val) for fitted in fits]])
    ours = [accuracy(fitted, train) for fitted in fits]
    return Path(lams, fits, ours, right, choose(losses, lams, rule="min"))


def choose_by_folds(
    rows: Sequence[Row], num_folds: int, seed: int, lams: Sequence[float], num_classes: int
) -> Path:
    """Take the strongest within one standard error of the least cross-entropy over folds.

    Whole groups are held out, and each fold is standardised by what it is fitted on.
    Raises: InputError when there are more folds than groups, or a fold takes a class's last video.
    """
    dealt = folds_by_group([r.video for r in rows], num_folds, seed, "hog", "data.cv_folds")
    folds, sizes = [], []
    for part in dealt:
        groups = {video.group for video in part}
        inner = [row for row in rows if row.video.group not in groups]
        outer = [row for row in rows if row.video.group in groups]
        if len({row.video.label for row in inner}) < num_classes:
            raise InputError(
                f"hog got data.cv_folds={num_folds}, and a fold takes all videos of a class. Give "
                "finer groups, another seed of the data, or restrict the classes."
            )
        scale = Scale.of(inner)
        folds.append((scale(inner), scale(outer)))
        sizes.append(len(outer))
    right: list[float] = []

    def fit_here(lam: float | int, fold: Standardised, start: Fitted | None) -> Fitted:
        return fit(lam, fold.x, fold.y, num_classes, start)

    def error(fitted: Fitted, held: Standardised) -> float:
        right.append(accuracy(fitted, held))
        return loss(fitted, held)

    losses = cross_validate(folds, lams, fit_here, error)
    choice = choose(losses, lams, weights=sizes)
    train = Scale.of(rows)(rows)
    fits = _path(train, lams, num_classes)
    ours = [accuracy(fitted, train) for fitted in fits]
    return Path(lams, fits, ours, np.reshape(right, losses.shape), choice)


def loss(fitted: Fitted, on: Standardised) -> float:
    """Return the mean cross-entropy in nats."""
    chances = fitted.probabilities(on.x)[torch.arange(len(on.y)), on.y]
    return float(-chances.clamp(min=torch.finfo(chances.dtype).tiny).log().mean())


def accuracy(fitted: Fitted, on: Standardised) -> float:
    """Return the share of videos whose most probable class is theirs."""
    return float((fitted.probabilities(on.x).argmax(1) == on.y).double().mean())


def _path(train: Standardised, lams: Sequence[float], num_classes: int) -> list[Fitted]:
    def fit_here(lam: float | int, start: Fitted | None) -> Fitted:
        return fit(lam, train.x, train.y, num_classes, start)

    return [fitted for _, fitted in path(lams, fit_here)]


def _stacked(rows: Sequence[Row]) -> Float64[np.ndarray, "videos features"]:
    if not rows:
        raise InputError("hog has no video to fit or to choose on.")
    return np.stack([row.values[0] for row in rows]).astype(np.float64)
