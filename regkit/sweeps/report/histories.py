"""How training went, in pictures: curves over epochs, and which layers a penalty empties."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from regkit.lightning.monitors.canvas import SHADES, SHARES, ink_on, short_names
from regkit.lightning.monitors.canvas import tint as tint_shares
from regkit.palette import PALE
from regkit.sweeps.report.style import WIDTH, Picture, Scene, tint
from regkit.sweeps.report.table import Configuration
from regkit.training.runs import Curve, Run, curves

MOST_POINTS = 300  # of a curve; a panel has no more dots across
LAYER = "density_layer/"
TAGS = {
    "val/acc": "accuracy\n(validation)",
    "density/total": "density",
    "density/live_groups": "live groups",
    "objective/total": "objective",
    "val/roughness": "temporal\nroughness",
}
MOST_PENALTIES, MOST_LINES = 6, 8  # columns, and lines in a panel, that an eye can keep apart
MOST_COLUMNS, MOST_LAYERS = 40, 80
MOST_NUMBERS = 14  # columns, up to which a cell has room for its number


@dataclass(frozen=True)
class Band:
    """A mean over runs and the standard deviation, at each epoch."""

    epochs: Float[np.ndarray, " points"]
    mean: Float[np.ndarray, " points"]
    deviation: Float[np.ndarray, " points"]


@dataclass(frozen=True, eq=False)
class Histories:
    """Curves of runs, each read from its files once."""

    _read: dict[Run, dict[str, Curve]] = field(default_factory=dict)

    def of(self, run: Run) -> dict[str, Curve]:
        """Return the curves of a run, thinned."""
        if run not in self._read:
            self._read[run] = {tag: _thin(curve) for tag, curve in curves(run).items()}
        return self._read[run]

    def band(self, row: Configuration, tag: str) -> Band | None:
        """Put the runs of a row together; None where none has the curve."""
        found = [(run, self.of(run)[tag]) for run in row.runs if tag in self.of(run)]
        if not found:
            return None
        # A run that stopped earlier ends the mean: another mean would go on without it.
        steps = found[0][1][0]
        for _, (others, _) in found[1:]:
            steps = np.intersect1d(steps, others)
        values = np.stack([v[np.searchsorted(s, steps)] for _, (s, v) in found])
        # Lightning counts the step that it is in, the callback those that are done.
        done = steps + 1 if tag.startswith("val/") else steps
        deviation = values.std(0, ddof=1) if len(found) > 1 else np.zeros(len(steps))
        return Band(done / _steps_an_epoch(found[0][0]), values.mean(0), deviation)

    def layers(self, row: Configuration) -> dict[str, float]:
        """Return the density of each layer at the end, as a mean over runs."""
        found: dict[str, list[float]] = {}
        for run in row.runs:
            for name, density in self._layers(run).items():
                found.setdefault(name, []).append(density)
        return {name: float(np.mean(densities)) for name, densities in found.items()}

    def _layers(self, run: Run) -> dict[str, float]:
        """Read them from the summary; those of older runs from the end of their curves."""
        kept = run.summary.get("layers")
        if isinstance(kept, dict):
            return {str(name): float(density) for name, density in kept.items()}
        return {
            tag.removeprefix(LAYER): float(values[-1])
            for tag, (_, values) in self.of(run).items()
            if tag.startswith(LAYER)
        }


def spaced(rows: Sequence[Configuration], most: int) -> list[Configuration]:
    """Take no more than so many rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _thin(curve: Curve) -> Curve:
    """Keep every so-manieth point and the last; the first wins where a step comes twice."""
    steps, places = np.unique(curve[0], return_index=True)
    values = curve[1][places]
    if len(steps) <= MOST_POINTS:
        return steps, values
    kept = np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int))
    return steps[kept], values[kept]


def _steps_an_epoch(run: Run) -> float:
    """Return 1 where that is not known: the axis is one of steps then."""
    steps, epochs = run.summary.get("steps"), run.summary.get("epochs")
    return steps / epochs if steps and epochs else 1.0


def over_epochs(scene: Scene, histories: Histories) -> Picture | None:
    """Draw curves over epochs, as means over runs of a row."""
    columns, left_out = _columns(scene)
    bands = {
        (row, tag): band
        for rows in columns.values()
        for row in rows
        for tag in TAGS
        if (band := histories.band(row, tag)) is not None and len(band.mean) > 1
    }
    tags = [tag for tag in TAGS if any(tag == found for _, found in bands)]
    if not tags:
        return None
    width = max(WIDTH * min(1.0, len(columns) / 3), 1.6 * len(columns), 3.2)
    figure = Figure(figsize=(width, 1.25 * len(tags) + 1.1), layout="constrained")
    grid: Any = figure.subplots(len(tags), len(columns), sharex=True, sharey="row", squeeze=False)
    for across, (penalty, rows) in enumerate(columns.items()):
        shades = _shades(scene, rows)
        for down, tag in enumerate(tags):
            axes = grid[down][across]
            for row in rows:
                if (row, tag) in bands:
                    _line(axes, bands[row, tag], shades[row], scene.line(row))
            if tag == "objective/total":
                _log_where_wide(axes, [b for (_, t), b in bands.items() if t == tag])
        grid[0][across].set_title(penalty)
        _name_lines(grid[-1][across], scene, rows, shades)
    for down, tag in enumerate(tags):
        grid[down][0].set_ylabel(TAGS[tag])
    figure.align_ylabels()
    caption = (
        f"Means over {scene.table.repeats}, the band one standard deviation to each side; the "
        "darker a line, the stronger the penalty. Rows are numbered as in the table."
    )
    return Picture("curves", "How training went", f"{caption} {left_out}".strip(), figure)


def _columns(scene: Scene) -> tuple[dict[str, list[Configuration]], str]:
    every = {p: [row for row in scene.table.rows if row.penalty == p] for p in scene.penalties}
    shown = {p: spaced(every[p], MOST_LINES) for p in scene.penalties[:MOST_PENALTIES]}
    said = []
    if len(every) > len(shown):
        said.append(f"Left out: {', '.join(scene.penalties[MOST_PENALTIES:])}.")
    thinned = [p for p in shown if len(every[p]) > len(shown[p])]
    if thinned:
        counts = ", ".join(f"{len(shown[p])} of {len(every[p])} of {p}" for p in thinned)
        said.append(f"Drawn are, evenly chosen: {counts}.")
    return shown, " ".join(said)


def _shades(scene: Scene, rows: Sequence[Configuration]) -> dict[Configuration, Any]:
    """Give each strength its depth, by rank."""
    lams = sorted({row.lam for row in rows})
    depths = np.linspace(0, 1, len(lams)) if len(lams) > 1 else [0.6]
    depth = dict(zip(lams, depths, strict=True))
    return {row: tint(scene.colour(row.penalty), float(depth[row.lam])) for row in rows}


def _line(axes: Any, band: Any, colour: Any, line: str) -> None:
    axes.plot(band.epochs, band.mean, color=colour, linestyle=line, linewidth=1.1)
    low, high = band.mean - band.deviation, band.mean + band.deviation
    axes.fill_between(band.epochs, low, high, color=colour, alpha=0.13, linewidth=0)


def _log_where_wide(axes: Any, bands: Sequence[Any]) -> None:
    """Put objectives that span decades, as those of strong penalties do, on a log axis."""
    values = np.concatenate([band.mean for band in bands])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")


def _name_lines(
    axes: Any, scene: Scene, rows: Sequence[Configuration], shades: dict[Configuration, Any]
) -> None:
    axes.set_xlabel("epoch")
    for row in rows:
        label = f"lam={scene.short_name(row)}"
        axes.plot([], [], color=shades[row], linestyle=scene.line(row), label=label)
    columns = 2 if len(rows) > 3 and len(scene.others) == 1 else 1
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.42),
        ncols=columns,
        fontsize=7,
        handlelength=1.2,
        columnspacing=0.8,
        borderpad=0,
    )


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
    axes.imshow(tint_shares(grid, unknown=PALE), aspect="auto")
    scale = ScalarMappable(SHARES, SHADES)
    figure.colorbar(scale, ax=axes, label="density", ticks=[0, 0.05, 0.2, 0.5, 1], pad=0.01)
    _name(axes, scene, list(found), names)
    if len(found) <= MOST_NUMBERS:
        _numbers(axes, grid)
    caption = (
        "Share of each layer's weights that are not zero at the end, as a mean over "
        f"{scene.table.repeats}; white where none is left, grey where a configuration does not "
        "penalise the layer. Rows are numbered as in the table."
    )
    title = "Density of each layer"
    return Picture("layers", title, f"{caption} {left_out}".strip(), figure)


def _name(axes: Any, scene: Scene, rows: Sequence[Configuration], names: Sequence[str]) -> None:
    """Write layers on the left, strengths below and each penalty once, above its columns."""
    axes.set_yticks(range(len(names)), short_names(names), fontsize=7)
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
            else {"ha": "left", "rotation": 40}
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


def _left_out(scene: Scene, rows: Sequence[Configuration], names: Sequence[str]) -> str:
    said = []
    if len(rows) < len(scene.table.rows):
        said.append(f"{len(rows)} of {len(scene.table.rows)} configurations, evenly chosen.")
    if len(names) > MOST_LAYERS:
        said.append(f"The first {MOST_LAYERS} of {len(names)} layers.")
    return " ".join(said)
