"""The choice: which configuration to take, on grounds that can be defended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regkit.errors import InputError
from regkit.selection.one_error import share_error, within_one_error
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
    """
    check_measure(measure)
    sign = -1 if MEASURES[measure] else 1
    losses = {row: sign * spread.mean for row in rows if (spread := _usable(row, measure))}
    if not losses:
        return None
    judged, errors = list(losses), [_error(row, measure) for row in losses]
    found = within_one_error(
        list(losses.values()), [e or 0.0 for e, _ in errors], [*map(_density, judged)], ROUNDING
    )
    error, source = errors[found.best]
    return Choice(measure, judged[found.best], judged[found.chosen], error, source, found.num)


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
    if num and measure.endswith("accuracy"):
        return share_error(spread.mean, num), "videos"
    return None, ""


def num_validation(row: Configuration) -> int | None:
    """Return the number of validation videos, where the summary or the recipe says it."""
    run = row.runs[0]
    data = run.recipe.get("data")
    found = run.summary.get("num_val") or (data.get("num_val") if isinstance(data, dict) else None)
    return found if isinstance(found, int) else None
