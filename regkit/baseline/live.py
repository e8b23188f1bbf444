"""Watch a stream: every frame is described once, and each new one moves the window on."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from regkit.baseline.detector import Detector
from regkit.baseline.stream import Timed
from regkit.data.timeline import ROUNDING_S


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
