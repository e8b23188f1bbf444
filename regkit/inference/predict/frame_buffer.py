"""Keep the last frames of a stream, and lay windows over them as they come."""

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from regkit.data.timeline import ROUNDING_S
from regkit.inference.predict.windows import Edges, Picture, Span, Window, following, shown, window

_MOST_FRAMES = 4096  # a window of a minute at 60 fps; beyond, the oldest give way
_POLL_S = 0.2  # between looks at whether someone wants to stop


@dataclass(frozen=True, eq=False)
class BufferedFrame:
    """One frame of a stream.

    time_s: in the stream, from its first frame.
    arrived_s: when it was decoded, on this machine's clock.
    decode_ms: what that took.
    """

    time_s: float
    picture: Picture
    arrived_s: float
    decode_ms: float


@dataclass(frozen=True, eq=False)
class ReadyWindow:
    """A window, its frames, how many of them no window has had before, and when it was there."""

    window: Window
    shots: list[BufferedFrame]
    num_new: int
    ready_s: float


class FrameBuffer:
    """Hand the frames of one thread to another, window by window.

    Windows lie as `windows.lay` lays them over a file. A window is there once a later frame shows
    that it is over.

    drops: windows that nobody takes in time give way to newer ones, and frames that are in no
        taken window are dropped; else `put` waits. Either way no more is kept than a window, a hop
        and a frame.

    Attributes:
        skipped: windows that came too fast.
        dropped: frames that are in no window that was taken.
        error: what ended the stream.
    """

    def __init__(self, span: Span, hop_s: float | None = None, drops: bool = True):
        self.span, self.hop_s, self.drops = span, hop_s, drops
        self.dropped = self.skipped = 0
        self.error: Exception | None = None
        self.closed = False
        self._ended = False
        self._shots: deque[BufferedFrame] = deque()
        self._offset = 0  # number of the first shot that is kept
        self._hops = 0  # where the next window begins, in hops
        self._last: Window | None = None
        self._changed = threading.Condition()

    def put(self, shot: BufferedFrame) -> bool:
        """Add a frame; return whether more are wanted."""
        with self._changed:
            while not self.drops and not self.closed and self._complete() is not None:
                self._changed.wait(_POLL_S)
            self._shots.append(shot)
            if self.drops:
                self._catch_up()
            self._trim()
            self._changed.notify_all()
            return not self.closed

    def end(self, error: Exception | None = None) -> None:
        """Say that no more frames come, and why."""
        with self._changed:
            self._ended, self.error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no more windows are wanted."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def take(self) -> ReadyWindow | None:
        """Wait for a window; None when there are no more."""
        with self._changed:
            while True:
                if self.closed:
                    return None
                found = self._complete()
                if found is None and self._ended:
                    found = self._rest()
                    if found is None:
                        return None
                if found is not None:
                    return self._taken(found)
                self._changed.wait(_POLL_S)

    def _edges(self) -> Edges:
        """Return the times that are known: of the frames, and at the end when the last one goes."""
        times = [shot.time_s for shot in self._shots]
        if self._ended and times:
            stay = times[-1] / (self._offset + len(times) - 1) if times[-1] > 0 else 0.04
            times.append(times[-1] + stay)
        return np.array(times, dtype=np.float64)

    def _complete(self) -> Window | None:
        """Return the next window, if all of its frames are there."""
        edges = self._edges()
        if len(edges) < 2:
            return None
        begin_s = self._hops * (self.hop_s or 0.0)
        if begin_s + ROUNDING_S >= edges[-1]:
            return None  # which frame is shown then, nobody knows yet
        first = shown(edges[:-1], begin_s)
        last = self.span.last(edges, first)
        return None if last is None else window(edges, first, last)

    def _rest(self) -> Window | None:
        """Return the window that ends with the stream, where frames are still in none."""
        edges = self._edges()
        count = len(edges) - 1
        if count < 1 or (self._last is not None and self._last.last >= self._offset + count):
            return None
        return window(edges, self.span.first(edges), count)

    def _taken(self, found: Window) -> ReadyWindow:
        shots = list(self._shots)[found.first : found.last]
        ready_s = self._shots[min(found.last, len(self._shots) - 1)].arrived_s
        first, last = found.first + self._offset, found.last + self._offset
        num_new = last - max(first, 0 if self._last is None else self._last.last)
        self._last = Window(first, last, found.start_s, found.end_s)
        self._advance(found)
        self._trim()
        self._changed.notify_all()
        return ReadyWindow(self._last, shots, num_new, ready_s)

    def _catch_up(self) -> None:
        """Pass over windows after which another one is complete already."""
        while (found := self._complete()) is not None:
            hops = self._hops
            self._advance(found)
            if self._complete() is None:
                self._hops = hops
                return
            self.skipped += 1

    def _advance(self, found: Window) -> None:
        """Go to the next hop that shows another frame."""
        edges = self._edges()
        if self.hop_s is None:
            stay_s = (found.end_s - found.start_s) / (found.last - found.first)
            self.hop_s = self.span.length_s(stay_s) / 2
        moment_s = self._hops * self.hop_s
        self._hops = following(edges, found.first, moment_s, self.hop_s)

    def _trim(self) -> None:
        """Forget the frames that no window needs, be it the next or one that ends the stream."""
        edges = self._edges()
        if len(edges) < 2:
            return
        begin = shown(edges, self._hops * (self.hop_s or 0.0))
        surplus = min(begin, self.span.first(edges))
        for _ in range(max(surplus, len(self._shots) - _MOST_FRAMES)):
            self._shots.popleft()
            seen = self._last is not None and self._offset < self._last.last
            self.dropped += not seen
            self._offset += 1
