"""Split videos into training and evaluation without tearing a group apart."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np

from regkit.data.video import Video


def by_group(
    videos: Sequence[Video], shares: Mapping[str, float], seed: int
) -> dict[str, list[Video]]:
    """Deal whole groups, in random order, to the split that lacks their classes most.

    need[s, c]  =  1 - dealt[s, c] / (share[s] * total[c])
    group g     -> argmax_s  sum_c  need[s, c] * count[g, c]        (first of equals)

    shares: of the videos, by split.
    """
    ordered = sorted(videos, key=attrgetter("group", "path"))
    groups = [list(members) for _, members in groupby(ordered, key=attrgetter("group"))]
    num_classes = 1 + max((video.label for video in videos), default=0)
    count = np.zeros((len(groups), num_classes))
    for row, group in zip(count, groups, strict=True):
        np.add.at(row, [video.label for video in group], 1)
    target = np.outer(list(shares.values()), np.maximum(count.sum(axis=0), 1))
    dealt = np.zeros_like(target)
    parts: list[list[Video]] = [[] for _ in shares]
    for g in np.random.default_rng(seed).permutation(len(groups)):
        split = int(np.argmax((1 - dealt / target) @ count[g]))
        dealt[split] += count[g]
        parts[split] += groups[g]
    return dict(zip(shares, parts, strict=True))
