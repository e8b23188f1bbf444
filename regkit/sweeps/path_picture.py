"""The picture of a path: how long each filter is, what is left, and what it is worth, along lam."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from regkit.palette import INK, SERIES
from regkit.sweeps.report.style import look
from regkit.training.config import short
from regkit.training.runs import find_runs, group_norms

MOST_LINES = 400  # filters drawn; of more, evenly chosen ones
MOST_LAYERS = 8  # with a colour of their own in the legend


def draw(folder: Path, points: Sequence[Mapping[str, Any]], chosen: float | None) -> str:
    """Draw the path that lies in a folder."""
    points = sorted(points, key=lambda point: point["lam"])
    lams = np.array([point["lam"] for point in points])
    with look():
        figure = Figure(figsize=(7.2, 7.0), layout="constrained")
        FigureCanvasAgg(figure)
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
        _draw_lengths(top, lams, _lengths(folder, lams))
        _draw_accuracy(middle, lams, points)
        _draw_left(bottom, lams, points)
        for axes in (top, middle, bottom):
            axes.set_xscale("log")
            if chosen is not None:
                axes.axvline(chosen, color=INK, linewidth=0.9)
        if chosen is not None:
            top.set_title(f"line: lam={short(chosen)}, the sparsest within one standard error")
        bottom.set_xlabel("lam")
        figure.savefig(folder / "path.png", dpi=200)
    return "path.png"


def _lengths(
    folder: Path, lams: Float[np.ndarray, " lams"]
) -> dict[str, Float[np.ndarray, "lams rows"]]:
    """Return by layer the length of each filter at each strength."""
    by_lam = {run.summary["lam"]: group_norms(run) for run in find_runs([folder]) if run.summary}
    names = list(by_lam[lams[0]])
    return {name: np.stack([by_lam[lam][name] for lam in lams]) for name in names}


def _draw_lengths(
    axes: Axes, lams: np.ndarray, lengths: Mapping[str, Float[np.ndarray, "lams rows"]]
) -> None:
    every = -(-sum(rows.shape[1] for rows in lengths.values()) // MOST_LINES)
    handles = []
    for number, (name, rows) in enumerate(lengths.items()):
        colour = SERIES[number % len(SERIES)]
        # Relative to the mean of the layer at the smallest strength: layers differ in size.
        scaled = rows[:, ::every] / max(float(rows[0].mean()), 1e-12)
        axes.plot(lams, scaled, color=colour, linewidth=0.5, alpha=0.6)
        if number < MOST_LAYERS:
            short_name = name.removeprefix("net.").removesuffix(".weight")
            alive = int((rows[-1] > 0).sum())
            handles.append(
                Line2D([], [], color=colour, label=f"{short_name} ({alive} of {rows.shape[1]})")
            )
    axes.set_ylabel("length of each filter,\nrelative to its layer's mean at first")
    axes.set_ylim(bottom=0)
    axes.legend(handles=handles, title="layer (alive at the end)", fontsize=7, ncols=2)


def _draw_accuracy(axes: Axes, lams: np.ndarray, points: Sequence[Mapping[str, Any]]) -> None:
    kinds = {
        "val_accuracy": ("validation", SERIES[0], "--"),
        "debiased_val_accuracy": ("validation, debiased", SERIES[0], "-"),
        "test_accuracy": ("test", SERIES[1], "--"),
        "debiased_accuracy": ("test, debiased", SERIES[1], "-"),
    }
    for key, (label, colour, line) in kinds.items():
        values = [point[key] for point in points if point.get(key) is not None]
        if len(values) == len(lams):
            axes.plot(lams, values, line, color=colour, marker="o", markersize=3, label=label)
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7, ncols=2)


def _draw_left(axes: Axes, lams: np.ndarray, points: Sequence[Mapping[str, Any]]) -> None:
    density = [point["density"] for point in points]
    rows = [point["live_groups"] / max(point["num_groups"], 1) for point in points]
    axes.plot(lams, density, color=SERIES[2], marker="o", markersize=3, label="weights")
    axes.plot(lams, rows, color=SERIES[3], marker="s", markersize=3, label="filters and units")
    axes.set_ylabel("share that is not zero")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7)
