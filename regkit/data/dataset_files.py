"""What all data sets on disk share: entries of a list, video files, and the checks of a split."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.video import Splits, Video
from regkit.errors import InputError

EXTENSIONS = ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv"
SPLITS = ("train", "val", "test")

_SUFFIXES = frozenset(EXTENSIONS.split())


@dataclass(frozen=True)
class Entry:
    """A video as an annotation lists it; `path` is None when its file is not there."""

    name: str
    path: str | None
    label: str
    group: str
    start_s: float = 0.0
    end_s: float | None = None


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


def index(root: str) -> dict[str, list[str]]:
    """Map the name of each video below root, without its extension, to its paths below root."""
    found: dict[str, list[str]] = {}
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back would be followed for ever
            below.clear()
            continue
        seen.add(real)
        for name in filter(is_video, names):
            place = Path(folder, name).relative_to(root).as_posix()
            found.setdefault(os.path.splitext(name)[0], []).append(place)
    return found


def pick(places: Sequence[str], *near: str) -> str | None:
    """Choose the path with most of `near` among its folders, then the first by name."""
    return min(
        places,
        key=lambda place: (-len(set(near).intersection(place.split("/")[:-1])), place),
        default=None,
    )


def present(who: str, parts: Mapping[str, list[Entry]], min_found: float) -> dict[str, list[Entry]]:
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
