"""The picture of how training went: small multiples, a column for each penalty."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from regkit.sweeps.report.histories import Histories, spaced
from regkit.sweeps.report.style import WIDTH, Picture, Scene, tint
from regkit.sweeps.report.table import Configuration

TAGS = {
    "val/acc": "accuracy\n(validation)",
    "density/total": "density",
    "density/live_groups": "live groups",
    "objective/total": "objective",
    "val/roughness": "temporal\nroughness",
}
MOST_PENALTIES, MOST_LINES = 6, 8  # columns, and lines in a panel, that an eye can keep apart


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
    """Choose what is and say what is not."""
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
