"""Read frames from cameras, pipes and addresses, as they come."""

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from regkit.data.decode import Picture, sides, upright
from regkit.data.timeline import VideoError, told, video_stream

CAMERA = "camera:"
DEVICE = "/dev/video"  # how Linux names cameras
_CAMERAS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
_BREAK_S = 60.0  # a jump forward by more is a break in the time stamps, not a pause
_FALLBACK_FPS = 25.0


class ArrivedFrame(NamedTuple):
    """A frame: seconds since the first one, upright and scaled, and what decoding it took."""

    time_s: float
    picture: Picture
    decode_ms: float


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

    video: camera:/dev/video0 (on Linux /dev/video0 will do), an address, "-" (standard input), a
        pipe, or a file that grows.
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
        if name.startswith((CAMERA, DEVICE)):
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

    def frames(
        self, short_px: int, threads: int = 1, broken: Callable[[], None] = lambda: None
    ) -> Iterator[ArrivedFrame]:
        """Yield each frame as it comes, its short side scaled.

        threads: of the decoder.
        broken: is called for each packet that cannot be decoded; it is passed over, for streams
            begin in the middle, and lose some.
        Raises: VideoError when it cannot be opened, or breaks off.
        """
        with self.open() as container:
            try:
                yield from self._frames(container, short_px, threads, broken)
            except (FFmpegError, OSError, ValueError, MemoryError) as error:
                raise VideoError(self.video, told(error)) from error

    def _frames(
        self, container: InputContainer, short_px: int, threads: int, broken: Callable[[], None]
    ) -> Iterator[ArrivedFrame]:
        stream = video_stream(container, self.video)
        stream.codec_context.thread_type = "SLICE"  # threads by frames would hold frames back
        stream.codec_context.thread_count = threads
        rate = float(stream.average_rate or stream.guessed_rate or _FALLBACK_FPS)
        stamps = Stamps(float(stream.time_base or 0), rate)
        for packet in container.demux(stream):
            began = time.perf_counter()
            try:
                frames = packet.decode()
            except FFmpegError:
                broken()
                continue
            for frame in frames:
                picture = upright(frame, sides(frame, short_px, self.video))
                taken = 1000 * (time.perf_counter() - began)
                yield ArrivedFrame(stamps(frame.pts), np.ascontiguousarray(picture), taken)
                began = time.perf_counter()


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
