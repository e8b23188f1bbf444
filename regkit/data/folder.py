"""Find the user's videos in folders named by class."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regkit.data.dataset_files import (
    Entry,
    RandomSplitData,
    checked,
    is_video,
    labelled,
    read_text,
    restricted,
)
from regkit.data.video import SPLITS, Splits
from regkit.errors import InputError

Found = list[tuple[str, str]]  # (class, path below root)


@dataclass(kw_only=True, eq=False, repr=False)
class Folder(RandomSplitData):
    r"""Read root/class/video, or root/{train,val,test}/class/video; deeper folders are searched.

    Who is in which split: the lists, if given; else the folders train, val and test; else groups
    named in `val_groups` and `test_groups`, or a fold. What is still missing is taken from
    training by share, group by group, the same for equal seeds.

    train_list, val_list, test_list: text files, one path below root a line (UCF101's own will do:
        a number after the path is ignored).
    group: searched in the path below root.

    Raises: InputError when files, classes or a split are missing, or a group is in two splits.
    """

    root: str
    train_list: str | None = None
    val_list: str | None = None
    test_list: str | None = None

    def __post_init__(self):
        super().__post_init__()
        named = self.val_groups or self.test_groups
        self._check("group", not named or self.group is not None, "one, to name groups")

    def videos(self) -> Splits:
        """Search the folders and split what was found."""
        if not Path(self.root).is_dir():
            raise InputError(f"Folder got root={self.root!r}, which is no folder. Set data.root.")
        parts = self._listed() or self._foldered() or {"train": self._below("")}
        names = sorted({label for found in parts.values() for label, _ in found})
        classes = restricted("Folder", names, self.include, self.root)
        videos = {name: labelled(self._entries(found), classes) for name, found in parts.items()}
        return checked("Folder", self._completed(videos), classes)

    def _wants(self, label: str) -> bool:
        return self.include is None or label in map(str, self.include)

    def _below(self, part: str) -> Found:
        """List the videos of the class folders in a part of root, in order of their paths."""
        with os.scandir(Path(self.root, part)) as entries:
            labels = sorted(one.name for one in entries if one.is_dir() and self._wants(one.name))
        above = (part,) if part else ()
        return [
            (label, "/".join(path))
            for label in labels
            for path in sorted(_videos(Path(self.root, part, label), (*above, label)))
        ]

    def _foldered(self) -> dict[str, Found] | None:
        names = [name for name in SPLITS if Path(self.root, name).is_dir()]
        if "train" not in names or len(names) == 1:
            return None
        return {name: self._below(name) for name in names}

    def _listed(self) -> dict[str, Found] | None:
        lists = {name: getattr(self, f"{name}_list") for name in SPLITS}
        given = {name: path for name, path in lists.items() if path is not None}
        if given and "train" not in given:
            raise InputError(f"Folder got a list for {sorted(given)} only; give train_list too.")
        return {name: self._read_list(name, path) for name, path in given.items()}

    def _read_list(self, name: str, path: str) -> Found:
        lines = [line.strip() for line in read_text("Folder", f"{name}_list", path).splitlines()]
        found, missing = [], []
        for line in filter(None, lines):
            bare = re.sub(r"[\s,]+\d+$", "", line)  # UCF101 writes the label behind the path
            files = [Path(one) for one in (line, bare) if Path(self.root, one).is_file()]
            if files and len(files[0].parts) > 1 and not files[0].is_absolute():
                found.append((files[0].parts[0], files[0].as_posix()))
            else:
                missing.append(line)
        if missing:
            raise InputError(
                f"Folder found {len(missing)} of {len(missing) + len(found)} files in {path} not "
                f"in a class folder of {self.root}, the first is {missing[0]!r}. "
                "Write one path below root a line: class/video.mp4."
            )
        return [(label, entry) for label, entry in found if self._wants(label)]

    def _entries(self, found: Found) -> list[Entry]:
        groups = self._grouped([path for _, path in found])
        root = str(Path(self.root))
        return [
            Entry(path, os.path.join(root, path), label, group)
            for (label, path), group in zip(found, groups, strict=True)
        ]


def _videos(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the path of each video in a folder and below it; links to folders are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_video(entry.name):
                yield (*above, entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield from _videos(Path(entry.path), (*above, entry.name))
