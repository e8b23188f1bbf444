"""List the frames of a video file without decoding them, and remember what was found."""

import os
import sqlite3
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Bool, Float64, Int64

Source = str | Path | BufferedIOBase  # a path, or a seekable file whose `name` is used in messages

_REASONS = {
    "InvalidDataError": "it is no video that FFmpeg knows, or it is damaged",
    "EOFError": "it ends before its first frame",
}
ROUNDING_S = 1e-6  # time stamps come rounded to their ticks
_LISTS = {"concat", "dash", "hls", "imf"}  # a stranger's could name what lies on this disk
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
_DEFAULT_PX = 5_000_000  # pixels that being marked default outweighs; FFmpeg, ffmpeg_mux_init.c
_FALLBACK_FPS = 25.0  # of streams that tell neither time stamps nor a rate
_FORMAT = 2  # raise when rows come to mean something else
_TABLE = (
    f"CREATE TABLE IF NOT EXISTS timeline_{_FORMAT} (path TEXT PRIMARY KEY, fingerprint TEXT, "
    "pts BLOB, keyframe BLOB, exact INTEGER, tick_s REAL, width_px INTEGER, height_px INTEGER)"
)
_PATIENCE_S = 30.0  # for another process that writes


class VideoError(Exception):
    """A file that cannot be read as video."""

    def __init__(self, path: Source, reason: str):
        path = getattr(path, "name", None) or str(path)
        super().__init__(path, reason)  # both, so that the error survives pickling
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class LostError(Exception):
    """A frame came that the timeline does not know at this place."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a file in the order in which they are shown, as its packets announce them.

    exact: pts tell the frames apart. Without it frames are counted from the start.
    tick_s: length of one unit of pts, in seconds.
    width_px, height_px: of the frames as they are stored, before rotation; 0 where unknown.
    """

    pts: Int64[np.ndarray, " frames"]
    keyframe: Bool[np.ndarray, " frames"]
    exact: bool
    tick_s: float
    width_px: int
    height_px: int

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def nbytes(self) -> int:
        """Count the bytes that keeping it costs."""
        return self.pts.nbytes + self.keyframe.nbytes

    @cached_property
    def times_s(self) -> Float64[np.ndarray, " frames"]:
        """Say when each frame appears, counted from the first."""
        return (self.pts - self.pts[0]) * self.tick_s

    @property
    def duration_s(self) -> float:
        """Return the length; the last frame is taken to stay as long as frames do in the mean."""
        times = self.times_s
        return float(times[-1]) * len(times) / max(1, len(times) - 1)

    def start(self, index: int) -> int:
        """Find the last keyframe at or before `index`; 0 where one may not seek."""
        keys = np.flatnonzero(self.keyframe[: index + 1])
        return int(keys[-1]) if self.exact and len(keys) else 0

    def locate(self, frame: VideoFrame, previous: int | None) -> int:
        """Say which frame of the file this is, given the one before it (None after a seek)."""
        if not self.exact:
            return 0 if previous is None else previous + 1
        pts = frame.pts
        index = -1 if pts is None else int(np.searchsorted(self.pts, pts))
        known = 0 <= index < len(self) and self.pts[index] == pts
        if not known or (previous is not None and index <= previous):
            raise LostError
        return index


@contextmanager
def opened(source: Source, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the film in a file; what fails within becomes a VideoError.

    threads: of the decoder; 0 lets it choose.
    """
    try:
        with av.open(_checked(source), "r") as container:
            kind = container.format.name
            if kind in _LISTS:
                raise VideoError(source, f"it is no film but a list of others ({kind})")
            stream = video_stream(container, source)
            stream.codec_context.thread_count = threads
            if threads != 1:
                stream.codec_context.thread_type = "AUTO"  # most files have one slice a frame
            yield container, stream
    except (FFmpegError, OSError, ValueError, MemoryError) as error:
        raise VideoError(source, told(error)) from error


def video_stream(container: InputContainer, source: Source) -> VideoStream:
    """Return the stream that FFmpeg shows: of the films the largest, if none is marked default.

    Covers and thumbnails are no films.

    Raises: VideoError where there is none, or it cannot be decoded.
    """
    streams = container.streams.video
    films = [stream for stream in streams if not stream.disposition & _PICTURES]
    if not films:
        what = "pictures are attached to it, but " if streams else ""
        raise VideoError(source, f"{what}it has no video stream")
    decoded = [stream for stream in films if stream.codec_context is not None]
    if not decoded:
        raise VideoError(source, "no decoder for its codec")
    return max(decoded, key=_rank)  # of equals, the first


def _rank(stream: VideoStream) -> int:
    context = stream.codec_context
    default = bool(stream.disposition & Disposition.default)
    return context.width * context.height + _DEFAULT_PX * default


def told(error: Exception) -> str:
    """Return what FFmpeg or the system says, in words of a user where it has none."""
    name = type(error).__name__
    reason = _REASONS.get(name) or getattr(error, "strerror", None) or str(error)
    return f"{name}, {reason}"


def _checked(source: Source) -> str | BufferedIOBase:
    if not isinstance(source, str | Path):
        source.seek(0)
        return source
    path = os.path.abspath(source)  # FFmpeg would take "a:b.mp4" for a protocol
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise VideoError(source, "it is no regular file")  # a pipe would never end
    return path


def read_timeline(source: Source) -> Timeline:
    """List the frames of a file from its packets, without decoding.

    Headers are not trusted: a cut file still announces the frames it has lost.

    Raises: VideoError.
    """
    pts: list[int | None] = []
    keys: list[bool] = []
    with opened(source) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        for packet in container.demux(stream):
            hidden = packet.is_discard  # by an edit list
            if packet.size and not hidden and is_shown(packet, codec):
                pts.append(packet.pts)
                keys.append(packet.is_keyframe)
        # AVI stores no pts; with reordered frames FFmpeg's guess is wrong.
        guessed = container.format.name == "avi" and stream.codec_context.has_b_frames
        rate = float(stream.average_rate or stream.guessed_rate or _FALLBACK_FPS)
        tick_s = float(stream.time_base or 0)
        width, height = stream.codec_context.width, stream.codec_context.height
    if not pts:
        raise VideoError(source, "it holds no video frames")
    keyframe = np.array(keys, dtype=bool)
    known = [number for number in pts if number is not None]
    if guessed or not tick_s or len(set(known)) < len(pts):
        counted = np.arange(len(pts), dtype=np.int64)
        return Timeline(counted, keyframe, False, 1 / rate, width, height)
    order = np.argsort(known)
    ordered = np.array(known, dtype=np.int64)[order]
    return Timeline(ordered, keyframe[order], True, tick_s, width, height)


def is_shown(packet: bytes | Packet, codec: str) -> bool:
    """Say whether a packet becomes a picture; some of VP8 and VP9 are there to refer to alone.

    Source: RFC 6386, section 9.1; VP9 bitstream specification, section 6.2 and annex B.
    """
    if codec not in ("vp8", "vp9"):
        return True
    first, last = memoryview(packet)[0], memoryview(packet)[-1]
    if codec == "vp8":
        return bool(first & 0x10)
    several = last & 0xE0 == 0xC0  # hidden frames with the one that is shown
    bits = f"{first:08b}"[5:] if first & 0x30 == 0x30 else f"{first:08b}"[4:]
    return several or bits[0] == "1" or bits[2] == "1"


def fingerprint(path: str) -> str:
    """Tell a file from what it was before: size and time of the last change."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def _key(path: str) -> str:
    """Name a file as SQLite can keep it, whatever bytes its name holds."""
    return os.path.abspath(path).encode(errors="backslashreplace").decode()


@dataclass
class Index:
    """A table of timelines in one SQLite file, shared by processes that run side by side.

    It only saves time: where it cannot be read or written, one warning is given, and files are
    walked through as if there were none.
    """

    file: str
    _connection: sqlite3.Connection | None = field(init=False, default=None, repr=False)
    _owner: int = field(init=False, default=0, repr=False)
    _broken: bool = field(init=False, default=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None, "_owner": 0}

    def get(self, path: str) -> Timeline | None:
        """Return the timeline of a file that has not changed since, or None."""
        found = self._run(
            "SELECT pts, keyframe, exact, tick_s, width_px, height_px "
            f"FROM timeline_{_FORMAT} WHERE path = ? AND fingerprint = ?",
            (_key(path), fingerprint(path)),
        )
        if not found:
            return None
        pts, keyframe, exact, tick_s, width_px, height_px = found[0]
        try:
            steps = np.frombuffer(zlib.decompress(pts), dtype=np.int64)
            keys = np.frombuffer(zlib.decompress(keyframe), dtype=bool)
        except (zlib.error, ValueError, TypeError):  # damaged; it only saves time
            return None
        if not 0 < len(steps) == len(keys):
            return None
        return Timeline(np.cumsum(steps), keys, bool(exact), tick_s, width_px, height_px)

    def put(self, path: str, timeline: Timeline) -> None:
        """Remember the timeline of a file as it is now."""
        steps = np.diff(timeline.pts, prepend=np.int64(0))  # nearly all equal: 300 in 30 bytes
        self._run(
            f"INSERT OR REPLACE INTO timeline_{_FORMAT} VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _key(path),
                fingerprint(path),
                zlib.compress(steps.tobytes()),
                zlib.compress(timeline.keyframe.tobytes()),
                int(timeline.exact),
                timeline.tick_s,
                timeline.width_px,
                timeline.height_px,
            ),
        )

    def _run(self, order: str, values: tuple[Any, ...]) -> list[Any]:
        if self._broken:
            return []
        try:
            with self._connected() as connection:
                return connection.execute(order, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            warnings.warn(
                f"regkit cannot use its index of videos, {self.file} ({error}); files are walked "
                "through anew. Remove the file, or set data.cache_root to a folder of your own.",
                stacklevel=2,
            )
            return []

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # none survives a fork
            Path(self.file).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=_PATIENCE_S)
            self._connection.execute("PRAGMA synchronous = OFF")  # it can be made again
            self._connection.execute(_TABLE)
            self._owner = os.getpid()
        return self._connection
