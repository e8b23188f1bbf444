"""What was found in a film or a stream: classes of windows, smoothed, and joined to segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from regkit.errors import InputError
from regkit.inference.predict.windows import Window

WAYS = ("none", "average", "viterbi")
UNSURE = -1
_SLACK_S = 1e-3  # files round time stamps up to this
_LEAST = 1e-3  # probability; below it a net's confidence says little, and one window too much

Probabilities = Float64[np.ndarray, "windows classes"]
UNSURE_NAME = "(unsure)"


@dataclass(frozen=True)
class Segment:
    """A stretch of one class (UNSURE: of none), and the mean of its probability."""

    start_s: float
    end_s: float
    label: int
    probability: float


@dataclass(frozen=True)
class Smoothing:
    """How windows are smoothed.

    way: "none"; "average", of the probabilities around each window; or "viterbi", the path of
        classes that explains all windows best when each change of class has its price.
    seconds: how much of the film is averaged; or the price of a change, so many seconds in which
        the other class is e times as probable.
    threshold: windows in which no class is as probable as this are UNSURE.

    Raises: InputError when one is out of range.
    """

    way: str = "average"
    seconds: float = 2.0
    threshold: float = 0.0

    def __post_init__(self):
        if self.way not in WAYS:
            raise InputError(f"predict got smooth={self.way}; give {', '.join(WAYS)}.")
        if not 0 <= self.seconds < np.inf:
            raise InputError(f"predict got smooth_s={self.seconds:g}; give 0 or more seconds.")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"predict got threshold={self.threshold:g}; give 0 to 1.")

    def __call__(
        self,
        probabilities: Probabilities,
        centres_s: Float64[np.ndarray, " windows"],
        borders_s: Float64[np.ndarray, " borders"],
    ) -> tuple[Probabilities, Int64[np.ndarray, " windows"]]:
        """Return smoothed probabilities (those of "viterbi" are as they were) and the labels."""
        smooth = probabilities
        if self.way == "average":
            smooth = average(probabilities, centres_s, self.seconds)
        # Being unsure is a class that is always as probable as the threshold.
        rivals = np.pad(smooth, ((0, 0), (0, 1)), constant_values=self.threshold)
        if self.way == "viterbi":
            path = viterbi(rivals, np.diff(borders_s), self.seconds)
        else:
            path = rivals.argmax(1)
        return smooth, np.where(path == probabilities.shape[1], UNSURE, path)


def borders(
    centres_s: Float64[np.ndarray, " windows"], end_s: float
) -> Float64[np.ndarray, " borders"]:
    """Return where the time of one window's label ends and the next one's begins.

    A label is told of the centre of its window, and holds half way to the next centre; the first
    from the start of the film, the last to its end.
    """
    between = (centres_s[1:] + centres_s[:-1]) / 2
    return np.concatenate([[0.0], between, [end_s]])


def average(
    probabilities: Probabilities, centres_s: Float64[np.ndarray, " windows"], seconds: float
) -> Probabilities:
    """Return the mean over the windows whose centres are no further than seconds / 2."""
    reach = seconds / 2 + _SLACK_S
    low = np.searchsorted(centres_s, centres_s - reach)
    high = np.searchsorted(centres_s, centres_s + reach, side="right")
    sums = np.concatenate([np.zeros((1, probabilities.shape[1])), probabilities.cumsum(0)])
    # Sums of up to 1e5 rows leave rounding errors of either sign.
    return ((sums[high] - sums[low]) / (high - low)[:, None]).clip(0, 1)


def viterbi(
    probabilities: Probabilities, stays_s: Float64[np.ndarray, " windows"], price_s: float
) -> Int64[np.ndarray, " windows"]:
    """Find the best path of classes.

    argmax_c  sum_t stays_s[t] log max(p_t(c_t), 0.001)  -  price_s * #{t: c_t != c_{t-1}}

    Evidence counts by its time, not by its windows, which share frames: another hop gives the same
    path. Of equal paths it takes the one that changes late, to the lower class.

    stays_s: how long each window's label holds.
    Source: Viterbi, Error bounds for convolutional codes, 1967.
    """
    gains = stays_s[:, None] * np.log(probabilities.clip(_LEAST, 1))
    count, classes = gains.shape
    came = np.empty((count, classes), dtype=np.int64)
    score = gains[0]
    for t in range(1, count):
        best = int(score.argmax())
        stays = score >= score[best] - price_s
        came[t] = np.where(stays, np.arange(classes), best)
        score = np.where(stays, score, score[best] - price_s) + gains[t]
    path = np.empty(count, dtype=np.int64)
    path[-1] = score.argmax()
    for t in range(count - 1, 0, -1):
        path[t - 1] = came[t, path[t]]
    return path


def segments(
    labels: Int64[np.ndarray, " windows"] | Sequence[int],
    borders_s: Float64[np.ndarray, " borders"],
    probabilities: Probabilities,
) -> list[Segment]:
    """Join neighbours of one label; a segment's probability is the mean over its time."""
    labels = np.asarray(labels)
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    stays = np.diff(borders_s)
    found = []
    for first, last in zip(starts, [*starts[1:], len(labels)], strict=True):
        label = int(labels[first])
        part = probabilities[first:last]
        own = part.max(1) if label == UNSURE else part[:, label]
        weights = stays[first:last] + 1e-12  # a lone frame may stay for no time
        mean = float((own * weights).sum() / weights.sum())
        found.append(Segment(float(borders_s[first]), float(borders_s[last]), label, mean))
    return found


@dataclass(frozen=True, eq=False)
class Result:
    """The windows of a film with their classes, raw and smoothed.

    probabilities: of each window; `smooth`: the same after smoothing.
    labels: class of each window after smoothing, or UNSURE.
    borders_s: between the times of one label and the next.
    end_s: when the film ends.
    """

    classes: Sequence[str]
    windows: Sequence[Window]
    probabilities: Float64[np.ndarray, "windows classes"]
    smooth: Float64[np.ndarray, "windows classes"]
    labels: Int64[np.ndarray, " windows"]
    borders_s: Float64[np.ndarray, " borders"]
    segments: Sequence[Segment]
    smoothing: Smoothing
    end_s: float

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        windows: Sequence[Window],
        probabilities: Float64[np.ndarray, "windows classes"],
        smoothing: Smoothing,
        end_s: float,
    ) -> "Result":
        """Smooth what was found, and join it."""
        centres = np.array([window.centre_s for window in windows])
        edges = borders(centres, end_s)
        smooth, labels = smoothing(probabilities, centres, edges)
        joined = segments(labels, edges, probabilities)
        return cls(
            *(classes, windows, probabilities, smooth, labels, edges, joined, smoothing, end_s)
        )

    def name(self, label: int) -> str:
        """Name a label."""
        return self.classes[label] if label >= 0 else UNSURE_NAME

    def top(self, row: int, num: int) -> list[tuple[int, float]]:
        """Return the classes of a window that are most probable, and how much so."""
        p = self.probabilities[row]
        return [(int(label), float(p[label])) for label in np.argsort(-p, kind="stable")[:num]]

    def at(self, moment_s: float) -> tuple[int, float]:
        """Return the label that holds at a moment, and its smoothed probability."""
        row = int(np.searchsorted(self.borders_s[1:-1], moment_s, side="right"))
        label = int(self.labels[row])
        p = self.smooth[row]
        return label, float(p.max() if label < 0 else p[label])

    @property
    def overall(self) -> tuple[int, float]:
        """Return the class with the largest mean probability over the whole time, and that."""
        weights = np.diff(self.borders_s) + 1e-12
        mean = (self.probabilities * weights[:, None]).sum(0) / weights.sum()
        return int(mean.argmax()), float(mean.max())


def as_plain(result: Result, top: int) -> dict[str, Any]:
    """Return windows and segments as plain values."""
    name = result.name
    return {
        "windows": [
            {
                "start_s": round(window.start_s, 6),
                "end_s": round(window.end_s, 6),
                "label": name(int(result.labels[row])),
                "top": [
                    {"class": name(label), "probability": p} for label, p in result.top(row, top)
                ],
                "probabilities": result.probabilities[row].tolist(),
                "smoothed": result.smooth[row].tolist(),
            }
            for row, window in enumerate(result.windows)
        ],
        "segments": [
            {
                "start_s": round(part.start_s, 6),
                "end_s": round(part.end_s, 6),
                "class": name(part.label),
                "probability": part.probability,
            }
            for part in result.segments
        ],
    }
