"""The picture of which layers a penalty empties."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from regkit.lightning.monitors.canvas import SHADES, SHARES, ink_on, tint
from regkit.palette import PALE
from regkit.sweeps.report.histories import Histories, spaced
from regkit.sweeps.report.style import WIDTH, Picture, Scene
from regkit.sweeps.report.table import Configuration

MOST_COLUMNS, MOST_LAYERS = 40, 80
MOST_NUMBERS = 14  # columns, up to which a cell has room for its number


def layer_densities(scene: Scene, histories: Histories) -> Picture | None:
    """Draw the density of each layer: layers down, configurations across."""
    rows = spaced(scene.table.rows, MOST_COLUMNS)
    found = {row: densities for row in rows if (densities := histories.layers(row))}
    names = list(dict.fromkeys(name for densities in found.values() for name in densities))
    if not names:
        return None
    left_out = _left_out(scene, rows, names)
    names = names[:MOST_LAYERS]
    grid = np.array([[found[row].get(name, np.nan) for row in found] for name in names])
    height = 0.22 * len(names) + 1.5
    figure = Figure(figsize=(WIDTH, max(height, 2.2)), layout="constrained")
    axes: Any = figure.subplots()
    axes.grid(visible=False)
    axes.imshow(tint(grid, unknown=PALE), aspect="auto")
    scale = ScalarMappable(SHARES, SHADES)
    figure.colorbar(scale, ax=axes, label="density", ticks=[0, 0.05, 0.2, 0.5, 1], pad=0.01)
    _name(axes, scene, list(found), names)
    if len(found) <= MOST_NUMBERS:
        _numbers(axes, grid)
    caption = (
        "Share of each layer's weights that are not zero at the end, as a mean over "
        f"{scene.table.repeats}; white where none is left, grey where a configuration does not "
        "penalise the layer. Rows are "
        "numbered as in the table."
    )
    title = "Density of each layer"
    return Picture("layers", title, f"{caption} {left_out}".strip(), figure)


def _name(axes: Any, scene: Scene, rows: Sequence[Configuration], names: Sequence[str]) -> None:
    """Write layers on the left, strengths below and each penalty once, above its columns."""
    axes.set_yticks(range(len(names)), _shorter(names), fontsize=7)
    strengths = [scene.short_name(row) for row in rows]
    turn = 0 if len(rows) <= MOST_NUMBERS and max(map(len, strengths)) < 7 else 90
    axes.set_xticks(range(len(rows)), strengths, rotation=turn, fontsize=7)
    axes.set_xlabel("strength lam")
    axes.tick_params(length=0)
    for penalty in dict.fromkeys(row.penalty for row in rows):
        own = [i for i, row in enumerate(rows) if row.penalty == penalty]
        style = {"color": scene.colour(penalty), "fontsize": 8, "fontweight": "bold"}
        slant = (
            {"ha": "center"}
            if len(own) * 60 / len(rows) > len(penalty)
            else {
                "ha": "left",
                "rotation": 40,
            }
        )
        axes.text(sum(own) / len(own), -0.7, penalty, va="bottom", **slant, **style)
        if own[0] > 0:
            axes.axvline(own[0] - 0.5, color="white", linewidth=2.5)
    axes.spines[:].set_visible(False)


def _numbers(axes: Any, grid: Float[np.ndarray, "layers rows"]) -> None:
    for (down, across), density in np.ndenumerate(grid):
        if np.isfinite(density):
            shown = f"{density:.2f}".removeprefix("0") if density < 0.995 else "1"
            style = {"fontsize": 6.5, "color": ink_on(float(density))}
            axes.text(across, down, shown, ha="center", va="center", **style)


def _shorter(names: Sequence[str]) -> list[str]:
    """Take away what all names begin and end with."""
    parts = [name.removesuffix(".weight").split(".") for name in names]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return [".".join(part) for part in parts]


def _left_out(scene: Scene, rows: Sequence[Configuration], names: Sequence[str]) -> str:
    said = []
    if len(rows) < len(scene.table.rows):
        said.append(f"{len(rows)} of {len(scene.table.rows)} configurations, evenly chosen.")
    if len(names) > MOST_LAYERS:
        said.append(f"The first {MOST_LAYERS} of {len(names)} layers.")
    return " ".join(said)
