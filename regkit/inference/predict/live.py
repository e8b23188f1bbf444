"""Classify a stream while it comes."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
from jaxtyping import Float64

from regkit.data.stream import Feed
from regkit.data.timeline import VideoError
from regkit.inference.predict.classify import Classifier, Times
from regkit.inference.predict.film import Sliding
from regkit.inference.predict.frame_buffer import FrameBuffer, ReadyWindow
from regkit.inference.predict.result import Result
from regkit.inference.predict.smooth import Smoothing
from regkit.inference.predict.stream_reader import Reader
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
        high = float(np.percentile(self.behind_ms, 95))
        return {
            "frames_per_s": self.frames / self.read_s,
            "windows_per_s": len(self.result.windows) / self.read_s,
            "real_time_factor": self.result.end_s / self.read_s,
            "ms_per_window": {
                step: {"median": mid, "p95": top} for step, (mid, top) in self.times.table().items()
            },
            "behind_ms": {"median": float(np.median(self.behind_ms)), "p95": high},
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
        raise _nothing(feed, ring)
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


def _nothing(feed: Feed, ring: FrameBuffer) -> Exception:
    ended = VideoError(feed.video, "it ended, or was stopped, before a frame came")
    return ring.error or ended


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
