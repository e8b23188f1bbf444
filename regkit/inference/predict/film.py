"""A trained net on a device, and the windows of a film that it classifies."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from regkit.data.decode import pictures
from regkit.data.timeline import LostError, Source, Timeline, VideoError, read_timeline
from regkit.errors import InputError
from regkit.inference.predict.result import Result, Smoothing
from regkit.inference.predict.windows import edges_of, gather, lay, plan, span, wanted
from regkit.training.checkpoints import TrainedRun

DEVICES = ("auto", "cpu", "cuda")

# The frames of a window at np.unique(indices), and its indices.
Gathered = tuple[UInt8[np.ndarray, "read height width 3"], Int64[np.ndarray, "views chosen"]]
_LEAST_HOP_S = 1e-3


@dataclass
class Times:
    """What each window took, in milliseconds; of a batch, its share."""

    decode: list[float] = field(default_factory=list)
    prepare: list[float] = field(default_factory=list)
    net: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.net)

    def table(self) -> dict[str, dict[str, float]]:
        """Return the median and the 95th percentile of each step."""
        return {name: spread(taken) for name, taken in vars(self).items() if taken}

    def __str__(self) -> str:
        steps = [f"{n} {s['median']:.3g} ms ({s['p95']:.3g})" for n, s in self.table().items()]
        return f"a window, median (95th percentile): {', '.join(steps)}"


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {"median": float(np.median(taken)), "p95": float(np.percentile(taken, 95))}


class Classifier:
    """A trained net on a device, and the last steps before it.

    batch: windows at once.
    times: filled as it works.
    Raises: InputError when the device is not there.
    """

    def __init__(self, held: TrainedRun, device: str = "auto", batch: int = 16):
        if batch < 1:
            raise InputError(f"predict got batch={batch}; give 1 or more.")
        self.held = held
        self.batch = batch
        self.cut = held.data.cut()
        self.device = _device(device)
        self.net = held.model.to(self.device)
        self.times = Times()
        self.warm()

    @property
    def classes(self) -> list[str]:
        """Name the classes, in the order of the probabilities."""
        return self.held.model.classes

    def warm(self) -> None:
        """Let the net run once: the first run finds its kernels, which is no window's time."""
        with torch.inference_mode():
            self.net(self.held.data.example().to(self.device))

    def __call__(self, windows: Sequence[Gathered]) -> Float64[np.ndarray, "windows classes"]:
        """Return the probabilities of one batch.

        Raises: InputError when the net gives numbers that are none.
        """
        began = time.perf_counter()
        with torch.inference_mode():
            clip = self._prepared(windows)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            ready = time.perf_counter()
            scores: Tensor = self.net(clip)
            found = scores.float().softmax(1).cpu().numpy().astype(np.float64)
        done = time.perf_counter()
        self.times.prepare += [1000 * (ready - began) / len(windows)] * len(windows)
        self.times.net += [1000 * (done - ready) / len(windows)] * len(windows)
        if not np.isfinite(found).all():
            raise InputError(
                f"predict got scores that are no numbers from {self.held.path}. Its training "
                "diverged; give another checkpoint."
            )
        return found

    def batches(
        self, gathered: Iterator[UInt8[np.ndarray, "..."]], plan: Sequence[Any]
    ) -> Iterable[Float64[np.ndarray, "windows classes"]]:
        """Classify the windows of a plan in order, batch by batch, timing what `gathered` takes."""
        waiting: list[Gathered] = []
        for number, indices in enumerate(plan):
            began = time.perf_counter()
            try:
                frames = next(gathered)
            except VideoError:  # what came before it counts
                if waiting:
                    yield self(waiting)
                raise
            self.times.decode.append(1000 * (time.perf_counter() - began))
            waiting.append((frames, indices))
            if len(waiting) == self.batch or number == len(plan) - 1:
                yield self(waiting)
                waiting = []

    def _prepared(self, windows: Sequence[Gathered]) -> Tensor:
        cut = [self.cut.clip(indices, frames, None) for frames, indices in windows]
        clip = torch.from_numpy(np.concatenate(cut)).permute(0, 4, 1, 2, 3).contiguous()
        raw = {"clip": clip.to(self.device), "skipped": [], "draws": []}
        return self.held.data.finish(raw, training=False)["clip"]


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name not in DEVICES or (name == "cuda" and not there):
        why = "but there is no GPU that PyTorch sees" if name == "cuda" else "which is no device"
        raise InputError(f"predict got device={name}, {why}; give {', '.join(DEVICES)}.")
    return torch.device("cuda" if name != "cpu" and there else "cpu")


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
        windows = self.result.windows
        found = rates(windows[-1].last, len(windows), self.result.end_s, self.read_s)
        return {**found, "ms_per_window": self.times.table()}


def rates(frames: int, windows: int, end_s: float, read_s: float) -> dict[str, Any]:
    """Return how fast a film of `end_s` seconds was read in `read_s`."""
    return {
        "frames_per_s": frames / read_s,
        "windows_per_s": windows / read_s,
        "real_time_factor": end_s / read_s,
    }


def classify_film(
    source: Source, classifier: Classifier, sliding: Sliding, smoothing: Smoothing, threads: int = 1
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
