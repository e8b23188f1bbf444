"""Read frames from cameras, pipes and addresses, as they come."""

import os
import stat
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from regkit.data.decode import sides, upright
from regkit.data.timeline import VideoError, told
from regkit.errors import InputError
from regkit.predict.ring import Ring, Shot

CAMERA = "camera:"
_CAMERAS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
_BREAK_S = 60.0  # a jump forward by more is a break in the time stamps, not a pause
_FALLBACK_FPS = 25.0


def is_live(video: str) -> bool:
    """Say whether a source can be read only once, as it comes."""
    if video == "-" or video.startswith((CAMERA, "pipe:")) or "://" in video:
        return True
    path = Path(video).expanduser()
    if not path.exists():
        return False
    mode = path.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@dataclass(frozen=True)
class Feed:
    """A stream and how it is opened.

    video: camera:/dev/video0, an address, "-" (standard input), a pipe, or a file that grows.
    format, options: of FFmpeg, such as mpegts, or {"framerate": "30"}.
    timeout_s: how long a source other than a pipe may be silent.
    """

    video: str
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0

    def open(self) -> InputContainer:
        """Open it; a pipe waits for its writer.

        Raises: VideoError.
        """
        name, kind, options = self.video, self.format, dict(self.options)
        if name.startswith(CAMERA):
            name = name.removeprefix(CAMERA)
            kind = kind or _CAMERAS.get(sys.platform)
        elif name == "-":
            name = "pipe:0"
        elif "://" not in name and not name.startswith("pipe:") and kind != "lavfi":
            name = os.path.abspath(os.path.expanduser(name))  # a:b is no protocol
            if os.path.isfile(name):
                options = {"follow": "1", **options}  # at the end, wait for more
        try:
            return av.open(name, "r", format=kind, options=options, timeout=self.timeout_s)
        except (FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.video, told(error)) from error


class Stamps:
    """Turn the time stamps of a stream to seconds that grow, whatever the stream's clock does."""

    def __init__(self, tick_s: float, rate: float):
        self._tick_s, self._stay_s = tick_s, 1 / rate
        self._shift_s = 0.0
        self._last_s: float | None = None

    def __call__(self, pts: int | None) -> float:
        """Return the seconds since the first frame.

        Where the clock stands still, steps back or leaps, the next frame is one frame later.
        """
        last = self._last_s
        told = None if pts is None or not self._tick_s else pts * self._tick_s
        if told is not None and last is None:
            self._shift_s = -told
        now = None if told is None else told + self._shift_s
        if last is None:
            now = 0.0
        elif now is None or not last < now < last + _BREAK_S:
            now = last + self._stay_s
            if told is not None:
                self._shift_s = now - told
        self._last_s = now
        return now


class Reader(threading.Thread):
    """Fill a ring from a feed, in a thread of its own.

    Packets that cannot be decoded are counted and passed over: streams begin in the middle, and
    lose some.

    Attributes:
        num_frames: that were decoded.
        num_broken: packets.
    """

    def __init__(self, feed: Feed, ring: Ring, short_px: int, threads: int = 1):
        super().__init__(name="regkit.predict", daemon=True)  # a silent pipe holds it for ever
        self.feed, self.ring, self.short_px, self.threads = feed, ring, short_px, threads
        self.num_frames = self.num_broken = 0

    def run(self) -> None:
        """Read until the stream ends or nobody listens."""
        try:
            with self.feed.open() as container:
                self._read(container)
        except VideoError as error:
            self.ring.end(error)
        except (FFmpegError, OSError, ValueError, MemoryError) as error:
            self.ring.end(VideoError(self.feed.video, told(error)))
        except Exception as error:  # a fault of this package: whoever waits for frames must know
            self.ring.end(error)
            raise
        else:
            self.ring.end()

    def _read(self, container: InputContainer) -> None:
        stream = self._stream(container)
        rate = float(stream.average_rate or stream.guessed_rate or _FALLBACK_FPS)
        stamps = Stamps(float(stream.time_base or 0), rate)
        for packet in container.demux(stream):
            began = time.perf_counter()
            try:
                frames = packet.decode()
            except FFmpegError:
                self.num_broken += 1
                continue
            for frame in frames:
                size = sides(frame, self.short_px, self.feed.video)
                picture = np.ascontiguousarray(upright(frame, size))
                now = time.perf_counter()
                shot = Shot(stamps(frame.pts), picture, now, 1000 * (now - began))
                self.num_frames += 1
                if not self.ring.put(shot):
                    return
                began = time.perf_counter()

    def _stream(self, container: InputContainer) -> VideoStream:
        if not container.streams.video:
            raise VideoError(self.feed.video, "it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise VideoError(self.feed.video, "no decoder for its codec")
        stream.codec_context.thread_type = "SLICE"  # threads by frames would hold frames back
        stream.codec_context.thread_count = self.threads
        return stream


def feed_of(video: str, format: str | None, options: Any, timeout_s: float) -> Feed:
    """Check what was given, and make a feed.

    Raises: InputError.
    """
    if not isinstance(options, Mapping):
        raise InputError(
            f"predict got options={options}; give what FFmpeg knows, options={{framerate:30}}."
        )
    if not timeout_s > 0:
        raise InputError(f"predict got timeout_s={timeout_s:g}; give seconds above 0.")
    if video == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise InputError("predict got video=-, but nothing is piped in. cat film.ts | ...")
    plain = {str(key): str(value) for key, value in options.items()}
    return Feed(video, format or None, plain, timeout_s)
