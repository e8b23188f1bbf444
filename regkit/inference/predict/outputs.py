"""Write what was found to a folder, and say it in words."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from regkit.errors import InputError
from regkit.files import cell, write_table, write_text
from regkit.inference.predict import picture
from regkit.inference.predict.film import Film, rates
from regkit.inference.predict.live import Tell
from regkit.inference.predict.result import Result, as_plain
from regkit.inference.predict.windows import Window

SUMMARY = "summary.csv"
SUMMARY_COLUMNS = ["file", "seconds", "windows", "class", "probability", "problem"]
_MOST_SEGMENTS = 20  # lines on the screen

Row = Float64[np.ndarray, " classes"]


def write(
    result: Result, out: Path, title: str, about: Mapping[str, Any], top: int, table: bool = True
) -> None:
    """Write windows.csv, windows.json, segments.csv and timeline.png.

    about: goes into windows.json too.
    table: a stream's windows.csv is there already.
    """
    out.mkdir(parents=True, exist_ok=True)
    if table:
        found = zip(result.windows, result.probabilities, strict=True)
        rows = [_cells(window, row, result.classes, top) for window, row in found]
        write_table(out / "windows.csv", [_columns(result.classes, top), *rows])
    segments = [
        (f"{s.start_s:.6f}", f"{s.end_s:.6f}", result.name(s.label), f"{s.probability:.6g}")
        for s in result.segments
    ]
    columns = ("start_s", "end_s", "class", "probability")
    write_table(out / "segments.csv", [columns, *segments])
    plain = {"classes": list(result.classes), "seconds": result.end_s, **as_plain(result, top)}
    write_text(out / "windows.json", json.dumps({**about, **plain}, indent=1))
    picture.write(result, title, out / "timeline.png")


@contextmanager
def growing(out: Path, classes: Sequence[str], top: int) -> Iterator[Tell]:
    """Return what prints a window and adds it to windows.csv, which is there at every moment."""
    with (out / "windows.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(cell, _columns(classes, top)))

        def tell(window: Window, row: Row, behind_ms: float) -> None:
            table.writerow(map(cell, _cells(window, row, classes, top)))
            file.flush()
            label = int(row.argmax())
            print(
                f"{window.start_s:9.2f} - {window.end_s:9.2f} s  {classes[label]:<24} "
                f"{row[label]:.2f}  {behind_ms:5.0f} ms behind",
                flush=True,
            )

        yield tell


def _columns(classes: Sequence[str], top: int) -> list[str]:
    """Name times, the `top` classes with their probabilities, and p(class) of all."""
    numbers = range(1, min(top, len(classes)) + 1)
    best = [f"{kind}_{number}" for number in numbers for kind in ("class", "probability")]
    # A class may have the name of a column.
    return ["start_s", "end_s", *best, *(f"p({name})" for name in classes)]


def _cells(window: Window, row: Row, classes: Sequence[str], top: int) -> list[str]:
    order = np.argsort(-row, kind="stable")[:top].tolist()
    best = [cell for k in map(int, order) for cell in (classes[k], f"{row[k]:.6g}")]
    return [f"{window.start_s:.6f}", f"{window.end_s:.6f}", *best, *(f"{p:.6g}" for p in row)]


def files_in(folder: Path, out: Path) -> list[Path]:
    """List all files below a folder but hidden ones, and those that were written to `out`.

    Raises: InputError when there are none.
    """
    out = out.resolve()
    inside = out.is_relative_to(folder.resolve()) and out != folder.resolve()
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (inside and path.resolve().is_relative_to(out))
    ]
    if not found:
        raise InputError(f"predict got video={folder}, a folder without files.")
    return found


def summary_row(name: str, film: Film) -> list[str]:
    """Say what was found in a film, by SUMMARY_COLUMNS."""
    result = film.result
    label, probability = result.overall
    times = (f"{result.end_s:.6g}", str(len(result.windows)))
    problem = "" if film.broken is None else film.broken.reason
    return [name, *times, result.classes[label], f"{probability:.6g}", problem]


def summary(result: Result, hop_s: float) -> list[str]:
    """Say what happens when."""
    first = result.windows[0]
    length_s = first.end_s - first.start_s
    lines = [
        f"{result.end_s:.2f} s, {len(result.windows)} windows of {length_s:.3g} s "
        f"every {hop_s:.3g} s"
    ]
    for part in result.segments[:_MOST_SEGMENTS]:
        name = result.name(part.label)
        lines.append(
            f"{part.start_s:9.2f} - {part.end_s:9.2f} s  {name:<24} {part.probability:.2f}"
        )
    if len(result.segments) > _MOST_SEGMENTS:
        lines.append(f"  and {len(result.segments) - _MOST_SEGMENTS} more, see segments.csv")
    return lines


def speed(found: Mapping[str, Any]) -> str:
    """Say how fast it went."""
    return (
        f"speed: {found['frames_per_s']:.4g} frames of the film a second, "
        f"{found['windows_per_s']:.3g} windows a second, "
        f"{found['real_time_factor']:.3g} times real time"
    )


def together(films: Sequence[Film]) -> str:
    """Say how fast a folder went."""
    seconds = sum(film.read_s for film in films)
    if not seconds:
        return "nothing could be read"
    frames = sum(film.result.windows[-1].last for film in films)
    windows = sum(len(film.result.windows) for film in films)
    return speed(rates(frames, windows, sum(film.result.end_s for film in films), seconds))


def losses(found: Mapping[str, Any]) -> str:
    """Say how far a stream's windows were behind, and what was lost."""
    behind = found["behind_ms"]
    return (
        f"behind the stream: {behind['median']:.3g} ms (95th percentile {behind['p95']:.3g}); "
        f"{found['skipped_windows']} windows came too fast, {found['dropped_frames']} frames are "
        f"in no window, {found['broken_packets']} packets were broken"
    )
