"""What was found in a film or a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from regkit.inference.predict.smooth import Segment, Smoothing, borders, segments
from regkit.inference.predict.windows import Window

UNSURE_NAME = "(unsure)"


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
