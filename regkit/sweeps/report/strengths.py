"""Pictures of what the strength lam does."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from regkit.sweeps.report.style import (
    WIDTH,
    Picture,
    Scene,
    dots,
    legend,
    place,
    plain,
    ring,
    spans_decades,
)
from regkit.sweeps.report.table import Configuration
from regkit.training.config import short

ACCURACIES = {"val_accuracy": "Validation", "test_accuracy": "Test"}
DENSITIES = {"density": "Weights", "live_share": "Groups (filters, units)"}
MOST_NAMED = 6  # strengths, up to which each has a tick of its own


def density_against_lam(scene: Scene) -> Picture | None:
    """Draw how many weights, and how many groups, are left at each strength."""
    figure = _panels(scene, DENSITIES, "share that is not zero")
    return figure and Picture("density_lam", "Density against strength", _caption(scene), figure)


def accuracy_against_lam(scene: Scene) -> Picture | None:
    """Draw accuracy at each strength."""
    figure = _panels(scene, ACCURACIES, "accuracy")
    return figure and Picture("accuracy_lam", "Accuracy against strength", _caption(scene), figure)


def _caption(scene: Scene) -> str:
    repeats = scene.table.repeats
    return f"Small dots are runs, large ones means over {repeats} with standard deviations."


def _panels(scene: Scene, titles: dict[str, str], label: str) -> Figure | None:
    """Draw a panel for each number; each is one of lam = 0, narrow, and one of the others."""
    rows = scene.table.rows
    zero = [row for row in rows if row.lam == 0]
    positive = [row for row in rows if row.lam > 0]
    shown = {y: title for y, title in titles.items() if any(place(r, "lam", y) for r in rows)}
    if not shown or not positive:
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    parts = figure.subfigures(1, len(shown), squeeze=False)[0]
    for part, (y, title) in zip(parts, shown.items(), strict=True):
        ratios = [1, 9] if zero else [1]
        every = part.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
        if zero:
            _without(every[0], scene, zero, y)
        _with(every[-1], scene, y, bool(zero))
        every[-1].set_title(title, loc="left")
        every[0].set_ylabel(label)
    legend(figure, scene)
    return figure


def _without(axes: Any, scene: Scene, rows: Sequence[Configuration], y: str) -> None:
    dots(axes, scene, rows, "lam", y)
    ring(axes, scene, rows, "lam", y)
    axes.set_xlim(-1, 1)
    axes.set_xticks([0], ["0"])
    axes.grid(visible=False, axis="x")


def _with(axes: Any, scene: Scene, y: str, apart: bool) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("strength lam")
    _ticks(axes, sorted({row.lam for row in scene.table.rows if row.lam > 0}))
    for rows in scene.series.values():
        dots(axes, scene, [row for row in rows if row.lam > 0], "lam", y)
        found = [at for row in rows if row.lam > 0 and (at := place(row, "lam", y)) is not None]
        if len(found) > 1:
            style = {"color": scene.colour(rows[0].penalty), "linestyle": scene.line(rows[0])}
            axes.plot(*zip(*found, strict=True), linewidth=1.1, alpha=0.8, **style)
    positive = [row for row in scene.table.rows if row.lam > 0]
    ring(axes, scene, positive, "lam", y)
    found = [at[1] for row in positive if (at := place(row, "lam", y)) is not None]
    if y in DENSITIES and spans_decades(found):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain)
    if apart:
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)


def _ticks(axes: Any, lams: Sequence[float]) -> None:
    """Name the strengths themselves where there is room, else powers of ten."""
    roomy = all(high / low >= 2 for low, high in pairwise(lams))
    if len(lams) <= MOST_NAMED and roomy:
        axes.set_xticks(lams, [short(lam) for lam in lams])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(lambda lam, _: short(lam))
        axes.xaxis.set_minor_formatter(NullFormatter())
