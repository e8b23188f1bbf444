"""One row a recipe: how good its fits are, alone and averaged, and where their errors are from."""

from dataclasses import dataclass

import numpy as np

from regkit.sweeps.ensembles import decomposition
from regkit.sweeps.ensembles.fits import Fits


@dataclass(frozen=True)
class Row:
    """What is known of the fits of one recipe.

    accuracy, top5: the mean of single fits; ensemble_accuracy, ensemble_top5: of their averaged
        probabilities. accuracies, accuracies_sd: of 1, 2, ... fits averaged, over the choice of
        which.
    brier, zero_one: the parts of the error, as `decomposition` says.
    density: mean share of weights that are not zero. rows_alive: mean share of rows (filters,
        units) of a fit; rows_alive_in_any: of rows that at least one fit keeps, which is what the
        ensemble takes to store. None where the runs do not say.
    """

    name: str
    penalty: str
    lam: float | None
    num_fits: int
    accuracy: float
    accuracy_sd: float
    ensemble_accuracy: float
    top5: float | None
    ensemble_top5: float | None
    accuracies: list[float]
    accuracies_sd: list[float]
    brier: decomposition.Brier
    zero_one: decomposition.ZeroOne
    disagreement: float
    density: float | None
    rows_alive: float | None
    rows_alive_in_any: float | None


def row_of(fits: Fits) -> Row:
    """Measure the fits of one recipe."""
    scores, label, summary = fits.scores, fits.label, fits.runs[0].summary
    single = np.array([decomposition.accuracy(one, label) for one in scores])
    top5 = [decomposition.accuracy_top5(one, label) for one in scores]
    mean, spread = decomposition.accuracy_by_number(scores, label)
    numbers = [value for value in top5 if value is not None]
    return Row(
        name=fits.name,
        penalty=str(summary.get("penalty", "?")),
        lam=fits.summed_up("lam"),
        num_fits=len(scores),
        accuracy=float(single.mean()),
        accuracy_sd=float(single.std(ddof=1)),
        ensemble_accuracy=decomposition.accuracy(scores.mean(0), label),
        top5=float(np.mean(numbers)) if numbers else None,
        ensemble_top5=decomposition.accuracy_top5(scores.mean(0), label),
        accuracies=mean.tolist(),
        accuracies_sd=spread.tolist(),
        brier=decomposition.brier(scores, label),
        zero_one=decomposition.zero_one(scores, label),
        disagreement=decomposition.disagreement(scores),
        density=fits.summed_up("density"),
        rows_alive=None if fits.alive is None else float(fits.alive.mean()),
        rows_alive_in_any=None if fits.alive is None else decomposition.alive_in_any(fits.alive),
    )
