"""Other uses of the videos that train: folds to choose by, and bootstrap samples."""

import warnings
from dataclasses import replace

import numpy as np

from regkit.data.split import folds_by_group
from regkit.data.video import Splits, Video
from regkit.errors import InputError


def resampled(
    splits: Splits, folds: tuple[int | None, int], bootstrap: int | None, seed: int, who: str
) -> Splits:
    """Apply folds (their number, the one held out), then the bootstrap, where asked for."""
    num_folds, fold = folds
    if num_folds is not None:
        splits = with_fold(splits, num_folds, fold, seed, who)
    return splits if bootstrap is None else bootstrapped(splits, bootstrap, who)


def with_fold(splits: Splits, num_folds: int, fold: int, seed: int, who: str) -> Splits:
    """Deal training and validation to folds, whole groups at a time, and validate on one of them.

    fold: from 1; 0: all of them train, none is held out. The test split stays as it is.
    Raises: InputError when there are more folds than groups, or a fold takes a class's last video.
    """
    pool = splits.train + splits.val
    folds = folds_by_group(pool, num_folds, seed, who, "cv_folds")
    held = set() if fold == 0 else {video.group for video in folds[fold - 1]}
    train = [video for video in pool if video.group not in held]
    untaught = _missing(train, pool, splits.classes)
    if untaught:
        raise InputError(
            f"{who} got cv_folds={num_folds}, and fold {fold} takes all videos of {untaught}. "
            "Give finer groups, another seed of the data, or restrict the classes by include."
        )
    return replace(splits, train=train, val=[video for video in pool if video.group in held])


def bootstrapped(splits: Splits, seed: int, who: str) -> Splits:
    """Train on as many groups as there are, drawn with replacement; the order stays.

    The sample follows from `seed` and the names of the groups alone. A class that it misses is
    warned of, not refused: to draw until none is missing would be no bootstrap.
    Source: Efron 1979; of whole groups, Davison and Hinkley 1997, section 3.8.
    """
    groups = sorted({video.group for video in splits.train})
    drawn = np.random.default_rng(seed).integers(len(groups), size=len(groups))
    times = dict(zip(groups, np.bincount(drawn, minlength=len(groups)).tolist(), strict=True))
    train = [video for video in splits.train for _ in range(times[video.group])]
    lost = _missing(train, splits.train, splits.classes)
    if lost:
        warnings.warn(f"{who}: bootstrap={seed} draws no training video of {lost}", stacklevel=4)
    return replace(splits, train=train)


def _missing(some: list[Video], of: list[Video], classes: list[str]) -> list[str]:
    """Name the classes that have videos in `of`, but none in `some`."""
    lost = {video.label for video in of} - {video.label for video in some}
    return [classes[label] for label in sorted(lost)]
