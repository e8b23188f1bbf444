"""Copies of videos, made for fast reading: RGB frames as they were decoded, or small H.264 files.

A damaged copy is noticed before a frame of it is used: by a sum of each frame, which costs less
than copying it, or by one checksum of the file.
"""

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8, UInt64

from regkit.data.decode import Frames, Indices, Picture
from regkit.data.timeline import Timeline, VideoError

# Frames, height, width, exact; seconds a tick; width and height in the file: all little-endian.
_HEADER = struct.Struct("<4qd2q")
_ROW = np.dtype([("pts", "<i8"), ("keyframe", "<i8"), ("total", "<u8")])  # of each frame
_CHECK = struct.Struct("<Q")  # CRC-32 of header and rows
_WORD = 8  # bytes that are added at once; a frame fills whole ones
_BOX = struct.Struct(">I4sI")  # a box of MP4 that is passed over, with the CRC-32 of all before it
# Few frames between keyframes, no reordering, simple entropy coding: quick to enter, quick to read.
_QUICK = {"crf": "20", "preset": "veryfast", "tune": "fastdecode", "g": "8", "bf": "0"}


class DamagedError(Exception):
    """A copy that is not as it was written."""


@dataclass(frozen=True, eq=False)
class FrameFile:
    """The frames of a video, mapped into memory: nothing is read before it is used.

    timeline: of the video.
    rows: a frame each, filled up to whole words.
    """

    timeline: Timeline
    rows: UInt8[np.ndarray, "frames bytes"]
    totals: UInt64[np.ndarray, " frames"]
    shape: tuple[int, int, int]

    def frames(self, indices: Indices) -> Frames:
        """Return frames; of indices behind the end the last one.

        Raises: DamagedError.
        """
        indices = np.minimum(indices, len(self.rows) - 1)
        chosen = self.rows[indices]
        if (_totals(chosen) != self.totals[indices]).any():
            raise DamagedError("frames in it have changed")
        return chosen[:, : math.prod(self.shape)].reshape(-1, *self.shape)


def _totals(rows: UInt8[np.ndarray, "frames bytes"]) -> UInt64[np.ndarray, " frames"]:
    """Add up each frame in words: one flipped bit always shows."""
    return rows.view("<u8").sum(axis=1, dtype=np.uint64)


def write_frames(target: Path, frames: Iterator[Picture], timeline: Timeline) -> None:
    """Write a file for `read_frames_of`: header, rows and their check, then the pixels."""
    table = np.zeros(len(timeline), dtype=_ROW)
    table["pts"], table["keyframe"] = timeline.pts, timeline.keyframe
    begin = b""
    with target.open("wb") as file:
        for number, frame in enumerate(frames):
            if number == 0:
                facts = (timeline.exact, timeline.tick_s, timeline.width_px, timeline.height_px)
                begin = _HEADER.pack(len(timeline), *frame.shape[:2], *facts)
                file.write(bytes(len(begin) + table.nbytes + _CHECK.size))
            row = np.zeros((1, -(-frame.size // _WORD) * _WORD), dtype=np.uint8)
            row[0, : frame.size] = frame.ravel()
            table["total"][number] = _totals(row)[0]
            file.write(row.data)
        file.seek(0)
        begin += table.tobytes()
        file.write(begin + _CHECK.pack(zlib.crc32(begin)))


@lru_cache(1)  # a clip needs it twice, for its timeline and its frames
def read_frames_of(entry: Path) -> FrameFile:
    """Map what `write_frames` wrote.

    Raises: OSError when it is not there, DamagedError when it is not whole.
    """
    with entry.open("rb") as file:
        begin = file.read(_HEADER.size)
        if len(begin) < _HEADER.size:
            raise DamagedError("it is not whole")
        count, height, width, exact, tick_s, width_px, height_px = _HEADER.unpack(begin)
        size, length = os.fstat(file.fileno()).st_size, -(-height * width * 3 // _WORD) * _WORD
        offset = _HEADER.size + _ROW.itemsize * count + _CHECK.size
        if min(count, height, width) < 1 or size != offset + count * length:
            raise DamagedError("it is not whole")
        begin += file.read(_ROW.itemsize * count)
        if file.read(_CHECK.size) != _CHECK.pack(zlib.crc32(begin)):
            raise DamagedError("its header has changed")
        rows = np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=(count, length))
    table = np.frombuffer(begin, dtype=_ROW, offset=_HEADER.size)
    pts, totals = (np.ascontiguousarray(table[name]) for name in ("pts", "total"))
    keyframe = table["keyframe"] != 0
    timeline = Timeline(pts, keyframe, bool(exact), tick_s, width_px, height_px)
    return FrameFile(timeline, rows, totals, (height, width, 3))


def write_film(target: Path, frames: Iterator[Picture], timeline: Timeline) -> None:
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
    check = zlib.crc32(target.read_bytes())
    with target.open("ab") as file:
        file.write(_BOX.pack(_BOX.size, b"free", check))


def check_film(entry: Path) -> None:
    """Compare a film with its checksum, once a process as long as it does not change.

    Raises: OSError when it is not there, DamagedError when it has changed since it was written.
    """
    status = entry.stat()
    _check_film(entry, status.st_mtime_ns, status.st_size)


@lru_cache(2**16)
def _check_film(entry: Path, _changed: int, _size: int) -> None:
    content = memoryview(entry.read_bytes())
    check = _BOX.pack(_BOX.size, b"free", zlib.crc32(content[: -_BOX.size]))
    if content[-_BOX.size :] != check:
        raise DamagedError("it has changed since it was written")
