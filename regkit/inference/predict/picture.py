"""Draw which class is how probable when."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from regkit.files import replacing
from regkit.inference.predict.result import UNSURE, UNSURE_NAME, Result
from regkit.palette import INK, RED

MOST_CLASSES = 12  # rows; of more classes, those that are most probable somewhere
_LONGEST_NAME = 28  # letters
_MOST_COLUMNS = 2000  # of the heat map: more than the picture has pixels


def draw(result: Result, title: str) -> Figure:
    """Draw a heat map of the probabilities; a line along the labels, a dot at each raw top class.

    Columns lie where the label of their window holds.
    """
    rows = shown_classes(result)
    names = [_short(result.name(row)) for row in rows]
    # The object interface, not pyplot: no window system, no state shared with the user's figures.
    figure = Figure((9, 1.6 + 0.3 * max(3, len(rows))), layout="constrained")
    axes: Any = figure.add_subplot()
    borders, heat = _columns(result, [row for row in rows if row != UNSURE])
    if UNSURE in rows:
        heat = np.pad(heat, ((0, 0), (0, 1)))
    mesh = axes.pcolormesh(
        borders, np.arange(len(rows) + 1) - 0.5, heat.T, cmap="Blues", vmin=0, vmax=1, zorder=0
    )
    mesh.set_rasterized(True)
    _path(axes, result, rows)
    _dots(axes, result, rows)
    axes.set_yticks(range(len(rows)), names, fontsize=9, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(borders[0], borders[-1])
    axes.set_xlabel("time in s", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    axes.tick_params(length=0, axis="y")
    axes.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=axes, pad=0.01, aspect=14).set_label("probability of a window")
    figure.legend(handles=_entries(result), loc="outside lower left", ncols=2, frameon=False)
    return figure


def write(result: Result, title: str, path: Path, dpi: int = 130) -> None:
    """Draw to a file."""
    with replacing(path) as draft:
        draw(result, title).savefig(draft, format="png", dpi=dpi)


def shown_classes(result: Result) -> list[int]:
    """Choose the classes to show, in their order; at the end UNSURE where it occurs."""
    present = set(result.labels.tolist())
    rows = list(range(len(result.classes)))
    if len(rows) > MOST_CLASSES:
        weight = result.probabilities.max(0) + result.probabilities.mean(0)
        # Those on the path before others, the longest on it first.
        held = np.bincount(result.labels[result.labels >= 0], minlength=len(rows))
        rows = sorted(rows, key=lambda row: (-held[row], -weight[row]))[:MOST_CLASSES]
    return sorted(rows) + ([UNSURE] if UNSURE in present else [])


def _columns(
    result: Result, rows: list[int]
) -> tuple[Float64[np.ndarray, " borders"], Float64[np.ndarray, "columns rows"]]:
    """Return where columns lie, and their heat; of many windows the means of neighbours."""
    borders, heat = result.borders_s, result.probabilities[:, rows]
    if borders[-1] <= borders[0]:
        borders = np.linspace(0, 1, len(borders))
    step = -(-len(heat) // _MOST_COLUMNS)
    starts = np.arange(0, len(heat), step)
    counts = np.diff(np.append(starts, len(heat)))
    return np.append(borders[starts], borders[-1]), np.add.reduceat(heat, starts) / counts[:, None]


def _path(axes: Any, result: Result, rows: list[int]) -> None:
    """Draw the labels as one line that steps; it breaks where its class is not shown."""
    x: list[float] = []
    y: list[float] = []
    for part in result.segments:
        at = float(rows.index(part.label)) if part.label in rows else np.nan
        x += [part.start_s, part.end_s]
        y += [at, at]
    style = {"solid_capstyle": "butt", "zorder": 2, "linewidth": 2.4}
    axes.plot(x, y, color="white", **{**style, "linewidth": 4.2})  # on dark cells
    axes.plot(x, y, color=RED, **style)


def _dots(axes: Any, result: Result, rows: list[int]) -> None:
    place = {label: row for row, label in enumerate(rows)}
    raw: Int64[np.ndarray, " windows"] = result.probabilities.argmax(1)
    found = [
        (window.centre_s, place[label])
        for window, label in zip(result.windows, raw.tolist(), strict=True)
        if label in place
    ]
    size = float(np.clip(900 / max(1, len(found)), 0.6, 4.5))
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.15 * size, "linestyle": ""}
    axes.plot(*zip(*found, strict=True), marker="o", color=INK, markersize=size, zorder=3, **edge)


def _entries(result: Result) -> list[Any]:
    smoothing = result.smoothing
    how = {"none": "", "average": ", averaged", "viterbi": ", Viterbi"}[smoothing.way]
    over = f" over {smoothing.seconds:g} s" if smoothing.way == "average" else ""
    over = f", {smoothing.seconds:g} s a change" if smoothing.way == "viterbi" else over
    dot = {"marker": "o", "linestyle": "", "markersize": 4.5}
    return [
        Line2D([], [], color=RED, linewidth=2.4, label=f"class{how}{over}"),
        Line2D([], [], color=INK, label="most probable class of a window", **dot),
    ]


def _short(name: str) -> str:
    if name == UNSURE_NAME or len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 1] + "…"
