"""Classify a stream while it comes."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
from jaxtyping import Float64

from regkit.data.stream import Feed
from regkit.data.timeline import VideoError
from regkit.errors import InputError
from regkit.inference.predict.film import Classifier, Sliding, Times, rates, spread
from regkit.inference.predict.frame_buffer import BufferedFrame, FrameBuffer, ReadyWindow
from regkit.inference.predict.result import Result, Smoothing
from regkit.inference.predict.windows import Window, span

_LEAVE_S = 1.0  # for the reader, to leave its source

# window, probabilities, milliseconds from its last frame to now
Row = tuple[Window, Float64[np.ndarray, " classes"], float]
Tell = Callable[[Window, Float64[np.ndarray, " classes"], float], None]


@dataclass(frozen=True, eq=False)
class Live:
    """What was found in a stream.

    behind_ms: of each window, from the frame that ended it to its probabilities.
    frames, broken_packets: how many came.
    skipped, dropped: windows that came too fast for the net, and frames that are in no window.
    error: what ended the stream, where it did not just end.
    """

    result: Result
    times: Times
    behind_ms: list[float]
    hop_s: float
    read_s: float
    frames: int
    broken_packets: int
    dropped: int
    skipped: int
    error: Exception | None

    @property
    def speed(self) -> dict[str, Any]:
        """Return the speed in plain values."""
        windows, end_s = len(self.result.windows), self.result.end_s
        return {
            **rates(self.frames, windows, end_s, self.read_s),
            "ms_per_window": self.times.table(),
            "behind_ms": spread(self.behind_ms),
            "dropped_frames": self.dropped,
            "skipped_windows": self.skipped,
            "broken_packets": self.broken_packets,
        }


def classify_stream(
    feed: Feed,
    classifier: Classifier,
    sliding: Sliding,
    smoothing: Smoothing,
    tell: Tell,
    drops: bool = True,
    threads: int = 1,
) -> Live:
    """Classify windows as they come, until the stream ends or Ctrl-C; what was found is returned.

    tell: is called with each window at once.
    drops: see `ring.FrameBuffer`.
    threads: of the decoder.
    Raises: VideoError when not one window came.
    """
    length = span(classifier.cut.sampling, sliding.window_s)
    ring = FrameBuffer(length, sliding.hop_s, drops)
    reader = Reader(feed, ring, classifier.cut.short_px, threads)
    classifier.times = Times()
    rows: list[Row] = []
    began = time.perf_counter()
    with _stopping(ring):
        reader.start()
        try:
            while (taken := ring.take()) is not None:
                found = _classified(classifier, taken)
                row = (taken.window, found, 1000 * (time.perf_counter() - taken.ready_s))
                rows.append(row)
                tell(*row)
        finally:
            ring.close()
            reader.join(_LEAVE_S)
    seconds = time.perf_counter() - began
    if not rows:
        ended = VideoError(feed.video, "it ended, or was stopped, before a frame came")
        raise ring.error or ended
    windows, found, behind = zip(*rows, strict=True)
    end_s = windows[-1].end_s
    result = Result.of(classifier.classes, windows, np.stack(found), smoothing, end_s)
    return Live(
        *(result, classifier.times, list(behind), ring.hop_s or 0.0, seconds),
        *(reader.num_frames, reader.num_broken, ring.dropped, ring.skipped, ring.error),
    )


def _classified(classifier: Classifier, taken: ReadyWindow) -> Float64[np.ndarray, " classes"]:
    """Classify one window by the frames that evaluation would choose of it."""
    times = np.array([shot.time_s for shot in taken.shots])
    indices = classifier.cut.sampling(times, None)
    frames = np.stack([taken.shots[number].picture for number in np.unique(indices).tolist()])
    fresh = taken.shots[len(taken.shots) - taken.num_new :]
    classifier.times.decode.append(sum(shot.decode_ms for shot in fresh))
    return classifier([(frames, indices)])[0]


@contextmanager
def _stopping(ring: FrameBuffer) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM close the ring once; the second time they do what they always do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        ring.close()

    for kind in kinds:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        restore()


class Reader(threading.Thread):
    """Fill a ring from a feed, in a thread of its own.

    Attributes:
        num_frames: that were decoded.
        num_broken: packets that could not be, and were passed over.
    """

    def __init__(self, feed: Feed, ring: FrameBuffer, short_px: int, threads: int = 1):
        super().__init__(name="frames of a stream", daemon=True)  # a silent pipe holds it for ever
        self.feed, self.ring, self.short_px, self.threads = feed, ring, short_px, threads
        self.num_frames = self.num_broken = 0

    def run(self) -> None:
        """Read until the stream ends or nobody listens."""
        try:
            self._read()
        except VideoError as error:
            self.ring.end(error)
        except Exception as error:  # a fault of this package: whoever waits for frames must know
            self.ring.end(error)
            raise
        else:
            self.ring.end()

    def _read(self) -> None:
        for time_s, picture, decode_ms in self.feed.frames(
            self.short_px, self.threads, self._pass_over
        ):
            self.num_frames += 1
            if not self.ring.put(BufferedFrame(time_s, picture, time.perf_counter(), decode_ms)):
                return

    def _pass_over(self) -> None:
        self.num_broken += 1


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
