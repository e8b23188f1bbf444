"""How runs went: their curves, read once, thinned, and put together over the runs of a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from regkit.sweeps.report.table import Configuration
from regkit.training.runs import Curve, Run, curves

MOST_POINTS = 300  # of a curve; a panel has no more dots across
LAYER = "density_layer/"


@dataclass(frozen=True)
class Band:
    """A mean over runs and the standard deviation, at each epoch."""

    epochs: Float[np.ndarray, " points"]
    mean: Float[np.ndarray, " points"]
    deviation: Float[np.ndarray, " points"]


@dataclass(frozen=True, eq=False)
class Histories:
    """Curves of runs, each read from its files once."""

    _read: dict[Run, dict[str, Curve]] = field(default_factory=dict)

    def of(self, run: Run) -> dict[str, Curve]:
        """Return the curves of a run, thinned."""
        if run not in self._read:
            self._read[run] = {tag: _thin(curve) for tag, curve in curves(run).items()}
        return self._read[run]

    def band(self, row: Configuration, tag: str) -> Band | None:
        """Put the runs of a row together; None where none has the curve."""
        found = [(run, self.of(run)[tag]) for run in row.runs if tag in self.of(run)]
        if not found:
            return None
        # A run that stopped earlier ends the mean: another mean would go on without it.
        steps = found[0][1][0]
        for _, (others, _) in found[1:]:
            steps = np.intersect1d(steps, others)
        values = np.stack([v[np.searchsorted(s, steps)] for _, (s, v) in found])
        # Lightning counts the step that it is in, the callback those that are done.
        done = steps + 1 if tag.startswith("val/") else steps
        deviation = values.std(0, ddof=1) if len(found) > 1 else np.zeros(len(steps))
        return Band(done / _steps_an_epoch(found[0][0]), values.mean(0), deviation)

    def layers(self, row: Configuration) -> dict[str, float]:
        """Return the density of each layer at the end, as a mean over runs."""
        found: dict[str, list[float]] = {}
        for run in row.runs:
            for name, density in self._layers(run).items():
                found.setdefault(name, []).append(density)
        return {name: float(np.mean(densities)) for name, densities in found.items()}

    def _layers(self, run: Run) -> dict[str, float]:
        """Read them from the summary; those of older runs from the end of their curves."""
        kept = run.summary.get("layers")
        if isinstance(kept, dict):
            return {str(name): float(density) for name, density in kept.items()}
        return {
            tag.removeprefix(LAYER): float(values[-1])
            for tag, (_, values) in self.of(run).items()
            if tag.startswith(LAYER)
        }


def spaced(rows: Sequence[Configuration], most: int) -> list[Configuration]:
    """Take no more than so many rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _thin(curve: Curve) -> Curve:
    """Keep every so-manieth point and the last; the first wins where a step comes twice."""
    steps, places = np.unique(curve[0], return_index=True)
    values = curve[1][places]
    if len(steps) <= MOST_POINTS:
        return steps, values
    kept = np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int))
    return steps[kept], values[kept]


def _steps_an_epoch(run: Run) -> float:
    """Return 1 where that is not known: the axis is one of steps then."""
    steps, epochs = run.summary.get("steps"), run.summary.get("epochs")
    return steps / epochs if steps and epochs else 1.0
