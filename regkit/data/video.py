"""Labelled videos, and who is in which split: dealt by whole groups, to folds, drawn again."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

import numpy as np
from jaxtyping import Float

from regkit.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Video:
    """Name one file, or the part of it from `start_s` to `end_s` (None: its end).

    Videos of one group (person, scene, film) belong on one side of a split.
    """

    path: str
    label: int
    group: str
    start_s: float = 0.0
    end_s: float | None = None

    def __str__(self) -> str:
        if self.start_s == 0 and self.end_s is None:
            return self.path
        end = "" if self.end_s is None else f"{self.end_s:g}"
        return f"{self.path} [{self.start_s:g}-{end} s]"


@dataclass(frozen=True)
class Splits:
    """The videos of each split; a label is a place in `classes`."""

    train: list[Video]
    val: list[Video]
    test: list[Video]
    classes: list[str]


def by_group(
    videos: Sequence[Video], shares: Mapping[str, float], seed: int
) -> dict[str, list[Video]]:
    """Deal whole groups, in random order, to the split that lacks their classes most.

    need[s, c]  =  1 - dealt[s, c] / (share[s] * total[c])
    group g     -> argmax_s  sum_c  need[s, c] * count[g, c]        (first of equals)

    shares: of the videos, by split.
    """
    groups, total = _groups(videos)
    target = np.outer(list(shares.values()), np.maximum(total, 1)).tolist()
    dealt = np.zeros_like(target).tolist()
    parts: list[list[Video]] = [[] for _ in shares]
    splits = range(len(parts))
    for g in np.random.default_rng(seed).permutation(len(groups)).tolist():
        label, count = _counted(groups[g])
        need = [[1 - dealt[s][c] / target[s][c] for c in label] for s in splits]
        gain = [one[0] * count[0] for one in need] if len(label) == 1 else np.array(need) @ count
        split = max(splits, key=gain.__getitem__)
        for c, number in zip(label, count, strict=True):
            dealt[split][c] += number
        parts[split] += groups[g]
    return dict(zip(shares, parts, strict=True))


def folds_by_group(
    videos: Sequence[Video], num_folds: int, seed: int, who: str, option: str = "num_folds"
) -> list[list[Video]]:
    """Deal whole groups, large ones first, to the fold that holds their classes least.

    group g  ->  argmin_f  sum_c  dealt[f, c] * count[g, c] / total[c]

    Of equals, the fold with the fewest videos; so no fold stays empty. Equal groups come in
    random order.

    option: what the user gave the number by.
    Raises: InputError when there are more folds than groups.
    """
    groups, total = _groups(videos)
    if num_folds > len(groups):
        raise InputError(
            f"{who} got {option}={num_folds}, but there are {len(groups)} groups, and a group "
            "is never torn apart. Give fewer folds or finer groups."
        )
    dealt = np.zeros((num_folds, len(total)))
    folds: list[list[Video]] = [[] for _ in range(num_folds)]
    order = np.random.default_rng(seed).permutation(len(groups))
    for g in sorted(order, key=lambda g: -len(groups[g])):
        label, count = _counted(groups[g])
        held = (dealt[:, label] @ (count / total[label])).round(9)  # so that equals are equal
        fold = min(range(num_folds), key=lambda f: (held[f], len(folds[f])))
        dealt[fold, label] += count
        folds[fold] += groups[g]
    return folds


def _groups(videos: Sequence[Video]) -> tuple[list[list[Video]], Float[np.ndarray, " classes"]]:
    """Return the groups, each in order of paths, and how many videos each class has."""
    ordered = sorted(videos, key=attrgetter("group", "path", "start_s"))
    groups = [list(members) for _, members in groupby(ordered, key=attrgetter("group"))]
    total = np.bincount(np.array([video.label for video in videos], dtype=int), minlength=1)
    return groups, total.astype(float)


def _counted(group: list[Video]) -> tuple[list[int], list[int]]:
    """Return the classes of a group and how many videos it has of each.

    Of hundreds of classes a group has a few; counting only these keeps large sets fast.
    """
    counts = Counter(video.label for video in group)
    label = sorted(counts)
    return label, [counts[c] for c in label]


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
