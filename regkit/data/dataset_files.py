"""What data sets of listed files share: entries, the files, and splits, drawn or official."""

import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.video import SPLITS, Splits, Video, by_group, folds_by_group
from regkit.data.video_data import VideoData
from regkit.errors import InputError

EXTENSIONS = ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv"

_SUFFIXES = frozenset(EXTENSIONS.split())
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A video as an annotation lists it; `path` is None when its file is not there."""

    name: str
    path: str | None
    label: str
    group: str
    start_s: float = 0.0
    end_s: float | None = None


Parts = dict[str, list[Entry]]  # by split
Index = dict[str, list[str]]  # paths below root, by name without extension


def is_video(name: str) -> bool:
    """Tell whether a file's name ends as videos do and is not hidden."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith(".")


def read_text(who: str, option: str, path: str | Path) -> str:
    """Read a file in UTF-8, with or without a byte order mark.

    Raises: InputError when it is not there or in another code.
    """
    if not Path(path).is_file():
        raise InputError(f"{who} got {option}={str(path)!r}, which is no file.")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{who} cannot read {path}: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from error


def index(root: str) -> Index:
    """Map the name of each video below root, without its extension, to its paths below root."""
    found: Index = {}
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back would be followed for ever
            below.clear()
            continue
        seen.add(real)
        place = Path(folder).relative_to(root).as_posix()
        above = "" if place == "." else f"{place}/"
        for name in filter(is_video, names):
            found.setdefault(os.path.splitext(name)[0], []).append(above + name)
    return found


def present(who: str, parts: Parts, min_found: float) -> Parts:
    """Leave out what has no file, with a warning that counts.

    min_found: share that must be there, of each split.
    Raises: InputError when less is there.
    """
    kept = {
        name: [entry for entry in entries if entry.path is not None]
        for name, entries in parts.items()
    }
    missing = [entry.name for entries in parts.values() for entry in entries if entry.path is None]
    if not missing:
        return kept
    counts = ", ".join(
        f"{len(entries) - len(kept[name])} of {len(entries)} in {name}"
        for name, entries in parts.items()
    )
    lost = f"the files of {counts}; the first is {missing[0]!r}"
    if any(len(kept[name]) < min_found * len(entries) for name, entries in parts.items()):
        raise InputError(
            f"{who} misses {lost}. It must find {min_found:g} of each split: mend the root, or "
            "lower min_found to leave out what is missing."
        )
    warnings.warn(f"{who} leaves out what it does not find: {lost}", stacklevel=3)
    return kept


def restricted(
    who: str, classes: Sequence[str], include: Sequence[str | int] | None, root: str
) -> list[str]:
    """Keep the included classes, in the order of `classes`.

    Raises: InputError when one is not there, or fewer than two are left.
    """
    wanted = None if include is None else {str(name) for name in include}
    chosen = [name for name in classes if wanted is None or name in wanted]
    absent = sorted((wanted or set()) - set(chosen))
    if absent:
        raise InputError(
            f"{who} got include={absent}, but {root} holds no videos of these; "
            f"of those included it holds {chosen}."
        )
    if len(chosen) < 2:
        what = f"only the class {chosen[0]!r}" if chosen else "no videos in class folders"
        raise InputError(
            f"{who} found {what} in {root}. Give videos of two or more classes, "
            f"in files that end in {EXTENSIONS}."
        )
    return chosen


def labelled(entries: Iterable[Entry], classes: Sequence[str]) -> list[Video]:
    """Number the classes; entries of other classes, or without a file, are left out."""
    number = {name: label for label, name in enumerate(classes)}
    return [
        Video(entry.path, number[entry.label], entry.group, entry.start_s, entry.end_s)
        for entry in entries
        if entry.path is not None and entry.label in number
    ]


def checked(
    who: str, splits: Mapping[str, list[Video]], classes: list[str], official: bool = False
) -> Splits:
    """Check that no group is in two splits, no split empty, and no class without training.

    official: a group in two splits is only warned of; whoever made the split, results are
        compared on it.
    """
    groups = {name: {video.group for video in splits[name]} for name in SPLITS}
    for name, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = groups[name] & groups[other]
        if not shared:
            continue
        leak = (
            f"{who}: group {min(shared)!r} is both in {name} and in {other}, which makes "
            "accuracies too good."
        )
        if not official:
            raise InputError(f"{leak} Mend the lists, folders or the group expression.")
        warnings.warn(
            f"{leak} So are {len(shared)} groups; the official split is kept.", stacklevel=4
        )
    for name in SPLITS:
        if not splits[name]:
            raise InputError(
                f"{who}: no videos are left for {name}; all in all there are "
                f"{len(set().union(*groups.values()))} groups. Give more groups or its list."
            )
    untaught = set(range(len(classes))) - {video.label for video in splits["train"]}
    if untaught:
        raise InputError(
            f"{who}: no training video of {[classes[label] for label in sorted(untaught)]}. "
            "Choose other groups, shares or seed, or restrict the classes by include."
        )
    return Splits(**splits, classes=classes)


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
        if self.group is None:
            return list(paths)
        matches = [re.search(self.group, path) for path in paths]
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

    def _find(self, files: Index, name: str, *near: str) -> str | None:
        """Return the path of a video; of several, that with most of `near` among its folders."""
        places = sorted(files.get(name, ()))
        if not places:
            return None
        best = max(places, key=lambda place: len({*near} & {*place.split("/")[:-1]}))
        return str(Path(self.root, best))

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

    def _split(self, parts: Parts, classes: Sequence[str]) -> Splits:
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
