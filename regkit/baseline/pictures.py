"""Two pictures: the path of strengths, and what is left of the features, class by class."""

from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from regkit.baseline.choice import Path
from regkit.baseline.detector import Detector
from regkit.baseline.features import Features
from regkit.palette import BLUE, FAINT, INK, RED

MOST_CLASSES = 16  # rows of a page
LONGEST_NAME = 24  # letters
_ROUND = [digit * 10.0**power for power in range(-8, 3) for digit in (1, 2, 5)]


def draw_path(path: Path) -> Figure:
    """Draw accuracy and number of features in use against the strength."""
    figure = Figure((5.6, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    lams, folds = np.array(path.lams), len(path.val_accuracy)
    means = path.val_accuracy.mean(0)
    held = "validation" if folds == 1 else f"mean of {folds} folds, held out"
    above.plot(lams, path.train_accuracy, color=BLUE, marker="o", markersize=3, label="training")
    above.plot(lams, means, color=RED, marker="s", markersize=3, label=held)
    if folds > 1:
        error = path.val_accuracy.std(0, ddof=1) / np.sqrt(folds)
        above.fill_between(lams, means - error, means + error, color=RED, alpha=0.2, linewidth=0)
    above.set(ylabel="accuracy", ylim=(0, 1.03))
    below.plot(lams, path.num_live, color=INK, marker="o", markersize=3)
    below.set(ylabel="features in use", xlabel="strength lam (log scale)", xscale="log")
    below.set_ylim(bottom=0)
    ticks = [lam for lam in _ROUND if lams.min() <= lam <= lams.max()]
    below.set_xticks(ticks, [f"{lam:g}" for lam in ticks])
    below.set_xticks([], minor=True)
    chosen = path.lams[path.choice.chosen]
    for axes in (above, below):
        axes.axvline(chosen, color=INK, linestyle="--", label=f"chosen, lam = {chosen:g}")
        axes.grid(color=FAINT, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(frameon=False, fontsize=8)
    return figure


def draw_features(detector: Detector) -> Figure:
    """Draw the weights of each class (row) in the cells of each segment of time (column).

    Edges are lines as they lie in the picture, motion is a ray from a dot to where it goes; the
    longer and wider, the larger the weight. What speaks for the class is blue, what speaks
    against it red. Of many classes those with the largest weights are drawn.
    """
    weight, features = detector.dense(), detector.features
    sizes = np.abs(weight).sum(axis=(1, 2, 3, 4))
    shown = np.sort(np.argsort(-sizes, kind="stable")[:MOST_CLASSES])
    columns = 2 * features.segments
    figure = Figure((1.1 + 0.95 * columns, 0.9 + 0.98 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    most = float(np.abs(weight).max()) or 1.0
    for axes_row, label in zip(grid, shown, strict=True):
        for column, axes in enumerate(axes_row):
            motion, segment = divmod(column, features.segments)
            start, stop = (
                (0, features.orientations) if not motion else (features.orientations, None)
            )
            _cells(axes, weight[label, segment, :, :, start:stop] / most, features, bool(motion))
        name = str(detector.classes[label])
        name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        axes_row[0].set_ylabel(name, fontsize=8, parse_math=False)
    for column, axes in enumerate(grid[0]):
        motion, segment = divmod(column, features.segments)
        kind = "motion" if motion else "edges"
        axes.set_title(f"{kind}, {segment + 1}/{features.segments}", fontsize=8)
    handles = [
        Line2D([], [], color=BLUE, linewidth=2, label="speaks for the class"),
        Line2D([], [], color=RED, linewidth=2, label="speaks against it"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _cells(
    axes: Any, weight: Float64[np.ndarray, "cells cells bins"], features: Features, motion: bool
) -> None:
    lines, widths, colours, middles = [], [], [], []
    for row, column, place in np.argwhere(weight):
        size = weight[row, column, place]
        # scikit-image's bins of orientations are of gradients, which are across the edges.
        angle = (
            2 * np.pi * place / features.directions
            if motion
            else np.pi * (place + 0.5) / features.orientations + np.pi / 2
        )
        length = 0.2 + 0.28 * np.sqrt(abs(size))
        tip = length * np.array([np.cos(angle), np.sin(angle)])
        middle = np.array([column, row])
        lines.append((middle if motion else middle - tip, middle + tip))
        widths.append(0.6 + 2.4 * abs(size))
        colours.append(BLUE if size > 0 else RED)
        middles.append(middle)
    axes.add_collection(LineCollection(lines, linewidths=widths, colors=colours))
    if motion and middles:  # a ray begins at a dot
        axes.scatter(*np.transpose(middles), s=6, c=colours, zorder=3, linewidths=0)
    edge = features.num_cells - 0.5
    axes.set(xlim=(-0.5, edge), ylim=(edge, -0.5), aspect="equal")  # y points down
    inner = np.arange(features.num_cells - 1) + 0.5
    axes.set_xticks(inner, [])
    axes.set_yticks(inner, [])
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_color(FAINT)
