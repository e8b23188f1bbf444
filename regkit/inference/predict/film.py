"""Read a film once, and classify its windows."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from regkit.data.decode import pictures
from regkit.data.timeline import LostError, Source, Timeline, VideoError, read_timeline
from regkit.errors import InputError
from regkit.inference.predict.classify import Classifier, Times
from regkit.inference.predict.result import Result
from regkit.inference.predict.smooth import Smoothing
from regkit.inference.predict.windows import edges_of, gather, lay, plan, span, wanted

_LEAST_HOP_S = 1e-3


@dataclass(frozen=True)
class Sliding:
    """How windows lie over a film.

    window_s: see `windows.span`.
    hop_s: from one to the next; None is half a window.
    Raises: InputError when one is out of range.
    """

    window_s: float | None = None
    hop_s: float | None = None

    def __post_init__(self):
        if self.hop_s is not None and not _LEAST_HOP_S <= self.hop_s < np.inf:
            raise InputError(f"predict got hop_s={self.hop_s:g}; give {_LEAST_HOP_S} s or more.")


@dataclass(frozen=True, eq=False)
class Film:
    """What was found in a file, and what it took.

    broken: why the film was read no further; what was found ends there.
    read_s: wall time from opening the file to the last probability.
    """

    source: Source
    timeline: Timeline
    result: Result
    times: Times
    hop_s: float
    read_s: float
    broken: VideoError | None = None

    @property
    def fps(self) -> float:
        """Return the mean rate of the file."""
        return len(self.timeline) / float(edges_of(self.timeline)[-1])

    @property
    def speed(self) -> dict[str, Any]:
        """Return the speed in plain values."""
        frames = self.result.windows[-1].last
        return {
            "frames_per_s": frames / self.read_s,
            "windows_per_s": len(self.result.windows) / self.read_s,
            "real_time_factor": self.result.end_s / self.read_s,
            "ms_per_window": {
                step: {"median": mid, "p95": high}
                for step, (mid, high) in self.times.table().items()
            },
        }


def classify_film(
    source: Source,
    classifier: Classifier,
    sliding: Sliding,
    smoothing: Smoothing,
    threads: int = 1,
) -> Film:
    """Classify the windows of a file; frames are decoded once, and kept while they are needed.

    A film that breaks off is classified as far as it goes.

    threads: of the decoder; 0 lets it choose.
    Raises: VideoError when there is not even one window.
    """
    began = time.perf_counter()
    sampling = classifier.cut.sampling
    length = span(sampling, sliding.window_s)
    timeline = read_timeline(source)
    edges = edges_of(timeline)
    stay_s = float(edges[-1]) / len(timeline)
    hop_s = sliding.hop_s or max(_LEAST_HOP_S, length.length_s(stay_s) / 2)
    windows = lay(edges, length, hop_s)
    rows = plan(timeline.times_s, windows, sampling)
    found, broken = _read(source, timeline, classifier, rows, threads)
    if not found:
        raise broken or VideoError(source, "it holds no video frames")
    kept = windows[: len(found)]
    end_s = float(edges[-1]) if broken is None else kept[-1].end_s
    result = Result.of(classifier.classes, kept, np.stack(found), smoothing, end_s)
    taken = time.perf_counter() - began
    return Film(source, timeline, result, classifier.times, hop_s, taken, broken)


def _read(
    source: Source,
    timeline: Timeline,
    classifier: Classifier,
    rows: Sequence[Int64[np.ndarray, "views chosen"]],
    threads: int,
) -> tuple[list[Float64[np.ndarray, " classes"]], VideoError | None]:
    """Classify as far as the file can be read, by the ways of `decode.read_frames`."""
    counted = dataclasses.replace(timeline, exact=False)
    short_px = classifier.cut.short_px
    for skips, known in ((True, timeline), (False, timeline), (False, counted)):
        classifier.times = Times()
        found: list[Float64[np.ndarray, " classes"]] = []
        frames = pictures(source, wanted(rows), short_px, known, threads, skips)
        try:
            for batch in classifier.batches(gather(frames, rows), rows):
                found += list(batch)
        except LostError:
            continue
        except VideoError as error:
            return found, error
        return found, None
    raise AssertionError("counting loses nothing")
