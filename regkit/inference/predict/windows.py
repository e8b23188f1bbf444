"""Lay windows over a film, and gather the frames of each while the film is read once."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from regkit.data.clip_spec import Sampling
from regkit.data.timeline import ROUNDING_S, Timeline
from regkit.errors import InputError

_LONE_S = 0.04  # what a single frame is taken to stay
WINDOW_S = 2.0  # a gesture or a stroke; training saw whole files, whose length nobody noted

Times = Float64[np.ndarray, " frames"]
Edges = Float64[np.ndarray, " edges"]  # times of frames, and when the last of them ends
Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Span:
    """How long a window is: in seconds, or where training counted frames, in frames."""

    seconds: float | None
    frames: int | None = None

    def last(self, edges: Edges, first: int) -> int | None:
        """Return the frame that a window from `first` on ends before; None beyond the last edge."""
        if self.frames is not None:
            end = first + self.frames
        else:
            assert self.seconds is not None
            end = int(np.searchsorted(edges, edges[first] + self.seconds - ROUNDING_S))
        return end if end < len(edges) else None

    def first(self, edges: Edges) -> int:
        """Return the first frame of the window that ends with the last edge."""
        if self.frames is not None:
            return max(0, len(edges) - 1 - self.frames)
        assert self.seconds is not None
        return shown(edges[:-1], float(edges[-1]) - self.seconds)

    def length_s(self, stay_s: float) -> float:
        """Return its length where a frame stays for `stay_s`."""
        return self.seconds if self.seconds is not None else (self.frames or 0) * stay_s

    def __str__(self) -> str:
        return f"{self.frames} frames" if self.seconds is None else f"{self.seconds:g} s"


@dataclass(frozen=True)
class Window:
    """The frames from `first` to before `last`, and when they are shown."""

    first: int
    last: int
    start_s: float
    end_s: float

    @property
    def centre_s(self) -> float:
        """Return the moment that its class is told of."""
        return (self.start_s + self.end_s) / 2


def span(sampling: Sampling, window_s: float | None) -> Span:
    """Say how long windows are: as long as the clips of training, where those have a length.

    window_s: for uniform clips, which cover what they are given; None is WINDOW_S.
    Raises: InputError for a `window_s` beside dense clips, or one that is not positive.
    """
    if sampling.kind == "dense":
        frames = (sampling.num_frames - 1) * sampling.stride + 1
        if window_s is not None:
            raise InputError(
                f"predict got window_s={window_s:g}, but this run was trained on dense clips of "
                f"{frames} frames at {sampling.fps or 'their own'} fps, which are the windows. "
                "Leave window_s out."
            )
        if sampling.fps is None:
            return Span(None, frames)
        return Span(frames / sampling.fps)
    if window_s is not None and not 0 < window_s < math.inf:
        raise InputError(f"predict got window_s={window_s:g}; give seconds above 0.")
    return Span(WINDOW_S if window_s is None else float(window_s))


def edges_of(timeline: Timeline) -> Edges:
    """Return when each frame appears and, at the end, when the last one goes."""
    times = timeline.times_s
    return np.append(times, timeline.duration_s if len(times) > 1 else _LONE_S)


def lay(edges: Edges, span: Span, hop_s: float) -> list[Window]:
    """Lay a window every `hop_s` over a film, from the frame that is shown then.

    The last one ends with the film. A film no longer than a window is one window.
    """
    starts, moment_s = edges[:-1], 0.0
    found: list[Window] = []
    while moment_s + ROUNDING_S < edges[-1]:
        first = shown(starts, moment_s)
        last = span.last(edges, first)
        if last is None:
            break
        found.append(window(edges, first, last))
        moment_s = hop_s * following(edges, first, moment_s, hop_s)
    if not found or found[-1].last < len(starts):
        found.append(window(edges, span.first(edges), len(starts)))
    return found


def following(edges: Edges, first: int, moment_s: float, hop_s: float) -> int:
    """Return after how many hops another frame than `first` is shown: one may stay for many."""
    after = float(edges[first + 1])
    return max(round(moment_s / hop_s) + 1, math.ceil((after - ROUNDING_S) / hop_s))


def window(edges: Edges, first: int, last: int) -> Window:
    """Name the window of these frames."""
    return Window(first, last, float(edges[first]), float(edges[last]))


def shown(times_s: Times, moment_s: float) -> int:
    """Return the frame that is shown at a moment; the first one before it appears."""
    return max(0, int(np.searchsorted(times_s, moment_s + ROUNDING_S, side="right")) - 1)


def plan(
    times_s: Times, windows: Sequence[Window], sampling: Sampling
) -> list[Int64[np.ndarray, "views chosen"]]:
    """Choose the frames of each window as evaluation chooses those of a video."""
    return [w.first + sampling(times_s[w.first : w.last], None) for w in windows]


def gather(
    pictures: Iterable[Picture], plan: Sequence[Int64[np.ndarray, "views chosen"]]
) -> Iterator[UInt8[np.ndarray, "read height width 3"]]:
    """Yield the frames at `np.unique(indices)` of each row of the plan, from one reading.

    Only frames that this row or a later one needs are kept.

    pictures: the frames at `wanted(plan)`, in order.
    """
    numbered = zip(wanted(plan).tolist(), pictures, strict=True)
    needed = [np.unique(indices) for indices in plan]
    # The first frame that this row or any later one needs.
    oldest = np.minimum.accumulate([int(row[0]) for row in needed][::-1])[::-1]
    held: dict[int, Picture] = {}
    order: deque[int] = deque()
    for row, begin in zip(needed, oldest.tolist(), strict=True):
        while order and order[0] < begin:
            del held[order.popleft()]
        while not order or order[-1] < row[-1]:
            number, picture = next(numbered)
            held[number] = picture
            order.append(number)
        yield np.stack([held[number] for number in row.tolist()])


def wanted(plan: Sequence[Int64[np.ndarray, "views chosen"]]) -> Int64[np.ndarray, " wanted"]:
    """List the frames that a plan needs, in order."""
    return np.unique(np.concatenate([indices.ravel() for indices in plan]))
