"""Watch a file or a stream: every frame is described once, and each new one moves the window on."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from av.error import FFmpegError
from jaxtyping import Float32, Float64, UInt8

from regkit.baseline.detector import Detector
from regkit.data.decode import pictures
from regkit.data.stream import Feed, is_live
from regkit.data.timeline import ROUNDING_S, LostError, VideoError, read_timeline
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


@dataclass(frozen=True, eq=False)
class Sight:
    """What is seen in the window that ends at `time_s`.

    latency_s: from the decoded frame to the answer.
    """

    time_s: float
    probabilities: Float64[np.ndarray, " classes"]
    latency_s: float


@dataclass(eq=False)
class Watch:
    """Slide the detector's window over a stream, at the rate of its training clips.

    num_frames, num_used: of the stream, so far, and those of them that entered the window.
    """

    detector: Detector
    num_frames: int = 0
    num_used: int = 0
    last_s: float = 0.0
    _grey: Float32[np.ndarray, "size size"] | None = None
    _edges: deque[np.ndarray] = field(init=False)
    _motion: deque[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        length = self.detector.features.num_frames
        self._edges, self._motion = deque(maxlen=length), deque(maxlen=length - 1)

    def __call__(self, frames: Iterable[Timed]) -> Iterator[Sight]:
        """Yield what is seen at each step, once the window is full.

        Of a stream shorter than the window the last frame is repeated, as in training.
        """
        due_s, step_s = 0.0, self.detector.step_s
        window_s = self.detector.features.num_frames * step_s
        for time_s, picture in frames:
            self.num_frames += 1
            self.last_s = time_s
            due_s = max(due_s, time_s - window_s)  # a gap is filled no longer than it matters
            while due_s <= time_s + ROUNDING_S:
                began = time.perf_counter()
                self._see(picture)
                if self._full:
                    yield self._answer(time_s, began)
                due_s += step_s
        if self._edges and not self._full:
            began = time.perf_counter()
            while not self._full:
                self._edges.append(self._edges[-1])
                self._motion.append(self._still)
            yield self._answer(self.last_s, began)

    @property
    def _full(self) -> bool:
        return len(self._edges) == self._edges.maxlen

    @property
    def _still(self) -> Float32[np.ndarray, "cells cells directions"]:
        features = self.detector.features
        shape = (features.num_cells, features.num_cells, features.directions)
        return np.zeros(shape, dtype=np.float32)

    def _see(self, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        features = self.detector.features
        here = np.zeros((1, 1), dtype=np.int64)
        square = self.detector.cut.clip(here, picture[None], None)[0, 0]
        grey = features.grey(square)
        self._edges.append(features.edges(grey))
        if self._grey is not None:
            self._motion.append(features.motion(self._grey, grey))
        self._grey = grey
        self.num_used += 1

    def _answer(self, time_s: float, began: float) -> Sight:
        values = self.detector.features.pooled(np.stack(self._edges), np.stack(self._motion))
        probabilities = self.detector.probabilities(values[None])[0]
        return Sight(time_s, probabilities, time.perf_counter() - began)
