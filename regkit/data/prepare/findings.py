"""Put together what the checked files say of a data set: counts, leaks, contradictions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from regkit.data.clip_spec import Sampling
from regkit.data.prepare.check import Facts, Part
from regkit.data.video import SPLITS, Splits, Video

_MEASURES = ("duration_s", "frames", "width_px", "height_px", "rate_fps")

Places = dict[str, dict[Part, int]]  # of each file, its parts in the order of `Facts.in_part`


@dataclass(frozen=True, slots=True)
class Row:
    """One video of the data set, and what is known of its file.

    frames: from which a clip is taken.
    late: its part begins or ends after the file.
    """

    split: str
    label: str
    video: Video
    facts: Facts
    frames: int
    late: bool

    @property
    def readable(self) -> bool:
        """Tell whether a clip can be taken from it."""
        return not self.facts.reason and self.frames > 0


@dataclass(frozen=True)
class Findings:
    """All that was found; lists hold dictionaries, as they are written.

    official: a group in two splits is told, but no problem.
    classes: of each class and split, the number of videos, and of those that can be read.
    unreadable, cut_short: files. late: parts that do not lie within their files.
    short: of each split, the videos that have fewer frames than a clip spans, `clip_frames`.
    leaks: what two splits share, by "group", "file" (one path), "content" (equal bytes).
    repeated: videos that one split lists twice, or as copies.
    contradictory: equal videos of different classes.
    empty: classes without a readable video in a split.
    """

    official: bool
    videos: dict[str, int]
    files: int
    num_bytes: int
    classes: dict[str, dict[str, tuple[int, int]]]
    unreadable: list[dict[str, Any]]
    cut_short: list[dict[str, Any]]
    late: list[dict[str, Any]]
    clip_frames: int
    short: dict[str, int]
    leaks: dict[str, list[dict[str, Any]]]
    repeated: list[dict[str, Any]]
    contradictory: list[dict[str, Any]]
    empty: list[dict[str, Any]]
    statistics: dict[str, Any]

    @property
    def problems(self) -> list[str]:
        """Count what makes the data set unsound, in words; nothing when it is sound."""
        counts = {
            "files that cannot be read": len(self.unreadable),
            "files that are cut short": len(self.cut_short),
            "parts that are not within their files": len(self.late),
            **{
                f"leaks by {kind}": len(found)
                for kind, found in self.leaks.items()
                if not (self.official and kind == "group")
            },
            "contradictory labels": len(self.contradictory),
            "classes without videos in a split": len(self.empty),
        }
        return [f"{what}: {count}" for what, count in counts.items() if count]


def places(splits: Splits) -> Places:
    """List the distinct files, and the distinct parts of each that are videos."""
    found: Places = {}
    for name in SPLITS:
        for video in getattr(splits, name):
            parts = found.setdefault(video.path, {})
            parts.setdefault((video.start_s, video.end_s), len(parts))
    return found


def rows(splits: Splits, facts: Mapping[str, Facts], known: Places) -> Iterator[Row]:
    """Go through all videos, split by split."""
    for name in SPLITS:
        for video in getattr(splits, name):
            file = facts[video.path]
            place = known[video.path][video.start_s, video.end_s]
            frames = file.in_part[place] if file.in_part else 0
            label = splits.classes[video.label]
            yield Row(name, label, video, file, frames, place in file.late)


def clip_frames(sampling: Sampling) -> int:
    """Count the frames that a clip spans where it need not repeat any."""
    if sampling.kind == "uniform":
        return sampling.num_frames
    return (sampling.num_frames - 1) * sampling.stride + 1


def find(
    splits: Splits,
    facts: Mapping[str, Facts],
    known: Places,
    sampling: Sampling,
    official: bool = False,
) -> Findings:
    """Draw all conclusions.

    official: others made the splits, and results are compared on them as they are.
    """
    every = list(rows(splits, facts, known))
    files = sorted(facts.values(), key=lambda file: file.path)
    needed, classes = clip_frames(sampling), _classes(every, splits.classes)
    return Findings(
        official=official,
        videos={name: len(getattr(splits, name)) for name in SPLITS},
        files=len(files),
        num_bytes=sum(file.num_bytes for file in files),
        classes=classes,
        unreadable=[{"path": f.path, "reason": f.reason} for f in files if f.reason],
        cut_short=[
            {"path": f.path, "announced": f.announced, "decoded": f.decoded}
            for f in files
            if f.cut_short
        ],
        late=[
            {"video": str(row.video), "split": row.split, "duration_s": row.facts.duration_s}
            for row in every
            if row.late
        ],
        clip_frames=needed,
        short={
            name: sum(row.split == name and row.readable and row.frames < needed for row in every)
            for name in SPLITS
        },
        leaks={
            "group": _groups(every),
            "file": _shared(every, lambda row: row.video.path, one_path=True),
            "content": _shared(every, lambda row: row.facts.sha256, one_path=False),
        },
        repeated=_repeated(every),
        contradictory=_contradictory(every),
        empty=[
            {"class": label, "split": name}
            for label, counts in classes.items()
            for name in SPLITS
            if counts[name][1] == 0
        ],
        statistics=_statistics([file for file in files if not file.reason]),
    )


def _classes(every: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, tuple[int, int]]]:
    videos = Counter((row.label, row.split) for row in every)
    readable = Counter((row.label, row.split) for row in every if row.readable)
    return {
        label: {name: (videos[label, name], readable[label, name]) for name in SPLITS}
        for label in names
    }


def _groups(every: Sequence[Row]) -> list[dict[str, Any]]:
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in every:
        found[row.video.group][row.split] += 1
    return [
        {"group": group, **{name: counts[name] for name in SPLITS}}
        for group, counts in sorted(found.items())
        if len(counts) > 1
    ]


def _shared(
    every: Sequence[Row], key: Callable[[Row], str], one_path: bool
) -> list[dict[str, Any]]:
    """List what is in two splits by `key`, where that is one path, or where it is several."""
    found: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in every:
        if key(row):
            found[key(row)].add((row.split, row.video.path))
    return [
        {name: sorted(path for split, path in where if split == name) for name in SPLITS}
        for where in sorted(found.values(), key=sorted)
        if len({split for split, _ in where}) > 1
        and (len({path for _, path in where}) == 1) == one_path
    ]


def _equal(every: Sequence[Row]) -> list[list[Row]]:
    """Group the videos that show the same part of the same content."""
    found: defaultdict[tuple[str, float, float | None], list[Row]] = defaultdict(list)
    for row in every:
        content = row.facts.sha256 or row.video.path
        found[content, row.video.start_s, row.video.end_s].append(row)
    return [equal for equal in found.values() if len(equal) > 1]


def _repeated(every: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"split": name, "videos": [str(row.video) for row in here]}
        for equal in _equal(every)
        for name in SPLITS
        if len(here := [row for row in equal if row.split == name]) > 1
    ]


def _contradictory(every: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"videos": [{"class": r.label, "split": r.split, "video": str(r.video)} for r in equal]}
        for equal in _equal(every)
        if len({row.label for row in equal}) > 1
    ]


def _statistics(files: Sequence[Facts]) -> dict[str, Any]:
    def measure(file: Facts, name: str) -> int | float:
        if name == "frames":
            return file.announced if file.decoded is None else file.decoded
        return getattr(file, name)

    measures = {name: [measure(file, name) for file in files] for name in _MEASURES}
    return {
        **{
            name: {"min": min(found), "median": median(found), "max": max(found)}
            for name, found in measures.items()
            if found
        },
        "hours": sum(measures["duration_s"]) / 3600,
        "variable_rate": sum(file.variable for file in files),
        "resolutions": _counted(f"{file.width_px} x {file.height_px}" for file in files),
        "codecs": _counted(file.codec for file in files),
    }


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
