"""Split videos into training and evaluation without tearing a group apart."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
from jaxtyping import Float, Int

from regkit.data.video import Video
from regkit.errors import InputError


def by_group(
    videos: Sequence[Video], shares: Mapping[str, float], seed: int
) -> dict[str, list[Video]]:
    """Deal whole groups, in random order, to the split that lacks their classes most.

    need[s, c]  =  1 - dealt[s, c] / (share[s] * total[c])
    group g     -> argmax_s  sum_c  need[s, c] * count[g, c]        (first of equals)

    shares: of the videos, by split.
    """
    groups, total = _groups(videos)
    target = np.outer(list(shares.values()), np.maximum(total, 1))
    dealt = np.zeros_like(target)
    parts: list[list[Video]] = [[] for _ in shares]
    for g in np.random.default_rng(seed).permutation(len(groups)):
        label, count = _counted(groups[g])
        split = int(np.argmax((1 - dealt[:, label] / target[:, label]) @ count))
        dealt[split, label] += count
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


def _counted(
    group: list[Video],
) -> tuple[Int[np.ndarray, " present"], Int[np.ndarray, " present"]]:
    """Return the classes of a group and how many videos it has of each.

    Of hundreds of classes a group has a few; counting only these keeps large sets fast.
    """
    return np.unique([video.label for video in group], return_counts=True)
