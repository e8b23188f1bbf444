"""What data sets with official splits share: where their annotations lie, and validation."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.dataset_files import Entry, checked, labelled, present, restricted
from regkit.data.split import by_group
from regkit.data.video import Splits
from regkit.data.video_data import VideoData
from regkit.errors import InputError

log = logging.getLogger(__name__)

Parts = dict[str, list[Entry]]  # by split


@dataclass(kw_only=True, eq=False, repr=False)
class OfficialSplitData(VideoData):
    """Declare a data set that is distributed with annotation files, which say who is where.

    A file is known by its name, in any folder below root and with any extension of a video. An
    official split in which a group is on both sides is kept, with a warning: results are compared
    on it.

    annotations: folder of these files; by default they are looked for in root and beside it.
    include: take only these classes; they keep their order.
    val_share: of the training videos, drawn for validation by group where there is no official
        validation, the same for equal seeds.
    min_found: share of the listed videos that must be there, in each split.
    """

    root: str
    annotations: str | None = None
    include: Sequence[str | int] | None = None
    val_share: float = 0.15
    min_found: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self._check("val_share", 0 < self.val_share < 1, "a share between 0 and 1")
        self._check("min_found", 0 < self.min_found <= 1, "a share above 0, up to 1")

    def _folder_of(self, wanted: str, *usual: str) -> Path:
        """Find the folder that holds files `wanted` (a glob); `usual` is what it may be called."""
        root, who = Path(self.root), type(self).__name__
        if not root.is_dir():
            raise InputError(f"{who} got root={self.root!r}, which is no folder. Set data.root.")
        beside = root.absolute().parent
        places = [root, *(root / n for n in usual), *(beside / n for n in usual), beside]
        if self.annotations is not None:
            places = [Path(self.annotations)]
        for place in places:
            if place.is_dir() and any(place.glob(wanted)):
                return place
        raise InputError(
            f"{who} found no {wanted} in {', '.join(map(str, places))}. Set data.annotations to "
            "the folder of the files that the data set is distributed with."
        )

    def _file(self, folder: Path, pattern: str) -> Path | None:
        """Find the file whose name is `pattern`, alone or after a prefix."""
        names = [one for one in folder.iterdir() if re.fullmatch(rf"(.*[-_])?{pattern}", one.name)]
        if len(names) > 1:
            raise InputError(
                f"{type(self).__name__} cannot choose from {sorted(one.name for one in names)} in "
                f"{folder}. Set data.annotations to a folder that holds one of them."
            )
        return names[0] if names else None

    def _refuse(self, path: Path | None, wrong: Sequence[str], count: int, form: str) -> None:
        """Raise for the lines or entries of an annotation file that are not understood."""
        if wrong:
            raise InputError(
                f"{type(self).__name__} does not understand {len(wrong)} of {count} entries in "
                f"{path}, the first is {wrong[0]!r}. Give the file as distributed: {form}."
            )

    def _evaluated(self, parts: Parts, test_on: str) -> Parts:
        """Say which videos are the test set, where papers report on official validation."""
        who = type(self).__name__
        there = any(entry.path is not None for entry in parts.get("test", []))
        if test_on == "test" and not there:
            raise InputError(
                f"{who} got test_on='test', but has no test videos with labels. Give their labels "
                "and files, or test_on=val."
            )
        if test_on == "test" or (test_on == "auto" and there):
            return parts
        log.info("%s tests on the official validation set; validation is drawn from training", who)
        return {"train": parts["train"], "test": parts["val"]}

    def _split(self, parts: Mapping[str, list[Entry]], classes: Sequence[str]) -> Splits:
        """Check what was listed, leave out what is not there, and draw validation if need be."""
        who = type(self).__name__
        chosen = restricted(who, classes, self.include, self.root)
        wanted = set(chosen)
        kept = {
            name: [entry for entry in entries if entry.label in wanted]
            for name, entries in parts.items()
        }
        videos = {
            name: labelled(entries, chosen)
            for name, entries in present(who, kept, self.min_found).items()
        }
        if "val" not in videos:
            shares = {"train": 1.0 - self.val_share, "val": self.val_share}
            videos |= by_group(videos["train"], shares, self.seed)
        return checked(who, videos, chosen, official=True)
