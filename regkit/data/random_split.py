"""Splits that are drawn: by named groups, by folds, or by share, whole groups at a time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regkit.data.dataset_files import SPLITS
from regkit.data.split import by_group, folds_by_group
from regkit.data.video import Video
from regkit.data.video_data import VideoData
from regkit.errors import InputError


@dataclass(kw_only=True, eq=False, repr=False)
class RandomSplitData(VideoData):
    r"""Declare a data set of the user's own, which has no official splits.

    include: take only these classes.
    group: regular expression with one pair of brackets, searched in the path as it is listed;
        what the brackets hold names the group: "_(g[0-9]+)_" for UCF101. By default each file is
        a group of its own, and the same person may be on both sides.
    val_share, test_share: of the videos that are left to draw from.
    val_groups, test_groups: names of groups, instead of shares.
    num_folds: cross-validation. The groups are dealt to folds of equal size; `fold` (from 1) is
        the test set, and validation is drawn from the rest. Over all folds each video is tested
        once, as long as the seed of the data stays the same.
    """

    include: Sequence[str | int] | None = None
    group: str | None = None
    val_share: float = 0.15
    test_share: float = 0.15
    val_groups: Sequence[str] = ()
    test_groups: Sequence[str] = ()
    num_folds: int | None = None
    fold: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("val_share", "test_share"):
            self._check(name, 0 < getattr(self, name) < 1, "a share between 0 and 1")
        self._check("val_share", self.val_share + self.test_share < 1, "less; training gets none")
        if self.group is not None:
            try:
                brackets = re.compile(self.group).groups
            except re.error as error:
                raise InputError(
                    f"{type(self).__name__} got group={self.group!r}, no regular expression: "
                    f"{error}."
                ) from error
            self._check("group", brackets == 1, "a regular expression with one pair of brackets")
        self._check("num_folds", self.num_folds is None or self.num_folds >= 2, "2 or more")
        if self.num_folds is None:
            self._check("fold", self.fold == 1, "num_folds too")
        else:
            self._check("fold", 1 <= self.fold <= self.num_folds, f"1 to {self.num_folds}")
            named = not (self.val_groups or self.test_groups)
            self._check("num_folds", named, "no val_groups or test_groups, or no folds")

    def _grouped(self, paths: Sequence[str]) -> list[str]:
        """Return the group of each path."""
        pattern = "(.*)" if self.group is None else self.group
        matches = [re.search(pattern, path) for path in paths]
        without = [path for path, match in zip(paths, matches, strict=True) if match is None]
        if without:
            raise InputError(
                f"{type(self).__name__} got group={self.group!r}, which does not fit "
                f"{len(without)} of {len(paths)} paths, the first is {without[0]!r}. "
                "Mend the expression."
            )
        return [str(match[1]) for match in matches if match is not None]

    def _completed(self, parts: Mapping[str, list[Video]]) -> dict[str, list[Video]]:
        """Draw from training what is not given: named groups, a fold, then by share."""
        who = type(self).__name__
        parts, rest = dict(parts), parts["train"]
        known = {video.group for video in rest}
        if self.num_folds is not None:
            if len(parts) > 1:
                raise InputError(
                    f"{who} got num_folds={self.num_folds}, but {[*parts][1:]} is given by files "
                    "already. Give no folds, or one folder or file of everything."
                )
            folds = folds_by_group(rest, self.num_folds, self.seed, who)
            parts["test"] = folds.pop(self.fold - 1)
            rest = [video for fold in folds for video in fold]
        for name in ("val", "test"):
            named = set(getattr(self, f"{name}_groups"))
            if named and name in parts:
                raise InputError(f"{who} got {name}_groups, but {name} is given by files already.")
            if named - known:
                raise InputError(
                    f"{who} got {name}_groups={sorted(named - known)}, which hold no video (or "
                    f"are named twice); there are {sorted(known)}."
                )
            if named:
                parts[name] = [video for video in rest if video.group in named]
                rest = [video for video in rest if video.group not in named]
                known -= named
        open_shares = {"val": self.val_share, "test": self.test_share}
        shares = {name: share for name, share in open_shares.items() if name not in parts}
        parts |= by_group(rest, {"train": 1.0 - sum(shares.values()), **shares}, self.seed)
        return {name: parts[name] for name in SPLITS}
