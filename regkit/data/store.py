"""Copies of videos on disk, made for fast reading: pixels as they are, or small coded files."""

import dataclasses
import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from regkit.data.decode import pictures
from regkit.data.index import fingerprint
from regkit.data.timeline import LostError, Timeline, VideoError
from regkit.files import replacing

_FORMAT = 2  # raise when equal names come to mean other contents
# Frames, height, width; seconds a tick, width and height in the file: all little-endian.
_HEADER = struct.Struct("<3qd2q")
_SUFFIX = {"memmap": ".frames", "reencode": ".mp4"}
# Few frames between keyframes, no reordering, simple entropy coding: quick to enter, quick to read.
_QUICK = {"crf": "20", "preset": "veryfast", "tune": "fastdecode", "g": "8", "bf": "0"}

Pictures = Iterator[UInt8[np.ndarray, "height width 3"]]


@dataclass(frozen=True)
class Store:
    """Where the copies of one kind and size are.

    kind: "memmap" (RGB frames, bit for bit as they were decoded) or "reencode" (H.264).
    short_px: short side of the copies.
    """

    root: str
    kind: str
    short_px: int

    @property
    def folder(self) -> Path:
        """Name the folder of these copies."""
        return Path(self.root, f"{self.kind}_{self.short_px}px")

    def entry(self, path: str) -> Path:
        """Name the copy of a file as the file is now; a changed file has another.

        Raises: OSError when there is no such file.
        """
        text = f"{_FORMAT} {fingerprint(path)} {os.path.abspath(path)}"
        key = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / key[:2] / (key[2:] + _SUFFIX[self.kind])

    def add(self, path: str, timeline: Timeline) -> int:
        """Copy a file, and return the size of its copy in bytes.

        Nobody ever sees half of a copy: it is written beside its place and moved there.

        Raises: VideoError when the file cannot be read to its end.
        """
        entry = self.entry(path)
        entry.parent.mkdir(parents=True, exist_ok=True)
        counted = dataclasses.replace(timeline, exact=False)
        write: Callable[..., None] = {"memmap": _write_memmap, "reencode": _write_video}[self.kind]
        with replacing(entry) as draft:
            for known in (timeline, counted):
                everything = np.arange(len(known))
                try:
                    write(draft, pictures(path, everything, self.short_px, known), timeline)
                    break
                except LostError:
                    continue
        return entry.stat().st_size


def _write_memmap(target: Path, frames: Pictures, timeline: Timeline) -> None:
    """Write the header, pts, then the pixels."""
    facts = (timeline.tick_s, timeline.width_px, timeline.height_px)
    with target.open("wb") as file:
        for number, frame in enumerate(frames):
            if number == 0:
                file.write(_HEADER.pack(len(timeline), *frame.shape[:2], *facts))
                file.write(timeline.pts.astype("<i8").data)
            file.write(np.ascontiguousarray(frame).data)


@lru_cache(1)  # a clip needs it twice, for its timeline and its frames
def read_memmap(
    entry: Path,
) -> tuple[Timeline, UInt8[np.ndarray, "frames height width 3"]]:
    """Map a copy into memory: nothing is read before it is used.

    Raises: OSError when it is not there, ValueError when it is not whole.
    """
    with entry.open("rb") as file:
        begin = file.read(_HEADER.size)
        if len(begin) < _HEADER.size:
            raise ValueError("it is not whole")
        count, height, width, tick_s, width_px, height_px = _HEADER.unpack(begin)
        shape, offset = (count, height, width, 3), _HEADER.size + 8 * count
        if os.fstat(file.fileno()).st_size != offset + math.prod(shape):
            raise ValueError("it is not whole")
        pts = np.frombuffer(file.read(8 * count), dtype="<i8")
        frames = np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=shape)
    keyframe = np.ones(count, dtype=bool)
    return Timeline(pts, keyframe, True, tick_s, width_px, height_px), frames


def _write_video(target: Path, frames: Pictures, timeline: Timeline) -> None:
    """Write H.264 with the time stamps of the file; sides are made even, as the format wants."""
    tick = Fraction(timeline.tick_s).limit_denominator(1_000_000)
    with av.open(str(target), "w") as container:
        stream: VideoStream | None = None
        for array, pts in zip(frames, (timeline.pts - timeline.pts[0]).tolist(), strict=True):
            if stream is None:
                stream = container.add_stream("libx264", options=_QUICK)
                assert isinstance(stream, VideoStream)
                height, width = (side + side % 2 for side in array.shape[:2])
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                stream.time_base = stream.codec_context.time_base = tick
                stream.thread_count = 1
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = pts, tick
            container.mux(stream.encode(frame))
        if stream is None:
            raise VideoError(str(target), "no frame could be decoded")
        container.mux(stream.encode())
