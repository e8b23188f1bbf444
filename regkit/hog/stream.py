"""Frames one after the other, of a file or of what is still being filmed."""

import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from regkit.data.decode import pictures, sides, upright
from regkit.data.timeline import LostError, VideoError, read_timeline
from regkit.errors import InputError

CAMERA = "/dev/video"
STDIN = "-"

Timed = tuple[float, UInt8[np.ndarray, "height width 3"]]


def frames(source: str, short_px: int) -> Iterator[Timed]:
    """Yield each frame with its time in seconds, upright, the short side scaled.

    source: a file; or a stream that is decoded as it comes: a URL, a named pipe, a camera
        (/dev/video0, on Linux), "-" for standard input.
    Raises: InputError when it cannot be opened, or no frame of it be decoded.
    """
    path = Path(source)
    try:
        if source == STDIN or source.startswith(CAMERA) or "://" in source or _is_pipe(path):
            yield from _filmed(source, short_px)
        else:
            yield from _stored(source, short_px)
    except (VideoError, FFmpegError, OSError) as error:
        raise InputError(
            f"--watch got {source}, which cannot be read: {error}. Give a video file, a URL, a "
            "named pipe, a camera such as /dev/video0, or - for standard input."
        ) from error


def _is_pipe(path: Path) -> bool:
    return path.exists() and stat.S_ISFIFO(path.stat().st_mode)


def _stored(source: str, short_px: int) -> Iterator[Timed]:
    timeline, done = read_timeline(source), 0
    while True:
        wanted = np.arange(done, len(timeline))
        try:
            for picture in pictures(source, wanted, short_px, timeline, threads=0):
                yield float(timeline.times_s[done]), picture
                done += 1
            return
        except LostError:  # once: counted frames are never lost
            timeline = replace(timeline, exact=False)


def _filmed(source: str, short_px: int) -> Iterator[Timed]:
    first_s = None
    file: Any = sys.stdin.buffer if source == STDIN else source
    kind = "v4l2" if source.startswith(CAMERA) else None
    opened: Any = av.open(file, "r", format=kind)
    with opened as container:
        if not container.streams.video:
            raise InputError(f"--watch got {source}, which has no video stream.")
        rate = float(container.streams.video[0].average_rate or 25)
        for number, frame in enumerate(container.decode(video=0)):
            time_s = number / rate if frame.time is None else frame.time
            first_s = time_s if first_s is None else first_s
            yield time_s - first_s, upright(frame, sides(frame, short_px, source))
