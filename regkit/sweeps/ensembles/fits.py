"""Fits of one recipe, read from the folders of their runs, and what they are worth."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from regkit.errors import InputError
from regkit.files import uncell
from regkit.sweeps.ensembles import decomposition
from regkit.training.config import key_value, short
from regkit.training.runs import Run, group_norms

PREDICTIONS = "predictions.csv"
_ABOUT = 7  # columns before the probabilities
_PLACE = 3  # of these, path, start_s and end_s say which video it is
# Options in which the fits of one recipe differ.
_VARIED = ("data.bootstrap", "seed", "ckpt_path")

Place = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """What one fit says of the test videos."""

    file: Path
    places: list[Place]
    classes: list[str]
    label: Int[np.ndarray, " videos"]
    scores: Float[np.ndarray, "videos classes"]


@dataclass(frozen=True, eq=False)
class Fits:
    """Fits of one recipe, on the same test videos.

    scores: probabilities, (fits, videos, classes).
    alive: whether each row of the weights is not zero, (fits, rows); None where that is not known.
    """

    name: str
    runs: list[Run]
    places: list[Place]
    classes: list[str]
    label: Int[np.ndarray, " videos"]
    scores: Float[np.ndarray, "fits videos classes"]
    alive: Bool[np.ndarray, "fits rows"] | None

    def summed_up(self, key: str) -> float | None:
        """Return the mean of a number of the summaries; None where a run lacks it."""
        values = [run.summary.get(key) for run in self.runs]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return float(np.mean(numbers)) if len(numbers) == len(values) else None


def predictions_of(run: Run) -> Table | str:
    """Read what a run predicted, or say why it cannot be averaged.

    Raises: InputError when its table is broken.
    """
    if run.status != "done":
        return run.status
    if not (run.folder / PREDICTIONS).is_file():
        return f"without {PREDICTIONS}"
    table = read_table(run.folder / PREDICTIONS)
    return table if np.isfinite(table.scores).all() else "diverged"


def resamples(run: Run) -> bool:
    """Say whether a run trains on a bootstrap sample."""
    data = run.recipe.get("data")
    return isinstance(data, dict) and data.get("bootstrap") is not None


def by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Sort runs by all that was asked for except the bootstrap and the seed; name each recipe.

    A fit that is there twice counts once. The names tell penalty, strength and, of other options,
    those in which the recipes differ; their order is that of penalties, none first, and strengths.
    """
    recipes: dict[tuple[tuple[str, str], ...], dict[tuple[Any, ...], Run]] = {}
    for run in runs:
        options = dict(map(key_value, run.overrides))
        fit = tuple(options.pop(key, None) for key in _VARIED[:2])
        kept = sorted(item for item in options.items() if item[0] not in _VARIED)
        if run.summary.get("penalty") == "none":  # its strength says nothing
            kept = [item for item in kept if item[0] not in ("penalty", "lam")]
            kept.append(("penalty", "none"))
        recipes.setdefault(tuple(kept), {}).setdefault(fit, run)
    shared = set.intersection(*map(set, recipes)) if recipes else set()
    named: dict[str, list[Run]] = {}
    for kept, fits in sorted(recipes.items(), key=lambda item: _rank(next(iter(item[1].values())))):
        name = _name(next(iter(fits.values())), [item for item in kept if item not in shared])
        while name in named:
            name += "'"
        named[name] = list(fits.values())
    return named


def join(name: str, runs: Sequence[Run], tables: Sequence[Table]) -> Fits:
    """Put the fits of one recipe together.

    Raises: InputError when they were not tested on the same videos.
    """
    for table in tables[1:]:
        check_same(tables[0], table)
    first = tables[0]
    scores = np.stack([table.scores for table in tables])
    return Fits(name, list(runs), first.places, first.classes, first.label, scores, _alive(runs))


def read_table(path: Path) -> Table:
    """Read predictions.csv.

    Raises: InputError when it is another table.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = ([*map(uncell, row)] for row in csv.reader(file))
        classes = [column[2:-1] for column in header[_ABOUT:]]
        number = {label: place for place, label in enumerate(classes)}
        label = np.array([number[row[_PLACE]] for row in rows], dtype=np.int64)
        scores = np.array([row[_ABOUT:] for row in rows], dtype=np.float64)
        places = [tuple(row[:_PLACE]) for row in rows]
        if not rows:
            raise ValueError("it names no video")
        return Table(path, places, classes, label, scores.reshape(len(rows), len(classes)))
    except (OSError, ValueError, KeyError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} is no table of predictions as train.py writes it "
            f"({type(error).__name__}: {error}). Delete the folder of this run, or run it again."
        ) from error


def check_same(one: Table | Fits, other: Table | Fits) -> None:
    """Refuse to compare fits on different videos.

    Raises: InputError that names the first difference.
    """
    names = [part.file if isinstance(part, Table) else part.name for part in (one, other)]
    if one.classes != other.classes:
        what = f"the classes are {one.classes[:5]} and {other.classes[:5]}"
    elif one.places != other.places:
        alone = sorted(set(one.places) ^ set(other.places))
        what = (
            f"of {len(alone)} one knows nothing, such as {alone[0][0]!r}"
            if alone
            else "their order"
        )
    elif (one.label != other.label).any():
        place = one.places[int((one.label != other.label).argmax())]
        what = f"the labels differ, first of {place[0]!r}"
    else:
        return
    raise InputError(
        f"{names[0]} and {names[1]} were not tested on the same videos: {what}. Fits are compared "
        "on one test split: keep data.seed and the options of the data the same in all of them."
    )


def _rank(run: Run) -> tuple[bool, str, float]:
    penalty, lam = str(run.summary.get("penalty", "?")), run.summary.get("lam")
    return penalty != "none", penalty, float(lam) if isinstance(lam, int | float) else 0.0


def _name(run: Run, own: Sequence[tuple[str, str]]) -> str:
    """Name a recipe by its penalty, strength and `own` options."""
    penalty, lam = str(run.summary.get("penalty", "?")), run.summary.get("lam")
    parts = [penalty]
    if penalty != "none" and isinstance(lam, int | float):
        parts.append("lam=auto" if ("lam", "auto") in own else f"lam={short(lam)}")
    for key, value in own:
        if key not in ("penalty", "lam"):
            name = key.removeprefix("penalty.") if "penalty." in key else key.split(".")[-1]
            parts.append(f"{name}={value}")
    return " ".join(parts)


def _alive(runs: Sequence[Run]) -> Bool[np.ndarray, "fits rows"] | None:
    """Say of each row of the weights whether it is alive, fit by fit."""
    fits = [group_norms(run) for run in runs]
    if not all(fits) or any(fit.keys() != fits[0].keys() for fit in fits):
        return None
    rows = [np.concatenate([fit[name].ravel() > 0 for name in sorted(fit)]) for fit in fits]
    return np.stack(rows) if len({len(row) for row in rows}) == 1 else None


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
        rows_alive_in_any=None if fits.alive is None else float(fits.alive.any(0).mean()),
    )


def collect(runs: Sequence[Run]) -> tuple[list[Fits], list[tuple[Run, str]]]:
    """Read the fits of each recipe, and list the runs that are left out, with the reason."""
    read = [(run, predictions_of(run)) for run in runs]
    tables = {run.folder: table for run, table in read if not isinstance(table, str)}
    left_out = [(run, why) for run, why in read if isinstance(why, str)]
    recipes: list[Fits] = []
    for name, fits in by_recipe([run for run in runs if run.folder in tables]).items():
        if len(fits) < 2:
            left_out += [(run, "alone of its recipe") for run in fits]
            continue
        recipes.append(join(name, fits, [tables[run.folder] for run in fits]))
        check_same(recipes[0], recipes[-1])
    return recipes, left_out
