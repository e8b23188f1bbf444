"""The choice: which configuration to take, on grounds that can be defended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regkit.errors import InputError
from regkit.sweeps.report.table import Configuration, Spread

# What may choose, and whether more of it is better. The test has no part in it: a number that
# chose is no longer an honest estimate.
MEASURES = {
    "val_accuracy": True,
    "debiased_val_accuracy": True,
    "val_loss": False,
    "debiased_val_loss": False,
}

# Accuracies are float32 in the summaries: 0.5 is 0.50000001 in one and 0.49999999 in the next.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Choice:
    """The best configuration, and the sparsest within one standard error of it.

    error: the standard error of the best one's mean; None where nothing is known of it.
    source: of that error: what the runs are ("seeds", "folds", ...), "videos" or "".
    num_within: configurations within it, the best included.
    """

    measure: str
    best: Configuration
    chosen: Configuration
    error: float | None
    source: str
    num_within: int

    @property
    def bound(self) -> float:
        """Return what a configuration must reach."""
        mean = self.best.mean(self.measure)
        assert mean is not None
        error = self.error or 0.0
        return mean - error if MEASURES[self.measure] else mean + error


def check_measure(measure: str) -> None:
    """Refuse what may not choose.

    Raises: InputError.
    """
    if measure not in MEASURES:
        test = " A number of the test that chose would no longer be one." * ("test" in measure)
        raise InputError(f"--by got {measure!r}; it is one of {', '.join(MEASURES)}.{test}")


def choose(rows: Sequence[Configuration], measure: str = "val_accuracy") -> Choice | None:
    """Take the sparsest configuration within one standard error of the best one.

    The error is that of the mean over runs; of one run that of a share of the validation
    videos, where their number is known. None when no row has the measure.

    Source: Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, 3.4.3.
    """
    check_measure(measure)
    sign = 1 if MEASURES[measure] else -1
    scores = {row: sign * spread.mean for row in rows if (spread := _usable(row, measure))}
    if not scores:
        return None
    best = min(scores, key=lambda row: (-scores[row], _density(row)))
    error, source = _error(best, measure)
    bound = scores[best] - (error or 0.0) - ROUNDING
    within = [row for row in scores if scores[row] >= bound]
    chosen = min(within, key=lambda row: (_density(row), -scores[row]))
    return Choice(measure, best, chosen, error, source, len(within))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points (density, accuracy) that no other beats, by rising density.

    One beats another when it is sparser and no worse, or better and no denser.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found: list[int] = []
    for i in order:
        if not found or points[i][1] > points[found[-1]][1] or points[i] == points[found[-1]]:
            found.append(i)
    return found


def _usable(row: Configuration, measure: str) -> Spread | None:
    spread = row.spread(measure)
    return spread if spread is not None and math.isfinite(spread.mean) else None


def _density(row: Configuration) -> float:
    density = row.mean("density")
    return math.inf if density is None or math.isnan(density) else density


def _error(row: Configuration, measure: str) -> tuple[float | None, str]:
    spread = row.spread(measure)
    assert spread is not None
    if spread.error is not None:
        return spread.error, row.repeats
    num = num_validation(row)
    share = min(max(spread.mean, 0.0), 1.0)
    if num and measure.endswith("accuracy"):
        return math.sqrt(share * (1 - share) / num), "videos"
    return None, ""


def num_validation(row: Configuration) -> int | None:
    """Return the number of validation videos, where the summary or the recipe says it."""
    run = row.runs[0]
    data = run.recipe.get("data")
    found = run.summary.get("num_val") or (data.get("num_val") if isinstance(data, dict) else None)
    return found if isinstance(found, int) else None
