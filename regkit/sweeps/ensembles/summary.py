"""What bagging found, in lines, a table and a picture: bias, variance, what each fit adds."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from regkit.files import replacing, write_table
from regkit.palette import FAINT, GREY, INK, QUIET, SERIES, SKY
from regkit.sweeps import sweep_summary
from regkit.sweeps.ensembles.fits import Fits, Row, collect, resamples, row_of
from regkit.training.runs import Run, find_runs

TABLE, PICTURE = "ensemble.csv", "ensemble.png"
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLES = ("-", "--", ":", "-.")
LONGEST_NAME = 36  # letters
INCHES_A_BAR = 0.36
INCHES_A_LETTER = 0.072
MOST_CURVES = 8  # that can be told apart


def conclude(folder: str | Path) -> dict[str, Any] | None:
    """Say what the fits below a folder are worth averaged, and leave it there too.

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
    rows = [*map(row_of, recipes)]
    write_table(folder / TABLE, rows_of_csv(recipes))
    with replacing(folder / PICTURE) as draft:
        draw(rows).savefig(draft, dpi=160)
    return sweep_summary.conclude(
        folder,
        title=f"Bagging: {_counted(len(recipes), 'recipe')} of {_numbers(rows)} fits",
        lines=[*map(line_of, rows), *_remarks(rows, left_out)],
        pictures=[PICTURE],
        chosen=None,
        recipes=[asdict(row) for row in rows],
        left_out={str(run.folder): why for run, why in left_out},
    )


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


def draw(rows: Sequence[Row]) -> Figure:
    """Draw bias and variance of each recipe, what its fits keep, and accuracy by number of fits.

    Of many recipes, the accuracy of one fit and of all of them averaged.
    """
    panels = [(_bars, 3.3), (_kept, 1.9), (_curves, 3.3)]
    names = INCHES_A_LETTER * max(len(_cut(row.name)) for row in rows)
    if len(rows) > MOST_CURVES:
        panels[2] = (_gains, 2.4)
    if all(row.rows_alive is None for row in rows):
        del panels[1]
    width = sum(inches for _, inches in panels) + 0.9
    width += names * (1 if len(rows) > MOST_CURVES else 2)
    height = max(3.3, 1.5 + INCHES_A_BAR * len(rows))
    figure = Figure((width, height), layout="constrained")
    ratios = [inches for _, inches in panels]
    all_axes: Any = figure.subplots(1, len(panels), width_ratios=ratios)
    for axes, (panel, _) in zip(all_axes, panels, strict=True):
        panel(axes, rows)
        axes.tick_params(length=0, colors=INK, labelsize=8.5)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the Brier score as a bar of two parts."""
    for at, row in enumerate(rows):
        bias, variance = row.brier.bias, row.brier.variance
        axes.barh(at, bias, height=0.66, color=GREY, label="bias²")
        axes.barh(at, variance, left=bias, height=0.66, color=SKY, label="variance")
        axes.annotate(
            f"{variance:.3f}",
            (bias + variance, at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(range(len(rows)), [_cut(row.name) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.16 * max(row.brier.error for row in rows))
    axes.set_xlabel("Brier score of single fits", fontsize=9, color=INK)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    _name_first(axes, 2, ncols=2)


def _kept(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the share of rows (filters, units) alive, from a single fit to all of them together."""
    for at, row in enumerate(rows):
        one, together = row.rows_alive, row.rows_alive_in_any
        if one is None or together is None:
            continue
        axes.plot([one, together], [at, at], color=QUIET, linewidth=2, zorder=1)
        look = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgecolor": INK}
        axes.plot(together, at, markerfacecolor=INK, label="filters in any fit", **look)
        axes.plot(one, at, markerfacecolor="white", label="filters of a fit", **look)
        if row.density is not None:
            look |= {"marker": "D", "markersize": 4.5, "markeredgecolor": "none"}
            axes.plot(row.density, at, markerfacecolor=SKY, label="its weights", **look)
    _on_rows(axes, rows)
    axes.set_xlim(-0.05, 1.08)
    axes.set_xlabel("share that is not zero", fontsize=9, color=INK)
    _name_first(axes, 3, labelspacing=0.25)


def _gains(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the accuracy of a fit, and of all of them averaged."""
    for at, row in enumerate(rows):
        alone, averaged = row.accuracy, row.ensemble_accuracy
        axes.plot([alone, averaged], [at, at], color=QUIET, linewidth=2, zorder=1)
        look = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgecolor": INK}
        axes.plot(alone, at, markerfacecolor="white", label="one fit", **look)
        axes.plot(averaged, at, markerfacecolor=INK, label="all averaged", **look)
    _on_rows(axes, rows)
    axes.set_xlabel("test accuracy", fontsize=9, color=INK)
    _name_first(axes, 2, ncols=2)


def _curves(axes: Any, rows: Sequence[Row]) -> None:
    """Draw accuracy against the number of averaged fits; bars: deviation over the choice of them.

    A penalty has a colour and a mark; its strengths follow each other in style of line.
    """
    penalties = list(dict.fromkeys(row.penalty for row in rows))
    seen = dict.fromkeys(penalties, 0)
    for number, row in enumerate(rows):
        aside = 0.07 * (number - (len(rows) - 1) / 2) / max(1, len(rows) / 5)
        kind = penalties.index(row.penalty)
        style = STYLES[seen[row.penalty] % len(STYLES)]
        seen[row.penalty] += 1
        axes.errorbar(
            np.arange(1, row.num_fits + 1) + aside,  # else bars would hide each other
            row.accuracies,
            yerr=row.accuracies_sd,
            color=SERIES[kind % len(SERIES)],
            marker=MARKERS[kind % len(MARKERS)],
            linestyle=style,
            linewidth=1.6,
            markersize=5,
            elinewidth=0.7,
            capsize=2,
            label=_cut(row.name),
        )
    most = max(row.num_fits for row in rows)
    axes.set_xticks(range(1, most + 1, -(-most // 12)))
    axes.set_xlabel("number of averaged fits", fontsize=9, color=INK)
    axes.set_ylabel("test accuracy", fontsize=9, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=3.2, **_legend()
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _on_rows(axes: Any, rows: Sequence[Row]) -> None:
    """Line a panel up with the bars."""
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(color=FAINT, linewidth=0.6)


def _name_first(axes: Any, number: int, **options: Any) -> None:
    """Put what the first row shows into a legend above."""
    handles, names = axes.get_legend_handles_labels()
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0.2}
    axes.legend(handles[:number], names[:number], **place, **options, **_legend())


def _legend() -> dict[str, Any]:
    return {"fontsize": 8.5, "frameon": False, "labelcolor": INK, "columnspacing": 1.2}


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
