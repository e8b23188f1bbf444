"""Write what was found to a folder, and say it in words."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from regkit.inference.predict import picture
from regkit.inference.predict.film import Film
from regkit.inference.predict.live import Tell
from regkit.inference.predict.result import Result, as_plain
from regkit.inference.predict.tables import WindowTable, write_json, write_segments, write_windows
from regkit.inference.predict.windows import Window

_MOST_SEGMENTS = 20  # lines on the screen


def write(
    result: Result,
    out: Path,
    title: str,
    about: Mapping[str, Any],
    top: int,
    table: bool = True,
) -> None:
    """Write windows.csv, windows.json, segments.csv and timeline.png.

    about: goes into windows.json too.
    table: a stream's windows.csv is there already.
    """
    out.mkdir(parents=True, exist_ok=True)
    if table:
        write_windows(result, out / "windows.csv", top)
    write_segments(result, out / "segments.csv")
    plain = {"classes": list(result.classes), "seconds": result.end_s, **as_plain(result, top)}
    write_json(out / "windows.json", {**about, **plain})
    picture.write(result, title, out / "timeline.png")


@contextmanager
def growing(out: Path, classes: Sequence[str], top: int) -> Iterator[Tell]:
    """Return what prints a window and adds it to windows.csv at once."""
    with (out / "windows.csv").open("w", newline="", encoding="utf-8") as file:
        table = WindowTable(file, classes, top)

        def tell(window: Window, row: Float64[np.ndarray, " classes"], behind_ms: float) -> None:
            table.add(window, row)
            label = int(row.argmax())
            print(
                f"{window.start_s:9.2f} - {window.end_s:9.2f} s  {classes[label]:<24} "
                f"{row[label]:.2f}  {behind_ms:5.0f} ms behind",
                flush=True,
            )

        yield tell


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
    return speed(
        {
            "frames_per_s": frames / seconds,
            "windows_per_s": windows / seconds,
            "real_time_factor": sum(film.result.end_s for film in films) / seconds,
        }
    )


def losses(found: Mapping[str, Any]) -> str:
    """Say how far a stream's windows were behind, and what was lost."""
    behind = found["behind_ms"]
    return (
        f"behind the stream: {behind['median']:.3g} ms (95th percentile {behind['p95']:.3g}); "
        f"{found['skipped_windows']} windows came too fast, {found['dropped_frames']} frames are "
        f"in no window, {found['broken_packets']} packets were broken"
    )
