"""Frames one after the other, of a file or of what is still being filmed."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from regkit.data.decode import pictures
from regkit.data.stream import Feed, is_live
from regkit.data.timeline import LostError, VideoError, read_timeline
from regkit.errors import InputError

Timed = tuple[float, UInt8[np.ndarray, "height width 3"]]


def frames(source: str, short_px: int) -> Iterator[Timed]:
    """Yield each frame with its time in seconds, upright, the short side scaled.

    source: a file; or a stream that is decoded as it comes: a URL, a named pipe, a camera
        (camera:/dev/video0), "-" for standard input.
    Raises: InputError when it cannot be opened, or no frame of it be decoded.
    """
    try:
        if is_live(source):
            for arrived in Feed(source).frames(short_px):
                yield arrived.time_s, arrived.picture
        else:
            yield from _stored(source, short_px)
    except (VideoError, FFmpegError, OSError) as error:
        raise InputError(
            f"--watch got {source}, which cannot be read: {error}. Give a video file, a URL, a "
            "named pipe, a camera such as camera:/dev/video0, or - for standard input."
        ) from error


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
