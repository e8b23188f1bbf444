"""Write what was found: for people, for tables, for programs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regkit.data.prepare.findings import Findings, Row
from regkit.data.video import SPLITS
from regkit.files import write_table, write_text

_LISTED = 50  # entries of a list in the readable report; the others are in report.json
_SHOWN = 3  # in the summary, and of names in a line
_COMMON = 5  # resolutions and codecs
_MEASURES = {
    "duration_s": "duration in s",
    "frames": "frames",
    "width_px": "width in px",
    "height_px": "height in px",
    "rate_fps": "frames per s",
}


def write(folder: Path, about: Mapping[str, Any], found: Findings, every: Iterable[Row]) -> None:
    """Write report.json, files.csv and report.md; nobody ever sees half of one.

    about: what was checked, and how.
    Raises: OSError.
    """
    record = {**about, "sound": not found.problems, "problems": found.problems, **asdict(found)}
    write_text(folder / "report.json", json.dumps(record, indent=1))
    lines = [_line(row, found.clip_frames) for row in every]
    write_table(folder / "files.csv", [[*lines[0]], *(list(line.values()) for line in lines)])
    write_text(folder / "report.md", "\n".join(_page(about, found)) + "\n")


def _line(row: Row, clip_frames: int) -> dict[str, Any]:
    """Say all of a video; None is written as nothing."""
    video, facts = row.video, row.facts
    return {
        "split": row.split,
        "class": row.label,
        "group": video.group,
        "path": video.path,
        "start_s": video.start_s,
        "end_s": video.end_s,
        "remark": _remark(row, clip_frames),
        "frames_for_clip": row.frames,
        "announced": facts.announced,
        "decoded": facts.decoded,
        "width_px": facts.width_px,
        "height_px": facts.height_px,
        "codec": facts.codec,
        "rate_fps": round(facts.rate_fps, 4),
        "variable_rate": int(facts.variable),
        "duration_s": round(facts.duration_s, 4),
        "bytes": facts.num_bytes,
        "sha256": facts.sha256,
    }


def _remark(row: Row, clip_frames: int) -> str:
    if row.facts.reason:
        return row.facts.reason
    if row.facts.cut_short:
        return "cut short"
    if row.late:
        return "not within the file"
    return "shorter than a clip" if row.frames < clip_frames else ""


def shown(name: str) -> str:
    """Make a name fit to print: no control characters, nor bytes that are no text."""
    return name if name.isprintable() else repr(name)


def lists(found: Findings) -> Iterator[tuple[str, list[str]]]:
    """Name what was found and is not empty, with a line for each finding."""
    leaks = found.leaks
    every = {
        "Files that cannot be read": [
            f"{shown(f['path'])}: {f['reason']}" for f in found.unreadable
        ],
        "Files that are cut short": [
            f"{shown(f['path'])}: {f['decoded']} of {f['announced']} frames"
            for f in found.cut_short
        ],
        "Parts that are not within their files": [
            f"{shown(f['video'])} of {f['duration_s']:.2f} s" for f in found.late
        ],
        "Leaks: groups in several splits": [
            f"{shown(f['group'])}: " + ", ".join(f"{f[n]} in {n}" for n in SPLITS if f[n])
            for f in leaks["group"]
        ],
        "Leaks: files in several splits": [_where(f) for f in leaks["file"]],
        "Leaks: equal files in several splits": [_where(f) for f in leaks["content"]],
        "Labels that contradict each other: equal videos of different classes": [
            _equal(f"{shown(v['video'])} ({v['class']}, {v['split']})" for v in f["videos"])
            for f in found.contradictory
        ],
        "Classes without videos in a split": [f"{f['class']} in {f['split']}" for f in found.empty],
        "Videos that are twice in one split": [
            f"{f['split']}: {_equal(map(shown, f['videos']))}" for f in found.repeated
        ],
    }
    yield from ((title, lines) for title, lines in every.items() if lines)


def _where(leak: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{n}: {_equal(map(shown, leak[n]))}" for n in SPLITS if leak[n])


def _equal(names: Iterable[str]) -> str:
    names = list(names)
    more = [f"{len(names) - _SHOWN} more"] * (len(names) > _SHOWN)
    return " = ".join(names[:_SHOWN] + more)


def _rows(head: Sequence[Any], body: Iterable[Sequence[Any]]) -> list[str]:
    """Make a Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return [*[f"| {' | '.join(line)} |" for line in cells], ""]


def _page(about: Mapping[str, Any], found: Findings) -> list[str]:
    verdict = "; ".join(found.problems)
    page = [
        f"# {about['data']}",
        "",
        f"Checked on {about['date']} in {about['seconds']} s: `{' '.join(about['overrides'])}`"
        + (", headers and first frames only." if about["quick"] else ", to the last frame."),
        "",
        f"**Unsound. {verdict}.**" if verdict else "**Sound.**",
        "",
        *[line for note in about["notes"] for line in (f"Note: {shown(note)}", "")],
        *_rows(("", *SPLITS), [(name, *line.values()) for name, line in _counts(found).items()]),
    ]
    for title, lines in lists(found):
        page += [f"## {title}", "", *[f"- {line}" for line in lines[:_LISTED]]]
        page += [f"- and {len(lines) - _LISTED} more, in report.json"] * (len(lines) > _LISTED)
        page.append("")
    numbers = found.statistics
    page += ["## Files that can be read", ""]
    page += _rows(
        ("", "least", "median", "most"),
        [
            (what, *(f"{numbers[name][k]:.6g}" for k in ("min", "median", "max")))
            for name, what in _MEASURES.items()
            if name in numbers
        ],
    )
    page += _rows(("resolution", "files"), list(numbers["resolutions"].items())[:_LISTED])
    page += _rows(("codec", "files"), numbers["codecs"].items())
    page += [f"{numbers['variable_rate']} files have a variable rate.", ""]
    page += ["## Videos by class (and how many of them cannot be read)", ""]
    page += _rows(
        ("class", *SPLITS),
        [(label, *map(_cell, counts.values())) for label, counts in found.classes.items()],
    )
    return page


def _cell(counts: tuple[int, int]) -> str:
    videos, readable = counts
    return str(videos) if videos == readable else f"{videos} ({videos - readable})"


def _counts(found: Findings) -> dict[str, dict[str, int]]:
    unreadable = {
        name: sum(videos - good for videos, good in (c[name] for c in found.classes.values()))
        for name in SPLITS
    }
    return {
        "videos": found.videos,
        "of these, not readable": unreadable,
        f"of these, shorter than a clip of {found.clip_frames} frames": found.short,
    }


def summary(about: Mapping[str, Any], found: Findings) -> list[str]:
    """Say in a screenful what was found."""
    numbers = found.statistics
    lines = [
        f"{about['data']}: {sum(found.videos.values())} videos of {len(found.classes)} classes in "
        f"{found.files} files, {numbers['hours']:.2f} h, {found.num_bytes / 2**20:.1f} MiB; "
        f"checked in {about['seconds']} s"
    ]
    for name, line in _counts(found).items():
        if any(line.values()):
            lines.append(f"{name}: " + ", ".join(f"{line[split]} {split}" for split in SPLITS))
    for name, what in _MEASURES.items():
        if name in numbers and name not in ("width_px", "height_px"):
            low, mid, high = (f"{numbers[name][key]:.5g}" for key in ("min", "median", "max"))
            lines.append(f"{what}: {low} to {high}, median {mid}")
    for what in ("resolutions", "codecs"):
        common = list(numbers[what].items())[:_COMMON]
        lines.append(f"{what}: " + ", ".join(f"{name} ({count})" for name, count in common))
    lines.append(f"files of variable rate: {numbers['variable_rate']}")
    for title, entries in lists(found):
        lines.append(f"{title}: {len(entries)}")
        lines += [f"  {entry}" for entry in entries[:_SHOWN]]
        lines += ["  ..."] * (len(entries) > _SHOWN)
    lines.append("unsound: " + "; ".join(found.problems) if found.problems else "sound")
    return lines
