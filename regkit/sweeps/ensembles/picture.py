"""The picture of bagging: bias and variance, what the fits keep, and what each further one adds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regkit.palette import FAINT, GREY, INK, QUIET, SERIES, SKY
from regkit.sweeps.ensembles.rows import Row

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLES = ("-", "--", ":", "-.")
LONGEST_NAME = 36  # letters
INCHES_A_BAR = 0.36
INCHES_A_LETTER = 0.072
MOST_CURVES = 8  # that can be told apart


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
    FigureCanvasAgg(figure)
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
