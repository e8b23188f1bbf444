"""Find the user's videos in folders named by class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.split import by_group
from regkit.data.video import Splits, Video
from regkit.data.video_data import VideoData
from regkit.errors import InputError

_EXTENSIONS = ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv"
_NAMES = ("train", "val", "test")

Found = list[tuple[str, str]]  # (class, path below root)


@dataclass(kw_only=True, eq=False, repr=False)
class Folder(VideoData):
    r"""Read root/class/video, or root/{train,val,test}/class/video; deeper folders are searched.

    Who is in which split: the lists, if given; else the folders train, val and test; else groups
    named in `val_groups` and `test_groups`. What is still missing is taken from training by
    share, group by group, the same for equal seeds.

    train_list, val_list, test_list: text files, one path below root a line (UCF101's own will do:
        a number after the path is ignored).
    group: regular expression with one pair of brackets, searched in the path below root; what the
        brackets hold names the group: "_(g[0-9]+)_" for UCF101. By default each file is a group
        of its own, and the same person may be on both sides.
    include: take only these classes.

    Raises: InputError when files, classes or a split are missing, or a group is in two splits.
    """

    root: str
    train_list: str | None = None
    val_list: str | None = None
    test_list: str | None = None
    group: str | None = None
    val_share: float = 0.15
    test_share: float = 0.15
    val_groups: Sequence[str] = ()
    test_groups: Sequence[str] = ()
    include: Sequence[str] | None = None

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
                    f"Folder got group={self.group!r}, no regular expression: {error}."
                ) from error
            self._check("group", brackets == 1, "a regular expression with one pair of brackets")
        named = self.val_groups or self.test_groups
        self._check("group", not named or self.group is not None, "one, to name groups")

    def videos(self) -> Splits:
        """Search the folders and split what was found."""
        if not Path(self.root).is_dir():
            raise InputError(f"Folder got root={self.root!r}, which is no folder. Set data.root.")
        parts = self._listed() or self._foldered() or {"train": self._below("")}
        classes = sorted({label for found in parts.values() for label, _ in found})
        self._check_classes(classes)
        splits = self._completed(
            {name: self._labelled(found, classes) for name, found in parts.items()}
        )
        self._check_splits(splits, classes)
        return Splits(**splits, classes=classes)

    def _wants(self, label: str) -> bool:
        return self.include is None or label in self.include

    def _below(self, part: str) -> Found:
        return [
            (folder.name, path.relative_to(self.root).as_posix())
            for folder in sorted(Path(self.root, part).iterdir())
            if folder.is_dir() and self._wants(folder.name)
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in _EXTENSIONS.split() and not path.name.startswith(".")
        ]

    def _foldered(self) -> dict[str, Found] | None:
        names = [name for name in _NAMES if Path(self.root, name).is_dir()]
        if "train" not in names or len(names) == 1:
            return None
        return {name: self._below(name) for name in names}

    def _listed(self) -> dict[str, Found] | None:
        lists = {name: getattr(self, f"{name}_list") for name in _NAMES}
        given = {name: path for name, path in lists.items() if path is not None}
        if given and "train" not in given:
            raise InputError(f"Folder got a list for {sorted(given)} only; give train_list too.")
        return {name: self._read_list(name, path) for name, path in given.items()}

    def _read_list(self, name: str, path: str) -> Found:
        if not Path(path).is_file():
            raise InputError(f"Folder got {name}_list={path!r}, which is no file.")
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
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

    def _check_classes(self, classes: list[str]) -> None:
        absent = sorted(set(self.include or ()) - set(classes))
        if absent:
            raise InputError(
                f"Folder got include={absent}, but {self.root} holds no videos of these; "
                f"of those included it holds {classes}."
            )
        if len(classes) < 2:
            what = f"only the class {classes[0]!r}" if classes else "no videos in class folders"
            raise InputError(
                f"Folder found {what} in {self.root}. Give two or more folders named by class, "
                f"with files that end in {_EXTENSIONS}."
            )

    def _labelled(self, found: Found, classes: list[str]) -> list[Video]:
        pattern = "(.*)" if self.group is None else self.group
        matches = [re.search(pattern, path) for _, path in found]
        without = [path for (_, path), match in zip(found, matches, strict=True) if match is None]
        if without:
            raise InputError(
                f"Folder got group={self.group!r}, which does not fit {len(without)} of "
                f"{len(found)} paths, the first is {without[0]!r}. Mend the expression."
            )
        return [
            Video(str(Path(self.root, path)), classes.index(label), str(match[1]))
            for (label, path), match in zip(found, matches, strict=True)
            if match is not None
        ]

    def _completed(self, parts: dict[str, list[Video]]) -> dict[str, list[Video]]:
        parts, rest = dict(parts), parts["train"]
        known = {video.group for video in rest}
        for name in ("val", "test"):
            named = set(getattr(self, f"{name}_groups"))
            if named and name in parts:
                raise InputError(f"Folder got {name}_groups, but {name} is given by files already.")
            if named - known:
                raise InputError(
                    f"Folder got {name}_groups={sorted(named - known)}, which hold no video (or "
                    f"are named twice); there are {sorted(known)}."
                )
            if named:
                parts[name] = [video for video in rest if video.group in named]
                rest = [video for video in rest if video.group not in named]
                known -= named
        open_shares = {"val": self.val_share, "test": self.test_share}
        shares = {name: share for name, share in open_shares.items() if name not in parts}
        return {
            **parts,
            **by_group(rest, {"train": 1.0 - sum(shares.values()), **shares}, self.seed),
        }

    def _check_splits(self, splits: dict[str, list[Video]], classes: list[str]) -> None:
        groups = {name: {video.group for video in splits[name]} for name in _NAMES}
        for name, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if groups[name] & groups[other]:
                first = min(groups[name] & groups[other])
                raise InputError(
                    f"Folder: group {first!r} is both in {name} and in {other}, which makes "
                    "accuracies too good. Mend the lists, folders or the group expression."
                )
        for name in _NAMES:
            if not splits[name]:
                raise InputError(
                    f"Folder: no videos are left for {name}; all in all there are "
                    f"{len(set().union(*groups.values()))} groups. Give more groups or its list."
                )
        untaught = set(range(len(classes))) - {video.label for video in splits["train"]}
        if untaught:
            raise InputError(
                f"Folder: no training video of {[classes[label] for label in sorted(untaught)]}. "
                "Choose other groups, shares or seed, or restrict the classes by include."
            )
