"""What bagging found: bias and variance of each recipe, and what averaging its fits gains."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regkit.files import replacing, write_table, write_text
from regkit.sweeps.ensembles.fits import (
    Fits,
    by_recipe,
    check_same,
    join,
    predictions_of,
    resamples,
)
from regkit.sweeps.ensembles.picture import draw
from regkit.sweeps.ensembles.rows import Row, row_of
from regkit.training.runs import Run, find_runs

TABLE, PICTURE, CONCLUSION = "ensemble.csv", "ensemble.png", "conclusion.json"


def conclude(folder: str | Path) -> dict[str, Any] | None:
    """Say what the fits below a folder are worth averaged, and leave it there.

    Writes ensemble.csv (averaged probabilities; a row is a recipe and a video), ensemble.png and
    conclusion.json. Nothing, and None, where fewer than two fits of one recipe on bootstrap samples
    are done. Other fits are left out and counted.

    Raises: InputError when the folder holds no run, or fits were tested on different videos.
    """
    folder = Path(folder)
    runs = [run for run in find_runs([folder]) if resamples(run)]
    recipes, left_out = collect(runs)
    if not recipes:
        return None
    rows = [row_of(fits) for fits in recipes]
    write_table(folder / TABLE, rows_of_csv(recipes))
    with replacing(folder / PICTURE) as draft:
        draw(rows).savefig(draft, dpi=160)
    found = {
        "title": f"Bagging: {_counted(len(recipes), 'recipe')} of {_numbers(rows)} fits",
        "lines": [*map(line_of, rows), *_remarks(rows, left_out)],
        "pictures": [PICTURE],
        "chosen": None,
        "recipes": [asdict(row) for row in rows],
        "left_out": {str(run.folder): why for run, why in left_out},
    }
    write_text(folder / CONCLUSION, json.dumps(found, indent=2) + "\n")
    return found


def bias_variance(runs: Sequence[Run]) -> list[Row]:
    """Return a row for each recipe of which two or more fits are done.

    Fits of one recipe differ in data.bootstrap and seed alone.
    Raises: InputError when they were tested on different videos.
    """
    return [row_of(fits) for fits in collect(runs)[0]]


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


def line_of(row: Row) -> str:
    """Say a row in one line."""
    brier, zero_one = row.brier, row.zero_one
    alive = ""
    if row.rows_alive is not None and row.rows_alive_in_any is not None:
        alive = f"; rows alive {row.rows_alive:.3g} in a fit, {row.rows_alive_in_any:.3g} in any"
    return (
        f"{row.name}: {row.num_fits} fits, test accuracy {row.accuracy:.4f} ± {row.accuracy_sd:.4f}"
        f" alone, {row.ensemble_accuracy:.4f} averaged; Brier {brier.error:.4f} = bias² "
        f"{brier.bias:.4f} + variance {brier.variance:.4f}; errors {zero_one.error:.4f} = bias "
        f"{zero_one.bias:.4f} + variance {zero_one.unbiased:.4f} - {zero_one.biased:.4f}; two fits "
        f"disagree on {row.disagreement:.4f}{alive}"
    )


def rows_of_csv(recipes: Sequence[Fits]) -> Iterator[Sequence[Any]]:
    """Return the averaged probabilities, as predictions.csv has those of one fit."""
    columns = ["recipe", "path", "start_s", "end_s", "label", "predicted", "correct", "score"]
    yield [*columns, *(f"p({name})" for name in recipes[0].classes)]
    for fits in recipes:
        for place, label, mean in zip(
            fits.places, fits.label.tolist(), fits.scores.mean(0), strict=True
        ):
            predicted = int(mean.argmax())
            names = fits.classes[label], fits.classes[predicted]
            scores = [f"{p:.5g}" for p in mean]
            correct = int(label == predicted)
            yield [fits.name, *place, *names, correct, scores[predicted], *scores]


def _remarks(rows: Sequence[Row], left_out: Sequence[tuple[Run, str]]) -> list[str]:
    remarks = []
    if len({row.num_fits for row in rows}) > 1:
        remarks.append(
            "The recipes have different numbers of fits: of k fits, (k-1)/k of the variance shows."
        )
    if left_out:
        counts = Counter(why for _, why in left_out)
        reasons = ", ".join(f"{number} {why}" for why, number in counts.items())
        remarks.append(f"Left out: {_counted(len(left_out), 'fit')} ({reasons}).")
    return remarks


def _numbers(rows: Sequence[Row]) -> str:
    least, most = min(row.num_fits for row in rows), max(row.num_fits for row in rows)
    return str(least) if least == most else f"{least} to {most}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
